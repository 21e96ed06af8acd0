import ast
import json
from dataclasses import dataclass

import pytest
import torch

from crossmae_kernels.cross_attention.config import AttentionTiles, candidates, tiles
from crossmae_kernels.runtime import records, tuning
from crossmae_kernels.runtime.device import INTERPRETER, assume

GPU = torch.device("cuda")


@dataclass(frozen=True)
class Choice:
    size: int


REFUSALS = ["shared memory", "assembler", "compiler", "assertion", "MLIR", "LLVM"]


def refusal(why):
    """What Triton raises, 3.6 as well as 3.8, for a configuration that does not fit or does not compile."""
    from triton.compiler.errors import CompilationError, CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    here = ast.parse("x = 1").body[0]
    return {
        "shared memory": OutOfResources(2**18, 2**17, "shared memory"),
        "assembler": PTXASError("ptxas fatal"),
        "compiler": CompilationError("x = 1", here, "no such type"),
        "assertion": CompileTimeAssertionFailure("x = 1", here),
        "MLIR": RuntimeError("PassManager::run failed"),
        "LLVM": RuntimeError("failed to translate module to LLVM IR"),
    }[why]


class Machine:
    """A GPU on which a size of 3 is the fastest, as far as it runs sizes at all."""

    def __init__(self):
        self.ran, self.timed, self.refused = [], [], {}

    def run(self, choice):
        if choice.size in self.refused:
            raise self.refused[choice.size]
        self.ran.append(choice.size)
        return choice

    def milliseconds(self, run):
        run()
        self.timed.append(self.ran.pop())
        return abs(self.timed[-1] - 3)

    def tune(self, key=(32, "half"), rows=100, kind="tiles"):
        """The size that a call ran with."""
        before = len(self.ran)
        choices = [Choice(size) for size in (2, 3, 4)]
        chosen = tuning.run_tuned("kernel", key, rows, Choice(1), lambda: choices, self.run, GPU, kind)
        assert self.ran[before:] == [chosen.size]
        return chosen.size

    def restarted(self):
        """The same machine in another process."""
        tuning._known.clear()
        tuning._spent = 0.0
        tuning._tiles_recorded.cache_clear()
        return self


@pytest.fixture
def machine(monkeypatch, measured):
    machine = Machine()
    monkeypatch.setattr(tuning, "_milliseconds", machine.milliseconds)
    return machine


@pytest.fixture
def thorough(machine):
    with tuning.tuning_mode("all"):
        yield machine


def test_the_fastest_is_timed_once_and_remembered(thorough, tmp_path):
    assert thorough.tune() == 3
    assert thorough.timed == [1, 2, 3, 4]
    assert thorough.tune() == 3
    assert thorough.restarted().tune() == 3
    assert len(thorough.timed) == 4
    with tuning.tuning_mode("recall"):
        assert thorough.restarted().tune() == 3
        assert thorough.tune((64, "half")) == 1  # the rule's
        assert len(thorough.timed) == 4
    assert thorough.tune((64, "half")) == 3
    assert len(thorough.timed) == 8
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json"]


def test_unless_asked_otherwise_forms_are_timed_and_tiles_recalled(machine):
    for mode, sizes in (("recall", (1, 1)), ("forms", (3, 1)), ("all", (3, 3)), ("forms", (3, 3)), ("recall", (3, 3))):
        with tuning.tuning_mode(mode):
            assert (machine.restarted().tune(kind="forms"), machine.tune(kind="tiles")) == sizes
    # In other tiles forms are timed anew.
    assert len(machine.timed) == 12


def test_what_a_form_took_in_tuned_tiles_is_not_replaced(thorough, tmp_path):
    thorough.tune(kind="forms")
    (file,) = tmp_path.iterdir()
    before = file.read_text()
    with tuning.tuning_mode("forms"):
        assert thorough.restarted().tune(kind="forms") == 3
    assert file.read_text() == before
    assert len(thorough.timed) == 4


def test_the_switch(machine, monkeypatch):
    tensor = torch.empty(0)
    gates = {"off": (False, False), "recall": (True, False), "forms": (True, False), "all": (True, True)}
    for mode, gate in gates.items():
        with tuning.tuning_mode(mode):
            assert tuning.mode() == mode
            assert (tuning.tunes_forms(tensor), tuning.tunes_tiles(tensor)) == gate
            with assume(INTERPRETER):
                assert not tuning.tunes_forms(tensor)
                assert not tuning.tunes_tiles(tensor)
            torch.use_deterministic_algorithms(True)
            try:
                assert not tuning.tunes_forms(tensor)
                assert not tuning.tunes_tiles(tensor)
            finally:
                torch.use_deterministic_algorithms(False)
    monkeypatch.undo()
    with tuning.tuning_mode("all"):
        assert not tuning.tunes_forms(tensor)  # on a CPU
        assert not tuning.tunes_tiles(tensor)


def test_tiles_are_recalled_where_there_are_records_of_any(thorough):
    tensor = torch.empty(0)
    thorough.tune(kind="forms")
    with tuning.tuning_mode("recall"):
        assert not tuning.tunes_tiles(tensor)
    thorough.tune(kind="tiles")
    with tuning.tuning_mode("recall"):
        assert tuning.tunes_tiles(tensor)


@pytest.mark.parametrize("word", ["1", "on", ""])
def test_other_modes_are_refused(word):
    why = rf"tuning_mode: mode must be one of off, recall, forms, all, got '{word}'"
    with pytest.raises(ValueError, match=why), tuning.tuning_mode(word):
        pass


def test_the_budget_ends_it(machine, monkeypatch):
    now = iter([0.0, 20.0, 100.0, 115.0])
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(now))
    with tuning.tuning_mode("forms"):
        sizes = [machine.tune(key=(width,), kind="forms") for width in (1, 2, 3)]
        assert sizes == [3, 3, 1]
        assert machine.tune(key=(3,), kind="forms") == 1
        assert machine.tune(key=(2,), kind="forms") == 3  # known
    assert len(machine.timed) == 8
    now = iter([0.0, 1.0])
    with tuning.tuning_mode("all"):
        assert machine.tune(key=(3,), kind="forms") == 3


@pytest.mark.parametrize("busy", ["capture", "compiler"])
def test_nothing_is_timed_in_a_capture_or_by_a_compiler(machine, monkeypatch, tmp_path, busy):
    with tuning.tuning_mode("forms"):
        with monkeypatch.context() as patch:
            where = {"capture": "torch.cuda.is_current_stream_capturing", "compiler": "torch.compiler.is_compiling"}
            patch.setattr(where[busy], lambda: True)
            assert machine.tune(kind="forms") == 1
            assert machine.timed == []
            assert not [*tmp_path.iterdir()]
        assert machine.tune(kind="forms") == 3
        with monkeypatch.context() as patch:
            patch.setattr(where[busy], lambda: True)
            assert machine.tune(kind="forms") == 3
            assert machine.restarted().tune(kind="forms") == 3  # recalled


def test_a_candidate_for_which_memory_does_not_suffice_is_passed_over_in_this_process(machine, tmp_path):
    with tuning.tuning_mode("forms"):
        machine.refused[3] = torch.OutOfMemoryError("of 80 GiB")
        assert machine.tune(kind="forms") == 2
        machine.refused = {}
        assert machine.tune(kind="forms") == 2
        assert not [*tmp_path.iterdir()]
        assert machine.restarted().tune(kind="forms") == 3


def test_records_that_come_with_the_package_are_read_and_the_users_win(thorough, monkeypatch, tmp_path):
    assert thorough.tune() == 3
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(records, "SHIPPED", shipped)
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path / "user"))
    shipped.mkdir()
    (file,) = tmp_path.glob("*.json")
    file.rename(shipped / file.name)
    with tuning.tuning_mode("recall"):
        assert tuning.tunes_tiles(torch.empty(0))
        assert thorough.restarted().tune() == 3
        record = json.loads((shipped / file.name).read_text())
        record["milliseconds"].reverse()
        (tmp_path / "user").mkdir()
        (tmp_path / "user" / file.name).write_text(json.dumps(record))
        assert thorough.restarted().tune() == record["milliseconds"][0][0]["size"] != 3
    assert len(thorough.timed) == 4


def test_where_nothing_can_be_written_the_choice_holds_for_the_process(machine, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read only")

    monkeypatch.setattr(records.os, "replace", refuse)
    why = "tuning: measurements cannot be saved for later processes: read only"
    with tuning.tuning_mode("forms"), pytest.warns(RuntimeWarning, match=why):
        assert machine.tune(kind="forms") == 3
    assert machine.tune(kind="forms") == 3


def test_the_choice_depends_on_the_order_of_magnitude_of_the_rows(thorough):
    for rows, timed in ((1024, 4), (1500, 4), (2047, 4), (2048, 8), (2, 12), (1, 16)):
        assert thorough.restarted().tune(rows=rows) == 3
        assert len(thorough.timed) == timed


@pytest.mark.parametrize("package", ["torch", "triton", "crossmae-kernels"])
def test_another_version_tunes_anew(thorough, monkeypatch, package):
    records.versions.cache_clear()
    thorough.tune()
    records.versions.cache_clear()
    own = records.version
    monkeypatch.setattr(records, "version", lambda name: "99.0" if name == package else own(name))
    assert thorough.restarted().tune() == 3
    records.versions.cache_clear()
    assert len(thorough.timed) == 8


@pytest.mark.parametrize("why", REFUSALS)
def test_candidates_that_triton_refuses_are_passed_over(thorough, recwarn, why):
    thorough.refused = dict.fromkeys((1, 3, 4), refusal(why))
    assert thorough.tune() == 2
    thorough.refused[2] = refusal(why)
    with pytest.raises(type(refusal(why))):
        thorough.restarted().tune((64, "half"))  # nothing runs: the rule's own error, and no record
    thorough.refused = {}
    assert thorough.restarted().tune((64, "half")) == 3
    assert not recwarn


def test_errors_that_are_not_a_refusal_end_tuning(thorough):
    thorough.refused[4] = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        thorough.tune()


@pytest.mark.parametrize("why", REFUSALS)
def test_a_record_that_no_longer_runs_is_forgotten_and_the_rule_taken(thorough, recwarn, tmp_path, why):
    thorough.tune()
    thorough.restarted().refused[3] = refusal(why)
    assert thorough.tune() == 1
    assert thorough.tune() == 1
    (warning,) = (str(caught.message) for caught in recwarn)
    assert warning.startswith("crossmae_kernels tuning: kernel no longer runs with the choice in tiles.kernel-")
    assert warning.endswith(" ".join(str(refusal(why)).split()))
    assert not [*tmp_path.iterdir()]
    assert thorough.restarted().tune() == 2  # tuned again, without what is refused
    thorough.refused = {2: RuntimeError("an illegal memory access was encountered")}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        thorough.tune()
    assert [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSONDecodeError: "),
        ("[]", "TypeError: "),
        ("\xff", "UnicodeDecodeError: "),
        ({"key": "(1,)"}, r"ValueError: it is for \(1,\)"),
        ({"milliseconds": []}, r"ValueError: none of \[\] is a candidate"),
        ({"milliseconds": [3]}, "TypeError: "),
        ({"milliseconds": [[3, 1.0]]}, r"ValueError: none of \[\[3, 1.0\]\] is a candidate"),
        ({"milliseconds": [[{"size": 3}, "soon"]]}, "ValueError: could not convert string to float: 'soon'"),
        ({"milliseconds": [[{"size": 5}, 1.0]]}, r"ValueError: none of \[\[{'size': 5}, 1.0\]\] is a candidate"),
        ({"milliseconds": [[{"x": 1}, 1.0]]}, r"ValueError: none of \[\[{'x': 1}, 1.0\]\] is a candidate"),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["all", "recall"])
def test_records_that_cannot_be_read_or_are_not_ones_own_are_named_and_made_anew(machine, tmp_path, content, why, mode):
    with tuning.tuning_mode("all"):
        machine.tune()
    (file,) = tmp_path.iterdir()
    good = json.loads(file.read_text())
    file.write_text(content if isinstance(content, str) else json.dumps(good | content), "latin1")
    why = rf"tuning: the record .*{file.name} is unusable: {why}"
    with tuning.tuning_mode(mode), pytest.warns(RuntimeWarning, match=why) as caught:
        assert machine.restarted().tune() == (3 if mode == "all" else 1)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    if mode == "all":
        assert json.loads(file.read_text()) == good


@pytest.mark.parametrize("kernel", ["short_forward", "short_backward", "looped_forward", "looped_backward_query"])
def test_the_rule_depends_on_widths_and_on_queries_in_steps_only(kernel):
    few, more, most = (tiles(kernel, queries, 50, 32, 2, INTERPRETER, "ieee") for queries in (49, 64, 4096))
    assert few == more == most
    assert tiles(kernel, 3, 50, 32, 2, INTERPRETER, "ieee").block_q == 16
    assert all(isinstance(c, AttentionTiles) for c in candidates(kernel, 49, 50, 32, 2, INTERPRETER, "ieee"))
