"""The whole model, from images to loss: encoder, decoder of either family, and the forward pass's output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Never

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import crossmae_kernels as ck
from crossmae.masking import Masking, Rounding, random_masking
from crossmae.model.config import Config, named_config
from crossmae.model.decoders import CrossMAEDecoder, MAEDecoder
from crossmae.model.encoder import Encoder
from crossmae.model.values import pair
from crossmae_kernels.runtime.autocast import autocasts


@dataclass(frozen=True)
class Output:
    """The output of a forward pass: the scalar loss, the predicted patches ``(B, Q, P)`` and their mask."""

    loss: Tensor
    prediction: Tensor
    masking: Masking


_pytree.register_dataclass(Output)


class NoDecoder(nn.Module):
    """Stands in for the decoder in a model that has only an encoder."""

    def forward(self, *_: object) -> Never:
        """Refuse, saying what to do instead."""
        raise ValueError(
            "this model has no decoder and cannot reconstruct: encode(images) returns its features. To train a decoder "
            "on it: model = crossmae.create_model(...); crossmae.load_encoder(model, path)"
        )

    residuals = pixels = forward


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder with CrossMAE's or MAE's decoder, or only an encoder, depending on ``config.decoder``."""

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

        They are not in the state dict: the configuration stores them, and the releases' state dicts do not have them.
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
        """Mask and encode images, predict masked patches and compute the loss.

        Args:
            images: ``(B, C, H, W)`` with the configuration's size and channels, floating point or, if it has
                ``pixel_mean`` and ``pixel_std``, uint8.
            mask_ratio: fraction of patches hidden from the encoder.
            prediction_ratio: fraction of all patches to predict; by default 0.25 (at most ``mask_ratio``) for CrossMAE
                and ``mask_ratio`` for MAE.
            noise: ``(B, L)`` that orders the patches; by default drawn before anything else.
            generator: for the noise.
            rounding: see ``mask_counts``.
            masking: your own mask instead of a random one; the arguments above are then ignored.
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
            if not isinstance(masking, Masking):
                raise TypeError(f"masking must be a Masking, got {type(masking).__name__}; see Masking.from_mask")
            masking = masking.checked(self.config.patches)
            if masking.visible_ids.shape[0] != images.shape[0]:
                raise ValueError(
                    f"masking must be for {images.shape[0]} images, got one for {masking.visible_ids.shape[0]}"
                )
        mean, std = self._statistics(images)
        prediction = self.decoder(self.encoder(images, masking.visible_ids, mean, std), masking)
        loss = ck.patch_loss(
            pixels_in_rows(prediction, self.config),
            images,
            masking.predicted_ids,
            self.config.patch_size,
            self.config.normalize_targets,
            mean,
            std,
        )
        return Output(loss, prediction, masking)

    def encode(self, images: Tensor, dynamic_img_size: bool = False) -> Tensor:
        """Features of unmasked images for downstream use, after the encoder's final norm if it has one.

        Args:
            images: ``(B, C, H, W)``, see ``forward``.
            dynamic_img_size: accept images of any size that is a multiple of the patch size, interpolating positions
                (``positions.interpolate_positions``); otherwise only the configuration's size is accepted.

        Returns:
            ``(B, T, E)``: class tokens, usually one, then all patches row by row.
        """
        self._check(images, dynamic_img_size)
        for x in self.encoder.maps_of_whole_images(images, *self._statistics(images)):
            last = x
        return self.encoder.norm(last)

    forward_features = encode
    """timm's name for ``encode``."""

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        dynamic_img_size: bool = False,
    ) -> Any:
        """Outputs of chosen encoder blocks for unmasked images, like timm's method of this name.

        Args:
            images: ``(B, C, H, W)``, see ``forward``.
            indices: blocks, from 0 or, if negative, from the end; a number n means the last n, None all. Returned in
                block order.
            return_prefix_tokens: return each map as a pair with its class tokens ``(B, T - L, E)``.
            norm: apply the encoder's final norm to the maps.
            output_fmt: "NCHW" for maps ``(B, E, rows, columns)``, "NLC" for patch tokens ``(B, L, E)``.
            intermediates_only: leave out the final features, and blocks after the last one requested.
            dynamic_img_size: as in ``encode``.

        Returns:
            The features that ``encode`` returns, and a list of maps; only the list with ``intermediates_only``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        if norm and not self.config.norms_last_map:
            raise ValueError("norm=True needs a final norm, which this encoder does not have (Config.final_norm)")
        taken = _taken(self.config.encoder_depth, indices)
        self._check(images, dynamic_img_size)
        first, (height, width) = self.config.class_tokens, pair(self.config.patch_size)
        grid = images.shape[2] // height, images.shape[3] // width
        intermediates: list[Any] = []
        # Index 0 is the input of the first block.
        for place, x in enumerate(self.encoder.maps_of_whole_images(images, *self._statistics(images)), start=-1):
            if place in taken:
                y = self.encoder.norm(x) if norm else x
                patches = y[:, first:]
                if output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
                intermediates.append((patches, y[:, :first]) if return_prefix_tokens else patches)
            if intermediates_only and place == max(taken):
                return intermediates
        return self.encoder.norm(x), intermediates

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise raw images ``(B, C, H, W)``, uint8 or floating point in [0, 1]."""
        if self.pixel_mean is None or self.pixel_std is None:
            return images
        shares = images.to(self.pixel_mean.dtype) / (255 if images.dtype == torch.uint8 else 1)
        return (shares - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]

    def _statistics(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Mean and standard deviation of each channel, float32, for images that still need normalising."""
        if images.dtype != torch.uint8 or self.pixel_mean is None or self.pixel_std is None:
            return None, None
        return self.pixel_mean.float(), self.pixel_std.float()

    def _check(self, images: Tensor, dynamic_img_size: bool | None = None) -> None:
        """Refuse anything but a batch of images for this model; None if the caller cannot accept other sizes."""
        config = self.config
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        own, autocast = self.encoder.patch_embed.weight.dtype, autocasts(images.device.type)
        normalizes = self.pixel_mean is not None and (own == torch.float32 or autocast)
        if not images.dtype.is_floating_point and not (images.dtype == torch.uint8 and normalizes):
            raise TypeError(
                f"images must be floating point, got {images.dtype}; normalise them first (float32 models whose "
                "configuration has pixel_mean and pixel_std take uint8 images directly)"
            )
        if images.dtype not in (own, torch.uint8) and not autocast:
            raise TypeError(f"images must be {own} like the model, got {images.dtype}")
        shape, (height, width) = tuple(images.shape), pair(config.patch_size)
        if dynamic_img_size:
            expected = f"{config.channels}, a multiple of {height}, a multiple of {width}"
            fits = images.ndim == 4 and shape[1] == config.channels and min(shape[2:]) > 0
            fits = fits and shape[2] % height == 0 and shape[3] % width == 0
        else:
            expected = f"{config.channels}, {config.image_size[0]}, {config.image_size[1]}"
            fits = images.ndim == 4 and shape[1:] == (config.channels, *config.image_size)
        if not fits:
            raise ValueError(
                f"images must have shape (batch, channels, height, width) = (batch, {expected}), got {shape}"
                + "; dynamic_img_size=True interpolates positions for other sizes" * (dynamic_img_size is False)
            )


def pixels_in_rows(patches: Tensor, config: Config) -> Tensor:
    """Predicted patches ``(B, Q, P)`` in the order of ``Config.pixel_order`` -> over (row, column, channel)."""
    if config.pixel_order == "hwc":
        return patches
    return patches.unflatten(2, (config.channels, -1)).transpose(2, 3).flatten(2)


def _taken(depth: int, indices: int | Sequence[int] | None) -> set[int]:
    """The blocks requested from ``forward_intermediates``, counted from 0."""
    if isinstance(indices, int):
        blocks: Sequence[int] = range(depth - indices, depth) if 0 < indices <= depth else ()
    else:
        blocks = range(depth) if indices is None else [index + depth if index < 0 else index for index in indices]
    if not blocks or not all(0 <= block < depth for block in blocks):
        raise ValueError(
            f"indices must be a number of blocks from 1 to {depth} or list blocks from {-depth} to {depth - 1}, "
            f"at least one, got {indices!r}"
        )
    return set(blocks)


def _decoder(config: Config) -> MAEDecoder | CrossMAEDecoder | NoDecoder:
    if config.decoder is None:
        return NoDecoder()
    return MAEDecoder(config) if config.decoder == "mae" else CrossMAEDecoder(config)


def create_model(name: str, image_size: int | Sequence[int] | None = None, **overrides: Any) -> MaskedAutoencoder:
    """Create a newly initialised model by name; see ``list_models`` and, for ``overrides``, ``Config``."""
    return MaskedAutoencoder(named_config(name, image_size, **overrides))
