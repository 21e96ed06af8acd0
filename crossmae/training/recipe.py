"""The settings of a run, typed; YAML files and the command line fill them in."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from crossmae.masking import MaskShape
from crossmae.model.config import Config, named_config
from crossmae.training.data.config import DataConfig

Precision = Literal["auto", "bfloat16", "float16", "float32", "float64"]
Execution = Literal["auto", "eager", "compile", "graphs"]
Strategy = Literal["auto", "ddp", "fsdp"]
Ratio = float | tuple[float, float]

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet-1k, for plans of runs whose images are not there yet."""

RECIPES = Path(__file__).parent / "recipes"
RECIPE = "recipe.json"
"""The file name of a run's own recipe, in its folder."""


@dataclass(frozen=True)
class TrainingRecipe:
    """Settings that determine the result of a run, for any task.

    Args:
        data: the images.
        epochs: passes over the images.
        steps: length in optimizer steps instead of epochs.
        batch_size: images per optimizer step, over all devices and micro-batches.
        micro_batch: most images that a device processes at a time; gradients are accumulated if needed.
        base_learning_rate: peak for 256 images. A run's peak is this x batch size / 256.
        learning_rate: the peak itself, instead of the base.
        warmup: fraction of the run over which the learning rate rises from 0 to its peak.
        weight_decay: AdamW's, for all parameters except biases and norms.
        betas: AdamW's.
        clip_norm: largest norm of the gradient; larger gradients are scaled down to it.
        precision: bfloat16 and float16 are autocast with float32 parameters; float16 scales its loss. ``auto`` is
            bfloat16 on an accelerator; on a CPU it measures bfloat16 and float32 and takes the faster.
        execution: ``eager``, ``compile`` (torch.compile) or ``graphs`` (torch.compile with CUDA graphs). ``auto`` is
            graphs on a single NVIDIA GPU, which would otherwise wait for launches, and eager anywhere else.
        seed: for initialization, order, augmentation and all other randomness.
    """

    data: DataConfig = field(default_factory=DataConfig)
    epochs: float = 800
    steps: int | None = None
    batch_size: int = 4096
    micro_batch: int | None = None
    base_learning_rate: float = 1.5e-4
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = None
    precision: Precision = "bfloat16"
    execution: Execution = "eager"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse invalid settings, naming every one."""
        if wrong := self._wrong():
            raise ValueError("recipe: " + "; ".join(wrong))

    def _wrong(self) -> list[str]:
        wrong = []
        for name in (
            "epochs",
            "batch_size",
            "steps",
            "micro_batch",
            "learning_rate",
            "base_learning_rate",
            "clip_norm",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                wrong.append(f"{name} must be positive, got {value}")
        if not 0 <= self.seed < 2**63:
            wrong.append(f"seed must lie in [0, 2**63), got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            wrong.append(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.warmup < 1:
            wrong.append(f"warmup must be a fraction of the run in [0, 1), got {self.warmup}")
        if not 0 <= self.weight_decay < math.inf:
            wrong.append(f"weight_decay must not be negative, got {self.weight_decay}")
        for name, kind in (("precision", Precision), ("execution", Execution)):
            if getattr(self, name) not in get_args(kind):
                wrong.append(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        return wrong

    def to_json(self) -> str:
        """The content of a file for ``--recipe``."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    """Everything the result of pretraining depends on.

    A ratio given as a pair changes linearly from the first value to the second over the run, epoch by epoch.

    Args:
        model: name of the model; see ``crossmae.list_models``.
        image_size: side of square images in pixels, or height and width; by default the model's own.
        model_options: any other field of ``crossmae.Config``, such as ``decoder_depth``.
        init: a checkpoint whose encoder the model starts from, see ``crossmae.load_encoder``; the decoder is new.
        masking: shape of the masks (MAE, table 1f): ``random`` hides random patches; ``grid`` all but the first of each
            square of 2 x 2 patches (a mask ratio of .75) or larger; ``block`` one rectangle at a random place;
            ``cells`` random squares of 4 x 4 patches (Pixio); ``furthest`` hides like ``random`` and predicts patches
            that are far apart (PR-MIM).
        mask_ratio: fraction of patches hidden from the encoder.
        prediction_ratio: fraction of all patches to predict; by default ``mask_ratio`` for MAE, else 0.25.
        base_learning_rate: peak for 256 images with all masked patches predicted. A run's peak is this
            x prediction ratio / mask ratio x batch size / 256 (CrossMAE, appendix A).
    """

    model: str = "crossmae_vit_base_patch16"
    image_size: int | tuple[int, int] | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    masking: MaskShape = "random"
    mask_ratio: Ratio = 0.75
    prediction_ratio: Ratio | None = None

    def _wrong(self) -> list[str]:
        wrong = []
        for name in ("mask_ratio", "prediction_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not all(0 < between(ratio, end) < 1 for end in (0, 1)):
                wrong.append(f"{name} must lie in (0, 1), got {ratio}")
        if self.masking not in get_args(MaskShape):
            wrong.append(f"masking must be one of {', '.join(get_args(MaskShape))}, got {self.masking!r}")
        if self.masking == "grid" and between(self.mask_ratio, 0) != between(self.mask_ratio, 1):
            wrong.append(f"mask_ratio must be constant with masking grid, got {self.mask_ratio}")
        return wrong + super()._wrong()

    def config(self) -> Config:
        """The model's configuration, with the pixel statistics of the data."""
        options = {f"pixel_{name}": getattr(self.data, name) for name in ("mean", "std", "numbers", "nodata")}
        return named_config(self.model, self.image_size, **{**options, **self.model_options})


# Settings that may change when a run resumes in its folder: how long it is, and how and where it runs.
_MAY_CHANGE = ("epochs", "steps", "micro_batch", "execution", "data.workers", "data.evaluation")
# Compared through the resulting configuration, which every checkpoint holds.
_OF_THE_MODEL = ("model", "image_size", "model_options")


def changes(recipe: TrainingRecipe, written: Path) -> tuple[list[str], list[str]]:
    """Differences from a recipe on disk: those that forbid resuming the run, and those that do not.

    Settings that did not exist when the file was written do not count; without a file there are no differences.

    Raises:
        ValueError: if the file is not a recipe.
    """
    if not written.is_file():
        return [], []
    try:
        # Before there was a choice, all masks were random.
        theirs = {"masking": "random", **_by_name(json.loads(written.read_text("utf-8")))}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{written} is not a recipe: {error}") from error
    ours = _by_name(json.loads(recipe.to_json()))
    told = {
        name: f"{name} {json.dumps(theirs[name])}, here {json.dumps(value)}"
        for name, value in ours.items()
        if name in theirs and name not in _OF_THE_MODEL and theirs[name] != value
    }
    return [text for name, text in told.items() if name not in _MAY_CHANGE], [
        text for name, text in told.items() if name in _MAY_CHANGE
    ]


def _by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data as ``data.name``."""
    rest = {name: value for name, value in settings.items() if name != "data"}
    return {**rest, **{f"data.{name}": value for name, value in settings.get("data", {}).items()}}


def between(ratio: Ratio, share: float) -> float:
    """The value of a ratio after a fraction of the run."""
    first, last = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    return first + share * (last - first)


@dataclass(frozen=True)
class Options:
    """Where to write a run, on which devices to run it and what to report; none of it changes the result.

    Args:
        out: folder of the run; created if missing.
        resume: ``auto`` resumes from the folder's newest good checkpoint, ``never`` refuses a folder that has any; or
            the folder of another run's checkpoint, to start from as long as this run has none.
        strategy: ``ddp`` copies the model to every device, ``fsdp`` shards it (FSDP2).
        devices: number of devices on this host; by default all, or one process on a CPU.
        dry_run: print the plan and exit.
        strict: stop at the first unreadable image, instead of logging its name and taking the next one.
        log_every: steps between readings of the loss.
        save_every: epochs between checkpoints.
        keep_last: how many of the newest checkpoints to keep, besides the best.
        keep_every: epochs between checkpoints to keep permanently; none by default.
        pictures_every: epochs between pictures.
    """

    out: str = "run"
    resume: str = "auto"
    strategy: Strategy = "auto"
    devices: int | None = None
    dry_run: bool = False
    strict: bool = False
    log_every: int = 20
    save_every: float = 1
    keep_last: int = 2
    keep_every: float | None = None
    pictures_every: float = 20

    def __post_init__(self) -> None:
        """Refuse intervals and counts that are not positive."""
        wrong = [
            f"{one.name} must be positive, got {value}"
            for one in fields(self)
            if type(value := getattr(self, one.name)) in (int, float) and not 0 < value < math.inf
        ]
        if wrong:
            raise ValueError("run: " + "; ".join(wrong))


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of a pretraining run.

    Args:
        probe_every: epochs between evaluations of the features by kNN and a linear probe, if images have labels.
        probe_images: most images in a probe's training set and in its test set.
        pictures_every: epochs between pictures of reconstructions and mixing weights.
    """

    out: str = "pretraining"
    probe_every: float = 20
    probe_images: int = 5000


def read_recipes(names: list[str]) -> dict[str, Any]:
    """Settings of recipes given by name or as YAML or JSON files; later ones override earlier ones.

    Raises:
        FileNotFoundError: if a name is neither a recipe nor a file; lists all recipes.
        ValueError: if a file has no settings.
    """
    import yaml

    settings: dict[str, Any] = {}
    for name in names:
        path = RECIPES / f"{name}.yaml" if (RECIPES / f"{name}.yaml").is_file() else Path(name)
        if not path.is_file():
            there_are = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
            raise FileNotFoundError(f"there is no recipe or file {name!r}; recipes are {there_are}")
        try:
            read = yaml.safe_load(path.read_bytes())  # bytes, so that YAML detects the encoding
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not a YAML file: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"{path} must hold settings by name, got {type(read).__name__}")
        settings = _merged(settings, read)
    return settings


def _merged(settings: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Settings overridden by later ones, merging nested settings too."""
    merged = dict(settings)
    for name, value in later.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
