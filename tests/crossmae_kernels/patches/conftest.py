"""Problems for gather and loss, and oracles that share nothing with the references."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from seeds import generator
from torch import Tensor

import crossmae_kernels as ck
from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations

RESULTS = {"gather": ("rows", "d images"), "loss": ("losses", "d prediction")}


def naive_patches(images, ids, size, mean=None, std=None):
    """The definition, patch by patch, in whatever dtype comes; statistics are taken as float64."""
    across = images.shape[3] // size
    rows = []
    for image, picked in zip(images, ids.tolist(), strict=True):
        for index in picked:
            top, left = size * (index // across), size * (index % across)
            rows.append(image[:, top : top + size, left : left + size].permute(1, 2, 0))
    patches = torch.stack(rows)
    if mean is not None:
        patches = (patches.double() / 255 - mean.double()) / std.double()
    return patches.reshape(*ids.shape, -1)


def naive_loss(prediction, images, ids, size, normalize, mean=None, std=None):
    """Loss of each patch."""
    target = naive_patches(images, ids, size, mean, std)
    if normalize:
        centred = target - target.sum(-1, keepdim=True) / target.shape[-1]
        variance = (centred * centred).sum(-1, keepdim=True) / (target.shape[-1] - 1)
        target = centred * (variance + 1e-6) ** -0.5
    return ((prediction - target) ** 2).sum(-1) / target.shape[-1]


@dataclass
class Problem:
    """Random images, ids that may repeat, a prediction, and random upstream gradients.

    ``pixels`` is the images' dtype where it is not that of the rows: float32 or uint8.
    """

    size: int
    channels: int = 3
    grid: tuple[int, int] = (2, 3)
    count: int = 4
    batch: int = 2
    pixels: torch.dtype | None = None
    normalize: bool = True
    ids_dtype: torch.dtype = torch.int64
    images: Tensor = field(init=False)
    ids: Tensor = field(init=False)
    mean: Tensor | None = field(init=False)
    std: Tensor | None = field(init=False)
    prediction: Tensor = field(init=False)
    upstream: Tensor = field(init=False)
    upstream_losses: Tensor = field(init=False)

    def __post_init__(self):
        draw = generator()

        def random(*shape):
            # Rounded to float16, so that every dtype under test gets the same numbers.
            return torch.randn(*shape, generator=draw).half()

        height, width = self.grid
        shape = (self.batch, self.channels, height * self.size, width * self.size)
        self.mean = self.std = None
        if self.pixels == torch.uint8:
            self.images = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
            self.mean = 0.3 + 0.4 * torch.rand(self.channels, generator=draw)
            self.std = 0.1 + 0.3 * torch.rand(self.channels, generator=draw)
        else:
            # Neither mean 0 nor deviation 1.
            self.images = 0.3 + 1.7 * random(*shape)
        patches = height * width
        self.ids = torch.randint(patches, (self.batch, self.count), generator=draw, dtype=self.ids_dtype)
        values = self.size**2 * self.channels
        self.prediction, self.upstream = (random(self.batch, self.count, values) for _ in range(2))
        self.upstream_losses = random(self.batch, self.count)

    def arguments(self, device, dtype):
        """Images, ids, mean and std; rows are ``dtype``."""
        images = self.images if self.pixels == torch.uint8 else self.images.to(self.pixels or dtype)
        return [None if t is None else t.to(device).detach() for t in (images, self.ids, self.mean, self.std)]

    def gather(self, impl, device, dtype, layout=lambda t: t):
        """Rows and, for floating-point images, their gradient."""
        images, ids, mean, std = self.arguments(device, dtype)
        leaf = images.requires_grad_(images.is_floating_point())
        rows = ck.gather_patches(layout(leaf), ids, self.size, mean, std, impl=impl)
        if not leaf.requires_grad:
            return [rows]
        return [rows.detach(), *torch.autograd.grad(rows, leaf, self.upstream.to(device, rows.dtype))]

    def exact_gather(self, dtype):
        """The oracle's answer in float64."""
        images, ids, mean, std = self.arguments("cpu", dtype)
        if mean is not None:
            return [naive_patches(images, ids, self.size, mean, std)]
        leaf = images.double().requires_grad_()
        rows = naive_patches(leaf, ids, self.size)
        return [rows.detach(), *torch.autograd.grad(rows, leaf, self.upstream.to(images.dtype).double())]

    def loss(self, impl, device, dtype, reduction="none", layout=lambda t: t):
        """Losses and the gradient of the prediction."""
        images, ids, mean, std = self.arguments(device, dtype)
        leaf = self.prediction.to(device, dtype).requires_grad_()
        loss = ck.patch_loss(
            leaf, layout(images), ids, self.size, self.normalize, mean, std, reduction=reduction, impl=impl
        )
        upstream = self.upstream_losses.to(device, loss.dtype) if reduction == "none" else None
        return [loss.detach(), *torch.autograd.grad(loss, leaf, upstream)]

    def exact_loss(self, dtype, reduction="none"):
        """The oracle's answer in float64, for arguments rounded to ``dtype``."""
        images, ids, mean, std = self.arguments("cpu", dtype)
        leaf = self.prediction.to(dtype).double().requires_grad_()
        losses = naive_loss(leaf, images.double(), ids, self.size, self.normalize, mean, std)
        if reduction == "mean":
            loss = losses.mean()
            return [loss.detach(), *torch.autograd.grad(loss, leaf)]
        return [losses.detach(), *torch.autograd.grad(losses, leaf, self.upstream_losses.double())]

    def judge(self, op, device, dtype, layout=lambda t: t, **how):
        """Results of the ``"gather"`` or ``"loss"`` kernels within the budget, with fresh allocations poisoned."""

        def solve(task, impl):
            results = getattr(task, op)(impl, device, dtype, layout=layout, **how)
            return dict(zip(RESULTS[op], results, strict=False))

        exact = dict(zip(RESULTS[op], getattr(self, f"exact_{op}")(dtype, **how), strict=False))
        rounded = copy.copy(self)
        rounded.images, _, _, _ = self.arguments("cpu", dtype)
        rounded.prediction, rounded.upstream = self.prediction.to(dtype), self.upstream.to(dtype)
        allowed = budgets(lambda: solve(rounded, "reference"), exact)
        with poisoned_allocations():
            found = solve(self, "triton")
        assert set(found) == set(exact)
        assert_within_budget(found, exact, allowed)


@pytest.fixture
def problem():
    """Make a problem."""
    return Problem
