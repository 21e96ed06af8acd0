"""What every op guarantees, whatever it computes: a public op that is not posed in the registry fails here."""

import pytest
import torch
from contract import CALLS, JUDGED, NAMES, PATHS, Witness, alone_and_frozen, operators_of, posed, same, solved
from operators import calls_of_operators
from oracles import oracle_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import crossmae_kernels
from crossmae_kernels.testing import Draw, Judge, poisoned_allocations, solve
from crossmae_kernels.testing.judge import gradients_of, outputs_of, upstream_of
from crossmae_kernels.testing.problem import mapped, named
from crossmae_kernels.testing.problems import tiny, vit_base

paths = pytest.mark.parametrize(("name", "dtype"), PATHS, ids=str)

OPERATORS = {
    name.partition("::")[2].partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("crossmae_kernels::")
} - {"cpu_linear", "cpu_attention", "cpu_attention_backward"}  # no kernels


@pytest.mark.parametrize("problems", [tiny, vit_base])
def test_every_public_op_is_posed(problems):
    with FakeTensorMode():
        posed = problems(Draw(), 1)
    assert {problem.op for problem in posed} == set(crossmae_kernels.__all__)
    assert len({str(problem) for problem in posed}) == len(posed)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_follows_the_definition(name):
    problem = posed(name, "cpu")
    ours, exact = (solve(problem, call, torch.float64) for call in (problem.by("reference"), oracle_of(problem)))
    assert ours.keys() == exact.keys()
    for result, truth in exact.items():
        # Bytes become float32.
        tolerance = 1e-6 if "uint8" in name else 1e-12
        torch.testing.assert_close(ours[result].double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.budget
@pytest.mark.parametrize(("name", "dtype"), JUDGED, ids=str)
def test_results_and_all_gradients_keep_to_the_budget(device, name, dtype):
    problem = posed(name, device)
    Judge(problem, dtype, oracle_of(problem)).check(problem.by("triton"))


@paths
def test_frozen_arguments_get_no_gradient_and_change_no_other(device, name, dtype):
    problem, everything = posed(name, device), solved(name, device, dtype)
    for frozen in alone_and_frozen(problem):
        with Witness():
            some = solve(problem, problem.by("triton"), dtype, frozen)
        assert some.keys() == everything.keys() - {f"d {name}" for name in frozen}
        assert same(some, {name: everything[name] for name in some})


def test_each_operator_is_called_by_a_public_op_and_none_writes_its_arguments_or_shares_its_results(device):
    assert set().union(*(operators_of(name, device, dtype) for name, dtype in PATHS)) == OPERATORS


@paths
def test_results_repeat_bit_for_bit_in_a_second_call_and_a_second_backward_pass(device, name, dtype):
    problem, first = posed(name, device), solved(name, device, dtype)
    leaves, saved = problem.leaves(dtype), []
    before = {name: t.detach().clone() for name, t in named(leaves)}
    with problem.in_form():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t, t.clone())) or t, lambda t: t):
            outputs = outputs_of(problem.by("triton")(**leaves))
        upstream = upstream_of(outputs)
        for last in (False, True):
            gradients = gradients_of(outputs, leaves, upstream, retain_graph=not last)
            assert same({name: out.detach() for name, out in outputs.items()} | gradients, first)
    assert same({name: t.detach() for name, t in named(leaves)}, before)
    assert all(torch.equal(a, b) for a, b in saved)
    assert same(upstream, upstream_of(outputs))


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@paths
def test_layouts_change_nothing(device, name, dtype, layout):
    problem = posed(name, device)

    def lay(name, tensor):
        # Of images in another layout a loss may be summed in another order.
        return tensor if problem.op == "patch_loss" and name == "images" else LAYOUTS[layout](tensor)

    def strided(**arguments):
        return problem.by("triton")(**mapped(arguments, lay))

    assert same(solve(problem, strided, dtype), solved(name, device, dtype))


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtype in PATHS if name in CALLS])
def test_expanded_upstream_gradients_change_nothing(device, name, dtype):
    problem = posed(name, device)
    leaves = problem.leaves(dtype)
    with problem.in_form():
        outputs = outputs_of(problem.by("triton")(**leaves))
        for shared in (lambda t: t.flatten()[0], lambda t: t[:1]):
            upstream = {name: t if t.dim() == 0 else shared(t) for name, t in upstream_of(outputs).items()}
            expanded = {name: t.expand(outputs[name].shape) for name, t in upstream.items()}
            contiguous = {name: t.contiguous() for name, t in expanded.items()}
            ours, theirs = (gradients_of(outputs, leaves, given, retain_graph=True) for given in (expanded, contiguous))
            if problem.op == "project_feature_maps":
                # The library multiplies matrices of another layout in another order.
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            else:
                assert same(ours, theirs)


# Eager PyTorch's variance of nothing.
@pytest.mark.filterwarnings("ignore:var_mean:UserWarning")
@paths
def test_no_rows(device, name, dtype):
    problem = posed(name, device, batch=0)
    if problem.op == "fold_norm" or problem.options.get("reduction") == "mean":
        # There is no batch, or no mean.
        return
    with poisoned_allocations(), Witness():
        found = solve(problem, problem.by("triton"), dtype)
    theirs = solve(problem, problem.by("reference"), dtype)
    assert found.keys() == theirs.keys()
    for result, t in found.items():
        assert t.shape == theirs[result].shape
        assert not t.any()


# The interpreter warns of what is wanted here.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    "name", [name for name in NAMES if any("ids" in argument for argument in posed(name, "cpu").arguments)]
)
def test_rows_with_ids_out_of_range_are_not_read_and_show_as_nan(device, name):
    problem = posed(name, device)
    with problem.in_form():
        # Straight to the operator: on a CPU the public function would raise.
        with calls_of_operators() as recorded:
            problem.by("triton")(**problem.leaves(problem.dtypes[0]))
        ((operator, arguments),) = recorded

        def first_result(changed=lambda ids: ids):
            given = tree_map_only(
                torch.Tensor, lambda t: t.detach() if t.dtype != torch.int64 else changed(t), arguments
            )
            result = operator(*given)
            return result if isinstance(result, torch.Tensor) else result[0]

        def out_of_range(ids):
            ids = ids.clone()
            ids[0, 1], ids[1, 3] = -1, 2**40
            return ids

        good, bad = first_result(), first_result(out_of_range)
    lost = torch.zeros(bad.shape[:2], dtype=torch.bool, device=device)
    lost[0, 1] = lost[1, 3] = True
    assert bad[lost].isnan().all()
    assert torch.equal(bad[~lost], good[~lost])
