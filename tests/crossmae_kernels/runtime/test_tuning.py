import ast
import json
from dataclasses import dataclass

import pytest
import torch

from crossmae_kernels.cross_attention.config import AttentionTiles, candidates, tiles
from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.device import INTERPRETER

CPU, GPU = torch.device("cpu"), torch.device("cuda")


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

    def tune(self, key=(32, "half"), rows=100):
        """The size that a call ran with."""
        before = len(self.ran)
        choices = [Choice(size) for size in (2, 3, 4)]
        chosen = tuning.run_tuned("kernel", key, rows, Choice(1), lambda: choices, self.run, GPU)
        assert self.ran[before:] == [chosen.size]
        return chosen.size

    def restarted(self):
        """The same machine in another process."""
        tuning._known.clear()
        return self


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "1")
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(tuning, "_known", {})
    machine = Machine()
    monkeypatch.setattr(tuning, "_milliseconds", machine.milliseconds)
    return machine


def test_the_rule_decides_unless_tuning_is_asked_for(machine, monkeypatch):
    assert tuning.run_tuned("kernel", (1,), 5, Choice(1), lambda: [Choice(3)], machine.run, CPU) == Choice(1)
    monkeypatch.delenv("CROSSMAE_KERNELS_TUNE")
    assert machine.tune() == 1
    assert machine.timed == []


def test_the_fastest_is_timed_once_and_remembered(machine, monkeypatch, tmp_path):
    assert machine.tune() == 3
    assert machine.timed == [1, 2, 3, 4]
    assert machine.tune() == 3
    assert machine.restarted().tune() == 3
    assert len(machine.timed) == 4
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "recall")
    assert machine.restarted().tune() == 3
    assert machine.tune((64, "half")) == 1  # the rule's
    assert len(machine.timed) == 4
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "1")
    assert machine.restarted().tune((64, "half")) == 3
    assert len(machine.timed) == 8
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json"]


def test_the_choice_depends_on_the_order_of_magnitude_of_the_rows(machine):
    for rows, timed in ((1024, 4), (1500, 4), (2047, 4), (2048, 8), (2, 12), (1, 16)):
        assert machine.restarted().tune(rows=rows) == 3
        assert len(machine.timed) == timed


@pytest.mark.parametrize("package", ["torch", "triton", "crossmae-kernels"])
def test_another_version_tunes_anew(machine, monkeypatch, package):
    tuning.versions.cache_clear()
    machine.tune()
    tuning.versions.cache_clear()
    own = tuning.version
    monkeypatch.setattr(tuning, "version", lambda name: "99.0" if name == package else own(name))
    assert machine.restarted().tune() == 3
    tuning.versions.cache_clear()
    assert len(machine.timed) == 8


@pytest.mark.parametrize("why", REFUSALS)
def test_candidates_that_triton_refuses_are_passed_over(machine, recwarn, why):
    machine.refused = dict.fromkeys((1, 3, 4), refusal(why))
    assert machine.tune() == 2
    machine.refused[2] = refusal(why)
    with pytest.raises(type(refusal(why))):
        machine.restarted().tune((64, "half"))  # nothing runs: the rule's own error, and no record
    machine.refused = {}
    assert machine.restarted().tune((64, "half")) == 3
    assert not recwarn


def test_errors_that_are_not_a_refusal_end_tuning(machine):
    machine.refused[4] = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        machine.tune()


@pytest.mark.parametrize("why", REFUSALS)
def test_a_record_that_no_longer_runs_is_forgotten_and_the_rule_taken(machine, recwarn, tmp_path, why):
    machine.tune()
    machine.restarted().refused[3] = refusal(why)
    assert machine.tune() == 1
    assert machine.tune() == 1
    (warning,) = (str(caught.message) for caught in recwarn)
    assert warning.startswith("crossmae_kernels tuning: kernel no longer runs as kernel-")
    assert warning.endswith(" ".join(str(refusal(why)).split()))
    assert not [*tmp_path.iterdir()]
    assert machine.restarted().tune() == 2  # tuned again, without what is refused
    machine.refused = {2: RuntimeError("an illegal memory access was encountered")}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        machine.tune()
    assert [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSONDecodeError: "),
        ("[]", "TypeError: "),
        ("\xff", "UnicodeDecodeError: "),
        ({"key": "(1,)"}, r"ValueError: it is of \(1,\)"),
        ({"configuration": None}, "ValueError: None is none of the candidates"),
        ({"configuration": {"size": 5}}, "ValueError: {'size': 5} is none of the candidates"),
        ({"configuration": {"x": 1}}, "ValueError: {'x': 1} is none of the candidates"),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["1", "recall"])
def test_records_that_cannot_be_read_or_are_not_ones_own_are_named_and_made_anew(
    machine, monkeypatch, tmp_path, content, why, mode
):
    machine.tune()
    (file,) = tmp_path.iterdir()
    good = json.loads(file.read_text())
    file.write_text(content if isinstance(content, str) else json.dumps(good | content), "latin1")
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", mode)
    with pytest.warns(RuntimeWarning, match=rf"tuning: the record .*{file.name} is of no use: {why}") as caught:
        assert machine.restarted().tune() == (3 if mode == "1" else 1)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    if mode == "1":
        assert json.loads(file.read_text()) == good


@pytest.mark.parametrize("kernel", ["short_forward", "short_backward", "looped_forward", "looped_backward_query"])
def test_the_rule_depends_on_widths_and_on_queries_in_steps_only(kernel):
    few, more, most = (tiles(kernel, queries, 50, 32, 2, INTERPRETER, "ieee") for queries in (49, 64, 4096))
    assert few == more == most
    assert tiles(kernel, 3, 50, 32, 2, INTERPRETER, "ieee").block_q == 16
    assert all(isinstance(c, AttentionTiles) for c in candidates(kernel, 49, 50, 32, 2, INTERPRETER, "ieee"))
