"""A comparison of decoders or steps as it is kept: what was measured, and all that the numbers depend on."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossmae.benchmark.ceilings import ceilings
from crossmae.benchmark.decode import Row, measure
from crossmae.benchmark.machine import machine, where
from crossmae.benchmark.setting import Setting
from crossmae.model.config import Config


@dataclass(frozen=True)
class Comparison:
    """Rows, and what all of them have in common."""

    about: dict[str, Any]
    """``part``, ``model``, ``pixels``, ``batch``, ``mask_ratio``, ``dtype``, ``rounds``, ``date``; and ``machine``.

    Also the model's ``residual`` and ``hidden_layer``, which in older records are left out and were the default.
    """
    rows: list[Row]

    @property
    def title(self) -> str:
        """A line with what all rows have in common."""
        about = self.about
        part = "training step with AdamW, " if about["part"] == "step" else ""
        size = " x ".join(map(str, about["pixels"]))
        usual = {"residual": Config.residual, "hidden_layer": Config.hidden_layer}
        other = [f", {name} {about[name]}" for name in usual if about.get(name, usual[name]) != usual[name]]
        what = f"{part}{about['model']}, {size} px, batch {about['batch']}, {about['dtype']}{''.join(other)}"
        return f"{what}; {where(about)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, and for ``of_dict``."""
        return {"about": self.about, "rows": [asdict(row) for row in self.rows]}


def compare(setting: Setting, model: str, tell: Callable[[str], object] = lambda line: None) -> Comparison:
    """Measure the device's ceilings and everybody; ``model`` names the CrossMAE, ``tell`` is handed the progress."""
    about = {
        "part": setting.part,
        "model": model,
        "pixels": list(setting.crossmae.image_size),
        "batch": setting.batch,
        "mask_ratio": setting.mask_ratio,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "residual": setting.crossmae.residual,
        "hidden_layer": setting.crossmae.hidden_layer,
        "rounds": setting.rounds,
        **machine(setting.device),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    tell("measuring what a copy and a product reach")
    return Comparison(about, measure(setting, ceilings(setting.device, setting.dtype), tell))


def of_dict(content: dict[str, Any]) -> Comparison:
    """The comparison that ``as_dict`` tells of."""
    return Comparison(content["about"], [Row(**row) for row in content["rows"]])


def read(path: Path) -> Comparison:
    """What ``crossmae bench`` left in its ``decode.json``."""
    return of_dict(json.loads(path.read_text("utf-8")))
