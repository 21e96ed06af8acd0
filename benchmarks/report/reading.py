"""Records of either kind as one: those of ``benchmarks.gpu`` and those of pytest-benchmark."""

import json
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.records import Record, Run


def newest(results: Path) -> Path | None:
    """The folder below with the latest run on a GPU; None if there is none."""
    runs = [(records.read(file.parent).machine, file.parent) for file in results.glob(f"*/{records.FILE}")]
    of_gpus = [(machine["date"], folder) for machine, folder in runs if machine.get("cuda")]
    return max(of_gpus, default=(None, None))[1]


def run_of(path: Path) -> Run:
    """The run in a folder, or in a JSON file of pytest-benchmark."""
    if (path / records.FILE).is_file():
        return records.read(path)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    contents = [json.loads(file.read_text("utf-8")) for file in files]
    runs = [_of_pytest_benchmark(content) for content in contents if "benchmarks" in content]
    if not runs:
        raise FileNotFoundError(f"there are no records in {path}; run `make bench` or `make gpu`")
    for run in runs[1:]:
        runs[0].put(run.records.values())
    return runs[0]


def _of_pytest_benchmark(content: dict[str, Any]) -> Run:
    first = content["benchmarks"][0]["extra_info"] if content["benchmarks"] else {}
    commit = content["commit_info"]
    run = Run(
        {
            "device": first.get("device", ""),
            "torch": first.get("torch", ""),
            "commit": commit["id"] + ("+changes" if commit.get("dirty") else ""),
            "date": content["datetime"],
        }
    )
    for benchmark in content["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        if "suite" in info:
            # Quartiles stand for the quantiles that pytest-benchmark does not keep.
            times = {"median": stats["median"], "p20": stats["q1"], "p80": stats["q3"], "rounds": stats["rounds"]}
            largest = info.get("largest")
            key = (info[name] for name in ("suite", "problem", "contender", "direction"))
            record = Record(*key)
            record.status, record.date, record.dtype = records.MEASURED, content["datetime"], info["dtype"]
            record.about, record.largest = info["about"], largest
            # A search for the largest batch takes a time that says nothing.
            record.times = {} if largest is not None else {"call": times}
            run.put([record])
    return run
