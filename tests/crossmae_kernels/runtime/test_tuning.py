import json
from dataclasses import dataclass

import pytest
import torch

from crossmae_kernels.cross_attention.config import AttentionTiles, candidates, tiles
from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.device import INTERPRETER

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Choice:
    size: int


class OutOfResources(Exception):  # noqa: N818 - named as Triton's
    pass


def test_the_rule_decides_unless_tuning_is_asked_for(monkeypatch):
    def never():
        raise AssertionError

    monkeypatch.delenv("CROSSMAE_KERNELS_TUNE", raising=False)
    assert tuning.tuned("kernel", (1,), Choice(1), never, print, torch.device("cuda")) == Choice(1)
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "1")
    assert tuning.tuned("kernel", (1,), Choice(1), never, print, CPU) == Choice(1)


def test_the_fastest_is_timed_once_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "1")
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(tuning, "_known", {})
    ran = []
    monkeypatch.setattr(tuning, "_milliseconds", lambda run: run() or abs(ran[-1].size - 3))

    def tune(key):
        choices = [Choice(size) for size in (2, 3, 4)]
        return tuning.tuned("kernel", key, Choice(1), lambda: choices, ran.append, torch.device("cuda"))

    assert tune((32, "half")) == Choice(3)
    assert ran == [Choice(size) for size in (1, 2, 3, 4)]
    assert tune((32, "half")) == Choice(3)
    tuning._known.clear()
    assert tune((32, "half")) == Choice(3)
    assert len(ran) == 4
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "recall")
    tuning._known.clear()
    assert tune((32, "half")) == Choice(3)
    assert tune((64, "half")) == Choice(1)  # the rule's
    assert len(ran) == 4
    monkeypatch.setenv("CROSSMAE_KERNELS_TUNE", "1")
    tuning._known.clear()
    assert tune((64, "half")) == Choice(3)
    assert len(ran) == 8
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json"]


def test_candidates_without_room_are_passed_over():
    def run(choice):
        if choice.size != 2:
            raise OutOfResources

    assert tuning.fastest([Choice(1), Choice(2)], run, lambda launch: launch() or 1.0) == Choice(2)
    with pytest.raises(RuntimeError, match="no candidate"):
        tuning.fastest([Choice(1)], run, lambda launch: launch() or 1.0)


def test_records_that_cannot_be_read_or_belong_to_another_key_are_ignored(tmp_path):
    file = tmp_path / "sub" / "record.json"
    assert tuning.recall(file, (1,), Choice(1)) is None
    tuning.remember(file, (1,), Choice(5))
    assert tuning.recall(file, (1,), Choice(1)) == Choice(5)
    assert tuning.recall(file, (2,), Choice(1)) is None
    assert [f.name for f in file.parent.iterdir()] == ["record.json"]
    for content in ("{", json.dumps({"key": "(1,)"}), json.dumps({"key": "(1,)", "configuration": {"x": 1}})):
        file.write_text(content)
        assert tuning.recall(file, (1,), Choice(1)) is None


@pytest.mark.parametrize("kernel", ["short_forward", "short_backward", "looped_forward", "looped_backward_query"])
def test_the_rule_depends_on_widths_and_on_queries_in_steps_only(kernel):
    few, more, most = (tiles(kernel, queries, 50, 32, 2, INTERPRETER, "ieee") for queries in (49, 64, 4096))
    assert few == more == most
    assert tiles(kernel, 3, 50, 32, 2, INTERPRETER, "ieee").block_q == 16
    assert all(isinstance(c, AttentionTiles) for c in candidates(kernel, 49, 50, 32, 2, INTERPRETER, "ieee"))
