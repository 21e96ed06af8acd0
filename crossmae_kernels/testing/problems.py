"""Problems for every public op, with arguments of any shape.

Checks, benchmarks and tests get their arguments here. ``tiny`` and ``vit_base`` list problems for every op: the former
cover each path of the kernels cheaply, also in Triton's interpreter; the latter are those of ViT-B's decoder.
"""

from collections.abc import Collection
from dataclasses import replace
from itertools import product
from math import prod

import torch

from crossmae_kernels.runtime.device import KERNEL_DTYPES
from crossmae_kernels.testing.problem import Argument, Draw, Problem

EPS = 1e-6
IN_16_BITS = (torch.float16, torch.bfloat16)
# For every op with matrix products.
FORMS = ("tiled", "library")


def tiny(draw: Draw, batch: int = 2) -> list[Problem]:
    """Every op, every way to pass its arguments and every form of its kernels, on ``batch`` images."""
    rows, tokens, grid, matrix = (batch, 5), (batch, 2), (2, 3), (20, 32)
    # Scores of 7 keys stay on chip, those of 67 only in 16 bits.
    few, many = (5, 7, 2, 16), (5, 67, 2, 16)
    layers = [
        *(norm_linear(draw, rows, 32, 48, activation) for activation in (None, "gelu")),
        *(linear_residual(draw, rows, 32, 48, table=table) for table in (0, 4)),
        *(mlp(draw, rows, 32, 48, hidden) for hidden in ("recompute", "save")),
    ]
    return [
        *(cross_attention(draw, batch, *shape, table=table) for shape, table in product((few, many), (0, 4))),
        cross_attention_kvpacked(draw, batch, *few, table=4),
        cross_attention_kvpacked(draw, batch, *many),
        self_attention_qkvpacked(draw, batch, 7, 2, 16),
        self_attention_qkvpacked(draw, batch, 67, 1, 16),
        *(fold_norm(draw, *matrix, absent=absent) for absent in ((), ("bias", "norm_bias"))),
        *(fold_norm(draw, *matrix, 3, absent=absent) for absent in ((), ("norm_weight",))),
        *(in_form(layer, form) for layer, form in product(layers, FORMS)),
        *(in_form(layer, "persistent") for layer in layers),
        *(in_form(layer, "single") for layer in layers if layer.op == "mlp"),
        # In 16 bits LayerNorm stays on chip, in float32 it is a separate pass.
        *(mix_feature_maps(draw, tokens, 3, 2, 24, affine=affine) for affine in (False, True)),
        mix_feature_maps(draw, tokens, 3, 2, 24, normalize=False),
        project_feature_maps(draw, tokens, 3, 2, 24, 20),
        # Some patches occur twice.
        *(gather_patches(draw, batch, 8, 5, grid, pixels=pixels) for pixels in (None, torch.uint8)),
        patch_loss(draw, batch, 4, 5, grid),
        patch_loss(draw, batch, 4, 5, grid, pixels=torch.uint8, reduction="mean"),
        patch_loss(draw, batch, 4, 5, grid, normalize=False, reduction="mean"),
    ]


def vit_base(draw: Draw, batch: int = 4) -> list[Problem]:
    """Every op at the shapes of ViT-B's decoder at 224 px, and attention at other models' shapes, on ``batch`` images.

    13 feature maps of 49 visible patches and a class token are mixed for 12 blocks; 49 of 196 patches are predicted.
    """
    rows, grid = (batch, 49), (14, 14)
    return [
        cross_attention(draw, batch, 49, 50, 8, 32, table=196),
        cross_attention(draw, batch, 147, 50, 8, 32),
        cross_attention(draw, batch, 64, 65, 8, 80),
        cross_attention(draw, batch, 147, 197, 8, 64),
        cross_attention(draw, batch, 300, 1025, 8, 32, table=1024),
        cross_attention_kvpacked(draw, batch, 49, 50, 16, 32),
        self_attention_qkvpacked(draw, batch, 197, 16, 32),
        fold_norm(draw, 512, 512),
        fold_norm(draw, 1024, 768, 12),
        *(in_form(norm_linear(draw, rows, 512, 512, "gelu"), form) for form in FORMS),
        *(
            in_form(linear_residual(draw, rows, 512, 512, table=table), form)
            for table, form in product((0, 196), FORMS)
        ),
        *(in_form(mlp(draw, rows, 512, 2048), form) for form in (*FORMS, "persistent")),
        mix_feature_maps(draw, (batch, 50), 13, 12, 768, affine=True),
        project_feature_maps(draw, (batch, 50), 13, 12, 768, 1024),
        gather_patches(draw, batch, 49, 16, grid),
        patch_loss(draw, batch, 49, 16, grid),
    ]


def in_form(problem: Problem, form: str) -> Problem:
    """The same problem in a form of the op's kernels; two of the MLP's forms have no backward pass of their own."""
    forms = {problem.op: form}
    if problem.op == "mlp":
        forms["mlp_backward"] = form if form in FORMS else "tiled"
    dtypes = problem.dtypes if form in FORMS else IN_16_BITS
    return replace(problem, label=f"{problem.label}, {form}", forms=forms, dtypes=dtypes)


def cross_attention(
    draw: Draw,
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    head_width: int,
    table: int = 0,
    scale: float | None = None,
) -> Problem:
    """Attention of dense queries, or of queries gathered from ``table`` rows."""
    width = heads * head_width
    arguments = _queries(draw, batch, queries, width, table)
    arguments |= {name: draw.normal(batch, keys, width) for name in ("key", "value")}
    label = _attention_label(queries, keys, heads, head_width, table)
    return Problem("cross_attention", label, arguments, {"num_heads": heads, "scale": scale})


def cross_attention_kvpacked(
    draw: Draw, batch: int, queries: int, keys: int, heads: int, head_width: int, table: int = 0
) -> Problem:
    """The same with keys and values in one tensor."""
    width = heads * head_width
    arguments = _queries(draw, batch, queries, width, table) | {"key_value": draw.normal(batch, keys, 2 * width)}
    label = _attention_label(queries, keys, heads, head_width, table)
    return Problem("cross_attention_kvpacked", label, arguments, {"num_heads": heads})


def self_attention_qkvpacked(draw: Draw, batch: int, tokens: int, heads: int, head_width: int) -> Problem:
    """The same with everything in one tensor."""
    arguments: dict[str, Argument] = {"query_key_value": draw.normal(batch, tokens, 3 * heads * head_width)}
    return Problem(
        "self_attention_qkvpacked", f"{tokens} tokens, {heads} heads of {head_width}", arguments, {"num_heads": heads}
    )


def _queries(draw: Draw, batch: int, queries: int, width: int, table: int) -> dict[str, Argument]:
    if not table:
        return {"query": draw.normal(batch, queries, width)}
    return {"query": draw.normal(table, width), "query_ids": draw.ids(batch, queries, table)}


def _attention_label(queries: int, keys: int, heads: int, head_width: int, table: int) -> str:
    return f"{queries} x {keys}, {heads} heads of {head_width}, {'table' if table else 'dense'}"


def fold_norm(
    draw: Draw, outer: int, inner: int, blocks: int = 0, absent: Collection[str] = (), dtype: torch.dtype | None = None
) -> Problem:
    """Folding into one weight, or into those of several ``blocks``; without the vectors in ``absent``."""
    stack = (blocks,) if blocks else ()
    sizes = {"bias": outer, "norm_weight": inner, "norm_bias": inner}
    weight = [draw.normal(outer, inner, scale=max(inner, 1) ** -0.5) for _ in range(blocks or 1)]
    arguments: dict[str, Argument] = {"weight": weight if blocks else weight[0]}
    arguments |= {name: None if name in absent else draw.normal(*stack, size) for name, size in sizes.items()}
    label = f"{outer} x {inner}" + (f", {blocks} blocks" if blocks else "")
    label += "".join(f", no {name}" for name in sizes if name in absent)
    return Problem("fold_norm", label, arguments, {"dtype": dtype})


def norm_linear(
    draw: Draw,
    rows: tuple[int, ...],
    inner: int,
    outer: int,
    activation: str | None = None,
    biases: bool = True,
    affine: bool = True,
    eps: float = EPS,
) -> Problem:
    """``rows`` are leading dimensions."""
    arguments = {
        "x": draw.normal(*rows, inner).add_(0.5),
        **_linear(draw, inner, outer, biases),
        **_affine(draw, affine, inner),
    }
    label = f"{rows[-1]} x {inner} to {outer}" + (f", {activation}" if activation else "")
    return Problem("norm_linear", label, arguments, {"eps": eps, "activation": activation})


def linear_residual(
    draw: Draw, rows: tuple[int, ...], inner: int, outer: int, biases: bool = True, table: int = 0
) -> Problem:
    """With a dense residual, or one gathered from ``table`` rows; then ``rows`` are images and rows per image."""
    arguments: dict[str, Argument] = {"x": draw.normal(*rows, inner), **_linear(draw, inner, outer, biases)}
    arguments["residual"] = draw.normal(table, outer) if table else draw.normal(*rows, outer)
    if table:
        arguments["residual_ids"] = draw.ids(rows[0], rows[1], table)
    label = f"{rows[-1]} x {inner} to {outer}, {'table' if table else 'dense'}"
    return Problem("linear_residual", label, arguments)


def mlp(
    draw: Draw,
    rows: tuple[int, ...],
    width: int,
    inner: int,
    hidden: str = "recompute",
    biases: bool = True,
    affine: bool = True,
    eps: float = EPS,
) -> Problem:
    """``rows`` are leading dimensions, ``inner`` the hidden layer's width."""
    arguments = {"x": draw.normal(*rows, width).add_(0.5), **_affine(draw, affine, width)}
    for layer, (columns, outputs) in (("fc1", (width, inner)), ("fc2", (inner, width))):
        arguments |= {f"{layer}_{name}": t for name, t in _linear(draw, columns, outputs, biases).items()}
    return Problem("mlp", f"{rows[-1]} x {width} x {inner}, {hidden}", arguments, {"eps": eps, "hidden": hidden})


def _linear(draw: Draw, inner: int, outer: int, biases: bool) -> dict[str, Argument]:
    weight = draw.normal(outer, inner, scale=inner**-0.5)
    return {"weight": weight, "bias": draw.normal(outer) if biases else None}


def _affine(draw: Draw, affine: bool, *shape: int) -> dict[str, Argument]:
    return {name: draw.normal(*shape) if affine else None for name in ("norm_weight", "norm_bias")}


def mix_feature_maps(
    draw: Draw,
    rows: tuple[int, int],
    maps: int,
    mixes: int,
    width: int,
    affine: bool = False,
    normalize: bool = True,
    eps: float = EPS,
) -> Problem:
    """``rows`` are images and tokens per image."""
    arguments: dict[str, Argument] = {
        "maps": [draw.normal(*rows, width).add_(0.5) for _ in range(maps)],
        "weight": draw.normal(mixes, maps, scale=maps**-0.5),
        **_affine(draw, affine, mixes, width),
    }
    label = f"{maps} maps to {mixes}, {rows[-1]} x {width}" + (", affine" if affine else "")
    label += "" if normalize else ", sums alone"
    return Problem("mix_feature_maps", label, arguments, {"eps": eps, "normalize": normalize})


def project_feature_maps(
    draw: Draw, rows: tuple[int, int], maps: int, blocks: int, width: int, outer: int, eps: float = EPS
) -> Problem:
    """``rows`` are images and tokens per image."""
    arguments: dict[str, Argument] = {
        "maps": [draw.normal(*rows, width).add_(0.5) for _ in range(maps)],
        "mixing_weight": draw.normal(blocks, maps, scale=maps**-0.5),
        **_affine(draw, True, blocks, width),
        "weights": [draw.normal(outer, width, scale=width**-0.5) for _ in range(blocks)],
        "biases": [draw.normal(outer) for _ in range(blocks)],
    }
    label = f"{maps} maps to {blocks} of {outer}, {rows[-1]} x {width}"
    return Problem("project_feature_maps", label, arguments, {"eps": eps})


def gather_patches(
    draw: Draw,
    batch: int,
    count: int,
    patch_size: int | tuple[int, int],
    grid: tuple[int, int],
    channels: int = 3,
    pixels: torch.dtype | None = None,
) -> Problem:
    """Images in the dtype under test, or in ``pixels``; ``grid`` is the number of rows and columns of patches."""
    arguments = _images(draw, batch, patch_size, grid, channels, pixels)
    arguments["ids"] = draw.ids(batch, count, grid[0] * grid[1])
    label = _patches_label(count, patch_size, channels, pixels)
    dtypes = KERNEL_DTYPES if pixels is None else (torch.float32,)
    return Problem("gather_patches", label, arguments, {"patch_size": patch_size}, dtypes=dtypes)


def patch_loss(
    draw: Draw,
    batch: int,
    count: int,
    patch_size: int | tuple[int, int],
    grid: tuple[int, int],
    channels: int = 3,
    pixels: torch.dtype | None = None,
    normalize: bool = True,
    reduction: str = "none",
) -> Problem:
    """The same images; a loss per patch shows errors that a mean hides."""
    arguments: dict[str, Argument] = {"prediction": draw.normal(batch, count, channels * prod(_sides(patch_size)))}
    arguments |= _images(draw, batch, patch_size, grid, channels, pixels)
    arguments["predicted_ids"] = draw.ids(batch, count, grid[0] * grid[1])
    options = {"patch_size": patch_size, "normalize": normalize, "reduction": reduction}
    label = _patches_label(count, patch_size, channels, pixels) + (", normalised" if normalize else "")
    # The kernels have no gradient for the images.
    return Problem("patch_loss", f"{label}, {reduction}", arguments, options, constants=frozenset({"images"}))


def _images(
    draw: Draw,
    batch: int,
    patch_size: int | tuple[int, int],
    grid: tuple[int, int],
    channels: int,
    pixels: torch.dtype | None,
) -> dict[str, Argument]:
    height, width = _sides(patch_size)
    shape = batch, channels, grid[0] * height, grid[1] * width
    if pixels == torch.uint8:
        return {"images": draw.bytes(*shape), "mean": draw.uniform(channels) / 2, "std": draw.uniform(channels) / 4}
    # Neither of mean 0 nor of standard deviation 1.
    images = draw.normal(*shape, scale=1.7).add_(0.3)
    return {"images": images if pixels is None else images.to(pixels), "mean": None, "std": None}


def _sides(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    return patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)


def _patches_label(count: int, patch_size: int | tuple[int, int], channels: int, pixels: torch.dtype | None) -> str:
    height, width = _sides(patch_size)
    label = f"{count} patches of {channels} x {height} x {width}"
    return label if pixels is None else f"{label}, {str(pixels).removeprefix('torch.')}"
