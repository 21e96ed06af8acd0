"""The operations of CrossMAE's decoder: tensors in, tensors out.

Every op has its own folder, with a reference in plain PyTorch that specifies it. ``impl`` chooses the implementation:
``"auto"``, ``"triton"`` or ``"reference"``; an explicit choice never falls back.
"""

from crossmae_kernels.cross_attention import cross_attention, cross_attention_kvpacked, self_attention_qkvpacked
from crossmae_kernels.feature_mixing import mix_feature_maps
from crossmae_kernels.feature_projection import project_feature_maps
from crossmae_kernels.mlp import mlp
from crossmae_kernels.norm_folding import fold_norm
from crossmae_kernels.patches import gather_patches, patch_loss
from crossmae_kernels.projection import linear_residual, norm_linear

__all__ = [
    "cross_attention",
    "cross_attention_kvpacked",
    "fold_norm",
    "gather_patches",
    "linear_residual",
    "mix_feature_maps",
    "mlp",
    "norm_linear",
    "patch_loss",
    "project_feature_maps",
    "self_attention_qkvpacked",
]
