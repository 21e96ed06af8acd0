"""Precision ``auto``: the faster of float32 and bfloat16 on this machine, by a short measurement."""

import contextlib
import functools
import json
from pathlib import Path

import torch

from crossmae.measure import interleaved_medians
from crossmae.model import MaskedAutoencoder
from crossmae.training.devices import device_kind
from crossmae.training.plan import PretrainingPlan
from crossmae.training.recipe import Precision

# How much faster a step must be in bfloat16 to be worth giving up float32's digits.
WORTHWHILE = 1.1
# At most so many patches in the images of the measured steps: on one CPU core a tiny model takes half a second,
# ViT-B less than a minute.
PATCHES = 8192
ROUNDS = 3


def settled(plan: PretrainingPlan, written: Path | None = None) -> Precision:
    """The precision of a plan's recipe; ``auto`` is resolved for this machine, and the choice printed.

    A resumed run keeps the precision in its recipe ``written`` on disk, if there is one.

    Raises:
        ValueError: for ``auto`` with several processes on a CPU, whose measurements might disagree.
    """
    named = plan.recipe.precision
    if named != "auto":
        return named
    if written is not None and (begun := _precision_of(written)):
        print(f"Precision: {begun}, as when the run began.")
        return begun
    if device_kind() != "cpu":
        print("Precision: bfloat16, on an accelerator.")
        return "bfloat16"
    if plan.devices > 1:
        raise ValueError(
            f"precision auto is measured by a single process, but there are {plan.devices}; use bfloat16 or float32"
        )
    seconds = _seconds_of_a_step(plan)
    chosen: Precision = "bfloat16" if seconds["float32"] >= WORTHWHILE * seconds["bfloat16"] else "float32"
    times = " and ".join(f"{1e3 * taken:,.0f} ms in {name}" for name, taken in seconds.items())
    print(f"Precision: {chosen}; on this CPU a step takes {times}.")
    return chosen


def _precision_of(written: Path) -> Precision | None:
    """None if there is no valid recipe; resuming a run reports an invalid one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        precision: Precision = json.loads(written.read_text("utf-8"))["precision"]
        return precision
    return None


def _seconds_of_a_step(plan: PretrainingPlan) -> dict[Precision, float]:
    """Time a forward and a backward pass on noise; the states of random generators are restored."""
    config = plan.config
    batch = max(1, min(plan.micro_batch, PATCHES // config.patches))
    with torch.random.fork_rng([]):
        model = MaskedAutoencoder(config)
        images = torch.randn(batch, config.channels, *config.image_size)

        def step(precision: Precision) -> None:
            model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = model(images, *plan.ratios(0)).loss
            loss.backward()

        candidates: tuple[Precision, ...] = ("float32", "bfloat16")
        found = interleaved_medians({name: functools.partial(step, name) for name in candidates}, ROUNDS)
    return {name: found[name] for name in candidates}
