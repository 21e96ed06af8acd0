"""``python -m benchmarks.report``."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.report import decode, pictures, runs, study, training
from benchmarks.report.compare import comparison
from benchmarks.report.markdown import insert
from benchmarks.report.reading import newest, run_of
from crossmae.files import replacing
from crossmae_kernels.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Turn the records of a folder into tables and pictures, or compare them with another's.

    Returns 1 if anything became slower.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=main.__doc__,
        epilog="Example: python -m benchmarks.report bench",
    )
    parser.add_argument(
        "folder", type=Path, help="where decode.json of `make bench` or records.json of `make gpu` lies"
    )
    parser.add_argument("--against", type=Path, metavar="BEFORE", help="compare with the records of an earlier commit")
    parser.add_argument(
        "--readme",
        type=Path,
        help="put all tables, also those of other records there, into this file, and pictures into docs/",
    )
    options = parser.parse_args(argv)
    folder = options.folder
    if options.against:
        text, slower = comparison(run_of(options.against), run_of(folder))
        print(text)
        return int(bool(slower))
    if (folder / records.FILE).is_file():
        run = records.read(folder)
        drawn = []
        if importlib.util.find_spec("matplotlib") is None:
            print("No pictures: they need matplotlib")
        else:
            drawn = pictures.draw(run, folder)
        shown = [f"![{path.stem}]({path.name})\n" for path in drawn]
        _write(folder / "report.md", "\n".join([runs.tables(run), *shown]))
        return 0
    contenders, where = decode.read(folder / "decode.json")
    text = decode.table(contenders, where)
    if options.readme:
        insert(options.readme, "decode", text)
        insert(options.readme, "demo", (folder / "demo.md").read_text("utf-8"))
        insert(options.readme, "training", training.table(folder / "training.json"))
        studied = json.loads((folder / "study.json").read_text("utf-8"))
        insert(options.readme, "study", study.table(studied))
        study.draw(studied, options.readme.parent / "docs" / "study.png")
        insert(options.readme, "gpu", _of_gpu(folder, options.readme.parent))
        decode.draw(contenders, where, options.readme.parent / "docs" / "decode.png")
        return 0
    # The decoders' own table says more than that of their suite.
    others = run_of(folder / "decode.json")
    others.records = {key: record for key, record in others.records.items() if record.suite != "decode"}
    _write(folder / "decode.md", f"{text}\n{runs.suites(others)}")
    decode.draw(contenders, where, folder / "decode.png")
    print(f"Picture: {folder}/decode.png")
    return 0


def _of_gpu(results: Path, root: Path) -> str:
    folder = newest(results)
    if folder is None:
        return "Nothing is measured yet.\n"
    return runs.digest(records.read(folder), folder.resolve().relative_to(root.resolve()).as_posix())


def _write(path: Path, text: str) -> None:
    print(text)
    with replacing(path) as beside:
        beside.write_text(text, "utf-8")
    print(f"Table: {path}")


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.report", main))
