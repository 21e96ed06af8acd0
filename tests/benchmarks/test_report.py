"""From records, of a GPU's journal or of pytest-benchmark, to tables, goals, a picture and a page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from studies import residuals_record, study_record, transfer_record

from benchmarks import records, tables
from benchmarks.contest import BOTH, FORWARD
from benchmarks.predictions import decoder
from benchmarks.records import MEASURED, Journal, Record, Run
from benchmarks.report import insert, main
from benchmarks.tables import goals
from crossmae.benchmark import comparison, report
from crossmae.benchmark.comparison import Comparison
from crossmae.benchmark.decode import Row

MACHINE = {
    "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0",
    "commit": "0123456789abcdef0123", "date": "2026-01-02T03:04:05",
}  # fmt: skip
WHERE = "NVIDIA H200; driver 580.1; torch 2.11.0; triton 3.6.0; cuda 13.0; commit 0123456789; 2026-01-02"


def record(contender, milliseconds, suite="mixing", problem="ViT-B/16, 13 maps to 12, batch 256", **values):
    """Measured in a graph, whose time is half of the call's."""
    made = Record(suite, problem, contender, values.pop("direction", BOTH), MEASURED)
    made.stats, made.call = {"median": 0.001 * milliseconds}, 0.002 * milliseconds
    made.memory, made.bytes, made.flops, made.dtype = 2**20, 3e9, 1e9, "bfloat16"
    for name, value in values.items():
        setattr(made, name, value)
    return made


def by_call(contender, milliseconds, **values):
    return record(contender, milliseconds, call=None, no_graph="the host waits", **values)


def compared(contender, *rows, batch=1024, **about):
    """A record of decoders' times."""
    about = {"part": "decoder", "model": "crossmae_vit_base_patch16", "pixels": [224, 224], "batch": batch,
             "mask_ratio": 0.75, "dtype": "bfloat16", "rounds": 10, **MACHINE, **about}  # fmt: skip
    problem = f"decoder, crossmae_vit_base_patch16, 224 px, batch {batch}"
    return Record("decode", problem, contender, BOTH, MEASURED, found=Comparison(about, [*rows]).as_dict())


def row(decoder, means, seconds, **values):
    blocks, predicts, macs = (8, 0.75, 5e9) if decoder == "MAE" else (12, 0.25, 2e9)
    return Row(decoder, means, blocks, predicts, macs, 5e9 / macs, **{"both": seconds, "both_speedup": 1.0, **values})


def run_of(*found):
    run = Run(dict(MACHINE))
    ceilings = {"copy": 4e12, "product": 8e14}
    run.put([Record("ceilings", "copy and product", "reference", FORWARD, MEASURED, found=ceilings), *found])
    return run


def cells(text):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_table_names_the_machine_and_what_is_missing():
    gone = record(
        "release, compiled", 0, status=records.FAILED, reason="ended by signal -9", stats={}, call=None, memory=None
    )
    late = record("reference", 0, status=records.NOT_REACHED, stats={}, call=None, memory=None)
    text = tables.report(run_of(record("fused", 1), by_call("release", 10), gone, late))
    table = text.split("### mixing")[1]
    assert WHERE in table
    by_name = {row["contender"]: row for row in cells(table)}
    # Moving 3 GB at 4 TB/s is predicted to take 0.75 ms.
    assert [*by_name["fused"].values()][2:] == ["", "0.750", "1.000", "75%", "2.000", "1", "1"]
    # No graph holds it: its call is compared with our call.
    assert [*by_name["release"].values()][2:] == ["", "0.750", "10.000*", "8%", "10.000", "5", "1"]
    assert [*by_name["release, compiled"].values()][2:] == ["", "0.750", "failed", *[""] * 4]
    assert "- failed: release, compiled (ViT-B/16, 13 maps to 12, batch 256). ended by signal -9" in table
    assert "- not reached: reference (ViT-B/16, 13 maps to 12, batch 256)." in table
    assert "\\* a call's time, not a graph's: release. the host waits" in table
    ceilings = text.split("### Ceilings")[1]
    assert re.search(r"\| copy, GB/s +\| 4,000 ", ceilings)
    assert re.search(r"\| product, TFLOP/s +\| 800 ", ceilings)


def test_goals_are_reached_missed_or_not_measured():
    dense = [record(name, ms, "attention", "ViT-B/16, cross_attention, 49 x 50, dense, batch 256")
             for name, ms in (("fused", 1), ("sdpa math", 9), ("FlashAttention 4", 3), ("fused, x", 2))]  # fmt: skip
    run = run_of(
        *dense,
        record("fused", 1),
        by_call("release", 8),
        record("fused", 2, problem="ViT-B/16, 13 maps to 12, batch 1024"),
        compared(
            "kernels",
            row("MAE", "kernels", 2.0, memory=20.0),
            row("CrossMAE", "kernels", 1.5, memory=30.0),
            row("CrossMAE", "kernels, graph", 1.0, memory=30.0, least=0.7),
        ),
        compared("kernels, by depth", row("CrossMAE", "kernels, graph", 0.1, memory=1.0), batch=1024),
        compared("release", row("MAE", "reference", 6.0, memory=90.0), row("CrossMAE", "release", 8.0, memory=100.0)),
        compared(
            "reference, max-autotune",
            row("MAE", "reference, max-autotune", 4.0, memory=10.0),
            row("CrossMAE", "reference, max-autotune", 2.0, memory=50.0),
        ),
    )
    found = {(problem.split(":")[0], problem[-4:], what): row for problem, what, *row in goals(run)}
    # By calls: no graph holds the release.
    assert found["mixing", " 256", "speed-up over the strongest, release"] == [
        "at least 2",
        pytest.approx(4),
        "reached",
    ]
    assert found["mixing", "1024", "speed-up over the strongest"][1:] == [None, "not measured"]
    assert found["mixing", " 256", "share of the roofline"] == ["at least 0.75", pytest.approx(0.75), "reached"]
    assert found["mixing", "1024", "share of the roofline"][2] == "missed"
    assert found["attention", " 256", "speed-up over the strongest, FlashAttention 4"][1] == pytest.approx(3)
    memory = found["decode", "1024", "peak memory over the least, reference, max-autotune"]
    assert memory == ["at most 0.6", pytest.approx(0.6), "reached"]
    assert found["decode", "1024", "speed-up over the strongest, reference, max-autotune"][1] == pytest.approx(2)
    maes = found["decode", "1024", "speed-up over MAE's strongest, reference, max-autotune"]
    assert maes == ["at least 3.7", pytest.approx(4), "reached"]
    assert found["decode", "1024", "share of the roofline"][1:] == [pytest.approx(0.7), "reached"]
    assert found["patches", "B/16", "share of the roofline"][2] == "not measured"


def decoders_of_a_cpu():
    """As `crossmae bench` measures them."""
    rows = [row("MAE", "ours", 3.0, forward=1.0, forward_speedup=1.0),
            row("CrossMAE", "ours", 1.2, forward=0.4, forward_speedup=2.5, both_speedup=2.5, saved=3 * 2**20),
            row("CrossMAE", "release", None, both_speedup=None, failure="out of memory")]  # fmt: skip
    on_cpu = {"device": "CPU, 2 threads", "driver": "", "cuda": ""}
    return compared("", *rows, batch=8, dtype="float32", **on_cpu).found


def beside_the_release(batch):
    """Both executions in one run, but for one that failed."""
    rows = [row("MAE", "ours", 0.48), row("CrossMAE", "ours", 0.2), row("CrossMAE", "release", 0.3),
            row("CrossMAE", "ours, compiled", 0.1), row("CrossMAE", "release, compiled", 0.12),
            row("CrossMAE", "ours, graph", None), row("CrossMAE", "release, graph", 0.1)]  # fmt: skip
    rows = [replace(each, fewer=2.6, both_speedup=2.4, least=0.1) for each in rows]
    on_cpu = {"device": "CPU, 2 threads", "driver": "", "cuda": ""}
    return compared("", *rows, batch=batch, dtype="float32", **on_cpu).found


def test_decoders_of_a_run_and_of_the_command_stand_in_the_report(tmp_path, capsys):
    Journal(tmp_path).write(MACHINE, records=[compared("kernels", row("MAE", "kernels, graph", 0.5)),
                                              Record("decode", "decoder, ViT", "release", BOTH)])  # fmt: skip
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / "decode.json").write_text(json.dumps(decoders_of_a_cpu()))
    main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out
    run, command = text.split("### decode\n")[1:]
    assert f"crossmae_vit_base_patch16, 224 x 224 px, batch 1024, bfloat16; {WHERE}" in run
    assert [*cells(run)[0].values()] == ["MAE, kernels, graph", "8", "all", "5.000", "1.00", "500", "1.00"]
    assert "- not reached: release (decoder, ViT)." in run
    assert "batch 8, float32; CPU, 2 threads; torch 2.11.0; triton 3.6.0; commit 0123456789; 2026-01-02" in command
    mae, ours, release = ([*cell.values()] for cell in cells(command))
    assert mae == ["MAE, ours", "8", "all", "5.000", "1.00", "1,000", "3,000", "1.00", "1.00", ""]
    assert ours == ["CrossMAE, ours", "12", "0.25", "2.000", "2.50", "400", "1,200", "2.50", "2.50", "3.0"]
    # What was not measured is an empty cell, with its reason below.
    assert release == ["CrossMAE, release", "12", "0.25", "2.000", "2.50", *[""] * 5]
    assert "- not timed: CrossMAE, release, 12 blocks, predicts 0.25: out of memory" in command
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")


def training_record():
    rates = {"test_loader[1]": 520.0, "test_loader[2]": 1000.0, "test_loop_and_loader[1]": 500.0}
    rates["test_loop_and_loader[2]"] = 900.0
    infos = {name: {"images per second": rate, "KB per image": 86.0, "torch": "2.15"} for name, rate in rates.items()}
    infos["test_step_of_the_loop"] = {"milliseconds per step": 0.5}
    return {
        "machine_info": {"cpu": {"brand_raw": "a CPU", "count": 2}},
        "benchmarks": [{"name": name, "extra_info": info} for name, info in infos.items()],
        "commit_info": {"id": MACHINE["commit"]},
        "datetime": MACHINE["date"],
    }


def test_a_page_gets_the_tables_and_keeps_its_words(tmp_path):
    (tmp_path / "decode.json").write_text(json.dumps(decoders_of_a_cpu()))
    (tmp_path / "release").mkdir()
    for name, batch in (("first", 64), ("second", 8)):
        (tmp_path / "release" / f"{name}.json").write_text(json.dumps(beside_the_release(batch)))
    (tmp_path / "docs").mkdir()
    (tmp_path / "demo.md").write_text("demo table\n")
    (tmp_path / "study.json").write_text(json.dumps(study_record()))
    (tmp_path / "training.json").write_text(json.dumps(training_record()))
    (tmp_path / "transfer.json").write_text(json.dumps(transfer_record()))
    (tmp_path / "residuals.json").write_text(json.dumps(residuals_record()))
    page = tmp_path / "docs" / "benchmarks.md"
    names = ("decode", "demo", "gpu", "study", "training", "transfer", "residuals", "release", "predicted")
    places = [f"<!-- {name}: x -->\nold\n<!-- /{name} -->\n" for name in names]
    page.write_text("before\n" + "between\n".join(places) + "after\n")
    main([str(tmp_path), "--page", str(page)])
    parts = page.read_text().split("between\n")
    assert parts[0].startswith("before\n<!-- decode: x -->\ncrossmae_vit_base_patch16, 224 x 224 px")
    assert parts[1] == "<!-- demo: x -->\ndemo table\n<!-- /demo -->\n"
    assert parts[2] == "<!-- gpu: x -->\nNothing is measured yet.\n<!-- /gpu -->\n"
    assert "600 steps of 128 images, 3 seeds" in parts[3]
    pictures = {"architecture.png", "decode.png", "decoders.png", "residuals.png", "study.png", "transfer.png"}
    assert {path.name for path in (tmp_path / "docs").glob("*.png")} == pictures
    assert re.search(r"\| 2 +\| 1,000 +\| 900 +\|", parts[4])
    assert "the loop itself takes 0.50 ms a step" in parts[4]
    assert "| from CrossMAE " in parts[5]
    assert parts[7].count("crossmae_vit_base_patch16, forward and backward; ") == 1
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in parts[7].splitlines() if "| decoder" in line]
    assert lines == [
        ["decoder", batch, "float32", *cells]
        for batch in ("8", "64")
        for cells in (
            ["eager", "200", "300", "1.50", "2.40", "2.60", "50%"],
            ["compiled", "100", "120", "1.20", "2.40", "2.60", "100%"],
        )
    ]
    assert "| residual in autocast " in parts[6]
    assert parts[8] == f"<!-- predicted: x -->\n{decoder.before_measurements()}<!-- /predicted -->\nafter\n"
    assert "\nold\n" not in page.read_text()
    for name, date, cuda in (("a", "2026-02-01", "13.0"), ("b", "2026-01-01", "13.0"), ("c", "2026-03-01", "")):
        (tmp_path / name).mkdir()
        machine = {"device": f"device {name}", "commit": "0", "date": date, "cuda": cuda}
        Journal(tmp_path / name).write(machine)
    main([str(tmp_path), "--page", str(page)])
    gpu = page.read_text().split("between\n")[2]  # the newest of those of GPUs
    assert "device a; cuda 13.0; commit 0; 2026-02-01" in gpu
    assert re.search(r"\| decode: decoder, .* share of the roofline +\| at least 0.6 +\| +\| not measured", gpu)
    assert "[../a/report.md](../a/report.md)" in gpu


def test_missing_records_and_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no records in .*; run `make bench` or `make gpu`"):
        records.read(tmp_path)
    (tmp_path / "page.md").write_text("no place")
    with pytest.raises(ValueError, match="must have one place for 'decode', has 0"):
        insert(tmp_path / "page.md", "decode", "x")


def test_tables_of_the_documents_come_from_the_stored_records():
    decoders = comparison.read(Path(records.ROOT) / "benchmarks" / "results" / "decode.json")
    assert report.text(decoders) in (Path(records.ROOT) / "docs" / "benchmarks.md").read_text()
