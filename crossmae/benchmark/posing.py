"""The entrants' inputs: the same weights, feature maps or images, masks and upstream gradients for all."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crossmae.benchmark.checking import FEW_IMAGES, Judge
from crossmae.benchmark.release import release_decode, release_model_loss
from crossmae.benchmark.setting import Entrant, Formulation, Part, Setting
from crossmae.masking import Masking, random_masking
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae_kernels.environment import Implementation
from crossmae_kernels.runtime.dispatch import default_implementation

# Of feature maps or a batch of images alone, and a mask.
Function = Callable[[list[Tensor], Masking], Tensor]
Compiler = Callable[[Function], Function]

# The implementation of this package's operations; the release's formulation calls none of them.
SERVED_BY: dict[Formulation, Implementation] = {
    "ours": "auto",
    "kernels": "triton",
    "reference": "reference",
    "release": "reference",
}


@dataclass
class Posed:
    """A module, what it is called with, and the gradient of what it returns."""

    part: Part
    dtype: torch.dtype
    module: Any
    """A decoder, or the model around it."""
    inputs: list[Tensor]
    """Feature maps, which want gradients, or the batch of images."""
    masking: Masking
    upstream: Tensor | None = None
    """Drawn by whoever knows the shape of the result; a loss has none."""

    def by(self, formulation: Formulation, compiler: Compiler = lambda function: function) -> Callable[[], Tensor]:
        """Predictions or a loss, by this formulation, compiled if there is a compiler."""
        function = compiler(self._function(formulation))

        def call() -> Tensor:
            with default_implementation(SERVED_BY[formulation]), self._autocast():
                return function(self.inputs, self.masking)

        return call

    def _function(self, formulation: Formulation) -> Function:
        module, release = self.module, formulation == "release"
        if self.part == "decoder":
            return partial(release_decode, module) if release else module
        if release:
            return lambda images, masking: release_model_loss(module, images[0], masking)
        return lambda images, masking: module(images[0], masking=masking).loss

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are asked for: feature maps, then parameters."""
        return [leaf for leaf in (*self.inputs, *self.module.parameters()) if leaf.requires_grad]

    def gradients(self, call: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What a call returns, and the gradients of the leaves, which are not accumulated: none need be cleared."""
        out = call()
        if self.upstream is None and out.ndim:
            generator = torch.Generator(out.device).manual_seed(1)
            self.upstream = torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
        return out, torch.autograd.grad(out, self.leaves, self.upstream, materialize_grads=True)

    def results(self, out: Tensor, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Of ``gradients`` by name, those of all parameters as one vector."""
        maps = [f"d maps[{index}]" for index, x in enumerate(self.inputs) if x.requires_grad]
        parameters = torch.cat([gradient.flatten() for gradient in gradients[len(maps) :]])
        return {"out": out.detach(), **dict(zip(maps, gradients, strict=False)), "d parameters": parameters}

    def judge(self) -> Judge:
        """Of all who compute the same."""
        truth = self._by_reference()  # first, since it draws the upstream gradient
        few = self.few(FEW_IMAGES)
        return Judge(truth, few._by_reference(), few.exact()._by_reference(), self.dtype)

    def _by_reference(self) -> dict[str, Tensor]:
        return self.results(*self.gradients(self.by("reference")))

    def few(self, images: int) -> "Posed":
        """The first images alone."""
        return replace(
            self,
            inputs=[x.detach()[:images].requires_grad_(x.requires_grad) for x in self.inputs],
            masking=replace(
                self.masking,
                visible_ids=self.masking.visible_ids[:images],
                predicted_ids=self.masking.predicted_ids[:images],
            ),
            upstream=None if self.upstream is None else self.upstream[:images],
        )

    def exact(self) -> "Posed":
        """In float64 on the CPU, since not every device has it."""
        where: dict[str, Any] = {"device": "cpu", "dtype": torch.float64}
        masking = self.masking
        return replace(
            self,
            dtype=torch.float64,
            module=copy.deepcopy(self.module).to(**where),
            inputs=[x.detach().to(**where).requires_grad_(x.requires_grad) for x in self.inputs],
            masking=Masking(masking.visible_ids.cpu(), masking.predicted_ids.cpu(), masking.patches),
            upstream=None if self.upstream is None else self.upstream.to(**where),
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype in (torch.float32, torch.float64):
            return nullcontext()
        # Autocast's cache of cast weights would outlive a captured graph.
        return torch.autocast(self.inputs[0].device.type, self.dtype, cache_enabled=False)


class Inputs:
    """Makes the inputs of a setting's entrants; entrants with the same shapes share tensors and modules."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._modules: dict[Config, nn.Module] = {}
        self._tensors: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}

    def posed(self, entrant: Entrant) -> Posed:
        """For the entrant, whatever its formulation and execution."""
        setting, config = self._setting, entrant.config
        masking = random_masking(
            setting.batch,
            config.patches,
            setting.mask_ratio,
            entrant.prediction_ratio,
            generator=torch.Generator(setting.device).manual_seed(0),
        )
        if setting.part == "step":
            shape: tuple[int, ...] = (setting.batch, config.channels, *config.image_size)
            inputs = self._drawn(1, shape, torch.float32, requires_grad=False)
        else:
            tokens = masking.visible_ids.shape[1] + config.class_tokens
            shape = setting.batch, tokens, config.encoder_width
            count = len(config.feature_maps or (None,))
            inputs = self._drawn(count, shape, setting.dtype_of_maps(config), requires_grad=True)
        return Posed(setting.part, setting.dtype, self._module(config), inputs, masking)

    def _drawn(self, count: int, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> list[Tensor]:
        kept = self._tensors.setdefault((shape, dtype), [])
        while len(kept) < count:
            drawn = torch.randn(shape, device=self._setting.device).to(dtype)
            kept.append(drawn.requires_grad_(requires_grad))
        return kept[:count]

    def _module(self, config: Config) -> nn.Module:
        """With random values in every bias and norm, so that leaving one out is noticed."""
        if config not in self._modules:
            model = MaskedAutoencoder(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
            module: nn.Module = model if self._setting.part == "step" else model.decoder
            self._modules[config] = module.to(self._setting.device)
        return self._modules[config]
