"""From records, of a GPU's journal or of pytest-benchmark, to tables, goals, a picture and a page."""

import json
import re
from pathlib import Path

import pytest
from studies import study_record, transfer_record

from benchmarks import records
from benchmarks.contest import BOTH, FORWARD
from benchmarks.records import MEASURED, Journal, Record, Run
from benchmarks.report import decode, tables
from benchmarks.report.__main__ import insert, main
from benchmarks.report.goals import goals

MACHINE = {
    "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0",
    "commit": "0123456789abcdef0123", "date": "2026-01-02T03:04:05",
}  # fmt: skip
WHERE = "NVIDIA H200; driver 580.1; torch 2.11.0; triton 3.6.0; cuda 13.0; commit 0123456789; 2026-01-02"


def record(contender, milliseconds, suite="mixing", problem="ViT-B/16, 13 maps to 12, batch 256", **values):
    """Measured in a graph, whose time is half of the call's."""
    made = Record(suite, problem, contender, values.pop("direction", BOTH), MEASURED, about={"batch": 256})
    made.stats, made.call = {"median": 0.001 * milliseconds}, {"median": 0.002 * milliseconds}
    made.memory, made.bytes, made.flops, made.dtype = 2**20, 3e9, 1e9, "bfloat16"
    for name, value in values.items():
        setattr(made, name, value)
    return made


def by_call(contender, milliseconds, **values):
    return record(contender, milliseconds, call={}, no_graph="the host waits", **values)


def decoder(contender, milliseconds, family="CrossMAE", blocks=12, predicts=0.25, batch=1024, **values):
    shape = {"decoder": family, "model": "ViT-B/16", "pixels": 224, "blocks": blocks, "predicts": predicts}
    problem = f"{family}, ViT-B/16, pixels 224, blocks {blocks}, predicts {predicts}, batch {batch}"
    return record(contender, milliseconds, "decode", problem, about=shape | {"batch": batch}, **values)


def run_of(*found):
    ceilings = [
        Record("ceilings", name, "reference", FORWARD, MEASURED, dtype="bfloat16", bytes=4e12, flops=flops)
        for name, flops in (("copy", 0), ("product", 8e14))
    ]
    for ceiling in ceilings:
        ceiling.stats = {"median": 1.0}
    run = Run(dict(MACHINE))
    run.put([*ceilings, *found])
    return run


def cells(text):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_table_names_the_machine_and_what_is_missing():
    gone = record(
        "release, compiled", 0, status=records.FAILED, reason="ended by signal -9", stats={}, call={}, memory=None
    )
    late = record("reference", 0, status=records.NOT_REACHED, stats={}, call={}, memory=None)
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
    assert re.search(r"\| product, bfloat16, TFLOP/s +\| 800 ", ceilings)


def test_goals_are_reached_missed_or_not_measured():
    dense = [record(name, ms, "attention", "ViT-B/16, cross_attention, 49 x 50, dense, batch 256")
             for name, ms in (("fused", 1), ("sdpa math", 9), ("FlashAttention 4", 3), ("fused, x", 2))]  # fmt: skip
    run = run_of(
        *dense,
        record("fused", 1),
        by_call("release", 8),
        record("fused", 2, problem="ViT-B/16, 13 maps to 12, batch 1024"),
        decoder("fused", 1, memory=30),
        by_call("release", 8, suite="decode", problem=decoder("", 0).problem, memory=100),
        decoder("reference, compiled", 2, memory=50),
        decoder("reference", 6, "MAE", 8, 0.75),
        decoder("reference, compiled", 4, "MAE", 8, 0.75),
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
    memory = found["decode", "1024", "peak memory over the least, reference, compiled"]
    assert memory == ["at most 0.6", pytest.approx(0.6), "reached"]
    assert found["decode", "1024", "speed-up over the strongest, reference, compiled"][1] == pytest.approx(2)
    maes = found["decode", "1024", "speed-up over MAE's strongest, reference, compiled"]
    assert maes == ["at least 3.7", pytest.approx(4), "reached"]
    assert found["patches", "B/16", "share of the roofline"][2] == "not measured"


def decoders_of_a_cpu(folder):
    """As pytest-benchmark writes them."""
    found = [
        decoder("reference", 1000, "MAE", 8, 0.75, 8, direction=FORWARD, flops=16e9 * 5),
        decoder("reference", 3000, "MAE", 8, 0.75, 8, flops=48e9 * 5),
        decoder("reference", 400, batch=8, direction=FORWARD, flops=16e9 * 2, baseline=1.1),
        decoder("reference", 1200, batch=8, flops=48e9 * 2, baseline=3.3, saved=8 * 3 * 2**20),
        decoder("reference", 300, blocks=8, batch=8, direction=FORWARD, flops=16e9 * 2, baseline=1.0),
        decoder("release", 1500, batch=8, flops=48e9 * 2),
    ]
    for one in found:
        one.call, one.dtype = {}, "float32"
    content = {
        "benchmarks": [{"extra_info": one.extra_info, "stats": one.stats} for one in found],
        "machine_info": {"device": "CPU, 2 threads", "torch": "2.15"},
        "commit_info": {"id": MACHINE["commit"]},
        "datetime": MACHINE["date"],
    }
    (folder / "decode.json").write_text(json.dumps(content))


def test_decoders_are_set_beside_maes(tmp_path, capsys):
    decoders_of_a_cpu(tmp_path)
    main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out
    where = "ViT-B/16, 224 px, batch 8, float32; CPU, 2 threads; torch 2.15; commit 0123456789; 2026-01-02"
    mae, full, small, release = ([*row.values()] for row in cells(text.split(where)[1].split("###")[0]))
    assert mae == ["MAE", "8", "all", "5.000", "1.00", "1,000", "3,000", "1.00", "1.00", ""]
    # Timed in turn with MAE's decoder, that is what counts.
    assert full == ["CrossMAE", "12", "0.25", "2.000", "2.50", "400", "1,200", "2.75", "2.75", "3.0"]
    # What was not measured is an empty cell.
    assert small == ["CrossMAE", "8", "0.25", "2.000", "2.50", "300", "", "3.33", "", ""]
    assert release == ["CrossMAE, release", "12", "0.25", "2.000", "2.50", "", "1,500", "", "2.00", ""]
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_the_command_joins_the_report(tmp_path, capsys):
    decoders_of_a_cpu(tmp_path)
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / "decode.md").write_text("a table of crossmae bench\n")
    main([str(tmp_path)])
    assert (tmp_path / "report.md").read_text().endswith("### CrossMAE and MAE\n\na table of crossmae bench\n")


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
    decoders_of_a_cpu(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "demo.md").write_text("demo table\n")
    (tmp_path / "study.json").write_text(json.dumps(study_record()))
    (tmp_path / "training.json").write_text(json.dumps(training_record()))
    (tmp_path / "transfer.json").write_text(json.dumps(transfer_record()))
    page = tmp_path / "docs" / "benchmarks.md"
    names = ("decode", "demo", "gpu", "study", "training", "transfer")
    places = [f"<!-- {name}: x -->\nold\n<!-- /{name} -->\n" for name in names]
    page.write_text("before\n" + "between\n".join(places) + "after\n")
    main([str(tmp_path), "--page", str(page)])
    parts = page.read_text().split("between\n")
    assert parts[0].startswith("before\n<!-- decode: x -->\nViT-B/16, 224 px")
    assert parts[1] == "<!-- demo: x -->\ndemo table\n<!-- /demo -->\n"
    assert parts[2] == "<!-- gpu: x -->\nNothing is measured yet.\n<!-- /gpu -->\n"
    assert "600 steps of 128 images, 3 seeds" in parts[3]
    pictures = {"architecture.png", "decode.png", "decoders.png", "study.png", "transfer.png"}
    assert {path.name for path in (tmp_path / "docs").glob("*.png")} == pictures
    assert re.search(r"\| 2 +\| 1,000 +\| 900 +\|", parts[4])
    assert "the loop itself takes 0.50 ms a step" in parts[4]
    assert "| from CrossMAE " in parts[5]
    assert parts[5].endswith("after\n")
    assert "old" not in page.read_text()
    for name, date, cuda in (("a", "2026-02-01", "13.0"), ("b", "2026-01-01", "13.0"), ("c", "2026-03-01", "")):
        (tmp_path / name).mkdir()
        machine = {"device": f"device {name}", "commit": "0", "date": date, "cuda": cuda}
        Journal(tmp_path / name).write(machine)
    main([str(tmp_path), "--page", str(page)])
    gpu = page.read_text().split("between\n")[2]  # the newest of those of GPUs
    assert "device a; cuda 13.0; commit 0; 2026-02-01" in gpu
    assert re.search(r"\| decode: CrossMAE, .* share of the roofline +\| at least 0.6 +\| +\| not measured", gpu)
    assert "[../a/report.md](../a/report.md)" in gpu


def test_missing_records_and_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no records in .*; run `make bench` or `make gpu`"):
        records.read(tmp_path)
    (tmp_path / "page.md").write_text("no place")
    with pytest.raises(ValueError, match="must have one place for 'decode', has 0"):
        insert(tmp_path / "page.md", "decode", "x")


def test_tables_of_the_documents_come_from_the_stored_records():
    run = records.read(records.ROOT / "benchmarks" / "results")
    assert decode.table(run) in (Path(records.ROOT) / "docs" / "benchmarks.md").read_text()
