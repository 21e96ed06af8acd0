"""The whole model, from images to loss: encoder, decoder of either family, and what a call returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Never

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import crossmae_kernels as ck
from crossmae.masking import Masking, Rounding, random_masking
from crossmae.model.config import Config, named_config
from crossmae.model.decoders import CrossMAEDecoder, MAEDecoder
from crossmae.model.encoder import Encoder
from crossmae_kernels.runtime.autocast import autocasts


@dataclass(frozen=True)
class Output:
    """What a forward pass returns: the scalar loss, the predicted patches ``(B, Q, P)`` and the mask they belong to."""

    loss: Tensor
    prediction: Tensor
    masking: Masking


_pytree.register_dataclass(Output)


class NoDecoder(nn.Module):
    """Stands in for the decoder in a model that is an encoder alone."""

    def forward(self, *_: object) -> Never:
        """Refuse, saying what to do instead."""
        raise ValueError(
            "this model is an encoder alone and reconstructs nothing: encode(images) gives its features. To train a "
            "decoder on it: new = crossmae.create_model(...); "
            "new.encoder.load_state_dict(model.encoder.state_dict(), strict=False)"
        )

    residuals = pixels = forward


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder with CrossMAE's or MAE's decoder, or an encoder alone, as ``config.decoder`` says."""

    pixel_mean: Tensor | None
    pixel_std: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = _decoder(config)
        self.register_pixel_statistics()

    def register_pixel_statistics(self) -> None:
        """Put the configuration's pixel statistics on the default device.

        They are not part of the state: the configuration tells them, and the releases' state dicts do not hold them.
        """
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self.config, name)
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)

    def forward(
        self,
        images: Tensor,
        mask_ratio: float = 0.75,
        prediction_ratio: float | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        rounding: Rounding = "exact",
        masking: Masking | None = None,
    ) -> Output:
        """Mask, encode, decode, compare.

        Args:
            images: ``(B, C, H, W)``, of the size and channels of the configuration, floating point or, for a model
                that knows its ``pixel_mean`` and ``pixel_std``, uint8.
            mask_ratio: share of patches hidden from the encoder.
            prediction_ratio: share of all patches to predict; 0.25 (at most ``mask_ratio``) for CrossMAE and
                ``mask_ratio`` for MAE unless given.
            noise: ``(B, L)`` that orders the patches; drawn first thing unless given.
            generator: for the noise.
            rounding: see ``mask_counts``.
            masking: a mask of your own instead of a random one; the arguments above are then ignored.
        """
        if isinstance(self.decoder, NoDecoder):
            self.decoder()
        self._check(images)
        if images.shape[0] == 0:
            raise ValueError("images must hold at least one image, got none")
        if masking is None:
            if prediction_ratio is None:
                prediction_ratio = mask_ratio if self.config.decoder == "mae" or mask_ratio < 0.25 else 0.25
            masking = random_masking(
                images.shape[0],
                self.config.patches,
                mask_ratio,
                prediction_ratio,
                noise=noise,
                generator=generator,
                device=images.device,
                rounding=rounding,
            )
        else:
            masking = masking.checked(self.config.patches)
            if masking.visible_ids.shape[0] != images.shape[0]:
                raise ValueError(
                    f"masking must be for {images.shape[0]} images, got one for {masking.visible_ids.shape[0]}"
                )
        mean, std = self._statistics(images)
        prediction = self.decoder(self.encoder(images, masking.visible_ids, mean, std), masking)
        loss = ck.patch_loss(
            prediction,
            images,
            masking.predicted_ids,
            self.config.patch_size,
            self.config.normalize_targets,
            mean,
            std,
        )
        return Output(loss, prediction, masking)

    def encode(self, images: Tensor) -> Tensor:
        """Features of unmasked images ``(B, C, H, W)`` for downstream use: ``(B, L + 1, E)``, class token first."""
        self._check(images)
        return self.encoder.encode(images, *self._statistics(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Raw images ``(B, C, H, W)`` as the model sees them: uint8, or floating point in shares of full scale."""
        if self.pixel_mean is None or self.pixel_std is None:
            return images
        shares = images.to(self.pixel_mean.dtype) / (255 if images.dtype == torch.uint8 else 1)
        return (shares - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]

    def _statistics(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and standard deviation of each channel, float32, for images that are still to be normalised."""
        if images.dtype != torch.uint8 or self.pixel_mean is None or self.pixel_std is None:
            return None, None
        return self.pixel_mean.float(), self.pixel_std.float()

    def _check(self, images: Tensor) -> None:
        """Refuse anything but a batch of images for this model."""
        config = self.config
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        own, autocast = self.encoder.patch_embed.weight.dtype, autocasts(images.device.type)
        normalizes = self.pixel_mean is not None and (own == torch.float32 or autocast)
        if not images.dtype.is_floating_point and not (images.dtype == torch.uint8 and normalizes):
            raise TypeError(
                f"images must be floating point, got {images.dtype}; normalise them first (uint8 images go as they are "
                "into float32 models whose configuration has pixel_mean and pixel_std)"
            )
        if images.dtype not in (own, torch.uint8) and not autocast:
            raise TypeError(f"images must be {own} like the model, got {images.dtype}")
        expected = (config.channels, *config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (batch, channels, height, width) = (batch, {', '.join(map(str, expected))}), "
                f"got {tuple(images.shape)}"
            )


def _decoder(config: Config) -> MAEDecoder | CrossMAEDecoder | NoDecoder:
    if config.decoder is None:
        return NoDecoder()
    return MAEDecoder(config) if config.decoder == "mae" else CrossMAEDecoder(config)


def create_model(name: str, image_size: int | Sequence[int] | None = None, **overrides: Any) -> MaskedAutoencoder:
    """A freshly initialised model by name; see ``list_models`` and, for ``overrides``, ``Config``."""
    return MaskedAutoencoder(named_config(name, image_size, **overrides))
