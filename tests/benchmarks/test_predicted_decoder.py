"""Predictions of a decoder's kernels: as they are kept, in the page, and beside what a fake GPU measured."""

import json

import pytest
from uninterpreted import run as run_uninterpreted

from benchmarks import records, tables
from benchmarks.contest import BOTH
from benchmarks.predictions import decoder
from benchmarks.records import MEASURED, Journal, Record, Run
from benchmarks.report import newest_of_gpus

DEFAULT, RECIPES = decoder.kept()["h100"]
H100 = {"device": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "torch": "2.14", "commit": "0" * 20, "date": "2026-12-01T"}


def measured(problem=RECIPES, device=H100["device"]):
    """Everything took 1.5 times as long as predicted, but for a kernel that a library's took the place of."""
    kernels = dict(decoder.kept()["h100"][RECIPES])
    library, normalize = kernels.pop(decoder.LIBRARIES), kernels.pop("normalize_kernel")
    found = {name: (kernel["launches"], 1.5e-3 * kernel["ms"]) for name, kernel in kernels.items()}
    found["nvjet"] = library["launches"], 1.5e-3 * library["ms"]
    found["layer_norm"] = normalize["launches"], 1.5e-3 * normalize["ms"]
    run = Run({**H100, "device": device})
    run.put([Record("kernels", problem, "kernels, eager", BOTH, MEASURED, found=found)])
    return run


def rows(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_every_kernel_stands_beside_what_was_measured():
    run = measured()
    text = tables.report(run)
    assert "### Kernels, predicted and measured\n\nNVIDIA H100 80GB HBM3; " in text
    found = rows(text.partition("### Kernels")[2])
    assert found["kernel"][-1] == "measured / predicted"
    known = decoder.kept()["h100"][RECIPES]
    gemm, library, normalize = known["gemm_kernel"], known[decoder.LIBRARIES], known["normalize_kernel"]
    ms = gemm["ms"]
    assert found["gemm"] == [f"{gemm['launches']}", f"{ms:.2f}", gemm["limiter"], "36", f"{1.5 * ms:.2f}", "1.50"]
    assert found["normalize"] == ["25", f"{normalize['ms']:.2f}", "DRAM", "", "", ""]
    together = 1.5 * (library["ms"] + normalize["ms"])
    launches = f"{library['launches'] + normalize['launches']}"
    assert found[decoder.LIBRARIES][3:] == [launches, f"{together:.2f}", f"{together / library['ms']:.2f}"]
    total = sum(kernel["ms"] for kernel in known.values())
    assert [found["all"][1], *found["all"][-2:]] == [f"{total:.2f}", f"{1.5 * total:.2f}", "1.50"]


@pytest.mark.parametrize("run", [
    measured(device="NVIDIA T4"), measured(problem="decoder, crossmae_vit_tiny_patch4, 16 px, batch 2"), Run(H100),
])  # fmt: skip
def test_without_prediction_or_measurement_there_is_no_table(run):
    assert decoder.beside(run) == tables.kernels_table(run) == ""


def test_the_page_shows_the_newest_gpu_s_kernels(tmp_path):
    (tmp_path / "h100").mkdir()
    run = measured()
    Journal(tmp_path / "h100").write(run.machine, records=run.records.values())
    assert tables.kernels_table(run) in newest_of_gpus(tmp_path, tmp_path)


def test_the_page_shows_what_is_kept():
    page = (records.ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert decoder.before_measurements() in page
    assert [*decoder.kept()] == [*decoder.GPUS]
    assert "recipes' settings" in RECIPES
    sums = rows(decoder.before_measurements())
    assert float(sums[RECIPES][0]) == round(sum(one["ms"] for one in decoder.kept()["h100"][RECIPES].values()), 1)


@pytest.mark.slow
def test_what_is_kept_is_what_is_predicted_now():
    """Half a minute: every kernel of a step is compiled for an H100."""
    code = (
        "import json; from benchmarks.predictions.decoder import predicted\n"
        "if __name__ == '__main__': print(json.dumps(dict(predicted('h100'))))"
    )
    now, kept = json.loads(run_uninterpreted("-c", code).splitlines()[-1]), decoder.kept()["h100"]
    assert now.keys() == kept.keys() == {DEFAULT, RECIPES}
    for problem, kernels in now.items():
        assert kernels.keys() == kept[problem].keys()
        for name, kernel in kernels.items():
            assert kernel == {**kept[problem][name], "ms": pytest.approx(kept[problem][name]["ms"], rel=0.01)}
