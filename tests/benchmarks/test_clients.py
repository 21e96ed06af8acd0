"""The benchmark of other libraries' models, on a model that needs none of them."""

import sys

import pytest
from releases import MAE, randomized

from benchmarks import clients


class Client(MAE):
    def forward(self, imgs, mask_ratio=0.75):
        loss, *_ = super().forward(imgs, mask_ratio)
        return {"loss": loss}


def absent(size):
    raise ModuleNotFoundError("No module named 'birder'")


def test_one_table_of_what_is_there_and_a_line_for_what_is_not(monkeypatch, capsys):
    monkeypatch.setattr(clients, "CLIENTS", {"ours": lambda size: randomized(Client()), "theirs": absent})
    monkeypatch.setattr(clients, "IMAGE", 32)
    monkeypatch.setattr(clients, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["clients", "--batch", "1"])
    clients.main()
    out = capsys.readouterr().out
    assert [line.split("|")[2].strip() for line in out.splitlines() if line.startswith("| ours")] == [
        "float32",
        "bfloat16",
    ]
    assert "left out, theirs: No module named 'birder'" in out


def test_the_batch_is_positive(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clients", "--batch", "0"])
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        clients.main()
