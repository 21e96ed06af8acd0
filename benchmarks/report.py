"""From records to tables and pictures: ``python -m benchmarks.report FOLDER``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import records, studies, tables
from benchmarks.predictions import decoder
from crossmae.benchmark import comparison, report
from crossmae.benchmark.decode import Row
from crossmae.benchmark.machine import where
from crossmae.diagrams import draw_architecture, draw_decoders
from crossmae.files import replacing
from crossmae.model.config import named_config
from crossmae_kernels.command import run_command

NOTHING = "Nothing is measured yet.\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Turn the records of a folder into tables and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=main.__doc__,
        epilog="Example: python -m benchmarks.report bench",
    )
    parser.add_argument("folder", type=Path, help="where `make bench` or `make gpu` left its records")
    parser.add_argument("--page", type=Path, help="put tables into this page instead, and pictures beside it")
    options = parser.parse_args(argv)
    if options.page:
        fill(options.page, options.folder)
        return
    run = records.read(options.folder)
    text = tables.report(run)
    for part in ("decode", "step"):  # of `crossmae bench`
        if (file := options.folder / part / "decode.json").is_file():
            text += f"\n### {part}\n\n{report.text(comparison.read(file))}"
    print(text)
    _write(options.folder / "report.md", text)
    draw_decoding(run, options.folder / "decode.png")


def draw_decoding(run: records.Run, path: Path) -> bool:
    """Ratio of times against ratio of MACs, of the decoders that a run measured; False if there are none."""
    found = run.comparisons("decode")
    rows: list[Row] = [row for one in found for row in one.rows if one.about["batch"] == found[0].about["batch"]]
    if not any(row.fewer and row.both_speedup for row in rows):
        return False
    report.draw(rows, found[0].title, path, "kernels, graph")
    return True


def fill(page: Path, folder: Path) -> None:
    """Every table of a page, from the records in a folder."""
    docs = page.parent
    decoders = comparison.read(folder / "decode.json")
    insert(page, "decode", report.text(decoders))
    report.draw(decoders.rows, decoders.title, docs / "decode.png")
    draw_diagrams(docs)
    insert(page, "release", against_the_release(map(comparison.read, (folder / "release").glob("*.json"))))
    insert(page, "demo", (folder / "demo.md").read_text("utf-8"))
    insert(page, "training", training_table(folder / "training.json"))
    for name, study in studies.STUDIES.items():
        record = json.loads((folder / f"{name}.json").read_text("utf-8"))
        insert(page, name, study.table(record))
        study.draw(record, docs / f"{name}.png")
    insert(page, "gpu", newest_of_gpus(folder, docs) or NOTHING)
    insert(page, "predicted", decoder.before_measurements())


def against_the_release(comparisons: Iterable[comparison.Comparison]) -> str:
    """Ours beside the release's formulation and MAE, a line for each part, batch, dtype and execution, as Markdown."""
    headers = ["part", "batch", "dtype", "execution", "ours, ms", "release, ms"]
    headers += ["over the release", "over MAE", "by MACs", "share of the roofline"]
    lines: list[list[str]] = []
    titles: dict[str, None] = {}
    for one in sorted(comparisons, key=lambda one: (one.about["part"], one.about["dtype"], one.about["batch"])):
        titles[f"{one.about['model']}, forward and backward; {where(one.about)}"] = None
        rows = {(row.decoder, row.means): row for row in one.rows}
        for execution in dict.fromkeys(means.partition(", ")[2] for _, means in rows):
            after = f", {execution}" if execution else ""
            ours, release = rows["CrossMAE", f"ours{after}"], rows["CrossMAE", f"release{after}"]
            if ours.both and release.both and ours.both_speedup and ours.fewer and ours.least:
                lines.append(
                    [
                        one.about["part"],
                        str(one.about["batch"]),
                        one.about["dtype"],
                        execution or "eager",
                        f"{ours.both * 1e3:,.0f}",
                        f"{release.both * 1e3:,.0f}",
                        f"{release.both / ours.both:.2f}",
                        f"{ours.both_speedup:.2f}",
                        f"{ours.fewer:.2f}",
                        f"{ours.least / ours.both:.0%}",
                    ]
                )
    return "\n\n".join(["; ".join(titles), report.markdown(headers, lines)]) + "\n"


def draw_diagrams(docs: Path) -> None:
    """What ViT-B's decoders decode of a photograph of scikit-image, and how CrossMAE's is made."""
    from skimage.data import astronaut

    crossmae, mae = named_config("crossmae_vit_base_patch16"), named_config("mae_vit_base_patch16")
    pixels = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 255
    image = F.interpolate(pixels, crossmae.image_size, mode="bilinear", antialias=True)[0]
    draw_decoders(image, crossmae, mae, docs / "decoders.png")
    draw_architecture(crossmae, docs / "architecture.png")


def training_table(path: Path) -> str:
    """Images per second of the loader alone and in the loop, and the loop's own time for a step, as Markdown."""
    content = json.loads(path.read_text("utf-8"))
    found = {record["name"]: record["extra_info"] for record in content["benchmarks"]}

    def rate(name: str) -> str:
        return f"{found[name]['images per second']:,.0f}" if name in found else ""

    headers = ["workers", "loader alone, images per s", "loop without a model, images per s"]
    rows = [[str(n), rate(f"test_loader[{n}]"), rate(f"test_loop_and_loader[{n}]")] for n in (1, 2)]
    machine = content["machine_info"]["cpu"]
    about = found["test_loader[1]"]
    return (
        f"JPEGs of 500 x 375 pixels and {about['KB per image']:.0f} KB, cropped at random to 224; batch 64; "
        f"{machine['brand_raw']}, {machine['count']} cores; torch {about['torch']}; "
        f"commit {content['commit_info']['id'][:10]}; {content['datetime'][:10]}\n\n"
        f"{report.markdown(headers, rows)}\n\n"
        f"With batches at hand the loop itself takes {found['test_step_of_the_loop']['milliseconds per step']:.2f} ms "
        "a step: the order of images, the optimizer of one parameter, losses read back, log and curves.\n"
    )


def newest_of_gpus(results: Path, docs: Path) -> str:
    """Goals, kernels and picture of the latest run on a GPU in the folders below; empty if there is none."""
    runs = [(records.read(file.parent), file.parent) for file in results.glob(f"*/{records.FILE}")]
    of_gpus = [(run.machine["date"], run, folder) for run, folder in runs if run.machine.get("cuda")]
    if not of_gpus:
        return ""
    _, run, folder = max(of_gpus, key=lambda found: found[0])
    there = Path(os.path.relpath(folder, docs)).as_posix()
    found = "\n".join([tables.goals_table(run), tables.kernels_table(run)]).rstrip()
    whole = f"All of it: [{there}/report.md]({there}/report.md)."
    return f"{found}\n\n{whole}\n\n![Speed-up of decoding against its arithmetic]({there}/decode.png)\n"


def insert(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: ... -->`` and ``<!-- /name -->``."""
    old = page.read_text("utf-8")
    new, places = re.subn(
        rf"(<!-- {name}:.*?-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text}{m[2]}", old, flags=re.S
    )
    if places != 1:
        raise ValueError(f"{page} must have one place for {name!r}, has {places}")
    _write(page, new)


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.report", main))
