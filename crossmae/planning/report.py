"""A plan in words: a table of both models, and what it takes for granted."""

from collections.abc import Callable, Sequence

from tabulate import tabulate

from crossmae.planning.collectives import REACHED
from crossmae.planning.cost import ISSUE, OVERHEAD, SLACK, Cost, interval
from crossmae.planning.hosts import HOSTS
from crossmae.training.plan import GIB
from crossmae_kernels.audit.ceilings import PRODUCT_SHARE
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import SPREAD

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))


def in_words(found: Sequence[Cost]) -> str:
    """The table, a row for each quantity, and the assumptions, a line for each."""
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
        ("GPU-hours", lambda c: "{:,.0f} ({:,.0f} to {:,.0f})".format(c.gpu_hours, *interval(c.gpu_hours))),
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
    table = tabulate(
        [[name, *map(value, found)] for name, value in rows], names, tablefmt="simple", disable_numparse=True
    )
    lines = "\n".join(f"- {line}" for line in [*warnings(found), *assumptions(first)])
    return f"{head}\n\n{table}\n\n{lines}"


def warnings(found: Sequence[Cost]) -> list[str]:
    """Where the table is not what will happen."""
    lines = []
    for cost in found:
        name, passes = cost.plan.recipe.model, cost.forward + cost.backward
        if cost.issuing > passes:
            calls = sum(part.calls for part in cost.parts)
            lines.append(
                f"{name}: eager Python needs some {time(cost.issuing)} to issue the {calls:,} operators of a "
                f"micro-batch, longer than the GPU works on them ({time(passes)}); larger micro-batches or "
                "--execution compile come near the time above"
            )
        if cost.estimated:
            of = ", ".join(dict.fromkeys(part.operation for part in cost.estimated))
            lines.append(f"{name}: no machine code could be predicted, ceilings stand for it: {of}")
        if cost.plan.ratios(0) != cost.plan.ratios(cost.plan.steps - 1):
            lines.append(f"{name}: ratios change over the run; every step is taken to be like the first")
    return lines


def assumptions(cost: Cost) -> list[str]:
    """What the table takes for granted."""
    fleet, host, device = cost.fleet, HOSTS[cost.fleet.device], DEVICES[cost.fleet.device]
    ring = fleet.ring
    across = f", {ring.network:g} GB/s each to other hosts" if fleet.hosts > 1 else ""
    return [
        f"times lie within ±{SPREAD:.0%}, as on kernels that others timed (docs/predictions.md)",
        f"kernels of this package are predicted from their machine code; products of libraries reach {PRODUCT_SHARE:.0%}"
        f" and copies {device.bandwidth_share:.0%} of the device's rates; launches follow each other as in a CUDA graph",
        f"links: {ring.link:g} GB/s each way inside a host{across}, of which collectives reach {REACHED:.0%}; "
        "sending hides behind computing but for the last bucket (DDP) or the first and last part (FSDP2)",
        "images are loaded in time; evaluation, checkpoints and starting are not counted",
        f"memory: a GPU has {host.memory:g} GiB; {OVERHEAD / GIB:g} for CUDA and libraries and {SLACK:.0%} for the "
        "allocator are added to what the backward pass needs",
        f"eager Python is taken to issue an operator in {ISSUE * 1e6:.0f} us",
    ]


def time(seconds: float) -> str:
    """Three digits in the unit that suits."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def _interval(seconds: float) -> str:
    low, high = interval(seconds)
    return f"{time(seconds)} ({time(low)} to {time(high)})"


def _decoder(cost: Cost) -> str:
    mask_ratio, prediction_ratio = cost.plan.ratios(0)
    return f"{cost.plan.config.decoder_depth} blocks, predicts {prediction_ratio:g} of {mask_ratio:g} masked"


def _exchange(cost: Cost, strategy: str) -> str:
    if cost.fleet.gpus == 1:
        return "-"
    exchange = cost.data_parallel if strategy == "ddp" else cost.sharded
    return f"{time(exchange.total)}, {time(exchange.exposed)} not hidden"


def _memory(cost: Cost, strategy: str) -> str:
    memory = cost.memory_of(strategy)
    return f"{memory.total / GIB:.1f} GiB: state {memory.state / GIB:.1f}, kept {memory.kept / GIB:.1f}"


def _of_a_host(cost: Cost) -> float:
    return cost.images_per_second / cost.fleet.hosts
