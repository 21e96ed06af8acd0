"""What every library has to be told about a model, and what it cannot be told."""

from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config

LAYER_NORM_EPS = 1e-6
"""Of MAE, CrossMAE, timm and torchvision."""


def of_encoders(model: MaskedAutoencoder, no_decoder: str) -> list[str]:
    """What is said of every encoder that goes to a library without its decoder, and why it does."""
    said = [images(model.config)]
    if model.config.decoder is not None:
        said.append(f"the decoder is left out: {no_decoder}")
    if not model.config.embeds_class and model.encoder.positions[:, : model.config.class_tokens].any():
        said.append("the class token's row of positions is zero, as the model does not add it")
    return said


def images(config: Config) -> str:
    """A sentence on what images are normalised with."""
    if config.pixel_mean is None:
        return "the model does not tell what its images are normalised with"
    what = "values as they are" if config.pixel_numbers == "values" else "pixels as shares of full scale"
    return f"images are {what}, normalised with mean {config.pixel_mean} and standard deviation {config.pixel_std}"


def refuse(library: str, unfit: dict[str, bool]) -> None:
    """Raise ValueError, naming whatever of the model does not fit the library."""
    if wrong := [what for what, is_so in unfit.items() if is_so]:
        raise ValueError(f"this model cannot be exported to {library}: {'; '.join(wrong)}")
