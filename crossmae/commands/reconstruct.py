"""``crossmae reconstruct``: draw a model's reconstructions of the masked part of images."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae.commands.loading import load_aloud
from crossmae.figures import draw_mixing_weights, draw_reconstructions
from crossmae.files import require_folder_of
from crossmae.masking import MaskShape, draw_masking, noise_length
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.decoders import CrossMAEDecoder
from crossmae.reconstruction import Statistics, reconstruction_columns
from crossmae.training.data.augmentation import centred
from crossmae.training.data.decoding import read
from crossmae.training.data.statistics import FAR_OFF, MEAN_OFF

# The releases' models were trained with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@torch.no_grad()
def run(
    images: list[str],
    checkpoint: str,
    masking: MaskShape,
    mask_ratio: float,
    seed: int,
    out: str,
    statistics: Statistics,
    mixing: str | None,
    blocks: bool,
    norm_pix_loss: bool,
    load_options: dict[str, Any],
) -> None:
    """Mask, reconstruct, draw and report; takes the arguments of ``crossmae.commands.cli.reconstruct``."""
    for picture in (out, mixing):
        if picture is not None:
            require_folder_of(picture)
    missing = [path for path in images if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"there is no image {', '.join(missing)}")
    if norm_pix_loss and not load_options.get("norm_pix_loss", True):
        raise ValueError("--norm_pix_loss and --load_options.norm_pix_loss false contradict each other")
    model = _loaded(checkpoint, {**load_options, **({"norm_pix_loss": True} if norm_pix_loss else {})})
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    count = noise_length(masking, config.patches)
    maskings = [
        draw_masking(masking, config.grid, mask_ratio, mask_ratio, torch.rand(1, count, generator=generator))
        for _ in images
    ]
    pixels = [_read(path, config) for path in images]
    if mixing is not None:
        _draw_mixing(model, checkpoint, mixing)

    rows = []
    for path, raw, mask in zip(images, pixels, maskings, strict=True):
        image = model.normalized(raw)
        _tell_if_unlike(path, image)
        output = model(image, masking=mask)
        hidden = mask.predicted_ids.shape[1]
        print(f"{path}: loss {output.loss:.4f} on the {hidden} masked patches of {config.patches}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about true statistics, which are reported below
            rows.append(reconstruction_columns(model, image, output, statistics, blocks))
    draw_reconstructions({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, out)
    print(_provenance(config, statistics))
    print(f"Picture: {out}")
    if mixing is not None:
        print(f"Mixing weights: {mixing}")


def _loaded(checkpoint: str, options: dict[str, Any]) -> MaskedAutoencoder:
    """The model of a checkpoint, with ImageNet's pixel statistics if it has three channels and none of its own."""
    model = load_aloud(checkpoint, options).eval()
    if model.config.decoder is None:
        raise ValueError(f"{checkpoint} holds no decoder, so it cannot reconstruct; use a file with one")
    if model.config.pixel_mean is None:
        if model.config.channels != 3:
            raise ValueError(
                f"{checkpoint} stores no pixel statistics for its {model.config.channels} channels; without them only "
                "3-channel images can be read, with ImageNet's statistics"
            )
        print(f"{checkpoint} stores no pixel statistics; using ImageNet's.")
        if not model.config.normalize_targets:
            print("If it was trained on normalised pixels, which not every checkpoint says, pass --norm_pix_loss.")
        model.config = replace(model.config, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
        model.register_pixel_statistics()
    return model


def _draw_mixing(model: MaskedAutoencoder, checkpoint: str, path: str) -> None:
    mixing = model.decoder.mixing if isinstance(model.decoder, CrossMAEDecoder) else None
    if mixing is None or model.config.feature_maps is None:
        raise ValueError(f"the model of {checkpoint} mixes no feature maps, so there are no weights to draw")
    draw_mixing_weights(mixing.weight, model.config.feature_maps, path)


def _read(path: str, config: Config) -> Tensor:
    """An image prepared as in training, resized and centre-cropped to the model's size: ``(1, C, H, W)``."""
    nodata = None if config.pixel_nodata is None else float(config.pixel_nodata)
    picture = read(Path(path), path, config.channels, config.image_size, nodata)
    image = picture.tensor(config.channels, torch.float32, config.pixel_numbers, config.pixel_mean)
    if config.pixel_numbers is None and picture.full != 255:
        taken = "as they are" if picture.full is None else f"as shares of {picture.full:,}"
        print(
            f"{path} holds {picture.values.dtype} from {picture.values.min():,.6g} to {picture.values.max():,.6g}, "
            f"taken {taken}; the checkpoint does not say what numbers its model was trained on."
        )
    low, high = image.aminmax()
    return centred(image, config.image_size).clamp(low, high)[None]  # bicubic resizing overshoots at edges


def _tell_if_unlike(path: str, image: Tensor) -> None:
    """Warn if a normalised image ``(1, C, H, W)`` is far outside the range of training images."""
    for channel, (std, mean) in enumerate(zip(*torch.std_mean(image[0], (1, 2), correction=0), strict=True)):
        if abs(mean) > MEAN_OFF or std > FAR_OFF:
            print(
                f"{path} is unlike the images that the model was trained on: channel {channel}, normalised, has mean "
                f"{mean:.3g} and deviation {std:.3g}; the whole data set's were 0 and 1."
            )
            return


def _provenance(config: Config, statistics: Statistics) -> str:
    """Which parts of the reconstructions are not the model's own."""
    sentences = []
    if config.normalize_targets and statistics == "visible":
        sentences.append(
            "The model was trained on normalised pixels and predicts a patch only up to brightness and contrast; "
            "both are interpolated from the visible patches, so nothing hidden is used."
        )
    elif config.normalize_targets:
        sentences.append(
            "The model was trained on normalised pixels and predicts a patch only up to brightness and contrast; "
            "both are the hidden patch's own (--statistics true), which leaks it: the picture flatters the model."
        )
    else:
        sentences.append("The model was trained on plain pixels: brightness and contrast are its own prediction.")
    if config.channels == 2:
        sentences.append("Only the first of 2 channels is drawn.")
    elif config.channels > 3:
        sentences.append(f"Only the first three of {config.channels} channels are drawn, as red, green and blue.")
    return "\n".join(sentences)
