"""A plan in words: a table of both models, what it takes for granted, and how far its prediction is."""

import sys
from collections.abc import Callable, Sequence

from tabulate import tabulate

from crossmae.planning.collectives import REACHED
from crossmae.planning.cost import ISSUE, OVERHEAD, RUNS, SLACK, Cost, interval
from crossmae.planning.fleet import Sharding
from crossmae.planning.hosts import HOSTS
from crossmae.training.plan import GIB
from crossmae_kernels.audit.ceilings import PRODUCT_SHARE
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import SPREAD

LOADED = 480
"""JPEGs of 500 x 375 pixels that a CPU core reads and crops in a second (docs/benchmarks.md)."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))


def in_words(found: Sequence[Cost]) -> str:
    """The table, and what it takes for granted, a line for each."""
    lines = "\n".join(f"- {line}" for line in [*warnings(found), *assumptions(found)])
    return f"{table(found)}\n\n{lines}"


def table(found: Sequence[Cost]) -> str:
    """A row for each quantity and a column for each model, below a line for the run and one for the fleet."""
    rows: list[tuple[str, Callable[[Cost], str]]] = [
        ("decoder", _decoder),
        ("parameters", lambda c: f"{c.parameters / 1e6:,.1f} M"),
        ("images on each GPU", lambda c: f"{c.plan.accumulation} x {c.plan.micro_batch:,}"),
        ("forward, a micro-batch", lambda c: time(c.forward)),
        ("backward, a micro-batch", lambda c: time(c.backward)),
        ("AdamW, a step", lambda c: time(c.optimizer)),
        ("DDP, sent in a step", lambda c: _exchange(c, "ddp")),
        ("FSDP2, sent in a step", lambda c: _exchange(c, "fsdp")),
        ("step", lambda c: _interval(c.step)),
        ("epoch", lambda c: _interval(c.epoch)),
        ("run", lambda c: _interval(c.run)),
        ("GPU-hours", lambda c: "{} ({} to {})".format(*map(_digits, (c.gpu_hours, *interval(c.gpu_hours))))),
        ("images a second", lambda c: f"{c.images_per_second:,.0f}, each host {_of_a_host(c):,.0f}"),
        ("MFU", lambda c: f"{c.utilization:.0%}"),
        ("memory of a GPU, DDP", lambda c: _memory(c, "ddp")),
        ("memory of a GPU, FSDP2", lambda c: _memory(c, "fsdp")),
    ]
    first = found[0]
    plan, fleet = first.plan, first.fleet
    head = (
        f"{plan.images:,} images, batch {plan.recipe.batch_size:,}, {plan.steps:,} steps = "
        f"{plan.steps / plan.steps_per_epoch:,.4g} epochs of {plan.steps_per_epoch:,}; {plan.recipe.precision}\n"
        f"{fleet.gpus} x {fleet.device} on {fleet.hosts} host(s), {fleet.strategy}"
    )
    names = ["predicted, nothing is measured", *(cost.plan.recipe.model for cost in found)]
    cells = [[name, *map(value, found)] for name, value in rows]
    return f"{head}\n\n{tabulate(cells, names, tablefmt='simple', disable_numparse=True)}"


def warnings(found: Sequence[Cost]) -> list[str]:
    """Where the table is not what will happen."""
    lines = []
    for cost in found:
        name, passes = cost.plan.recipe.model, cost.forward + cost.backward
        if cost.issuing > passes:
            lines.append(
                f"{name}: eager Python needs some {time(cost.issuing)} to issue a micro-batch's operators, longer than "
                f"the GPU's {time(passes)}; larger micro-batches, or compilation, come near the times above"
            )
        if not cost.one.machine_code:
            lines.append(f"{name}: no kernel could be predicted from machine code (crossmae audit says why), and all "
                         "times are what the device's ceilings allow at best")  # fmt: skip
        if cost.plan.ratios(0) != cost.plan.ratios(cost.plan.steps - 1):
            lines.append(f"{name}: ratios change over the run, and every step is taken to be like the first")
    return lines


def assumptions(found: Sequence[Cost]) -> list[str]:
    """What the table takes for granted."""
    fleet = found[0].fleet
    host, device, ring = HOSTS[fleet.device], DEVICES[fleet.device], fleet.ring
    across = f", {ring.network:g} GB/s to other hosts for each GPU" if fleet.hosts > 1 else ""
    shares = " and ".join(f"{cost.one.machine_code:.0%}" for cost in found)
    cores = max(cost.images_per_second for cost in found) / fleet.hosts / LOADED
    return [
        f"intervals go from {1 / (1 + SPREAD) - 1:.0%} to +{SPREAD:.0%}, which held for kernels that others timed "
        "(docs/predictions.md); whole runs are another matter: the paper's epochs took "
        f"{RUNS:.2g} times what is predicted of them (docs/planning.md)",
        f"{shares} of the passes' time is from machine code, the rest from the device's ceilings, of which a library's "
        f"products reach {PRODUCT_SHARE:.0%} and copies {device.bandwidth_share:.0%}",
        "launches follow each other as in a CUDA graph; eager Python is taken to issue an operator in "
        f"{ISSUE * 1e6:.0f} us",
        f"links: {ring.link:g} GB/s each way inside a host{across}, of which collectives reach {REACHED:.0%}; sending "
        "hides behind computing but for the last bucket (DDP) or the first and last part (FSDP2)",
        f"images are loaded in time, for which a host needs some {cores:,.0f} CPU cores ({LOADED} JPEGs a second each)",
        "evaluation, checkpoints and starting are not counted",
        f"memory: a GPU has {host.memory:g} GiB; {OVERHEAD / GIB:g} for CUDA and libraries are added, and {SLACK:.0%} "
        "for the allocator to what the backward pass needs",
    ]


def time(seconds: float) -> str:
    """Three digits in the unit that suits."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def say(model: str, done: int, of: int) -> None:
    """How far the prediction is, in place on a terminal; elsewhere a line when it begins."""
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r{model}: {done} of {of} kernels predicted", end=end, file=sys.stderr, flush=True)
    elif done == 1:
        print(f"{model}: predicting {of} kernels", file=sys.stderr, flush=True)


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _interval(seconds: float) -> str:
    low, high = interval(seconds)
    return f"{time(seconds)} ({time(low)} to {time(high)})"


def _decoder(cost: Cost) -> str:
    mask_ratio, prediction_ratio = cost.plan.ratios(0)
    return f"{cost.plan.config.decoder_depth} blocks, predicts {prediction_ratio:g} of {mask_ratio:g} masked"


def _exchange(cost: Cost, strategy: Sharding) -> str:
    if cost.fleet.gpus == 1:
        return "-"
    exchange = cost.data_parallel if strategy == "ddp" else cost.sharded
    return f"{time(exchange.total)}, {time(exchange.exposed)} not hidden"


def _memory(cost: Cost, strategy: Sharding) -> str:
    memory = cost.memory(strategy)
    return f"{memory.total / GIB:.1f} GiB: state {memory.state / GIB:.1f}, kept {memory.kept / GIB:.1f}"


def _of_a_host(cost: Cost) -> float:
    return cost.images_per_second / cost.fleet.hosts
