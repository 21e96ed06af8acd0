"""The decode suite of pytest-benchmark: CrossMAE's decoder and MAE's, timed in turn."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report import markdown
from crossmae.figures import new_figure, write_figure

FORWARD, BOTH = "forward", "forward + backward"


def read(path: Path) -> tuple[dict[tuple[str, int, float], dict[str, dict[str, Any]]], str]:
    """Records of the decode suite by contender and direction, and a line that says where they were measured."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no records {path}; run `make bench`")
    content = json.loads(path.read_text("utf-8"))
    benchmarks = [record for record in content["benchmarks"] if record["extra_info"].get("mae_seconds")]
    if not benchmarks:
        raise ValueError(f"{path} holds no records of the decode suite")
    contenders: dict[tuple[str, int, float], dict[str, dict[str, Any]]] = {}
    for record in benchmarks:
        info = {**record["extra_info"], "seconds": record["stats"]["median"]}
        key = (info["decoder"], info["blocks"], info["prediction_ratio"])
        contenders.setdefault(key, {})[info["direction"]] = info
    first = benchmarks[0]["extra_info"]
    where = (
        f"ViT-B/16, 224 px, batch {first['batch']}, {first['dtype']}; {first['device']}; torch {first['torch']}; "
        f"commit {content['commit_info']['id'][:10]}; {content['datetime'][:10]}"
    )
    return contenders, where


def table(contenders: dict[tuple[str, int, float], dict[str, dict[str, Any]]], where: str) -> str:
    """Markdown: time and memory per contender, and MAE's cost over its own, in MACs and in time."""
    rows = []
    for (decoder, blocks, ratio), both in contenders.items():
        any_direction = next(iter(both.values()))
        rows.append(
            [
                decoder,
                blocks,
                "all" if decoder == "MAE" else f"{ratio:g}",
                f"{any_direction['macs'] / 1e9:.3f}",
                f"{any_direction['macs_ratio']:.2f}",
                *(f"{both[d]['seconds'] * 1e3:,.0f}" if d in both else "" for d in (FORWARD, BOTH)),
                *(f"{speedup(both[d]):.2f}" if d in both else "" for d in (FORWARD, BOTH)),
                f"{any_direction['saved_bytes'] / 2**20:.1f}",
            ]
        )
    headers = ["decoder", "blocks", "predicts", "GMAC per image", "MAE / it, MACs", "forward, ms", "fwd + bwd, ms"]
    headers += ["MAE / it, forward", "MAE / it, fwd + bwd", "saved for backward, MiB per image"]
    return f"{where}\n\n{markdown.table(headers, rows)}\n"


def speedup(record: dict[str, Any]) -> float:
    """How many times longer MAE's decoder took in the same minutes."""
    return record["mae_seconds"] / record["seconds"]


def draw(contenders: dict[tuple[str, int, float], dict[str, dict[str, Any]]], where: str, path: Path) -> None:
    """Ratio of times against ratio of MACs, forward and backward: on the diagonal a MAC costs what MAE's does."""
    figure, axes = new_figure(1, 1, 7.5, 5.2)
    axis = axes[0, 0]
    points = {key: both[BOTH] for key, both in contenders.items() if BOTH in both}
    limit = 1.15 * max(max(speedup(p), p["macs_ratio"]) for p in points.values())
    axis.plot([0.7, limit], [0.7, limit], color="grey", linestyle="--", label="time follows MACs")
    for (decoder, blocks, ratio), point in points.items():
        marker = {"MAE": "s", "CrossMAE": "o"}.get(decoder, "x")
        axis.plot(point["macs_ratio"], speedup(point), marker, color="black" if decoder == "MAE" else None)
        name = decoder if decoder == "MAE" else f"{decoder}: {blocks} blocks, predicts {ratio:g}"
        right = decoder == "MAE" or point["macs_ratio"] > limit**0.6
        axis.annotate(
            name,
            (point["macs_ratio"], speedup(point)),
            xytext=(-7 if right else 7, -3 if decoder in ("CrossMAE", "MAE") else -12),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
        )
    axis.set(
        xscale="log", yscale="log", xlabel="MACs of MAE's decoder / its own", ylabel="time of MAE's decoder / its own"
    )
    axis.set_title(f"Decoding, forward + backward\n{where}", fontsize=8)
    axis.legend()
    write_figure(figure, path)
