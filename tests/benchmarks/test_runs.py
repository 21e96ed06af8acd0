"""The report of a recorded run: tables, goals, pictures, and what became slower."""

import json

import pytest

from benchmarks import records
from benchmarks.problem import BOTH, FORWARD
from benchmarks.records import Record, Run
from benchmarks.report import runs
from benchmarks.report.__main__ import main
from benchmarks.report.goals import goals

MACHINE = {
    "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0",
    "commit": "0123456789abcdef0123", "date": "2026-01-02T03:04:05", "form": "short",
}  # fmt: skip


def times(median):
    return {"median": median, "p20": 0.98 * median, "p80": 1.02 * median, "rounds": 50}


def record(contender, milliseconds, suite="mixing", direction=BOTH, batch=256, **values):
    about = {"model": "ViT-B/16", "problem": "13 maps to 12", "batch": batch}
    made = Record(suite, f"ViT-B/16, 13 maps to 12, batch {batch}", contender, direction, records.MEASURED, about=about)
    made.times = {"call": times(0.002 * milliseconds), "graph": times(0.001 * milliseconds)}
    made.memory, made.bytes, made.flops, made.dtype = 2**20, 3e9, 1e9, "bfloat16"
    for name, value in values.items():
        setattr(made, name, value)
    return made


def run_of(*found, **machine):
    run = Run(MACHINE | machine, {"copy": 4e12, "bfloat16": 8e14})
    run.put(found)
    return run


def test_table_names_the_machine_and_what_is_missing():
    gone = record(
        "release, compiled", 0, status=records.FAILED, reason="the process ended by signal -9", times={}, memory=None
    )
    release = record("release", 5, no_graph="the host waits")
    del release.times["graph"]
    text = runs.tables(run_of(record("fused", 1, roofline=0.75), release, gone))
    assert (
        "NVIDIA H200; driver 580.1; torch 2.11.0; triton 3.6.0; cuda 13.0; commit 0123456789abcdef0; 2026-01-02" in text
    )
    table = text.split("### mixing")[1]
    cells = {
        row[1]: row[2:]
        for line in table.splitlines()
        if line.startswith("| ViT-B") and (row := [cell.strip() for cell in line.split("|")[1:-1]])
    }
    # Moving 3 GB at 4 TB/s is predicted to take 0.75 ms.
    assert cells["fused"] == ["", "0.750", "1.000", "75%", "2.000", "1", "1"]
    # No graph holds it: its call is compared with our call.
    assert cells["release"] == ["", "0.750", "10.000*", "", "10.000", "5", "1"]
    assert cells["release, compiled"] == ["", "0.750", *[""] * 5]
    assert "- failed: release, compiled (ViT-B/16, 13 maps to 12, batch 256). the process ended by signal -9" in table


def test_goals_are_reached_missed_or_not_measured():
    found = {
        goal.what: goal
        for goal in goals(run_of(record("fused", 1), record("release", 4), record("fused", 2, batch=1024)))
    }
    assert found["mixing, batch 256: times stack and linear, the release"].verdict == "missed"
    assert found["mixing, batch 256: times the same compiled"].verdict == "not measured"
    # 3 GB in 1 ms, of 4 TB/s; in 2 ms half of it.
    assert found["mixing, batch 256: share of copy bandwidth"].value == pytest.approx(0.75)
    assert found["mixing, batch 256: share of copy bandwidth"].verdict == "reached"
    assert found["mixing, batch 1024: share of copy bandwidth"].verdict == "missed"
    assert found["decoder, batch 1024: share of the roofline"].verdict == "not measured"


def test_fastest_backend_and_memory_decide():
    about = {"model": "ViT-B/16", "problem": "49 x 50, 16 heads of 32", "queries": "dense", "batch": 256}
    backends = [("fused", 1), ("sdpa math", 9), ("sdpa flash", 3)]
    # Of another problem with queries of the same kind, as the full form has.
    mae = record("fused", 2, "attention", about=about | {"problem": "197 x 197, 16 heads of 32"})
    mae.problem = "ViT-B/16, 197 x 197"
    decoder = {"decoder": "CrossMAE", "model": "ViT-B/16", "pixels": 224, "blocks": 12, "predicts": 0.25, "batch": 1024}
    run = run_of(
        *(record(name, ms, "attention", about=about) for name, ms in backends),
        mae,
        record("fused", 1, "decode", about=decoder, memory=30),
        record("release", 3, "decode", about=decoder, memory=100),
    )
    values = {goal.what: goal.value for goal in goals(run)}
    assert values["attention, dense queries, batch 256: times the fastest SDPA backend"] == pytest.approx(3)
    assert values["attention, table queries, batch 256: times the fastest SDPA backend"] is None
    assert values["decoder, batch 1024: peak memory over the release's"] == pytest.approx(0.3)
    assert values["decoder, batch 1024: times the release"] == pytest.approx(3)


def test_report_writes_tables_and_pictures(tmp_path, capsys):
    decoder = {"decoder": "MAE", "model": "ViT-B/16", "pixels": 224, "blocks": 8, "predicts": 0.75, "batch": 8}
    run = run_of(record("fused", 1, roofline=0.5), record("reference", 3), record("fused", 2, "decode", about=decoder))
    records.write(run, tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() in capsys.readouterr().out
    for name in ("mixing", "decode", "decode_cost"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def compared(tmp_path, before, after):
    for name, run in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        records.write(run, tmp_path / name)
    return main([str(tmp_path / "after"), "--against", str(tmp_path / "before")])


def test_planted_slow_down_is_flagged(tmp_path, capsys):
    before = run_of(record("fused", 1), record("reference", 3), record("fused", 1, direction=FORWARD))
    after = run_of(record("fused", 1.2), record("reference", 3.05), record("fused", 0.5, direction=FORWARD))
    assert compared(tmp_path, before, after) == 1
    flagged = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| mixing")]
    assert [line.split("|")[-2].strip() for line in flagged] == ["slower", "faster"]
    assert "1.20" in flagged[0]


def test_noise_is_not_flagged(tmp_path):
    noisy = record("fused", 1.2)
    noisy.times["graph"] |= {"p20": 0.0009, "p80": 0.0016}
    assert compared(tmp_path, run_of(record("fused", 1)), run_of(noisy)) == 0


def test_two_machines_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match="two machines: NVIDIA H200 and CPU"):
        compared(tmp_path, run_of(record("fused", 1)), run_of(record("fused", 1), device="CPU"))


def test_records_of_pytest_benchmark_are_compared_too(tmp_path):
    def stored(folder, seconds):
        info = {"suite": "mixing", "problem": "p", "contender": "fused", "direction": BOTH, "dtype": "float32"}
        info |= {"about": {}, "device": "CPU, 2 threads", "torch": "2.15"}
        stats = {"median": seconds, "q1": 0.99 * seconds, "q3": 1.01 * seconds, "rounds": 5}
        content = {"benchmarks": [{"extra_info": info, "stats": stats}], "commit_info": {"id": "0123", "dirty": True}}
        folder.mkdir()
        (folder / "any.json").write_text(json.dumps(content | {"datetime": "2026-01-02"}))
        return str(folder)

    before, slower, same = (stored(tmp_path / name, s) for name, s in (("a", 1.0), ("b", 1.2), ("c", 1.02)))
    assert main([slower, "--against", before]) == 1
    assert main([same, "--against", before]) == 0
