"""Check CrossMAE's and MAE's decoders, then time them in turn, beside counts of their arithmetic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crossmae.benchmark.ceilings import Ceilings
from crossmae.benchmark.checking import Judge
from crossmae.benchmark.posing import Compiler, Inputs, Posed
from crossmae.benchmark.release import SYNCHRONIZES
from crossmae.benchmark.setting import Entrant, Setting, entrants, of_mae
from crossmae.flops import decoder_macs, encoder_macs
from crossmae.graphs import captured
from crossmae.masking import mask_counts
from crossmae.measure import bytes_saved_for_backward, interleaved_times, peak_memory
from crossmae.model.config import Config

FORWARD, BOTH = "forward", "forward + backward"
AGREEMENT = 1.5  # of the slowest round's time over the fastest one's

Pass = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Results for one entrant: counts per image, seconds per batch, speed-ups over MAE in the same execution."""

    decoder: str
    means: str
    blocks: int
    predicts: float
    macs: float
    """MACs of a forward pass, in closed form."""
    fewer: float | None = None
    """MAE's MACs divided by these."""
    counted: float | None = None
    """MACs by PyTorch's FLOP counter."""
    least: float | None = None
    """Seconds of a forward and a backward pass by the roofline."""
    forward: float | None = None
    both: float | None = None
    """Seconds of a forward and a backward pass, and of AdamW in a step."""
    forward_speedup: float | None = None
    both_speedup: float | None = None
    saved: float | None = None
    """Bytes per image that autograd saves for the backward pass."""
    memory: float | None = None
    """Most bytes per image that a forward and a backward pass allocate on a GPU beyond what was there."""
    failure: str = ""
    """Why it was not timed."""

    @property
    def name(self) -> str:
        """Decoder, formulation and execution."""
        return f"{self.decoder}, {self.means}"


def measure(
    setting: Setting, ceilings: Ceilings | None = None, tell: Callable[[str], object] = lambda line: None
) -> list[Row]:
    """Build, count, check and time all entrants; a failure is reported in the entrant's row.

    Args:
        setting: the entrants and their inputs. From 64 images on, feature maps alone overflow the cache of a GPU.
        ceilings: of the device, in the setting's dtype; the roofline's time is left out without them.
        tell: called with a line at every step: what is being built, and which round is timed.
    """
    found = entrants(setting)
    inputs = Inputs(setting)
    judges: dict[tuple[Config, float], Judge] = {}  # one at a time: it holds results of a whole batch
    rows: dict[Entrant, Row] = {}
    calls: dict[str, Pass] = {}
    # Entrants share code, and by default the compiler keeps only eight graphs per function.
    compiles = {"compiled", "max-autotune"} & {*setting.executions}
    with torch._dynamo.config.patch(recompile_limit=8 * len(found)) if compiles else nullcontext():
        for place, entrant in enumerate(sorted(found, key=_computes), start=1):
            tell(f"{place} of {len(found)}, preparing {entrant.name}")
            rows[entrant] = _counted(entrant, setting, ceilings)
            try:
                posed = inputs.posed(entrant)
                if (problem := (entrant.config, entrant.prediction_ratio)) not in judges:
                    judges.clear()
                    judges[problem] = posed.judge()
                rows[entrant], passes = _ready(rows[entrant], entrant, setting, posed, judges[problem])
            except RuntimeError as error:
                rows[entrant] = replace(rows[entrant], failure=" ".join(str(error).split())[:300])
                continue
            calls |= {f"{entrant.name}, {direction}": run for direction, run in passes.items()}
        judges.clear()

        def progress(name: str, turn: int) -> None:
            tell(f"round {turn} of {setting.rounds}, {name}" if turn else f"warm-up, {name}")

        times = interleaved_times(calls, setting.rounds, progress)
    _tell_of_disagreement(times, tell)
    return list(_compared(found, rows, {name: median(rounds) for name, rounds in times.items()}))


def _tell_of_disagreement(times: Mapping[str, Sequence[float]], tell: Callable[[str], object]) -> None:
    """Medians of a few rounds hide what other work on the machine did to one entrant and not to the next."""
    spread = {name: max(rounds) / min(rounds) for name, rounds in times.items()}
    apart = [name for name, ratio in spread.items() if ratio > AGREEMENT]
    if apart:
        worst = max(apart, key=lambda name: spread[name])
        tell(
            f"warning: rounds of {len(apart)} of {len(times)} timings differ by more than {AGREEMENT} times, "
            f"of {worst} by {spread[worst]:.1f}: other work on this machine? Repeat when it is idle, or raise --rounds"
        )


def _computes(entrant: Entrant) -> tuple[str, int, float]:
    """Equal for those who compute the same."""
    return entrant.decoder, entrant.config.decoder_depth, entrant.prediction_ratio


def _counted(entrant: Entrant, setting: Setting, ceilings: Ceilings | None) -> Row:
    """The row's closed-form part."""
    config, ratio = entrant.config, entrant.prediction_ratio

    def macs(config: Config, ratio: float) -> int:
        encoder = encoder_macs(config, setting.mask_ratio) if setting.part == "step" else 0
        return encoder + decoder_macs(config, ratio, setting.mask_ratio)

    mine, mae = macs(config, ratio), macs(setting.mae, setting.mask_ratio)
    row = Row(entrant.decoder, entrant.means, config.decoder_depth, ratio, mine, mae / mine)
    if ceilings is None:
        return row
    # The backward pass multiplies twice as much, and reads and writes twice as much. Images and pixels are few bytes.
    visible, predicted = mask_counts(config.patches, setting.mask_ratio, ratio)
    maps = (visible + config.class_tokens) * config.encoder_width * len(config.feature_maps or (None,))
    moved = setting.dtype_of_maps(config).itemsize * maps + 4 * predicted * config.patch_values
    moved = moved if setting.part == "decoder" else 0
    return replace(row, least=ceilings.least(3 * setting.batch * moved, 6 * setting.batch * mine))


def _ready(row: Row, entrant: Entrant, setting: Setting, posed: Posed, judge: Judge) -> tuple[Row, dict[str, Pass]]:
    """A row with counts, and the passes to time by direction, which were checked and have already run.

    Of what is autotuned no forward pass alone: without gradients it would be compiled once more, a minute on a GPU.
    """
    if (entrant.formulation, entrant.execution) == ("release", "graph"):
        raise RuntimeError(f"it cannot be captured in a CUDA graph: it {SYNCHRONIZES}")
    plain = posed.by(entrant.formulation)
    call = posed.by(entrant.formulation, _compiler(entrant))
    with FlopCounterMode(display=False) as counter:
        saved = bytes_saved_for_backward(plain, posed.module)
    row = replace(row, counted=counter.get_total_flops() / 2 / setting.batch)
    if entrant.execution == "eager":
        row = replace(row, saved=saved / setting.batch)
    optimizer = _adamw(posed.module) if setting.part == "step" else None

    def both() -> tuple[Tensor, tuple[Tensor, ...]]:
        out, gradients = posed.gradients(call)
        if optimizer is not None:
            for leaf, gradient in zip(posed.leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
        return out, gradients

    passes: dict[str, Pass] = {BOTH: both}
    if entrant.execution != "max-autotune":
        passes[FORWARD] = torch.no_grad()(call)
    if setting.device.type == "cuda":
        both()  # whatever is compiled, or allocated once
        row = replace(row, memory=peak_memory(both) / setting.batch)
    autotuned = entrant.execution == "max-autotune" and setting.device.type == "cuda"
    in_graph = entrant.execution == "graph" or (autotuned and entrant.formulation != "release")
    if not in_graph:
        judge.require(posed.results(*both()))
        if FORWARD in passes:
            passes[FORWARD]()
        return row, passes
    graph, found = captured(both)
    graph.replay()
    judge.require(posed.results(*found))
    return row, {name: graph.replay if name == BOTH else captured(run)[0].replay for name, run in passes.items()}


def _compiler(entrant: Entrant) -> Compiler:
    """Without graphs of its own: these copy their inputs at every replay."""
    if entrant.execution == "compiled":
        return partial(torch.compile, dynamic=False)
    if entrant.execution == "max-autotune":
        return partial(torch.compile, dynamic=False, mode="max-autotune-no-cudagraphs")
    return lambda function: function


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    """With a learning rate of 0, so that weights are the same in every round; it computes what it always does."""
    on_cuda = next(module.parameters()).is_cuda
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), fused=on_cuda, capturable=on_cuda)


def _compared(found: list[Entrant], rows: dict[Entrant, Row], seconds: dict[str, float]) -> Iterator[Row]:
    """Rows with times, and speed-ups over MAE in the same execution."""
    for entrant in found:
        mae = next(e for e in found if (e.formulation, e.execution) == (of_mae(entrant.formulation), entrant.execution))
        forward, both, forward_of_mae, both_of_mae = (
            seconds.get(f"{who.name}, {direction}") for who in (entrant, mae) for direction in (FORWARD, BOTH)
        )
        yield replace(
            rows[entrant],
            forward=forward,
            both=both,
            forward_speedup=forward_of_mae / forward if forward and forward_of_mae else None,
            both_speedup=both_of_mae / both if both and both_of_mae else None,
        )
