"""The page of ``crossmae audit --html``: charts of training steps on a GPU you need not have.

One file that needs no network: it contains plotly's script, which names the points of the rooflines on hover.
"""

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import torch

from crossmae.files import replacing
from crossmae.masking import mask_counts
from crossmae.model.config import Config, usual_prediction_ratio
from crossmae.planning.descriptions import description_of
from crossmae.planning.step import STAGES, Kernel, Part, together
from crossmae_kernels.audit.ceilings import PRODUCT_SHARE, bandwidth, rate
from crossmae_kernels.audit.devices import Device
from crossmae_kernels.audit.operations import ATTENTION
from crossmae_kernels.audit.prediction import SPREAD, accuracy
from crossmae_kernels.extras import version

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Kinds of decoder operators, by name without "_backward"; all others move data.
_PRODUCTS = ("linear_residual", "mlp", "norm_linear", "project", "addmm", "baddbmm", "bmm", "mm")
_KINDS = {
    **dict.fromkeys(_PRODUCTS, "matrix products, ours with LayerNorm, GELU and residual"),
    **dict.fromkeys(("cross_attention", ATTENTION), "attention"),
    **dict.fromkeys(("mix_feature_maps", "native_layer_norm"), "mixes and LayerNorms"),
}
_OTHERS = "sums, casts, copies, elementwise"

# Kernels with a bar of their own; the others share one.
MOST_KERNELS = 18
# Okabe and Ito's, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    model: str
    """Name of the CrossMAE."""
    configs: Mapping[str, Config]
    """Of the models compared."""
    device: Device
    batch: int
    dtype: torch.dtype
    mask_ratio: float


def write_page(subject: Subject, steps: Mapping[str, Sequence[Part]], path: str | os.PathLike[str]) -> None:
    """Write the page of one device; ``steps`` maps the names of the models compared to their steps.

    The first step is shown in detail; the last is the one that times are compared with. Needs plotly.
    """
    from plotly.offline import get_plotlyjs

    first = next(iter(steps))
    device, dtype = subject.device.name.upper(), _name(subject.dtype)
    text = Template(files("crossmae.planning").joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(f"{subject.model}, batch {subject.batch}, {dtype}, on {device}"),
        heading=html.escape(f"A training step of {subject.model} on {device}"),
        subject=html.escape(
            f"All times are for one step of pretraining on one {device} with a batch of {subject.batch:,} images, in "
            f"{dtype}. The encoder sees {1 - subject.mask_ratio:g} of the patches; the rest is masked."
        ),
        models=_models(subject),
        accuracy=html.escape(accuracy()),
        low=f"{1 / (1 + SPREAD) - 1:.0%}",
        high=f"+{SPREAD:.0%}",
        triton=html.escape(str(version("triton"))),
        architecture=subject.device.limits.capability,
        product_share=f"{PRODUCT_SHARE:.0%}",
        bandwidth_share=f"{subject.device.bandwidth_share:.0%}",
        detail=html.escape(first),
        script=get_plotlyjs(),
        summary=_summary(subject, steps),
        step=_drawn(step_chart(steps)),
        decoder=_drawn(decoder_chart(steps)),
        kernels=_drawn(kernel_chart(steps[first])),
        rooflines=_drawn(rooflines(subject, steps)),
        descriptions=_descriptions(steps),
        parts=_table(steps),
    )
    with replacing(path) as beside:
        beside.write_text(text, "utf-8")


def step_chart(steps: Mapping[str, Sequence[Part]]) -> "Figure":
    """Milliseconds of each stage of a step."""
    times: dict[str, dict[str, float]] = {
        name: {stage: _time(part for part in parts if part.stage == stage) for stage in STAGES}
        for name, parts in steps.items()
    }
    return _stacked(times, "milliseconds")


def decoder_chart(steps: Mapping[str, Sequence[Part]]) -> "Figure":
    """Milliseconds of a decoder's forward and backward pass, by kind of operator."""
    kinds = list(dict.fromkeys((*_KINDS.values(), _OTHERS)))
    times = {name: {kind: _time(part for part in parts if part.stage.startswith("decoder") and kind_of(part) == kind)
                    for kind in kinds} for name, parts in steps.items()}  # fmt: skip
    return _stacked(times, "milliseconds")


def kind_of(part: Part) -> str:
    """The kind of an operator, in words."""
    return _KINDS.get(part.operation.removesuffix("_backward"), _OTHERS)


def _stacked(times: Mapping[str, Mapping[str, float]], unit: str) -> "Figure":
    """A bar for each name, its shares side by side, with the interval of their sum."""
    from plotly.graph_objects import Bar, Figure, Scatter

    names, shares = list(times), list(next(iter(times.values())))
    figure = Figure()
    for place, share in enumerate(shares):
        values = [times[name][share] for name in names]
        figure.add_trace(
            Bar(
                name=share, x=values, y=names, orientation="h", marker_color=COLOURS[place % len(COLOURS)],
                hovertemplate=f"%{{y}}<br>{share}: %{{x:.3g}} ms<extra></extra>",
            )
        )  # fmt: skip
    sums = [sum(times[name].values()) for name in names]
    figure.add_trace(
        Scatter(
            name="interval of the sum", x=sums, y=names, mode="markers", marker={"color": "#222", "size": 5},
            error_x=_interval(sums), hovertemplate="%{y}: %{x:.3g} ms<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title=unit, height=150 + 55 * len(names))
    figure.update_yaxes(autorange="reversed")
    return figure


def kernel_chart(parts: Sequence[Part]) -> "Figure":
    """Milliseconds of each kernel in a step, longest first, coloured by what limits it."""
    from plotly.graph_objects import Bar, Figure

    kernels = by_kernel(parts)
    shown, rest = kernels[:MOST_KERNELS], kernels[MOST_KERNELS:]
    figure = Figure()
    for place, limiter in enumerate(dict.fromkeys(kernel.limiter for kernel in shown)):
        same = [kernel for kernel in shown if kernel.limiter == limiter]
        figure.add_trace(_kernel_bars(limiter, [_labelled(kernel) for kernel in same], same, COLOURS[place]))
    if rest:
        total = sum(kernel.microseconds for kernel in rest) / 1e3
        figure.add_trace(
            Bar(
                name="several", x=[total], y=[f"{len(rest)} others"], orientation="h", marker_color="#bbb",
                error_x=_interval([total]), hovertemplate="%{y}: %{x:.3g} ms<extra></extra>",
            )
        )  # fmt: skip
    order = [_labelled(kernel) for kernel in shown] + [f"{len(rest)} others"] * bool(rest)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=order)
    figure.update_layout(xaxis_title="milliseconds", legend_title="limited by", height=170 + 34 * len(order))
    return figure


def by_kernel(parts: Iterable[Part]) -> list[Kernel]:
    """All launches of each kernel in all parts, longest first."""
    found: dict[tuple[str, str], list[Kernel]] = {}
    for part in parts:
        for kernel in part.kernels:
            found.setdefault((kernel.name, kernel.method), []).append(kernel)
    return sorted(map(together, found.values()), key=lambda kernel: -kernel.microseconds)


def _kernel_name(kernel: Kernel) -> str:
    return kernel.name if kernel.method == "machine code" else f"{kernel.name} (library)"


def _labelled(kernel: Kernel) -> str:
    """What a kernel does, and its name below."""
    described = description_of(kernel.name)
    name = f"<span style='color:#777;font-size:10px'>{_kernel_name(kernel)}</span>"
    return f"{described}<br>{name}" if described else _kernel_name(kernel)


def _kernel_bars(limiter: str, names: list[str], kernels: Sequence[Kernel], colour: str) -> Any:
    from plotly.graph_objects import Bar

    milliseconds = [kernel.microseconds / 1e3 for kernel in kernels]
    details = [(kernel.calls, kernel.bytes / 2**20, kernel.limiter, kernel.method) for kernel in kernels]
    return Bar(
        name=limiter, x=milliseconds, y=names, orientation="h", marker_color=colour, error_x=_interval(milliseconds),
        customdata=details,
        hovertemplate="%{y}: %{x:.3g} ms in %{customdata[0]} launches<br>%{customdata[1]:,.0f} MiB of DRAM traffic, "
        "limited by %{customdata[2]}<br>predicted from %{customdata[3]}<extra></extra>",
    )  # fmt: skip


def rooflines(subject: Subject, steps: Mapping[str, Sequence[Part]]) -> "Figure":
    """Throughput of the operators that multiply against their arithmetic intensity, below the device's roofline."""
    from plotly.graph_objects import Figure, Scatter

    device, dtype = subject.device, subject.dtype
    ridge = rate(device, dtype) / bandwidth(device)
    figure = Figure(
        Scatter(
            name=f"{device.bandwidth_share:.0%} of DRAM's bandwidth, {device.clock_share:.0%} of the boost clock",
            x=[1, ridge, 100 * ridge], y=[bandwidth(device) / 1e6, *[rate(device, dtype) / 1e6] * 2],
            mode="lines", line={"color": "#222"}, hoverinfo="skip",
        )
    )  # fmt: skip
    for place, (name, parts) in enumerate(steps.items()):
        points = [part for part in parts if part.flops]
        reached = [part.flops / part.microseconds / 1e6 for part in points]
        figure.add_trace(
            Scatter(
                name=name, x=[part.flops / part.bytes for part in points], y=reached, mode="markers",
                marker={"color": COLOURS[place], "size": 9, "symbol": ("circle", "diamond")[place % 2]},
                error_y={**_interval(reached), "thickness": 0.8, "width": 0},
                customdata=[(part.stage, part.operation, part.limiter, part.microseconds / 1e3) for part in points],
                hovertemplate="%{customdata[1]}, %{customdata[0]}<br>%{y:.3g} TFLOPS, %{x:.3g} FLOP per byte"
                "<br>%{customdata[3]:.3g} ms, limited by %{customdata[2]}",
            )
        )  # fmt: skip
    figure.update_xaxes(type="log", dtick=1, title="FLOP per byte of DRAM traffic", range=[0, 3.5])
    figure.update_yaxes(type="log", dtick=1, title="TFLOPS")
    figure.update_layout(height=520)
    return figure


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Error bars of times or rates, from value / 1.46 to value * 1.46."""
    return {
        "type": "data", "array": [SPREAD * value for value in values],
        "arrayminus": [value * SPREAD / (1 + SPREAD) for value in values],
        "color": "#444", "thickness": 1.2, "width": 3,
    }  # fmt: skip


def _drawn(figure: "Figure") -> str:
    """A figure as HTML, as wide as the page."""
    figure.update_layout(
        template="plotly_white", margin={"l": 8, "r": 8, "t": 8, "b": 8}, font={"size": 12, "color": "#222"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    config = {"responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _models(subject: Subject) -> str:
    """A row for each model compared: what decides its times."""
    rows = []
    for name, config in subject.configs.items():
        ratio = usual_prediction_ratio(config, subject.mask_ratio)
        _, predicted = mask_counts(config.patches, subject.mask_ratio, ratio)
        residual = _name(subject.dtype) if config.residual == "autocast" else config.residual
        hidden = {"recompute": "recomputed in the backward pass", "save": "saved"}[config.hidden_layer]
        rows.append([name, "x".join(map(str, config.image_size)), f"{config.decoder_depth} blocks",
                     f"{ratio:g} ({predicted} of {config.patches} patches)", residual, hidden])  # fmt: skip
    headers = ["model", "image", "decoder", "prediction ratio", "residual dtype", "hidden layers, by this package"]
    return _html_table(headers, rows)


def _summary(subject: Subject, steps: Mapping[str, Sequence[Part]]) -> str:
    """A row for each step: interval, images per second, the decoder's interval, time relative to the last step."""
    reference = sum(part.microseconds for part in [*steps.values()][-1])
    rows = []
    for name, parts in steps.items():
        step = sum(part.microseconds for part in parts)
        decoder = sum(part.microseconds for part in parts if part.stage.startswith("decoder"))
        low, high = (subject.batch * 1e6 / step / factor for factor in (1 + SPREAD, 1 / (1 + SPREAD)))
        rows.append([name, _milliseconds(step), f"{low:,.0f} to {high:,.0f}", _milliseconds(decoder),
                     f"{step / reference:.2f}"])  # fmt: skip
    headers = ["model", "step, ms", "images per second", "decoder, ms", f"relative to {[*steps][-1]}"]
    return _html_table(headers, rows)


def _descriptions(steps: Mapping[str, Sequence[Part]]) -> str:
    """What each kernel of any step does."""
    kernels = {
        _kernel_name(kernel): description_of(kernel.name) for parts in steps.values() for kernel in by_kernel(parts)
    }
    return _html_table(["kernel", "what it does"], [[name, text] for name, text in sorted(kernels.items()) if text])


def _table(steps: Mapping[str, Sequence[Part]]) -> str:
    """All parts of all steps."""
    rows = [
        [name, part.stage, part.operation, f"{part.calls}", _milliseconds(part.microseconds), part.limiter,
         f"{part.flops / 1e9:,.1f}", f"{part.bytes / 2**20:,.0f}",
         ", ".join(_kernel_name(kernel) for kernel in part.kernels)]
        for name, parts in steps.items() for part in parts
    ]  # fmt: skip
    headers = ["model", "stage", "operator", "calls", "ms", "limited by", "GFLOP", "MiB of DRAM traffic", "kernels"]
    return _html_table(headers, rows)


def _html_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<div class=wide><table><thead>{row(headers, 'th')}</thead><tbody>{body}</tbody></table></div>"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _time(parts: Iterable[Part]) -> float:
    return sum(part.microseconds for part in parts) / 1e3


def _milliseconds(microseconds: float) -> str:
    low, high = (microseconds * factor / 1e3 for factor in (1 / (1 + SPREAD), 1 + SPREAD))
    return f"{low:.3g} to {high:.3g}"
