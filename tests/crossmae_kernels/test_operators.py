"""Every operator as PyTorch wants it, with and without gradients: its schema, its fake, and results of its own memory.

The operators are those that are registered; one without a case here fails.
"""

from contextlib import nullcontext

import pytest
import torch
from cases import FORMS, OPERATORS, Cases
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from crossmae_kernels.runtime.dispatch import form_of


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storages(values):
    """Of all tensors, by the address of the object; storages without elements have no address of their own."""
    return [tensor.untyped_storage()._cdata for tensor in tensors(values)]


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in OPERATORS for form in FORMS.get(name, (None,))], ids=str
)
def test_results_share_no_memory_with_each_other_or_with_arguments_and_are_what_the_fake_says(
    device, dtype, batch, name, form
):
    if (form, dtype) == ("single", torch.float32):
        form = "tiled"
    operator = getattr(torch.ops.crossmae_kernels, name)
    for arguments in getattr(Cases(device, dtype, batch), name)():
        with nullcontext() if form is None else form_of(name, form):
            made = tensors(results := operator(*arguments))
        with FakeTensorMode() as mode:
            fakes = tensors(operator(*tree_map_only(torch.Tensor, mode.from_tensor, arguments)))
        assert [(t.shape, t.dtype, t.stride()) for t in made] == [(t.shape, t.dtype, t.stride()) for t in fakes]
        assert len(set(storages(results))) == len(made) > 0
        assert not set(storages(results)) & set(storages(arguments))


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("name", "gradients"),
    # Backward operators have no gradients, but for one of a linear operator.
    [(name, gradients) for name in OPERATORS for gradients in (False, True) if not (gradients and "_backward" in name)],
)
def test_opcheck_with_and_without_gradients(device, dtype, name, gradients):
    operator = getattr(torch.ops.crossmae_kernels, name)
    *_, arguments = getattr(Cases(device, dtype, 2), name)()
    for leaf in tensors(arguments[:1] if name == "patch_loss" else arguments):
        leaf.requires_grad_(gradients and leaf.is_floating_point())
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
