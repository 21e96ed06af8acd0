"""The decode suite of pytest-benchmark: from stored records to table, picture and README."""

import json
import re
from pathlib import Path

import pytest
from studies import study_record

from benchmarks.records import Run, write
from benchmarks.report import decode
from benchmarks.report.__main__ import main
from benchmarks.report.markdown import insert


def records(folder):
    def record(decoder, blocks, ratio, direction, seconds, mae_seconds):
        info = {
            "decoder": decoder, "blocks": blocks, "prediction_ratio": ratio, "direction": direction,
            "device": "CPU, 2 threads", "dtype": "float32", "torch": "2.15", "batch": 8, "macs": 2_000_000_000,
            "macs_ratio": 2.5, "paper_ratio": 2.4, "mae_seconds": mae_seconds, "saved_bytes": 3 * 2**20,
        }  # fmt: skip
        return {"extra_info": info, "stats": {"median": seconds}}

    content = {
        "benchmarks": [
            record("MAE", 8, 0.75, "forward", 1.0, 1.0),
            record("MAE", 8, 0.75, "forward + backward", 3.0, 3.0),
            record("CrossMAE", 12, 0.25, "forward", 0.4, 1.1),
            record("CrossMAE", 12, 0.25, "forward + backward", 1.2, 3.3),
            record("CrossMAE", 8, 0.25, "forward", 0.3, 1.0),
        ],
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05",
    }
    (folder / "decode.json").write_text(json.dumps(content))


def test_table_and_picture(tmp_path, capsys):
    records(tmp_path)
    main([str(tmp_path)])
    text = (tmp_path / "decode.md").read_text()
    assert text in capsys.readouterr().out
    assert "CPU, 2 threads; torch 2.15; commit 0123456789; 2026-01-02" in text
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| CrossMAE")
    ]
    assert cells[0] == ["CrossMAE", "12", "0.25", "2.000", "2.50", "400", "1,200", "2.75", "2.75", "3.0"]
    # What was not measured is an empty cell.
    assert cells[1] == ["CrossMAE", "8", "0.25", "2.000", "2.50", "300", "", "3.33", "", "3.0"]
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")


def training_record():
    rates = {"test_loader[1]": 520.0, "test_loader[2]": 1000.0, "test_loop_and_loader[1]": 500.0}
    rates["test_loop_and_loader[2]"] = 900.0
    infos = {name: {"images per second": rate, "KB per image": 86.0, "torch": "2.15"} for name, rate in rates.items()}
    infos["test_step_of_the_loop"] = {"milliseconds per step": 0.5}
    return {
        "machine_info": {"cpu": {"brand_raw": "a CPU", "count": 2}},
        "benchmarks": [{"name": name, "extra_info": info} for name, info in infos.items()],
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-01-02T03:04:05",
    }


def test_readme_gets_the_tables_and_keeps_its_words(tmp_path):
    records(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "demo.md").write_text("demo table\n")
    (tmp_path / "study.json").write_text(json.dumps(study_record()))
    (tmp_path / "training.json").write_text(json.dumps(training_record()))
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- decode: x -->\nold\n<!-- /decode -->\nmiddle\n<!-- demo: x -->\n<!-- /demo -->\nafter\n"
        "<!-- gpu: x -->\n<!-- /gpu -->\n<!-- study: x -->\n<!-- /study -->\n"
        "<!-- training: x -->\n<!-- /training -->\n"
    )
    for gpu in ("Nothing is measured yet.\n", None):
        main([str(tmp_path), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith("before\n<!-- decode: x -->\nViT-B/16")
        middle, end = text.split("<!-- gpu: x -->\n")
        assert middle.endswith("<!-- /decode -->\nmiddle\n<!-- demo: x -->\ndemo table\n<!-- /demo -->\nafter\n")
        assert "old" not in text
        if gpu is not None:
            assert end.startswith(f"{gpu}<!-- /gpu -->\n<!-- study: x -->\n600 steps of 128 images, 3 seeds")
            assert (tmp_path / "docs" / "study.png").is_file()
            assert "commit 0123456789; 2026-01-02\n\n| workers" in end.partition("<!-- training: x -->")[2]
            assert re.search(r"\| 2 +\| 1,000 +\| 900 +\|", end)
            assert "the loop itself takes 0.50 ms a step" in end
            for name, date, cuda in (("a", "2026-02-01", "13.0"), ("b", "2026-01-01", "13.0"), ("c", "2026-03-01", "")):
                (tmp_path / name).mkdir()
                machine = {"device": f"device {name}", "commit": "0", "date": date, "cuda": cuda}
                write(Run(machine), tmp_path / name)
        else:  # the newest of those of GPUs
            assert "device a; cuda 13.0; commit 0; 2026-02-01" in end
            assert "| decoder, batch 1024: share of the roofline" in end
            assert "[a/report.md](a/report.md)" in end


def test_missing_records_and_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no records .*decode.json; run `make bench`"):
        decode.read(tmp_path / "decode.json")
    (tmp_path / "README.md").write_text("no place")
    with pytest.raises(ValueError, match="must have one place for 'decode', has 0"):
        insert(tmp_path / "README.md", "decode", "x")


def test_tables_of_the_readme_come_from_the_stored_records():
    root = Path(decode.__file__).parents[2]
    contenders, where = decode.read(root / "benchmarks" / "results" / "decode.json")
    assert decode.table(contenders, where) in (root / "README.md").read_text()
