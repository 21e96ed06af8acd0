"""The study: its recipes, its table and its picture."""

import pytest
from studies import study_record

from benchmarks.studies import FEATURES
from benchmarks.study import TASKS, VARIANTS, main, recipe_of
from crossmae.flops import decoder_macs


@pytest.mark.parametrize("task", TASKS)
def test_variants_differ_in_their_decoder_alone(task):
    configs = [recipe_of(variant, task, 0, 600).config() for variant in VARIANTS]
    assert len({(c.encoder_width, c.encoder_depth, c.encoder_heads, c.image_size, c.channels) for c in configs}) == 1
    costs = {v.name: decoder_macs(c, v.prediction_ratio) for v, c in zip(VARIANTS, configs, strict=True)}
    assert len(set(costs.values())) == len(VARIANTS)
    assert min(costs, key=costs.get) == "CrossMAE, .25, one map"
    assert max(costs, key=costs.get) == "MAE"
    assert (
        len({recipe_of(VARIANTS[0], task, seed, 600) == recipe_of(VARIANTS[0], task, 0, 600) for seed in (1, 2)}) == 1
    )


def test_the_table_has_means_spreads_and_ratios():
    rows = {
        cells[0]: cells[1:]
        for cells in (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in FEATURES.table(study_record()).splitlines()
        )
        if cells
    }
    assert rows["raw pixels"][:2] == ["95.3", "96.2"]
    assert rows["untrained encoder"][0] == "82.0 ± 2.8"
    assert rows["MAE"] == ["92.0 ± 2.0", "95.0 ± 0.0", "15.00", "1.00", "1.00"]
    assert rows["CrossMAE"] == ["92.0 ± 2.0", "95.0 ± 0.0", "3.75", "4.00", "2.00"]


def test_the_picture(tmp_path):
    FEATURES.draw(study_record(), tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_the_whole_study_in_small(tmp_path, monkeypatch, capsys):
    for name, smaller in (("BATCH", 8), ("ALL_IMAGES", 60)):
        for module in ("benchmarks.study", "crossmae.training.study"):
            monkeypatch.setattr(f"{module}.{name}", smaller)
    monkeypatch.setattr("benchmarks.study.ROUNDS", 1)
    monkeypatch.delitem(TASKS, "photographs")
    monkeypatch.setattr("benchmarks.study.VARIANTS", VARIANTS[:2])
    monkeypatch.setattr("benchmarks.study.ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    main(["--out", str(tmp_path), "--seeds", "1", "--steps", "2"])
    text = capsys.readouterr().out
    monkeypatch.setattr("crossmae.training.study.pretrain", None)  # nothing is run again
    main(["--out", str(tmp_path), "--seeds", "1", "--steps", "2"])
    assert "| CrossMAE, .25 " in text
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "study.json", "study.md", "study.png"}
    assert len(list((tmp_path / "runs").iterdir())) == 2


class InThisProcess:
    """Stands in for a pool of processes, in which nothing could be made smaller."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    map = staticmethod(map)
