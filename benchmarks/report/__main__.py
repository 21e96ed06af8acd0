"""``python -m benchmarks.report``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate

from benchmarks import records
from benchmarks.report import decode, study, tables, transfer
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
    run = records.read(options.folder)
    if options.page:
        fill(options.page, options.folder, run)
        return
    text, decoders = tables.report(run), options.folder / "decode" / "decode.md"
    if decoders.is_file():  # of `crossmae bench`
        text += f"\n### CrossMAE and MAE\n\n{decoders.read_text('utf-8')}"
    print(text)
    _write(options.folder / "report.md", text)
    if decode.decoders(run):
        decode.draw(run, options.folder / "decode.png")


def fill(page: Path, folder: Path, run: records.Run) -> None:
    """Every table of a page, from the records in a folder."""
    docs = page.parent
    insert(page, "decode", decode.table(run))
    decode.draw(run, docs / "decode.png")
    draw_diagrams(docs)
    insert(page, "demo", (folder / "demo.md").read_text("utf-8"))
    insert(page, "training", training_table(folder / "training.json"))
    studied = json.loads((folder / "study.json").read_text("utf-8"))
    insert(page, "study", study.table(studied))
    study.draw(studied, docs / "study.png")
    if (folder / "transfer.json").is_file():
        transferred = json.loads((folder / "transfer.json").read_text("utf-8"))
        picture = "\n![Accuracy on held-out images over the steps of fine-tuning](transfer.png)\n"
        insert(page, "transfer", transfer.table(transferred) + picture)
        transfer.draw(transferred, docs / "transfer.png")
    else:
        insert(page, "transfer", NOTHING)
    newest = newest_of_gpus(folder)
    if newest is None:
        insert(page, "gpu", NOTHING)
    else:
        there = Path(os.path.relpath(newest, docs)).as_posix()
        insert(page, "gpu", tables.digest(records.read(newest), there))


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
        f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n\n"
        f"With batches at hand the loop itself takes {found['test_step_of_the_loop']['milliseconds per step']:.2f} ms "
        "a step: the order of images, the optimizer of one parameter, losses read back, log and curves.\n"
    )


def newest_of_gpus(results: Path) -> Path | None:
    """The folder below with the latest run on a GPU; None if there is none."""
    runs = [(records.read(file.parent).machine, file.parent) for file in results.glob(f"*/{records.FILE}")]
    of_gpus = [(machine["date"], folder) for machine, folder in runs if machine.get("cuda")]
    return max(of_gpus, default=(None, None))[1]


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
