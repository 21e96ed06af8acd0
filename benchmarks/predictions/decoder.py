"""Kernels of ViT-B's decoder, each predicted from its machine code, beside what a GPU measured of the same pass.

``python -m benchmarks.predictions.decoder`` predicts anew what ``decoder.json`` keeps, in some five minutes.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contest import MASK_RATIO, PREDICTION_RATIO
from benchmarks.decoders import problem_of
from benchmarks.records import Run
from crossmae.benchmark.report import markdown
from crossmae.commands.tune import SETTINGS
from crossmae.model.config import named_config
from crossmae.planning.hosts import HOSTS
from crossmae_kernels.command import run_command

KEPT = Path(__file__).parent / "decoder.json"
MODEL, BATCH = "crossmae_vit_base_patch16", 1024
GPUS = {"h100": "H100", "h200": "H200", "a100": "A100"}
LIBRARIES = "PyTorch's and libraries'"

Kernels = Mapping[str, Mapping[str, Any]]
"""Launches, milliseconds of all of them and what limits the longest, by name; ``LIBRARIES`` are one of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Predict every kernel of a forward and a backward pass, on each GPU and with each setting."""
    argparse.ArgumentParser(prog="python -m benchmarks.predictions.decoder", description=main.__doc__).parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
    KEPT.write_text(json.dumps({device: dict(predicted(device)) for device in GPUS}, indent=1) + "\n", "utf-8")


def predicted(device: str) -> Iterator[tuple[str, Kernels]]:
    """Each problem of the suite ``kernels`` with its kernels, the longest first."""
    from crossmae.planning.step import predict_step, together
    from crossmae_kernels.audit.devices import DEVICES

    for settings in SETTINGS:
        config = replace(named_config(MODEL), **settings)
        parts = predict_step(config, DEVICES[device], BATCH, mask_ratio=MASK_RATIO, prediction_ratio=PREDICTION_RATIO)
        found: dict[str, list[Any]] = {}
        for kernel in (kernel for part in parts if "decoder" in part.stage for kernel in part.kernels):
            found.setdefault(kernel.name if kernel.method == "machine code" else LIBRARIES, []).append(kernel)
        kernels = sorted(((name, together(same)) for name, same in found.items()), key=lambda one: -one[1].microseconds)
        yield (
            problem_of("decoder", MODEL, config, BATCH),
            {
                name: {"launches": all_of_it.calls, "ms": all_of_it.microseconds / 1e3, "limiter": all_of_it.limiter}
                for name, all_of_it in kernels
            },
        )


def kept() -> dict[str, dict[str, Kernels]]:
    """What ``main`` wrote, by GPU and problem."""
    found: dict[str, dict[str, Kernels]] = json.loads(KEPT.read_text("utf-8"))
    return found


def before_measurements() -> str:
    """Sums for every GPU and setting, and the kernels of a recipe's decoder on an H100, as Markdown."""
    known = kept()
    problems = list(known["h100"])
    sums = [[problem, *(f"{_sum(known[device][problem]):.1f}" for device in GPUS)] for problem in problems]
    headers = ["forward + backward, bfloat16", *(f"{name}, ms" for name in GPUS.values())]
    rows = [_about(name, kernel) for name, kernel in known["h100"][problems[-1]].items()]
    kernels = markdown(["kernel, on an H100", "launches", "ms predicted", "limited by"], rows)
    return f"{markdown(headers, sums)}\n\nThe last of these, kernel by kernel:\n\n{kernels}\n"


def beside(run: Run) -> str:
    """Each kernel's predicted time beside its measured one, and both sums, of every problem that a run measured.

    Empty where that is none that was predicted for the run's GPU.
    """
    device = next((name for name, host in HOSTS.items() if run.machine.get("device") in host.names), "")
    known = kept().get(device, {})
    found = [record for record in run.records.values() if record.suite == "kernels" and record.found]
    texts = [
        _compared(record.problem, known[record.problem], record.found) for record in found if record.problem in known
    ]
    return "\n".join(texts)


def _compared(problem: str, kernels: Kernels, measured: Mapping[str, tuple[int, float]]) -> str:
    """``measured`` has launches and seconds by name; those that were not predicted by name are a library's."""
    ours = {name: measured[name] for name in kernels if name in measured}
    others = [of for name, of in measured.items() if name not in ours]
    ours[LIBRARIES] = sum(launches for launches, _ in others), sum(seconds for _, seconds in others)
    rows = []
    for name, kernel in kernels.items():
        launches, seconds = ours.get(name, (0, 0.0))
        rows.append([*_about(name, kernel), *_outcome(launches, seconds, kernel["ms"])])
    launches, seconds = (sum(column) for column in zip(*measured.values(), strict=True))
    total = sum(kernel["launches"] for kernel in kernels.values()), f"{_sum(kernels):.2f}", ""
    rows.append(["all", *total, *_outcome(launches, seconds, _sum(kernels))])
    headers = ["kernel", "launches", "ms predicted", "limited by", "launches measured", "ms measured"]
    return f"{problem}\n\n{markdown([*headers, 'measured / predicted'], rows)}\n"


def _about(name: str, kernel: Mapping[str, Any]) -> list[Any]:
    return [name.removesuffix("_kernel"), kernel["launches"], f"{kernel['ms']:.2f}", kernel["limiter"]]


def _outcome(launches: int, seconds: float, milliseconds: float) -> list[Any]:
    return [launches, f"{seconds * 1e3:.2f}", f"{seconds * 1e3 / milliseconds:.2f}"] if launches else ["", "", ""]


def _sum(kernels: Kernels) -> float:
    return float(sum(kernel["ms"] for kernel in kernels.values()))


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions.decoder", main))
