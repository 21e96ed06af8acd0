"""Suites pose contests; a contender is checked and then timed, and whatever goes wrong becomes its record."""

import functools
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import decoders, ops, records, suites
from benchmarks.bench_suites import attempt
from benchmarks.contest import BOTH, FORMS, FORWARD, Contest, MissingError, Work
from benchmarks.suites import SUITES
from benchmarks.tables import GOALS, MEMORY, SPEED
from benchmarks.timing import CLOCK, sets_that_overflow
from crossmae_kernels.check.contenders import attentions
from crossmae_kernels.runtime.tuning import tuning_mode
from crossmae_kernels.testing import Problem

FORM = FORMS["tiny"]


@functools.cache
def contests(suite, form):
    return ops.contests(suite, FORMS[form])


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


def contest_of(**contenders):
    """Squares of three numbers an image, by planted contenders beside eager PyTorch."""
    return Contest(
        suite="mixing",
        about={"problem": "squares"},
        batch=4,
        dtype=torch.float32,
        pose=lambda draw, batch: Problem("squares", "", {"x": draw.normal(batch, 3)}),
        contenders={"reference": solver(lambda x: x * x), **contenders},
        work={FORWARD: Work(1, 1), BOTH: Work(2, 2)},
    )


def solver(call):
    return lambda: call


def raising(error):
    def call(x):
        raise error

    return solver(call)


def attempted(contest, *contenders, direction=BOTH):
    """The records of these contenders."""
    cases = [suites._of_contest(FORM, contest, name, direction) for name in contenders]
    for case in cases:
        attempt(case, Benchmark)
    return [case.record for case in cases]


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
    assert "out is off by" in status["wrong"][1]
    for record in found:  # no time without a check
        assert bool(record.stats) == (record.status == records.MEASURED)


def test_a_reference_that_is_not_finite_is_wrong():
    (record,) = attempted(contest_of(reference=solver(lambda x: x / 0)), "reference")
    assert record.status == records.WRONG
    assert "out is off by nan" in record.reason


def test_ours_keep_to_a_stricter_budget_than_others():
    def slightly_off(x):
        return x * x * (1 + 2e-7)

    contest = contest_of(fused=solver(slightly_off), other=solver(slightly_off))
    fused, other = attempted(contest, "fused", "other")
    assert (fused.status, other.status) == (records.WRONG, records.MEASURED)


def test_a_wrong_gradient_is_wrong():
    (fused,) = attempted(contest_of(fused=solver(lambda x: x.detach() * x)), "fused")
    assert fused.reason.startswith("d x")


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
def test_measurements_have_distinct_names(suite, form, monkeypatch):
    monkeypatch.setattr("crossmae.benchmark.setting.Setting.__post_init__", lambda setting: None)  # here is no GPU
    keys = [case.record.key for case in suites.cases(suite, FORMS[form])]
    assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_compared_has_a_reference_and_mae(form, monkeypatch):
    monkeypatch.setattr("crossmae.benchmark.setting.Setting.__post_init__", lambda setting: None)
    assert all("reference" in contest.contenders for suite in ops.SUITES for contest in contests(suite, form))
    for suite in ("decode", "step"):
        asked = decoders.asked(suite, FORMS[form])
        problems = {one.problem for one in asked}
        for problem in problems:
            assert {one.contender for one in asked if one.problem == problem} & {"kernels", "kernels, by ratio"}
        assert {"kernels", "reference", "release"} <= {one.contender for one in asked}
        assert all(one.setting.mae.decoder == "mae" for one in asked)
        by_recipes = [one for one in asked if "recipes' settings" in one.problem]
        assert {"kernels", "reference"} <= {one.contender for one in by_recipes}
        for one in asked:
            for config in (one.setting.crossmae, one.setting.mae):
                assert ((config.residual, config.hidden_layer) == ("autocast", "save")) == (one in by_recipes)


def test_goals_are_set_for_what_is_posed(monkeypatch):
    monkeypatch.setattr("crossmae.benchmark.setting.Setting.__post_init__", lambda setting: None)
    for suite, begin, *_ in GOALS:
        assert any(case.record.problem.startswith(begin) for case in suites.cases(suite, FORMS["short"])), begin


def test_the_strongest_that_others_offer_competes(monkeypatch):
    monkeypatch.setattr("crossmae.benchmark.setting.Setting.__post_init__", lambda setting: None)
    attention, mixing = (contests(suite, "full")[0] for suite in ("attention", "mixing"))
    others = {f"sdpa {backend}" for backend in ("math", "efficient", "flash", "cudnn")}
    others |= {"xformers", "FlexAttention", *(f"FlashAttention {version}" for version in (2, 3, 4))}
    assert others < attention.contenders.keys()
    asked = decoders.asked("decode", FORMS["full"])
    decode = {one.contender for one in asked if one.problem == asked[0].problem}
    for contenders in (mixing.contenders.keys(), decode):
        for name in ("reference", "release"):
            assert {name, f"{name}, compiled", f"{name}, max-autotune"} < contenders
    assert decode > {"kernels"}
    for one in asked:
        assert ("max-autotune" in one.setting.executions) == ("max-autotune" in one.contender)
    steps = decoders.asked("step", FORMS["full"])
    assert len({one.problem for one in steps if one.contender == "reference, max-autotune"}) == 2 * len(
        FORMS["full"].sizes
    )
    assert not any("max-autotune" in one.contender for one in decoders.asked("step", FORMS["short"]))


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


def test_little_time_is_spent_on_compilers_where_goals_are_set(monkeypatch):
    monkeypatch.setattr("crossmae.benchmark.setting.Setting.__post_init__", lambda setting: None)
    keys = [case.record.key for suite in SUITES for case in suites.cases(suite, FORMS["short"])]
    compiled = [key for key in keys if "compiled" in key[2] or "max-autotune" in key[2]]
    assert all(key[2].endswith(", max-autotune") and key[3] == BOTH for key in compiled)
    found = {(suite, problem) for suite, problem, name, _ in compiled if name.startswith("reference")}
    for suite, begin, what, _ in GOALS:
        if what in (SPEED, MEMORY):
            assert any(where == suite and problem.startswith(begin) for where, problem in found), begin
    assert len(found) == 5  # of one decoder, three operations, of which attention has two problems


@pytest.mark.parametrize(
    ("suite", "name"),
    [("mixing", "fused"), ("mixing", "release"), ("projection", "release"), ("patches", "release")],
)
def test_a_suite_goes_the_whole_way(suite, name):
    pytest.importorskip("numpy", reason="Triton's interpreter needs it")
    (record,) = attempted(contests(suite, "tiny")[0], name)
    assert (record.status, record.reason) == (records.MEASURED, "")
    assert ", allowed is " in record.check


@pytest.mark.parametrize(("suite", "name", "by_recipe"), [
    ("decode", "release", False), ("step", "reference", False), ("decode", "reference", True),
])  # fmt: skip
def test_decoders_go_the_whole_way(suite, name, by_recipe):
    named = (case for case in suites.cases(suite, FORM) if case.record.contender == name)
    (case,) = (case for case in named if ("recipes' settings" in case.record.problem) == by_recipe)
    attempt(case, Benchmark)
    assert (case.record.status, case.record.reason) == (records.MEASURED, "")
    about, rows = case.record.found["about"], case.record.found["rows"]
    assert (about["residual"], about["hidden_layer"]) == (
        ("autocast", "save") if by_recipe else ("float32", "recompute")
    )
    assert [row["decoder"] for row in rows] == ["MAE", "CrossMAE"]
    assert all(row["both"] > 0 and row["forward"] > 0 and row["least"] > 0 for row in rows)


def test_kernels_are_timed_one_by_one_in_the_forms_that_are_predicted(monkeypatch):
    """Here they are interpreted, so the profiler sees none; what a GPU would hand out is planted."""
    pytest.importorskip("numpy", reason="Triton's interpreter needs it")
    from crossmae_kernels.runtime.tuning import mode

    modes = []

    def profile():
        return nullcontext(SimpleNamespace(events=lambda: modes.append(mode()) or events))

    gpu, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    of_a_pass = (("gemm_kernel", gpu, 30), ("gemm_kernel", gpu, 50), ("nvjet", gpu, 9), ("aten::mm", cpu, 70))
    events = [event(*values) for values in 5 * of_a_pass]
    monkeypatch.setattr("torch.profiler.profile", profile)
    for case in suites.cases("kernels", FORM):
        attempt(case, Benchmark)
        assert (case.record.status, case.record.reason) == (records.MEASURED, "")
        assert case.record.found == {"gemm_kernel": (2, pytest.approx(80e-6)), "nvjet": (1, pytest.approx(9e-6))}
    assert modes == ["off", "off"]


def event(name, device, microseconds):
    time_range = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(name=name, device_type=device, time_range=time_range)


def test_decoders_that_are_wrong_or_need_too_much_say_so(monkeypatch):
    for error, status in ((RuntimeError("wrong: out is off"), records.WRONG),
                          (torch.OutOfMemoryError("out of memory"), records.OUT_OF_MEMORY),
                          (RuntimeError("no kernel"), records.FAILED)):  # fmt: skip
        monkeypatch.setattr("crossmae.benchmark.checking.Judge.require", raising_method(error))
        case = next(case for case in suites.cases("decode", FORM) if case.record.contender == "reference")
        attempt(case, Benchmark)
        assert case.record.status == status
        assert str(error).removeprefix("wrong: ") in case.record.reason
        assert all(row["failure"] and not row["both"] for row in case.record.found["rows"])


def raising_method(error):
    def require(self, found):
        raise error

    return require


def test_ceilings_are_measured_in_the_same_run():
    (case,) = suites.cases("ceilings", FORM)
    attempt(case, Benchmark)
    run = records.Run()
    run.put([case.record])
    assert run.ceilings.copy > 0 < run.ceilings.product


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
    found = [contest for suite in ops.SUITES for contest in contests(suite, "small") if op in contest.problem]
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
    directions = [case.record.direction for case in suites.cases("attention", FORM)]
    assert directions == sorted(directions, key=(BOTH, FORWARD).index)
