"""The operator inside of PyTorch: compilation, autocast, what is saved."""

import pytest
import torch
from contract import same
from operators import names_of_all_operators, names_of_operators
from torch._dynamo.testing import CompileCounterWithBackend

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw, solve
from crossmae_kernels.testing.problems import cross_attention, cross_attention_kvpacked, self_attention_qkvpacked


def test_other_numbers_of_queries_and_keys_do_not_recompile_but_where_the_kernels_change(device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    call = cross_attention(Draw(device=device), 2, 5, 7, 2, 16).by("triton")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for queries, keys, frames in ((5, 7, 1), (6, 8, 2), (9, 12, 2), (9, 67, 3), (11, 72, 3)):
        problem = cross_attention(Draw(device=device), 2, queries, keys, 2, 16, table=6)
        assert same(*(solve(problem, each, torch.float32) for each in (compiled, call)))
        assert counter.frame_count == frames


PACKINGS = {
    "none": lambda draw, keys: cross_attention(draw, 2, 5, keys, 2, 16, table=6),
    "keys and values": lambda draw, keys: cross_attention_kvpacked(draw, 2, 5, keys, 2, 16, table=6),
    "everything": lambda draw, keys: self_attention_qkvpacked(draw, 2, keys, 2, 16),
}


@pytest.mark.parametrize("keys", [7, 67])
@pytest.mark.parametrize("packing", PACKINGS)
def test_one_operator_in_either_direction_nothing_else_and_nothing_copied(device, packing, keys):
    problem = PACKINGS[packing](Draw(device=device), keys)
    leaves, saved = problem.leaves(torch.float32), []
    with (
        names_of_operators() as forward,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        out = problem.by("triton")(**leaves)
    upstream = torch.randn_like(out)
    with names_of_all_operators() as backward:
        gradients = torch.autograd.grad(out, [t for t in leaves.values() if t.requires_grad], upstream)
    assert forward == ["crossmae_kernels::cross_attention"]
    assert backward == ["crossmae_kernels::cross_attention_backward"]
    assert all(gradient.is_contiguous() for gradient in gradients)
    # The arguments, and of many keys the output and a statistic.
    inputs = {t.data_ptr() for t in leaves.values()}
    own = [t for t in saved if t.data_ptr() not in inputs]
    assert {t.data_ptr() for t in saved} >= inputs
    assert len(saved) == len(leaves) + len(own)
    assert [(t.shape, t.dtype) for t in own] == (
        [] if keys == 7 else [(out.shape, out.dtype), ((2, 2, out.shape[1]), torch.float32)]
    )


@pytest.mark.parametrize("keys", [7, 131])
@pytest.mark.parametrize("packing", PACKINGS)
def test_autocast_is_the_same_as_casting(device, packing, keys):
    problem = PACKINGS[packing](Draw(device=device), keys)
    call = problem.by("triton")

    def cast(**arguments):
        return call(**{name: t.bfloat16() if t.is_floating_point() else t for name, t in arguments.items()})

    ours, theirs = (
        solve(problem, call, torch.float32, autocast=torch.bfloat16),
        solve(problem, cast, torch.float32),
    )
    assert ours["out"].dtype == torch.bfloat16
    assert same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_may_be_set_to_either_dtype_and_mends_mixed_arguments(device, dtype):
    query, key, value = (torch.randn(2, 5, 32, device=device) for _ in range(3))
    mixed = query, key.half(), value.bfloat16()
    with torch.autocast(device, dtype):
        out = ck.cross_attention(*mixed, 2, impl="triton")
    assert out.dtype == dtype
    assert torch.equal(out, ck.cross_attention(*(t.to(dtype) for t in mixed), 2, impl="triton"))
    with pytest.raises(TypeError, match=r"key must be torch.float32 like query"):
        ck.cross_attention(query, key.half(), value, 2, impl="triton")


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # NumPy's, of NaN
@pytest.mark.parametrize("keys", [5, 140])
def test_an_id_out_of_range_shows_in_its_own_row_and_image_alone(device, keys):
    """Beneath the public function, which refuses it where it can read it."""
    from crossmae_kernels.cross_attention import ops

    table = torch.randn(4, 32, device=device, requires_grad=True)
    key_value = torch.randn(2, keys, 64, device=device, requires_grad=True)
    ids = torch.tensor([[0, 1, 4], [1, 2, 3]], device=device)
    out = ops.cross_attention(table, key_value, None, ids, "kv", 2, None)
    out.backward(torch.ones_like(out))
    assert out.isnan().all(2).tolist() == [[False, False, True], [False] * 3]
    assert not out[1].isnan().any()
    assert key_value.grad[0].isnan().all()
    assert not key_value.grad[1].isnan().any()
    assert table.grad.isfinite().all()
