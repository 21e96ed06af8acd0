"""The one command for a GPU, rehearsed; and what becomes of the rest when something goes wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch

import crossmae
from benchmarks import gpu, measure, records
from benchmarks.gpu import Session, run_together
from benchmarks.largest_batch import search
from benchmarks.problem import (
    BOTH,
    FORWARD,
    LARGEST,
    STEP,
    MissingError,
    Problem,
    Solver,
    Work,
    form_named,
    gradients,
    upstream_of,
)
from benchmarks.records import Record, Run, Stage
from benchmarks.report import runs
from benchmarks.suites.models import GraphedLoss, model_problem
from crossmae.masking import Masking
from crossmae.model import Output
from crossmae_kernels.runtime import tuning

FORM = form_named("tiny")


def problem_of(**contenders):
    """Squares of three numbers an image, by planted contenders beside eager PyTorch."""
    return Problem(
        suite="mixing",
        about={"problem": "squares"},
        batch=4,
        dtype=torch.float32,
        arguments=lambda batch, random: {"x": random.normal(batch, 3, dtype=torch.float32)},
        contenders={"reference": lambda: Solver(lambda x: x * x), **contenders},
        ours=frozenset({"reference", "fused"}),
        exact=lambda: Solver(lambda x: x * x),
        work={FORWARD: Work(1, 1), BOTH: Work(2, 2)},
    )


def solver(call):
    return lambda: Solver(call)


def raising(error):
    def call(x):
        raise error

    return solver(call)


@pytest.fixture
def folder(tmp_path):
    records.write(Run({"commit": "c", "device": "d", "form": "tiny", "date": "2026-01-02"}), tmp_path)
    return tmp_path


def run_suite(folder, monkeypatch, problem, until=float("inf"), form=FORM):
    monkeypatch.setattr(measure, "problems", lambda suite, form: [problem])
    assert measure.run_suite(folder, "mixing", form, until) == 0
    return {(r.contender, r.direction): r for r in records.read(folder).records.values()}


def test_whatever_goes_wrong_leaves_the_others_alone(folder, monkeypatch):
    def absent():
        raise MissingError("not made for this device")

    found = run_suite(
        folder,
        monkeypatch,
        problem_of(
            huge=raising(torch.OutOfMemoryError("CUDA out of memory")),
            absent=absent,
            refused=raising(RuntimeError("no kernel available")),
            wrong=solver(lambda x: x * x.abs() * 1.001),
            nan=solver(lambda x: x * x * float("nan")),
            fused=raising(RuntimeError("illegal instruction")),
            other=solver(lambda x: x.square()),
        ),
    )
    for direction in (FORWARD, BOTH):
        status = {name: (r.status, r.reason) for (name, way), r in found.items() if way == direction}
        assert status["reference"] == status["other"] == (records.MEASURED, "")
        assert status["huge"] == (records.OUT_OF_MEMORY, "CUDA out of memory")
        assert status["absent"] == (records.MISSING, "not made for this device")
        assert status["refused"] == (records.MISSING, "RuntimeError: no kernel available")
        assert status["fused"] == (records.FAILED, "RuntimeError: illegal instruction")
        assert status["wrong"][0] == status["nan"][0] == records.WRONG
        assert "of what is allowed" in status["wrong"][1]
    for record in found.values():
        assert bool(record.times) == (record.status == records.MEASURED)


@pytest.mark.parametrize("most", [1, 7, 4096])
@pytest.mark.parametrize("first", [1, 2, 256])
@pytest.mark.parametrize("limit", [0, 1, 2, 5, 255, 256, 257, 1000, 10_000])
def test_largest_batch_is_found_to_a_sixteenth(first, most, limit):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    good, bad = search(fits, first, most)
    assert good <= limit
    assert good in {*tried, 0}
    if bad is None:
        assert good == most
    else:
        assert limit < bad <= most
        assert bad in tried
        assert bad - good <= max(1, good / 16)
    assert len(tried) == len(set(tried)) <= 20


def searched(call):
    """Steps of a sum of products with a weight, from four images on."""

    def solver(dtype=torch.float32):
        weight = torch.ones(3, dtype=dtype, requires_grad=True)
        return Solver(lambda x: call(x) * weight.sum(), parameters=(weight,), optimizer=torch.optim.AdamW([weight]))

    return dataclasses.replace(
        problem_of(),
        contenders={"reference": solver},
        exact=lambda: solver(torch.float64),
        work={direction: Work(0, 1) for direction in (STEP, LARGEST)},
        constants=frozenset({"x"}),
    )


def test_search_for_the_largest_batch_survives_memory_and_is_recorded(folder, monkeypatch):
    def no_more_than_nine(x):
        if len(x) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.square().sum()

    form = dataclasses.replace(FORM, most_images=100)
    found = run_suite(folder, monkeypatch, searched(no_more_than_nine), form=form)
    record = found["reference", LARGEST]
    assert (record.status, record.largest, record.reason) == (records.MEASURED, 9, "10 do not fit")
    assert found["reference", STEP].times
    text = runs.tables(records.read(folder)).split("### largest batch")[1]
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["squares", "reference", "9", "10 do not fit"]


def test_another_failure_of_the_search_is_a_failure(folder, monkeypatch):
    def wrong_beyond_four(x):
        if len(x) > 4:
            raise RuntimeError("illegal instruction")
        return x.square().sum()

    found = run_suite(folder, monkeypatch, searched(wrong_beyond_four))
    record = found["reference", LARGEST]
    assert (record.status, record.largest, record.reason) == (records.FAILED, None, "RuntimeError: illegal instruction")


def captured(model, sample, masking):
    """What a capture does, without a device: everything stays where it was and only its numbers change."""
    images = sample.clone()
    model.zero_grad(set_to_none=True)
    model(images, masking=masking).loss.backward()
    places = [parameter.grad for parameter in model.parameters()]

    def replay(batch):
        images.copy_(batch)
        output = model(images, masking=masking)
        for place, gradient in zip(places, torch.autograd.grad(output.loss, list(model.parameters())), strict=True):
            place.copy_(gradient)
        return Output(output.loss.detach(), output.prediction.detach(), masking)

    return replay


@pytest.mark.parametrize("family", ["crossmae", "mae"])
def test_graphed_steps_take_new_images_masks_and_batches(monkeypatch, family):
    monkeypatch.setattr(crossmae, "graphed", captured)
    model = crossmae.create_model(f"{family}_vit_tiny_patch4", image_size=16, decoder_depth=1)
    parameters = tuple(model.parameters())
    graphed = Solver(GraphedLoss(model, FORM), parameters=parameters, differentiates=True)
    problem = model_problem("launch", FORM, "tiny_patch4", 3, (BOTH,), family)
    for seed, batch in ((0, 2), (1, 3), (2, 3), (3, 2)):
        arguments = problem.draw(batch, seed, FORM.device)
        loss, found = gradients(graphed, arguments, upstream_of(graphed, arguments, seed))
        masking = Masking(arguments["visible"], arguments["predicted"])
        exact = model(arguments["images"], masking=masking).loss
        torch.testing.assert_close(loss, exact)
        for ours, theirs in zip(found, torch.autograd.grad(exact, parameters), strict=True):
            torch.testing.assert_close(ours, theirs)
        model.zero_grad(set_to_none=True)  # as the timed step does


def test_ours_keep_to_a_stricter_budget_than_others(folder, monkeypatch):
    def slightly_off(x):
        return x * x * (1 + 1e-6)

    found = run_suite(folder, monkeypatch, problem_of(fused=solver(slightly_off), other=solver(slightly_off)))
    assert found["other", BOTH].status == records.MEASURED
    assert found["fused", BOTH].status == records.WRONG


def test_a_wrong_gradient_is_wrong(folder, monkeypatch):
    found = run_suite(folder, monkeypatch, problem_of(fused=solver(lambda x: x.detach() * x)))
    assert found["fused", BOTH].reason.startswith("d x")


def test_what_time_did_not_reach_is_planned_and_a_second_call_measures_it(folder, monkeypatch):
    problem = problem_of()
    found = run_suite(folder, monkeypatch, problem, until=0)
    assert {r.status for r in found.values()} == {records.NOT_REACHED}
    assert {r.status for r in run_suite(folder, monkeypatch, problem).values()} == {records.MEASURED}


def test_records_of_the_same_commit_are_kept_and_failures_tried_again(tmp_path, monkeypatch):
    def record(contender, status):
        return Record("mixing", "p", contender, BOTH, status)

    session = Session(tmp_path, "tiny", 9)
    session.begin()
    with records.updating(tmp_path) as run:
        run.put([record("a", records.MEASURED), record("b", records.FAILED), record("c", records.OUT_OF_MEMORY)])
    session.begin()
    assert [r.contender for r in records.read(tmp_path).records.values()] == ["a", "c"]
    monkeypatch.setattr(records, "commit", lambda: "another")
    with pytest.raises(SystemExit, match="has records of commit"):
        session.begin()


PLANTED = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from test_gpu import measure, problem_of, solver
def die(x):
    os.kill(os.getpid(), signal.SIGKILL)
measure.problems = lambda suite, form: [problem_of(killed=solver(die), other=solver(lambda x: x.square()))]
sys.exit(measure.main())
"""


def test_a_killed_process_is_recorded_and_the_suite_goes_on(tmp_path, monkeypatch):
    session = Session(tmp_path, "tiny", 9)
    session.begin()
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(tests=os.path.dirname(__file__)))

    def planted(commands, *others, **more):
        return run_together([[sys.executable, str(script), *command[3:]] for command in commands], *others, **more)

    monkeypatch.setattr(gpu, "run_together", planted)
    session.environment["PYTHONPATH"] = str(records.ROOT)
    session.seconds["mixing"] = 60
    session.stage("mixing")
    run = records.read(tmp_path)
    status = {(r.contender, r.direction): r.status for r in run.records.values()}
    assert status["killed", BOTH] == status["killed", FORWARD] == records.FAILED
    assert status["reference", FORWARD] == status["other", FORWARD] == status["other", BOTH] == records.MEASURED
    assert run.records["mixing", "squares, batch 4", "killed", BOTH].reason.endswith("ended by signal 9")
    assert (run.stages["mixing"].status, run.stages["mixing"].reason) == (gpu.FAILED, "2 failed")
    lines, whole = gpu.summary(run)
    assert not whole
    assert any("mixing, failed: squares, batch 4: killed" in line and "signal 9" in line for line in lines)
    assert "- decode: not reached." in lines


def test_time_is_a_limit_for_all_that_a_stage_started():
    sleep = [sys.executable, "-S", "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    begun = time.monotonic()
    ended = run_together([sleep, [sys.executable, "-S", "-c", "print('quick')"]], 2, dict(os.environ), echo=False)
    assert time.monotonic() - begun < 20
    assert [(e.code, e.output.strip()) for e in ended] == [(None, "begun"), (0, "quick")]


def test_a_stage_without_time_is_not_reached(tmp_path):
    session = Session(tmp_path, "tiny", 9)
    session.begin()
    session.seconds["mixing"] = 0
    session.stage("mixing")
    assert records.read(tmp_path).stages["mixing"].status == records.NOT_REACHED


# What else this package or its tests ask for.
OTHERS = """
    numpy matplotlib tabulate safetensors jsonargparse tqdm PIL sklearn skimage yaml lightning_fabric webdataset
    torchvision tifffile braceexpand tensorboard pytest_benchmark xdist
"""
BARE = f"""
import sys
sys.modules |= dict.fromkeys({OTHERS.split()})
import benchmarks.first_call, benchmarks.gpu, pytest
from benchmarks.problem import form_named
from benchmarks.suites import SUITES, problems
for suite in SUITES:
    for problem in problems(suite, form_named("full")):
        assert problem.contenders
sys.exit(pytest.main(["-m", "gpu", "--collect-only", "-qq", "-p", "no:cacheprovider"]))
"""


def test_torch_triton_and_pytest_are_all_that_is_needed():
    environment = os.environ | {"PYTHONPATH": str(records.ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", BARE]
    done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "tests/crossmae_kernels/mlp" in done.stdout


def test_rehearsal_goes_the_whole_way_and_a_second_call_has_nothing_to_do(tmp_path, capfd):
    pytest.importorskip("numpy", reason="Triton's interpreter needs it")
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--rehearse", "--minutes", "60"]
    command += ["--stages", "ceilings", "mixing"]
    environment = os.environ | {"PYTHONPATH": str(records.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    run = records.read(tmp_path)
    assert done.returncode == 1, done.stderr  # other stages were not asked for
    assert {run.stages[name].status for name in ("ceilings", "mixing")} == {gpu.DONE}, done.stdout
    assert "- decode: not reached." in (tmp_path / "summary.md").read_text()
    fused = [r for r in run.records.values() if r.contender == "fused"]
    assert len(fused) == 2
    for record in fused:
        assert record.status == records.MEASURED
        assert 0 <= record.check["share"] <= 1
        assert record.roofline > 0
        assert record.times["call"]["p20"] <= record.times["call"]["median"] <= record.times["call"]["p80"]
    assert run.machine["interpreted"]
    assert json.loads((tmp_path / "records.json").read_text())["ceilings"]["copy"] > 0

    gpu.main([str(tmp_path), "--rehearse", "--stages", "ceilings", "mixing"])
    assert capfd.readouterr().out.count("done before") == 2


@pytest.mark.parametrize(("stage", "whole"), [("tuning", True), ("decode", False)])
def test_tuning_alone_may_run_out_of_time(stage, whole):
    machine = {"device": "a GPU", "commit": "0", "date": "2026-01-02"}
    run = Run(machine, stages={name: Stage(gpu.DONE) for name in gpu.SHORT_SECONDS})
    run.stages[stage] = Stage(gpu.TIMED_OUT, "ended after 35 s")
    lines, complete = gpu.summary(run)
    assert complete is whole
    assert f"- {stage}: timed out. ended after 35 s" in lines


def test_a_record_says_tuned_only_where_something_was(monkeypatch, tmp_path):
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "recall")
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path / "tuning"))
    case = measure.cases("mlp", form_named("tiny"))[0]
    assert not measure.planned(case).tuned
    tuning.remember(tmp_path / "tuning" / "kernel.json", (1,), records.Stage("done"))
    assert measure.planned(case).tuned
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "0")
    assert not measure.planned(case).tuned
