"""The page of ``crossmae audit --html``, and who refuses to write it."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from uninterpreted import run

from crossmae.commands.cli import main
from crossmae.model.config import crossmae_and_mae
from crossmae_kernels.audit.devices import DEVICES

KERNELS = {"mlp": "gemm_kernel", "cross_attention": "short_forward_kernel",
           "cross_attention_backward": "short_backward_kernel"}  # fmt: skip
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The command takes Triton's interpreter away from its process, which here has other tests to run."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))


def part(stage, operation, milliseconds, limiter="DRAM", method="machine code", flops=0):
    from crossmae.planning.step import Kernel, Part

    kernel = Kernel(KERNELS.get(operation, operation), method, 2, 1e3 * milliseconds, limiter, 2**20)
    return Part(stage, operation, method == "machine code", 2, flops, (kernel,))


@pytest.fixture
def steps():
    """CrossMAE's takes 2 ms, half of it the decoder; MAE's takes 5."""
    ours = [part("encoder", "mlp", 1, "tensor cores", flops=10**9), part("decoder", "cross_attention", 0.25)]
    ours += [part("decoder backward", "cross_attention_backward", 0.75, "latency", flops=10**8)]
    return {"CrossMAE": ours, "MAE <&>": [part("encoder", "addmm", 5, method="ceilings", flops=10**9)]}


def subject(batch):
    from crossmae.planning.page import Subject

    configs = dict(zip(("CrossMAE", "MAE"), crossmae_and_mae("crossmae_vit_base_patch16"), strict=True))
    configs["MAE"] = replace(configs["MAE"], residual="autocast", hidden_layer="save")
    return Subject("crossmae_vit_base_patch16", configs, DEVICES["h100"], batch, torch.bfloat16, 0.75)


@pytest.fixture
def page(steps, tmp_path):
    pytest.importorskip("plotly")
    from crossmae.planning.page import write_page

    write_page(subject(100), steps, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text("utf-8")


def test_it_needs_no_network(page):
    addresses = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"([^\"]*)\"", page)
    assert addresses == ["data:,"]
    assert "plotly.js v" in page


def test_it_says_what_is_predicted_with_the_published_error_beside_it(page):
    from crossmae_kernels.audit.prediction import accuracy

    head = page.partition("<h2>")[0]
    assert "Predicted: nothing on this page was measured." in head
    assert accuracy() in head


def test_it_says_what_its_numbers_are_for(page):
    """196 patches, of which 147 are masked."""
    head = page.partition("<h2>")[0]
    assert "one step of pretraining on one H100 with a batch of 100 images, in bfloat16" in head
    assert "The encoder sees 0.25 of the patches" in head
    assert [re.findall(r"<td>(.*?)</td>", row) for row in rows(head)[:2]] == [
        ["CrossMAE", "224x224", "12 blocks", "0.25 (49 of 196 patches)", "float32", "recomputed in the backward pass"],
        ["MAE", "224x224", "8 blocks", "0.75 (147 of 196 patches)", "bfloat16", "saved"],
    ]


def test_every_kernel_is_described():
    """By the names that the modules of kernels define."""
    names = "from crossmae_kernels.audit.cases import kernel_names; print(*kernel_names())"
    described = (
        "from crossmae.planning.descriptions import description_of; print(*map(description_of, names), sep='\\n')"
    )
    lines = run("-c", f"{names}; names = kernel_names(); {described}").splitlines()
    assert len(lines[0].split()) == len(lines[1:]) >= 20
    assert all(lines[1:])


def rows(page):
    return re.findall(r"<tr>(?:<td>.*?</td>)+</tr>", page)


def test_the_table_holds_intervals(page):
    """2 ms / 1.46 to 2 ms x 1.46, the decoder's 1 ms likewise, and 2 of MAE's 5 ms."""
    assert re.findall(r"<td>(.*?)</td>", rows(page)[2]) == [
        "CrossMAE", "1.37 to 2.92", "34,247 to 73,000", "0.685 to 1.46", "0.40"
    ]  # fmt: skip
    assert "MAE &lt;&amp;&gt;" in page


def test_the_published_error_is_that_of_the_document():
    from crossmae_kernels.audit.prediction import JUDGED, MEDIAN_ERROR, SPREAD, WORST_ERROR

    text = " ".join((ROOT / "docs" / "predictions.md").read_text("utf-8").split())
    sentence = rf"median error is {MEDIAN_ERROR:.0%} and the worst {WORST_ERROR:.0%}; {JUDGED} lie .* to \+{SPREAD:.0%}"
    assert re.search(rf"For the {JUDGED} times of kernels that nothing was fitted to, the {sentence}", text)


def test_charts_hold_what_is_there(steps):
    pytest.importorskip("plotly")
    from crossmae.planning.page import decoder_chart, kernel_chart, rooflines, step_chart

    stages = {trace.name: list(trace.x) for trace in step_chart(steps).data if trace.type == "bar"}
    assert stages["encoder"] == [1, 5]
    assert stages["decoder backward"] == [0.75, 0]
    kinds = {trace.name: list(trace.x) for trace in decoder_chart(steps).data if trace.type == "bar"}
    assert kinds["attention"] == [1, 0]
    assert sum(map(sum, kinds.values())) == 1
    kernels = {trace.name: [re.sub("<.*?>", " ", label) for label in trace.y]
               for trace in kernel_chart(steps["CrossMAE"]).data}  # fmt: skip
    assert kernels == {
        "tensor cores": ["matrix product with bias, GELU or residual  gemm_kernel "],
        "latency": ["attention to few keys, backward  short_backward_kernel "],
        "DRAM": ["attention to few keys  short_forward_kernel "],
    }
    roof, *points = rooflines(subject(1), steps).data
    # 90 % of 3.35 TB/s at one FLOP a byte; 97 % of 989 TFLOPS.
    assert roof.y[0] == pytest.approx(3.015)
    assert roof.y[-1] == pytest.approx(0.97 * 989.4, rel=1e-3)
    assert [list(trace.y) for trace in points] == [[1.0, pytest.approx(0.133, rel=0.01)], [0.2]]


def test_plotly_is_asked_for_before_anything_is_compiled(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main(["audit", "--html", str(tmp_path / "page.html")]) == 1
    line = "crossmae audit needs plotly: pip install 'crossmae-kernels[figures]'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--html", "no/page.html"], "cannot write no/page.html: there is no folder no"),
        (["--html", "page.html", "--device", "h10"], "device must be one of a100, .*, got 'h10'"),
        (["--html", "page.html", "--batch", "0"], "batch must be positive, got 0"),
        (["--html", "page.html", "--model", "mae_vit_base_patch16"], "model must be a CrossMAE, .*"),
        (["--html", "page.html", "--model", "vit"], "there is no model 'vit'; choose from .*"),
        (
            ["--html", "page.html", "--short"],
            "--short applies to the table; --html takes --model, --device and --batch",
        ),
        (["--model", "crossmae_vit_base_patch16"], "--model applies to the page that --html writes; .*"),
    ],
)
def test_what_was_asked_is_refused_in_one_line(words, line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly", sys)  # whether or not it is installed
    assert main(["audit", *words]) == 1
    assert re.fullmatch(f"crossmae audit: {line}\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
