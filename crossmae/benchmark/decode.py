"""Time CrossMAE's and MAE's decoders in turn on random feature maps, beside counts of their arithmetic."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crossmae.benchmark.release import SYNCHRONIZES, release_decode
from crossmae.flops import decoder_macs
from crossmae.graphs import captured
from crossmae.masking import Masking, mask_counts, random_masking
from crossmae.measure import bytes_saved_for_backward, interleaved_medians
from crossmae.model.config import Config
from crossmae.model.decoders import CrossMAEDecoder, MAEDecoder
from crossmae_kernels.environment import Implementation
from crossmae_kernels.runtime.dispatch import default_implementation

Formulation = Literal["ours", "reference", "release"]
Execution = Literal["eager", "compiled", "graph"]

# The implementation of this package's operations; the release's formulation calls none of them.
SERVED_BY: dict[Formulation, Implementation] = {"ours": "auto", "reference": "reference", "release": "reference"}
DECODERS = {"crossmae": "CrossMAE", "mae": "MAE"}


@dataclass(frozen=True)
class Setting:
    """What to compare, and on what inputs and device.

    Attributes:
        crossmae: needs inter-block attention if the release's formulation is compared.
        mae: the baseline.
        prediction_ratios: for CrossMAE, fractions of all patches.
        depths: numbers of decoder blocks for CrossMAE; the model's own if empty.
        mask_ratio: of both.
        batch: number of images.
        dtype: of products, by autocast unless float32.
        device: to measure on.
        formulations: "ours" is this package as it runs here, "reference" its operations in plain PyTorch, "release" the
            formulation of CrossMAE's release.
        executions: eager, compiled by ``torch.compile``, or replayed from a CUDA graph.
        rounds: how often to time each.
    """

    crossmae: Config
    mae: Config
    prediction_ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    depths: tuple[int, ...] = ()
    mask_ratio: float = 0.75
    batch: int = 8
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    formulations: tuple[Formulation, ...] = ("ours",)
    executions: tuple[Execution, ...] = ("eager",)
    rounds: int = 5

    def __post_init__(self) -> None:
        """Refuse settings that cannot be measured, before anything is built."""
        if min(self.batch, self.rounds) < 1:
            raise ValueError(f"batch and rounds must be positive, got {self.batch} and {self.rounds}")
        for entrant in entrants(self):
            mask_counts(entrant.config.patches, self.mask_ratio, entrant.prediction_ratio)
        maps, attends = self.crossmae.feature_maps, self.crossmae.decoder_self_attention
        if "release" in self.formulations and (maps is None or attends):
            raise ValueError("the release's formulation needs inter-block attention and no decoder self-attention")
        if "graph" in self.executions and self.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device, got {self.device}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device} cannot be used here: {error}") from None


@dataclass(frozen=True)
class Entrant:
    """One decoder in one formulation and execution."""

    config: Config
    prediction_ratio: float
    formulation: Formulation
    execution: Execution

    @property
    def means(self) -> str:
        """Formulation and execution as text."""
        return self.formulation if self.execution == "eager" else f"{self.formulation}, {self.execution}"

    @property
    def name(self) -> str:
        """The full description as text."""
        decoder = DECODERS[str(self.config.decoder)]
        predicts = "" if decoder == "MAE" else f", predicts {self.prediction_ratio:g}"
        return f"{decoder}, {self.means}, {self.config.decoder_depth} blocks{predicts}"


@dataclass(frozen=True)
class Row:
    """Results for one decoder: counts per image, seconds per batch, speed-ups over MAE in the same execution."""

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
    forward: float | None = None
    both: float | None = None
    """Seconds of a forward and a backward pass."""
    forward_speedup: float | None = None
    both_speedup: float | None = None
    saved: float | None = None
    """Bytes per image that autograd saves for the backward pass."""
    failure: str = ""
    """Why it was not timed."""

    @property
    def name(self) -> str:
        """Decoder, formulation and execution."""
        return f"{self.decoder}, {self.means}" if self.means else self.decoder


def entrants(setting: Setting) -> list[Entrant]:
    """The contenders: MAE in each formulation and execution needed as a baseline, then CrossMAE."""
    deep = setting.depths or (setting.crossmae.decoder_depth,)
    configs = [replace(setting.crossmae, decoder_depth=depth) for depth in deep]
    plain = dict.fromkeys(_of_mae(formulation) for formulation in setting.formulations)
    baselines = [
        Entrant(setting.mae, setting.mask_ratio, formulation, execution)
        for execution in setting.executions
        for formulation in plain
    ]
    others = [
        Entrant(config, ratio, formulation, execution)
        for execution in setting.executions
        for formulation in setting.formulations
        for config in configs
        for ratio in setting.prediction_ratios
    ]
    return list(dict.fromkeys(baselines + others))


def measure(setting: Setting, tell: Callable[[str], object] = lambda line: None) -> list[Row]:
    """Build, count and time all contenders; a failure is reported in the contender's row.

    ``tell`` is called with a line at every step: what is being built, and which round is timed.
    """
    found = entrants(setting)
    inputs = _Inputs(setting)
    rows: dict[Entrant, Row] = {}
    calls: dict[str, Callable[[], object]] = {}
    # Entrants share code, and by default the compiler keeps only eight graphs per function.
    compiles = "compiled" in setting.executions
    with torch._dynamo.config.patch(recompile_limit=8 * len(found)) if compiles else nullcontext():
        for place, entrant in enumerate(found, start=1):
            tell(f"{place} of {len(found)}, preparing {entrant.name}")
            try:
                rows[entrant], forward, both = _ready(entrant, setting, inputs)
            except RuntimeError as error:
                rows[entrant] = replace(_counted(entrant, setting), failure=" ".join(str(error).split())[:300])
                continue
            calls |= {f"{entrant.name}, forward": forward, f"{entrant.name}, forward + backward": both}

        def progress(name: str, turn: int) -> None:
            tell(f"round {turn} of {setting.rounds}, {name}" if turn else f"warm-up, {name}")

        seconds = interleaved_medians(calls, setting.rounds, progress)
    return list(_compared(found, rows, seconds))


class _Inputs:
    """The decoders and their inputs; decoders with the same input shapes share tensors."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._decoders: dict[Config, CrossMAEDecoder | MAEDecoder] = {}
        self._maps: dict[tuple[int, ...], list[Tensor]] = {}

    def decoder(self, config: Config) -> Any:
        if config not in self._decoders:
            kind = MAEDecoder if config.decoder == "mae" else CrossMAEDecoder
            self._decoders[config] = kind(config).to(self.setting.device)
        return self._decoders[config]

    def masking(self, entrant: Entrant) -> Masking:
        setting = self.setting
        generator = torch.Generator(setting.device).manual_seed(0)
        ratios = setting.mask_ratio, entrant.prediction_ratio
        return random_masking(
            setting.batch, entrant.config.patches, *ratios, device=setting.device, generator=generator
        )

    def maps(self, config: Config, visible: int) -> list[Tensor]:
        """Feature maps in float32, an encoder's output dtype even under autocast."""
        shape = self.setting.batch, visible + config.class_tokens, config.encoder_width
        count = len(config.feature_maps or (None,))
        kept = self._maps.setdefault(shape, [])
        kept += [torch.randn(shape, device=self.setting.device).requires_grad_() for _ in range(count - len(kept))]
        return kept[:count]


def _ready(
    entrant: Entrant, setting: Setting, inputs: _Inputs
) -> tuple[Row, Callable[[], object], Callable[[], object]]:
    """A row with counts, and the passes to time, which have already run once."""
    decoder, masking = inputs.decoder(entrant.config), inputs.masking(entrant)
    maps = inputs.maps(entrant.config, masking.visible_ids.shape[1])
    release = entrant.formulation == "release"
    if release and entrant.execution == "graph":
        raise RuntimeError(f"it cannot be captured in a CUDA graph: it {SYNCHRONIZES}")
    plain: Callable[..., Tensor] = partial(release_decode, decoder) if release else decoder
    decode = torch.compile(plain, dynamic=False) if entrant.execution == "compiled" else plain

    def call(by: Callable[..., Tensor] = decode) -> Tensor:
        with default_implementation(SERVED_BY[entrant.formulation]), _autocast(setting):
            return by(maps, masking)

    with FlopCounterMode(display=False) as counter:
        upstream = torch.randn_like(call(plain).detach())
    row = replace(_counted(entrant, setting), counted=counter.get_total_flops() / 2 / setting.batch)
    if entrant.execution == "eager":
        row = replace(row, saved=bytes_saved_for_backward(call, decoder) / setting.batch)
    leaves = [*maps, *(p for p in decoder.parameters() if p.requires_grad)]

    def both() -> object:
        return torch.autograd.grad(call(), leaves, upstream)

    forward: Callable[[], object] = torch.no_grad()(call)
    if entrant.execution == "graph":
        return row, captured(forward)[0].replay, captured(both)[0].replay
    forward()
    both()
    return row, forward, both


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    if setting.dtype == torch.float32:
        return nullcontext()
    # Autocast's cache of cast weights would outlive a captured graph.
    return torch.autocast(setting.device.type, setting.dtype, cache_enabled=False)


def _counted(entrant: Entrant, setting: Setting) -> Row:
    """The row's closed-form part."""
    config, ratio = entrant.config, entrant.prediction_ratio
    macs, mae = (
        decoder_macs(config, ratio, setting.mask_ratio),
        decoder_macs(setting.mae, mask_ratio=setting.mask_ratio),
    )
    decoder = DECODERS[str(config.decoder)]
    return Row(decoder, entrant.means, config.decoder_depth, ratio, macs, mae / macs)


def _of_mae(formulation: Formulation) -> Formulation:
    """MAE's formulation beside CrossMAE's: the release's MAE is plain PyTorch."""
    return "reference" if formulation == "release" else formulation


def _compared(found: list[Entrant], rows: dict[Entrant, Row], seconds: dict[str, float]) -> Iterator[Row]:
    """Rows with times, and speed-ups over MAE in the same execution."""
    for entrant in found:
        mae = next(
            e for e in found if (e.formulation, e.execution) == (_of_mae(entrant.formulation), entrant.execution)
        )
        forward, both, forward_of_mae, both_of_mae = (
            seconds.get(f"{who.name}, {direction}")
            for who in (entrant, mae)
            for direction in ("forward", "forward + backward")
        )
        yield replace(
            rows[entrant],
            forward=forward,
            both=both,
            forward_speedup=forward_of_mae / forward if forward and forward_of_mae else None,
            both_speedup=both_of_mae / both if both and both_of_mae else None,
        )
