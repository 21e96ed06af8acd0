"""Suites pose contests; a contender is checked and then timed, and whatever goes wrong becomes its record."""

import functools
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import crossmae
from benchmarks import records, suites
from benchmarks.bench_suites import attempt
from benchmarks.contest import BOTH, FORMS, FORWARD, STEP, Contest, MissingError, Solver, Work
from benchmarks.report.goals import GOALS, MEMORY, SPEED
from benchmarks.suites import SUITES, models, planned
from benchmarks.suites.models import GraphedLoss
from benchmarks.timing import CLOCK, sets_that_overflow
from crossmae.masking import Masking
from crossmae_kernels.check.contenders import attentions
from crossmae_kernels.runtime.tuning import tuning_mode
from crossmae_kernels.testing import Problem

FORM = FORMS["tiny"]


@functools.cache
def contests(suite, form):
    return suites.contests(suite, FORMS[form])


class Benchmark:
    """The part of pytest-benchmark's fixture that is used; as a worker of pytest-xdist it would not run."""

    def __init__(self):
        self.extra_info, self.group, self.seconds = {}, None, []

    def pedantic(self, run, setup=None, rounds=1):
        for _ in range(rounds):
            if setup is not None:
                assert setup() is None  # or it would be taken for arguments
            begun = CLOCK()
            run()
            self.seconds.append(CLOCK() - begun)

    @property
    def stats(self):
        stats = {"median": sorted(self.seconds)[len(self.seconds) // 2], "rounds": len(self.seconds)}
        return SimpleNamespace(as_dict=lambda include_data: {"stats": stats})


def contest_of(baseline=None, **contenders):
    """Squares of three numbers an image, by planted contenders beside eager PyTorch."""
    return Contest(
        suite="mixing",
        about={"problem": "squares"},
        batch=4,
        dtype=torch.float32,
        pose=lambda draw, batch: Problem("squares", "", {"x": draw.normal(batch, 3)}),
        contenders={"reference": solver(lambda x: x * x), **contenders},
        work={FORWARD: Work(1, 1), BOTH: Work(2, 2)},
        baseline=baseline,
    )


def solver(call):
    return lambda: Solver(call)


def raising(error):
    def call(x):
        raise error

    return solver(call)


def attempted(contest, *contenders, direction=BOTH):
    """The records of these contenders."""
    found = []
    for name in contenders:
        case = contest, name, direction
        found.append(planned(case))
        attempt(Benchmark(), found[-1], case, FORM)
    return found


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_whatever_goes_wrong_becomes_the_record(direction):
    def absent():
        raise MissingError("not made for this device")

    contenders = {
        "huge": raising(torch.OutOfMemoryError("CUDA out of memory")),
        "absent": absent,
        "refused": raising(RuntimeError("no kernel available")),
        "wrong": solver(lambda x: x * x.abs() * 1.001),
        "nan": solver(lambda x: x * x * float("nan")),
        "fused": raising(RuntimeError("illegal instruction")),
        "other": solver(lambda x: x.square()),
    }
    found = attempted(contest_of(**contenders), "reference", *contenders, direction=direction)
    status = {record.contender: (record.status, record.reason) for record in found}
    assert status["reference"] == status["other"] == (records.MEASURED, "")
    assert status["huge"] == (records.OUT_OF_MEMORY, "CUDA out of memory")
    assert status["absent"] == (records.MISSING, "not made for this device")
    assert status["refused"] == (records.MISSING, "RuntimeError: no kernel available")
    assert status["fused"] == (records.FAILED, "RuntimeError: illegal instruction")
    assert {status[name][0] for name in ("wrong", "nan")} == {records.WRONG}
    assert "errs by" in status["wrong"][1]
    for record in found:  # no time without a check
        assert bool(record.stats) == (record.status == records.MEASURED)


def test_a_reference_that_is_not_finite_is_wrong():
    (record,) = attempted(contest_of(reference=solver(lambda x: x / 0)), "reference")
    assert (record.status, record.reason) == (records.WRONG, "out is not finite")


def test_ours_keep_to_a_stricter_budget_than_others():
    def slightly_off(x):
        return x * x * (1 + 1e-6)

    contest = contest_of(fused=solver(slightly_off), other=solver(slightly_off))
    fused, other = attempted(contest, "fused", "other")
    assert (fused.status, other.status) == (records.WRONG, records.MEASURED)


def test_a_wrong_gradient_is_wrong():
    (fused,) = attempted(contest_of(fused=solver(lambda x: x.detach() * x)), "fused")
    assert fused.reason.startswith("d x")


def test_a_baseline_is_timed_in_turn():
    calls = []

    def slow(x):
        calls.append("baseline")
        time.sleep(0.01)
        return x * x

    def counted(x):
        calls.append("contender")
        return x * x

    baseline = contest_of()
    baseline.contenders["reference"] = solver(slow)
    (record,) = attempted(contest_of(baseline=baseline, other=solver(counted)), "other")
    assert calls[-2:] == ["baseline", "contender"]
    assert record.baseline > 0.01 > record.stats["median"]


def test_replays_are_handed_over_to_pytest_benchmark():
    benchmark, seconds = Benchmark(), [3e-6, 5e-6, 4e-6]
    CLOCK.hand_over(benchmark, seconds)
    assert benchmark.seconds == pytest.approx(seconds)
    assert abs(CLOCK() - time.perf_counter()) < 1


def test_sets_of_arguments_overflow_the_cache_as_far_as_there_is_memory():
    cache, plenty = 50 * 2**20, 2**36
    for size in (2**20, 2**23, 2**26, 2**30):
        assert sets_that_overflow(cache, size, plenty) * size >= min(3 * cache, 32 * size)
    assert sets_that_overflow(cache, 2**20, 2**25) == 4
    assert sets_that_overflow(cache, 2**30, 2**30) == 1


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("form", FORMS)
def test_contests_have_distinct_names_and_a_reference(suite, form):
    found = contests(suite, form)
    names = [contest.problem for contest in found]
    assert len(set(names)) == len(names) > 0
    for contest in found:
        assert "reference" in contest.contenders
        assert suite == "ceilings" or contest.work.keys() & {BOTH, STEP}


def test_goals_are_set_for_what_is_posed():
    for suite, begin, *_ in GOALS:
        assert any(contest.problem.startswith(begin) for contest in contests(suite, "short")), begin


def test_the_strongest_that_others_offer_competes():
    attention, mixing, decode = (contests(suite, "full")[0] for suite in ("attention", "mixing", "decode"))
    others = {f"sdpa {backend}" for backend in ("math", "efficient", "flash", "cudnn")}
    others |= {"xformers", "FlexAttention", *(f"FlashAttention {version}" for version in (2, 3, 4))}
    assert others < attention.contenders.keys()
    for contest in (mixing, decode):
        for name in ("reference", "release"):
            assert {name, f"{name}, compiled", f"{name}, compiled, max-autotune"} < contest.contenders.keys()


@pytest.mark.parametrize("more", [False, True])
def test_each_version_of_flash_attention_is_its_own_package(monkeypatch, more):
    query, key, value = torch.randn(3, 2, 4, 3, 16).half()

    def flash_attn_func(query, key, value):
        return (query + key - value, None) if more else query + key - value

    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(flash_attn_func=flash_attn_func))
    for name in ("FlashAttention 2", "FlashAttention 4"):
        assert attentions()[name](query, key, value).equal(query + key - value)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)  # not installed
    with pytest.raises(ImportError, match="flash_attn_interface"):
        attentions()["FlashAttention 3"](query, key, value)


FEW_COMPILED = [("short", "compiled, max-autotune"), ("tiny", "compiled")]


@pytest.mark.parametrize(("form", "compiled"), FEW_COMPILED)
def test_little_time_is_spent_on_compilers_where_goals_are_set(form, compiled):
    planned_cases = [case for suite in SUITES for case in suites.cases(suite, FORMS[form])]
    found = [(contest.problem, name, direction) for contest, name, direction in planned_cases if "compiled" in name]
    assert all(name.partition(", ")[2] == compiled and direction == BOTH for _, name, direction in found)
    problems = {problem for problem, name, _ in found if name.startswith("reference")}
    for suite, begin, what, _ in GOALS:
        if what in (SPEED, MEMORY):
            assert any(contest.problem in problems for contest in contests(suite, form)), begin
    assert len(problems) == 6


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("mixing", "fused"),
        ("mixing", "release"),
        ("decode", "fused"),
        ("decode", "release"),
        ("step", "reference"),
        ("projection", "release"),
        ("patches", "release"),
    ],
)
def test_a_suite_goes_the_whole_way(suite, name):
    pytest.importorskip("numpy", reason="Triton's interpreter needs it")
    contest = contests(suite, "tiny")[0]
    (direction,) = contest.work.keys() - {FORWARD}
    (record,) = attempted(contest, name, direction=direction)
    assert (record.status, record.reason) == (records.MEASURED, "")
    assert record.check == "finite" if name == "reference" else ", allowed is " in record.check
    assert direction == STEP or record.saved > 0


def captured(model, sample, masking):
    """What a capture does, without a device: everything stays where it was and only its numbers change."""
    images = sample.clone()
    model.zero_grad(set_to_none=True)
    model(images, masking=masking).loss.backward()
    places = [parameter.grad for parameter in model.parameters()]

    def replay(batch):
        images.copy_(batch)
        with torch.enable_grad():
            output = model(images, masking=masking)
        for place, gradient in zip(places, torch.autograd.grad(output.loss, [*model.parameters()]), strict=True):
            place.copy_(gradient)
        return replace(output, loss=output.loss.detach())

    return replay


@pytest.mark.parametrize("family", [0, 1])
def test_a_graphed_step_is_judged_and_takes_new_images_masks_and_batches(monkeypatch, family):
    monkeypatch.setattr(crossmae, "graphed", captured)
    monkeypatch.setattr(models, "GraphedLoss", lambda _, model: GraphedLoss(torch.device("cuda"), model))
    contest = SUITES["step"](FORM)[family]
    # The reference in the place of kernels, which take a minute in the interpreter and are judged elsewhere.
    step = replace(contest.contenders["fused, graphed"](), implementation="reference")
    contest = replace(contest, contenders=contest.contenders | {"fused, graphed": lambda: step})
    (record,) = attempted(contest, "fused, graphed", direction=STEP)
    assert (record.status, record.reason) == (records.MEASURED, "")
    for seed, batch in ((0, 2), (1, 3), (2, 3), (3, 2)):
        arguments = contest.draw(batch, seed, FORM.device)
        parameters = [*step.module.parameters()]
        loss, found = step.gradients(arguments, parameters, step.upstream(arguments, seed))
        masking = Masking(arguments["visible"], arguments["predicted"])
        exact = step.module(arguments["inputs"], masking=masking).loss
        torch.testing.assert_close(loss, exact.detach())
        torch.testing.assert_close(found, [*torch.autograd.grad(exact, parameters)])
        step.optimizer.zero_grad(set_to_none=True)  # as the timed step does


# Of four images by ViT-B: predicted and visible rows of patches, a feature map, keys and values, a weight and its bias.
ROWS, MAP, KEYS_AND_VALUES, LAYER = 4 * 49, 4 * 50 * 768, 2 * 4 * 50 * 512, 512**2 + 512
# Numbers of 4 bytes that must move forward and backward, and multiply-accumulates forward.
WORK = {
    # Its weight, of 12 x 13, is read twice and its gradient written.
    "mix_feature_maps": (25 * MAP + 156, 38 * MAP + 312, 12 * 13 * MAP),
    # A table of 196 queries, and ids of 8 bytes.
    "cross_attention, 49 x 50, 16 heads of 32, table": (
        (196 + 2 * ROWS) * 512 - ROWS * 510 + KEYS_AND_VALUES,
        (2 * 196 + 2 * ROWS) * 512 - ROWS * 510 + 2 * KEYS_AND_VALUES,
        2 * ROWS * 50 * 512,
    ),
    # The residual's gradient is the output's.
    "linear_residual": (3 * ROWS * 512 + LAYER, 3 * ROWS * 512 + 2 * LAYER, ROWS * 512**2),
    "gather_patches": (2 * ROWS * 768, (ROWS + 4 * 196) * 768, 0),
    "patch_loss": (2 * ROWS * 768, ROWS * 768, 0),
}


@pytest.mark.parametrize("op", WORK)
def test_work_is_what_must_move_and_be_multiplied(op):
    found = [contest for suite in SUITES for contest in contests(suite, "small") if op in contest.problem]
    forward, backward, macs = WORK[op]
    (contest,) = found
    assert contest.work[FORWARD] == Work(4 * forward, 2 * macs)
    assert contest.work[BOTH] == Work(4 * (forward + backward), 6 * macs)


def test_a_record_says_tuned_only_where_something_was(monkeypatch, tmp_path):
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    with tuning_mode("recall"):
        assert not attempted(contest_of(), "reference")[0].tuned
        (tmp_path / "tiles.gemm-0.json").touch()
        assert attempted(contest_of(), "reference")[0].tuned
    with tuning_mode("off"):
        assert not attempted(contest_of(), "reference")[0].tuned


def test_the_most_important_comes_first():
    directions = [direction for _, _, direction in suites.cases("decode", FORMS["full"])]
    assert directions == sorted(directions, key=(BOTH, FORWARD).index)
