"""What kernels do, in a few words, for readers who do not know their names."""

from crossmae_kernels.audit.operations import ATTENTION

# This package's, by name without "_kernel".
_OWN = {
    "add_residual": "residual added to a matrix product",
    "column_sums": "cast, and gradients of biases",
    "fold_backward": "weights with a LayerNorm folded in, backward",
    "fold_forward": "LayerNorm's affine folded into weights",
    "gather_backward": "gather of patches, backward",
    "gather_forward": "gather of patches",
    "gelu_backward": "GELU, backward",
    "gemm": "matrix product with bias, GELU or residual",
    "hidden_backward": "MLP's hidden layer, backward",
    "looped_backward_key": "attention to many keys, backward: keys, values",
    "looped_backward_query": "attention to many keys, backward: queries",
    "looped_forward": "attention to many keys",
    "loss_backward": "loss of patches, backward",
    "loss_forward": "loss of patches",
    "mixing_backward": "mixes of feature maps, LayerNorm, backward",
    "mixing_forward": "mixes of feature maps, LayerNorm",
    "normalize": "LayerNorm, without its affine",
    "normalize_backward": "LayerNorm, backward",
    "persistent_gemm": "matrix product with bias, GELU or residual",
    "segmented_sum": "gradients summed by position",
    "short_backward": "attention to few keys, backward",
    "short_forward": "attention to few keys",
    "single_forward": "MLP, in one kernel",
    "sums_backward": "mixes of feature maps, backward",
    "totals": "gradients of biases, last sums",
}  # fmt: skip
# PyTorch's operators whose names do not say it.
_LIBRARY = {
    "AdamW": "update of the parameters",
    "_to_copy": "cast to another dtype",
    "addmm": "matrix product with bias",
    "baddbmm": "batch of matrix products with bias",
    "bmm": "batch of matrix products",
    "mm": "matrix product",
    ATTENTION: "attention",
    f"{ATTENTION}_backward": "attention, backward",
}


def description_of(kernel: str) -> str:
    """What a kernel of this package or an operator of PyTorch does; empty where the name of the latter says it."""
    own = kernel.removesuffix("_kernel")
    return _OWN[own] if own != kernel else _LIBRARY.get(kernel, "")
