"""``crossmae bench``: arithmetic and time of CrossMAE's and MAE's decoders on this machine."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from crossmae.benchmark.comparison import compare
from crossmae.benchmark.report import draw, text
from crossmae.benchmark.setting import Execution, Formulation, Part, Setting
from crossmae.files import make_folder, replacing
from crossmae.model.config import crossmae_and_mae
from crossmae_kernels.command import reason
from crossmae_kernels.extras import MissingPackageError

NOTES = """
Times are medians per batch, with all entrants checked against plain PyTorch and then timed in turn. Speed-ups are over
MAE in the same execution, the release's over plain PyTorch. GMAC are for a forward pass, in closed form; "counted" is
what PyTorch's FLOP counter saw, where our decoder projects the first block's queries once for all images. The roofline
is what a copy and a product reached just before. With max-autotune a forward pass alone is not timed: it would have to
be compiled once more.
"""


def setting_of(
    model: str,
    part: Part,
    image_size: int | None,
    prediction_ratios: Sequence[float],
    depths: Sequence[int],
    mask_ratio: float,
    batch: int | None,
    dtype: str | None,
    device: str | None,
    formulations: Sequence[Formulation],
    executions: Sequence[Execution],
    rounds: int,
) -> Setting:
    """Translate the arguments of ``crossmae.commands.costs.bench``."""
    crossmae, mae = crossmae_and_mae(model, image_size)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device must be one of PyTorch's, such as cpu, cuda or cuda:1, got {device!r}") from None
    on_cpu = place.type == "cpu"
    return Setting(
        crossmae,
        mae,
        part,
        tuple(prediction_ratios),
        tuple(depths),
        mask_ratio,
        (8 if on_cpu else 256) if batch is None else batch,
        getattr(torch, dtype or ("float32" if on_cpu else "bfloat16")),
        place,
        tuple(formulations),
        tuple(executions),
        rounds,
    )


def run(setting: Setting, model: str, out: str) -> int:
    """Measure, print the table and write it to ``out`` with all numbers and a picture; 1 if anything was not timed."""
    folder = Path(out)
    make_folder(folder)
    progress = Progress()
    comparison = compare(setting, model, progress)
    progress.done()
    markdown = text(comparison)
    print(f"{markdown}{NOTES}")
    files = [folder / f"decode.{ending}" for ending in ("md", "json", "png")]
    written = "Table, numbers, picture"
    for file, content in zip(files, (markdown, json.dumps(comparison.as_dict(), indent=1)), strict=False):
        with replacing(file) as beside:
            beside.write_text(content, "utf-8")
    try:
        draw(comparison.rows, comparison.title, files[2])
    except (MissingPackageError, ValueError) as error:
        print(f"crossmae bench: no picture: {reason(error)}", file=sys.stderr)
        del files[2]
        written = "Table and numbers"
    print(f"{written}: {', '.join(map(str, files))}")
    return 1 if any(row.failure for row in comparison.rows) else 0


class Progress:
    """Progress on standard error: one updating line on a terminal, else a line per decoder prepared and per round."""

    def __init__(self) -> None:
        self._began, self._step = time.perf_counter(), ""
        self._in_place = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        """Show the current step and the time since the start."""
        step, text = line.partition(",")[0], f"{time.perf_counter() - self._began:5.0f} s  {line}"
        if self._in_place:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif step != self._step:
            print(text, file=sys.stderr, flush=True)
        self._step = step

    def done(self) -> None:
        """Clear the line."""
        if self._in_place:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
