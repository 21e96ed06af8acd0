"""The forward that replaces a CrossMAE or MAE release model's own."""

from typing import Any

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.acceleration.autocast import State, observe_autocast, state_of, within
from crossmae.acceleration.contract import MASK_RATIO, PREDICTION_RATIO, Contract, filled, results_in
from crossmae.acceleration.forward import ModuleForward, decode, embed, overridden, pixels
from crossmae.acceleration.obstacles import Roles, mixing_obstacles
from crossmae.acceleration.structure import BLOCKS, Structure, read_structure
from crossmae.masking import Masking, random_masking
from crossmae_kernels.patches.reference import standardize


def result_names(structure: Structure) -> tuple[str, ...]:
    """The results a model can return; "mask" is 1 where a patch is predicted, "hidden" where the encoder sees none."""
    names = ("loss", "prediction", "target", "all targets", "mask", "hidden")
    return (*names, "all predictions") if structure.maps is None else names


class ModelForward(ModuleForward):
    """The forward of a whole model. ``arguments`` are the release's, as passed to ``accelerate``."""

    def __init__(
        self, model: nn.Module, structure: Structure, roles: Roles, arguments: dict[str, Any], contract: Contract
    ) -> None:
        super().__init__(model, "", roles, called=BLOCKS)
        self.structure = structure
        self.arguments = arguments
        self.contract = contract
        self.autocast: dict[str, dict[State, State]] = {}
        self.overridden = overridden(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Like the model's own forward."""
        self.require_unchanged()
        self.refuse([f"{name} was replaced in this instance" for name in overridden(self.module) - self.overridden])
        self.structure = read_structure(self.module, self.arguments)
        values = self.contract.bind(args, kwargs)
        template = self.contract.template(self.module.training, values)
        images = next(iter(values.values()))
        self._check(images)
        mask_ratio, prediction_ratio = self._ratios(values)
        outer, device_type = state_of(images.device.type), images.device.type
        if device_type not in self.autocast:
            self.autocast[device_type] = observe_autocast(self.module, images)
        with within(device_type, self.autocast[device_type].get(outer, outer)):
            results = self._results(images, mask_ratio, prediction_ratio, results_in(template))
        return filled(template, results)

    def _check(self, images: object) -> None:
        expected = (self.structure.channels, *self.structure.image_size)
        if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {got}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}")
        device = self.module.cls_token.device
        if images.device != device:
            raise ValueError(
                f"images are on {images.device}, but the model on {device} "
                "(DataParallel's replicas are not supported; use DistributedDataParallel)"
            )

    def _ratios(self, values: dict[str, Any]) -> tuple[float, float]:
        names = [name for name in (MASK_RATIO, PREDICTION_RATIO) if name in values]
        ratios = [values[name] for name in names]
        if not all(isinstance(ratio, (int, float)) for ratio in ratios) or not 0 < ratios[-1] <= ratios[0] < 1:
            got = ", ".join(f"{name}={ratio!r}" for name, ratio in zip(names, ratios, strict=True))
            raise ValueError(f"ratios must be 0 < {' <= '.join(reversed(names))} < 1, got {got}")
        return ratios[0], ratios[-1]

    def _results(
        self, images: Tensor, mask_ratio: float, prediction_ratio: float, requested: set[str]
    ) -> dict[str, Tensor]:
        """The ``requested`` results, by name."""
        structure, batch = self.structure, images.shape[0]
        masking = random_masking(
            batch, structure.patches, mask_ratio, prediction_ratio, device=images.device, rounding="release"
        )
        ids, patch = masking.predicted_ids, structure.patch_size
        maps = self._encode(images, masking.visible_ids)
        results: dict[str, Tensor] = {}
        if structure.maps is None:
            results["all predictions"] = everything = self._decode_all(maps[-1], masking)
            results["prediction"] = prediction = _rows(everything, ids)
        else:
            results["prediction"] = prediction = self._decode(maps, ids)
        if "loss" in requested:
            loss = ck.patch_loss(prediction, images, ids, patch, structure.normalize_targets)
            if structure.maps is not None:
                # A mean over predicted patches. MAE's is weighted by the mask, which is float32.
                loss = loss.to(torch.promote_types(prediction.dtype, images.dtype))
            results["loss"] = loss
        if requested & {"target", "all targets"}:
            results["all targets"] = targets = self._targets(images)
            results["target"] = _rows(targets, ids)
        empty = torch.zeros(batch, structure.patches, device=images.device)
        if "mask" in requested:
            results["mask"] = empty.scatter(1, ids, 1)
        if "hidden" in requested:
            results["hidden"] = (1 - empty).scatter(1, masking.visible_ids, 0)
        return results

    def _encode(self, images: Tensor, visible_ids: Tensor) -> list[Tensor]:
        """The encoder's input and the output of each of its blocks, each ``(B, V + 1, E)``."""
        model: Any = self.module
        # MAE adds the table's first row to its class token (zero in the fixed table); CrossMAE adds nothing.
        token = model.cls_token + model.pos_embed[:, :1] if self.structure.maps is None else model.cls_token
        maps = [embed(images, visible_ids, model.patch_embed.proj, model.pos_embed[0, 1:], token)]
        for block in model.blocks:
            maps.append(block(maps[-1]))
        return maps

    def _decode(self, maps: list[Tensor], ids: Tensor) -> Tensor:
        """CrossMAE's decoder: predicted patches ``(B, Q, P)``."""
        model: Any = self.module
        table = (model.mask_token + model.decoder_pos_embed[:, 1:])[0]
        chosen = [maps[index] for index in self.structure.maps or ()]
        norms, blocks = list(model.dec_norms), list(model.decoder_blocks)
        self.refuse([*mixing_obstacles("dec_norms", norms)])
        x = decode(chosen, ids, table, model.wfm.linear.weight, norms, blocks)
        return pixels(x, model.decoder_norm, model.decoder_pred)

    def _decode_all(self, features: Tensor, masking: Masking) -> Tensor:
        """MAE's decoder: predictions of all patches ``(B, L, P)``."""
        model: Any = self.module
        norm, embed = model.norm, model.decoder_embed
        visible = ck.norm_linear(features, embed.weight, embed.bias, norm.weight, norm.bias, norm.eps)
        ids = masking.visible_ids
        tokens = model.mask_token.to(visible.dtype).expand(visible.shape[0], self.structure.patches, -1)
        tokens = tokens.scatter(1, ids[:, :, None].expand(-1, -1, tokens.shape[-1]), visible[:, 1:])
        x = torch.cat([visible[:, :1], tokens], dim=1) + model.decoder_pos_embed
        for block in model.decoder_blocks:
            x = block(x)
        return pixels(x, model.decoder_norm, model.decoder_pred)[:, 1:]

    def _targets(self, images: Tensor) -> Tensor:
        """Targets of all patches, ``(B, L, P)``."""
        every = torch.arange(self.structure.patches, device=images.device).expand(images.shape[0], -1)
        patches = ck.gather_patches(images, every, self.structure.patch_size)
        return standardize(patches) if self.structure.normalize_targets else patches


def _rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows ``(B, T, P)`` of ``(B, L, P)``."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[-1]))
