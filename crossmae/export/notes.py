"""Notes and refusals that exports to different libraries share."""

from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config

LAYER_NORM_EPS = 1e-6
"""The epsilon of MAE, CrossMAE, timm and torchvision."""


def of_encoders(model: MaskedAutoencoder, no_decoder: str) -> list[str]:
    """Notes on any encoder exported without its decoder; ``no_decoder`` is the reason."""
    said = [images(model.config)]
    if model.config.decoder is not None:
        said.append(f"the decoder is left out: {no_decoder}")
    if not model.config.embeds_class and model.encoder.positions[:, : model.config.class_tokens].any():
        said.append("the class token's position embedding is zero, as the model adds none")
    return said


def images(config: Config) -> str:
    """A sentence on how images are normalised."""
    if config.pixel_mean is None:
        return "the model does not store how its images are normalised"
    what = "raw values" if config.pixel_numbers == "values" else "pixels scaled to [0, 1]"
    return f"images are {what}, normalised with mean {config.pixel_mean} and standard deviation {config.pixel_std}"


def refuse(library: str, unfit: dict[str, bool]) -> None:
    """Raise ValueError, naming everything about the model that the library does not support."""
    if wrong := [what for what, is_so in unfit.items() if is_so]:
        raise ValueError(f"this model cannot be exported to {library}: {'; '.join(wrong)}")
