"""What ``crossmae bench`` compares: decoders or whole training steps, by whom, and by which way to run them."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from crossmae.masking import mask_counts
from crossmae.model.config import Config

Part = Literal["decoder", "step"]
Formulation = Literal["ours", "kernels", "reference", "release"]
Execution = Literal["eager", "compiled", "max-autotune", "graph"]

DECODERS = {"crossmae": "CrossMAE", "mae": "MAE"}


@dataclass(frozen=True)
class Setting:
    """What to compare, and on what inputs and device.

    Attributes:
        crossmae: needs inter-block attention if the release's formulation is compared.
        mae: the baseline.
        part: "decoder" alone on random feature maps, or a whole training "step": encoder, decoder, loss, AdamW.
        prediction_ratios: for CrossMAE, fractions of all patches.
        depths: numbers of decoder blocks for CrossMAE; the model's own if empty.
        mask_ratio: of both.
        batch: number of images.
        dtype: of products, by autocast unless float32.
        device: to measure on.
        formulations: "ours" is this package as it runs here, "kernels" its Triton kernels without a fallback,
            "reference" its operations in plain PyTorch, "release" the formulation of CrossMAE's release.
        executions: eager, compiled by ``torch.compile``, compiled with ``max-autotune`` (and on a GPU replayed from a
            CUDA graph), or replayed from a CUDA graph.
        rounds: how often to time each.
    """

    crossmae: Config
    mae: Config
    part: Part = "decoder"
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
        if self.device.type == "meta":
            raise ValueError("device meta computes nothing, so there is nothing to time; use cpu or cuda")
        if "graph" in self.executions and self.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device, got {self.device}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device} cannot be used here: {error}") from None

    def dtype_of_maps(self, config: Config) -> torch.dtype:
        """As an encoder hands them out: float32 under autocast too, unless ``config.residual`` is autocast's."""
        return self.dtype if config.residual == "autocast" else torch.float32


@dataclass(frozen=True)
class Entrant:
    """One decoder, or the model around it, in one formulation and execution."""

    config: Config
    prediction_ratio: float
    formulation: Formulation
    execution: Execution

    @property
    def decoder(self) -> str:
        """Its name."""
        return DECODERS[str(self.config.decoder)]

    @property
    def means(self) -> str:
        """Formulation and execution as text."""
        return self.formulation if self.execution == "eager" else f"{self.formulation}, {self.execution}"

    @property
    def name(self) -> str:
        """The full description as text."""
        predicts = "" if self.decoder == "MAE" else f", predicts {self.prediction_ratio:g}"
        return f"{self.decoder}, {self.means}, {self.config.decoder_depth} blocks{predicts}"


def entrants(setting: Setting) -> list[Entrant]:
    """The contenders: MAE in each formulation and execution needed as a baseline, then CrossMAE."""
    deep = setting.depths or (setting.crossmae.decoder_depth,)
    configs = [replace(setting.crossmae, decoder_depth=depth) for depth in deep]
    plain = dict.fromkeys(of_mae(formulation) for formulation in setting.formulations)
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


def of_mae(formulation: Formulation) -> Formulation:
    """MAE's formulation beside CrossMAE's: the release's MAE is plain PyTorch."""
    return "reference" if formulation == "release" else formulation
