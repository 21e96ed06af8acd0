"""A plan as text: a table of both models, the assumptions behind it, and progress while it is made."""

import sys
from collections.abc import Callable, Sequence

from tabulate import tabulate

from crossmae.planning.collectives import REACHED
from crossmae.planning.cost import ISSUE, OVERHEAD, RUNS, SLACK, Cost, interval, other_hidden_layer
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
    """The table, then warnings and assumptions, one per line."""
    lines = "\n".join(f"- {line}" for line in [*warnings(found), *assumptions(found)])
    return f"{table(found)}\n\n{lines}"


def table(found: Sequence[Cost]) -> str:
    """A row for each quantity and a column for each model, below a line for the run and one for the fleet."""
    rows: list[tuple[str, Callable[[Cost], str]]] = [
        ("decoder", lambda c: f"{c.plan.config.decoder_depth} blocks"),
        ("prediction ratio", _ratios),
        ("parameters", lambda c: f"{c.parameters / 1e6:,.1f} M"),
        ("images per GPU", lambda c: f"{c.plan.accumulation} x {c.plan.micro_batch:,}"),
        ("forward, micro-batch", lambda c: time(c.forward)),
        ("backward, micro-batch", lambda c: time(c.backward)),
        ("hidden layers, per step", _hidden_layers),
        ("AdamW, per step", lambda c: time(c.optimizer)),
        ("DDP communication", lambda c: _exchange(c, "ddp")),
        ("FSDP2 communication", lambda c: _exchange(c, "fsdp")),
        ("step", lambda c: span(c.step)),
        ("epoch", lambda c: span(c.epoch)),
        ("run", lambda c: span(c.run)),
        ("GPU-hours", lambda c: "{} ({} to {})".format(*map(_digits, (c.gpu_hours, *interval(c.gpu_hours))))),
        ("images per second", lambda c: f"{c.images_per_second:,.0f}, per host {_of_a_host(c):,.0f}"),
        ("MFU", lambda c: f"{c.utilization:.0%}"),
        ("memory per GPU, DDP", lambda c: _memory(c, "ddp")),
        ("memory per GPU, FSDP2", lambda c: _memory(c, "fsdp")),
    ]
    first = found[0]
    plan, fleet = first.plan, first.fleet
    head = (
        f"{plan.images:,} images, batch {plan.recipe.batch_size:,}, {plan.steps:,} steps = "
        f"{plan.steps / plan.steps_per_epoch:,.4g} epochs of {plan.steps_per_epoch:,}; {plan.recipe.precision}\n"
        f"{fleet.gpus} x {fleet.device} on {fleet.hosts} host{'s' * (fleet.hosts > 1)}, {fleet.strategy}"
    )
    names = ["predicted, not measured", *(cost.plan.recipe.model for cost in found)]
    cells = [[name, *map(value, found)] for name, value in rows]
    return f"{head}\n\n{tabulate(cells, names, tablefmt='simple', disable_numparse=True)}"


def warnings(found: Sequence[Cost]) -> list[str]:
    """Where the run will differ from the table."""
    lines = []
    for cost in found:
        name, passes = cost.plan.recipe.model, cost.one.passes
        if cost.issuing > passes:
            lines.append(
                f"{name}: eager Python needs about {time(cost.issuing)} to issue a micro-batch's operators, longer "
                f"than the GPU's {time(passes)}; larger micro-batches or compilation come closer to the times above"
            )
        if not cost.one.machine_code:
            lines.append(f"{name}: no kernel could be predicted from machine code (crossmae audit says why); all "
                         "times are the device's ceilings, the best it could do")  # fmt: skip
        if cost.plan.ratios(0) != cost.plan.ratios(cost.plan.steps - 1):
            lines.append(f"{name}: ratios change over the run; every step is assumed to be like the first")
    return lines


def assumptions(found: Sequence[Cost]) -> list[str]:
    """What the table assumes."""
    fleet = found[0].fleet
    host, device, ring = HOSTS[fleet.device], DEVICES[fleet.device], fleet.ring
    across = f", {ring.network:g} GB/s to other hosts for each GPU" if fleet.hosts > 1 else ""
    shares = " and ".join(f"{cost.one.machine_code:.0%}" for cost in found)
    cores = max(cost.images_per_second for cost in found) / fleet.hosts / LOADED
    return [
        f"intervals go from {1 / (1 + SPREAD) - 1:.0%} to +{SPREAD:.0%}, which held for kernels timed by others "
        "(docs/predictions.md) but not for whole runs: the paper's epochs took "
        f"{RUNS:.2g} times their predictions (docs/planning.md)",
        f"{shares} of the passes' time is predicted from machine code, the rest from the device's ceilings, of which "
        f"library matrix products reach {PRODUCT_SHARE:.0%} and copies {device.bandwidth_share:.0%}",
        "launches follow each other as in a CUDA graph; eager mode is assumed to issue an operator in "
        f"{ISSUE * 1e6:.0f} us",
        f"links: {ring.link:g} GB/s each way inside a host{across}, of which collectives reach {REACHED:.0%}; "
        "communication overlaps with computation, except for the last bucket (DDP) or the first and last part (FSDP2)",
        f"images are loaded in time, which takes about {cores:,.0f} CPU cores per host ({LOADED} JPEGs/s each)",
        "evaluation, checkpoints and start-up are not counted",
        f"memory: a GPU has {host.memory:g} GiB; {OVERHEAD / GIB:g} GiB are added for CUDA and libraries, and "
        f"{SLACK:.0%} to the activations for the allocator",
    ]


def time(seconds: float) -> str:
    """Three digits, in the unit that suits."""
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


def span(seconds: float) -> str:
    """A predicted time and its interval, such as 46.7 ms (34.6 to 63.1 ms)."""
    low, high = map(time, interval(seconds))
    number, unit = low.split()
    return f"{time(seconds)} ({number if high.endswith(f' {unit}') else low} to {high})"


def _ratios(cost: Cost) -> str:
    mask_ratio, prediction_ratio = cost.plan.ratios(0)
    return f"{prediction_ratio:g} of {mask_ratio:g} masked"


def _exchange(cost: Cost, strategy: Sharding) -> str:
    if cost.fleet.gpus == 1:
        return "-"
    exchange = cost.data_parallel if strategy == "ddp" else cost.sharded
    return f"{time(exchange.total)}, {time(exchange.exposed)} exposed"


def _hidden_layers(cost: Cost) -> str:
    """The choice for them, and what the other one would add to a step's time and to what each GPU keeps."""
    seconds = cost.plan.accumulation * (cost.passes_otherwise - cost.one.passes)
    added = f"{'-' if seconds < 0 else '+'}{time(abs(seconds))}, {(cost.kept_otherwise - cost.kept) / GIB:+.1f} GiB"
    return f"{cost.plan.config.hidden_layer}; {other_hidden_layer(cost.plan.config)} {added}"


def _memory(cost: Cost, strategy: Sharding) -> str:
    memory = cost.memory(strategy)
    return f"{memory.total / GIB:.1f} GiB, activations {memory.kept / GIB:.1f}"


def _of_a_host(cost: Cost) -> float:
    return cost.images_per_second / cost.fleet.hosts
