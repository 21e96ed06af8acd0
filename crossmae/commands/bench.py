"""``crossmae bench``: arithmetic and time of CrossMAE's and MAE's decoders on this machine."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from crossmae.benchmark.decode import Execution, Formulation, Row, Setting, measure
from crossmae.benchmark.machine import machine
from crossmae.benchmark.report import draw, table
from crossmae.files import make_folder, replacing
from crossmae.model.config import crossmae_and_mae
from crossmae_kernels.command import reason
from crossmae_kernels.extras import MissingPackageError


def setting_of(
    model: str,
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
    """Translate the arguments of ``crossmae.commands.cli.bench``."""
    crossmae, mae = crossmae_and_mae(model, image_size)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device must be one of PyTorch's, such as cpu, cuda or cuda:1, got {device!r}") from None
    on_cpu = place.type == "cpu"
    return Setting(
        crossmae,
        mae,
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
    rows = measure(setting, progress)
    progress.done()
    about = {
        "model": model,
        "pixels": list(setting.crossmae.image_size),
        "batch": setting.batch,
        "mask_ratio": setting.mask_ratio,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "rounds": setting.rounds,
        **machine(setting.device),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with replacing(folder / "decode.json") as beside:
        beside.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1), "utf-8")
    title = where(about)
    text = f"{title}\n\n{table(rows)}\n{notes(rows)}"
    print(text)
    with replacing(folder / "decode.md") as beside:
        beside.write_text(text, "utf-8")
    files = [folder / "decode.md", folder / "decode.json"]
    try:
        draw(rows, title, folder / "decode.png")
        files.append(folder / "decode.png")
    except (MissingPackageError, ValueError) as error:
        print(f"crossmae bench: no picture: {reason(error)}", file=sys.stderr)
    print(f"Table, numbers, picture: {', '.join(map(str, files))}")
    return 1 if any(row.failure for row in rows) else 0


def where(about: dict[str, object]) -> str:
    """A line with the settings common to all rows."""
    size = " x ".join(map(str, about["pixels"]))  # type: ignore[call-overload]
    parts = [f"{about['model']}, {size} px, batch {about['batch']}, {about['dtype']}", str(about["device"])]
    parts += ["kernels in Triton's interpreter: times mean nothing"] if about["interpreted"] else []
    parts += [f"{name} {about[name]}" for name in ("driver", "torch", "triton", "cuda") if about[name]]
    return "; ".join([*parts, str(about["date"])[:10]])


def notes(rows: list[Row]) -> str:
    """What the columns mean, and why something was not timed."""
    lines = [
        "",
        "Times are medians per batch, with all decoders timed in turn. Speed-ups are over MAE's decoder in the same "
        'execution, the release\'s over plain PyTorch. GMAC are for a forward pass, in closed form; "counted" is what '
        "PyTorch's FLOP counter saw, where our decoder projects the first block's queries once for all images.",
    ]
    for row in rows:
        if row.failure:
            lines.append(f"- not timed: {row.name}, {row.blocks} blocks, predicts {row.predicts:g}: {row.failure}")
    return "\n".join(lines) + "\n"


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
