"""Plots of the measures, readable in print and for colour-blind people, each with its caption below."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter
from torch import Tensor

from ..utils.files import whole_file
from .attention_distance import LayerDistance
from .components import Components
from .gates import QUANTILES, Reading, between_classes, variances
from .hooks import Block
from .modulators import CUT, Part
from .receptive_field import BlockField, Field

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without yellow, which is hard to see on white."""
MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "++", "oo", "**")
GREY = "0.45"
KIND_MARKERS = {"SAM": "o", "attention": "s", "window attention": "P", "DMA": "D", "LKA": "^"}
FAINTEST = -6
"""Lower end of the colour scale of receptive field maps: power of ten relative to the largest value."""


def save(figure: Figure, caption: str, path: Path) -> None:
    """Put the caption below the figure and write it as a PNG atomically."""
    width = figure.get_figwidth()
    figure.supxlabel(textwrap.fill(caption, round(width * 15.5)), x=0.01, ha="left", fontsize=8.5, color="0.2")
    with warnings.catch_warnings(), whole_file(path) as part:
        # Names of runs and classes may need glyphs that matplotlib's font lacks; the CSV has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(part, format="png", dpi=150)


def attention_distance(models: Sequence[tuple[str, list[LayerDistance]]], height: int, width: int) -> Figure:
    """One point per head, a line through the layers' means, a dash for equal weights; hollow points for windows."""
    figure, ((axes,),) = _figure(9, 5)
    for i, (name, layers) in enumerate(models):
        shift = 0.14 * (i - (len(models) - 1) / 2)  # so that points of several models do not overlap
        xs = [x + 1 + shift for x in range(len(layers))]
        axes.plot(xs, [layer.pixels.mean().item() for layer in layers], label=name, **_line(i), zorder=1)
        for x, layer in zip(xs, layers, strict=True):
            heads = layer.pixels.mean(0).tolist()
            face = "white" if layer.kind == "window attention" else COLOURS[i % len(COLOURS)]
            axes.plot([x] * len(heads), heads, **_points(i), markerfacecolor=face, alpha=0.85)
            axes.plot([x - 0.16, x + 0.16], [layer.uniform] * 2, color="black", linewidth=1.2, zorder=3)
    axes.plot([], [], color="black", linewidth=1.2, label="equal weights")
    axes.set_xlabel("attention layer, from the input")
    axes.set_ylabel(f"mean attention distance (px of {height} x {width})")
    most = max(len(layers) for _, layers in models)
    axes.set_xticks(range(1, most + 1, -(-most // 20)))
    axes.set_ylim(bottom=0)
    _legend_above(figure, axes)
    return figure


def receptive_field(models: Sequence[tuple[str, list[Field]]], height: int, width: int) -> Figure:
    """The side of the smallest area with 50 % and 95 % of the energy, against the stage's stride."""
    figure, (panels,) = _figure(9, 4.6, columns=2, sharey=True)
    strides = sorted({field.stride for _, fields in models for field in fields})
    for axes, share in zip(panels, (0.5, 0.95), strict=True):
        for i, (name, fields) in enumerate(models):
            sides = [field.area(share) ** 0.5 for field in fields]
            several = len({field.stride for field in fields}) < len(
                fields
            )  # for cells at equal stride, the last counts
            by_stride = {field.stride: side for field, side in zip(fields, sides, strict=True)}
            label = f"{name} (last block)" if several else name
            axes.plot(list(by_stride), list(by_stride.values()), label=label, **_line(i))
        axes.axhline((height * width) ** 0.5, color=GREY, linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(strides, [str(s) for s in strides])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("stride of the stage (px)")
        axes.set_title(f"{100 * share:.0f} % of the energy", fontsize=10, loc="left")
    panels[0].set_ylabel("side of the smallest area (px)")
    panels[0].annotate(
        "whole image", (0.02, (height * width) ** 0.5), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=8, color=GREY,
    )  # fmt: skip
    _legend_above(figure, panels[0])
    return figure


def receptive_field_maps(models: Sequence[tuple[str, list[Field]]]) -> Figure:
    """The energy of each stage's field relative to its largest value, on a log scale; one row per model."""
    shown = [(name, list({field.stride: field for field in fields}.values())) for name, fields in models]
    columns = max(len(fields) for _, fields in shown)
    height, width = shown[0][1][0].energy.shape
    figure, panels = _figure(2.4 * columns + 1.2, (2.4 * height / width + 0.4) * len(shown) + 0.9, len(shown), columns)
    image: Any = None
    for row, (name, fields) in zip(panels, shown, strict=True):
        for axes, field in zip(row, fields, strict=False):
            scaled = (field.energy / field.energy.max()).clamp(min=10.0**FAINTEST).log10().numpy()
            image = axes.imshow(scaled, cmap="inferno", vmin=FAINTEST, vmax=0, interpolation="nearest")
            axes.set_title(f"{name}\nstride {field.stride}", fontsize=8.5)
            axes.set(xticks=[], yticks=[])
        for axes in row[len(fields) :]:
            axes.set_axis_off()
    bar = figure.colorbar(image, ax=list(panels.flatten()), shrink=0.8, aspect=30)
    bar.set_label("energy relative to the largest (power of ten)")
    return figure


def relative_receptive_field(models: Sequence[tuple[str, list[BlockField]]]) -> Figure:
    """Side relative to the map's side, per block; the marker shows the token mixer."""
    figure, (panels,) = _figure(9, 4.6, columns=2, sharey=True)
    kinds = dict.fromkeys(field.block.kind for _, fields in models for field in fields)
    markers = {kind: KIND_MARKERS.get(kind, "v") for kind in kinds}
    for axes, added in zip(panels, (False, True), strict=True):
        for i, (name, fields) in enumerate(models):
            sides = [field.relative_side(0.95, added) for field in fields]
            xs = range(1, len(fields) + 1)
            axes.plot(xs, sides, label=name, **{**_line(i), "marker": None})
            for x, side, field in zip(xs, sides, fields, strict=True):
                axes.plot([x], [side], **{**_points(i), "marker": markers[field.block.kind]})
        axes.set_xlabel("block of the deepest stage")
        axes.set_title("what the block adds" if added else "the whole block", fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    panels[0].set_ylim(bottom=0)  # both panels share this axis, which now has all data
    for kind, marker in markers.items():
        panels[0].plot([], [], color=GREY, marker=marker, linestyle="", label=kind)
    panels[0].set_ylabel("side of the smallest area / side of the map")
    _legend_above(figure, panels[0])
    return figure


def gates(models: Sequence[tuple[str, list[Reading], Tensor | None]]) -> Figure:
    """One column per model: the gates' distribution, what they depend on, and the branches' fractions of their sum."""
    figure, panels = _figure(max(4.5 * len(models), 7), 9, 3, len(models), sharey="row")
    for (name, blocks, labels), (upper, middle, lower) in zip(models, panels.T, strict=True):
        xs = np.arange(len(blocks))
        low, first, median, third, high = np.transpose([np.quantile(b.gates.numpy(), QUANTILES) for b in blocks])
        upper.fill_between(xs, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="5 to 95 %")
        upper.fill_between(xs, first, third, color=COLOURS[0], alpha=0.4, linewidth=0, label="25 to 75 %")
        upper.plot(xs, median, color=COLOURS[0], marker="o", markersize=4, label="median")
        upper.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        upper.set_title(name, fontsize=10, loc="left")
        upper.set_ylim(0, 1)
        middle.plot(xs, [variances(b.gates).input_share for b in blocks], **_line(0), label="images")
        if labels is not None:
            found = [between_classes(b.gates, labels) for b in blocks]
            middle.plot(xs, [f[1] for f in found], **_line(1), label="of that, classes")
            middle.axhline(found[0][2], color=GREY, linewidth=1.2, linestyle=":", label="by chance")
        middle.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        middle.set_ylim(0, 1)
        bottom, below = np.zeros(len(blocks)), np.zeros(len(blocks))
        for level, title in enumerate(blocks[0].levels):
            shares = np.array([b.shares[level].item() for b in blocks])
            start = np.where(shares >= 0, bottom, below)
            style: Any = dict(color=COLOURS[level % len(COLOURS)], hatch=HATCHES[level % len(HATCHES)])
            lower.bar(xs, shares, bottom=start, label=title, edgecolor="white", linewidth=0.5, **style)
            bottom, below = bottom + shares.clip(min=0), below + shares.clip(max=0)
        lower.axhline(0, color="0.2", linewidth=0.8)
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        for axes in (upper, middle, lower):
            axes.set_xticks(xs, [b.label for b in blocks], fontsize=8)
            axes.set_xlim(-0.5, len(blocks) - 0.5)
        lower.set_xlabel("block (stage.number)")
    titles = ("gate (0 closes a channel)", "fraction of the gates' variance between", "branch's fraction of the sum")
    for axes, title in zip(panels[:, 0], titles, strict=True):
        axes.set_ylabel(title)
        place: Any = dict(loc="lower left", bbox_to_anchor=(0, 1.08), ncols=4, columnspacing=1.2)
        axes.legend(fontsize=8, frameon=False, **place)
    return figure


def modulators(models: Sequence[tuple[str, list[Block], list[list[Part]]]]) -> Figure:
    """The fraction of high frequencies in each part, one line per block."""
    figure, ((axes,),) = _figure(9, 5)
    names = list(dict.fromkeys(part.name for _, _, blocks in models for parts in blocks for part in parts))
    i = 0
    for name, places, blocks in models:
        for place, parts in zip(places, blocks, strict=True):
            axes.plot([], [], label=f"{name}, block {place.label}", **_line(i))
            for group in (" before", "head", ""):  # connect only the heads: the other parts have no order
                inside = [part for part in parts if _group(part) == group]
                style = _line(i) if group else _points(i)
                axes.plot([names.index(part.name) for part in inside], [part.high for part in inside], **style)
            i += 1
    axes.axhline(1 - np.pi * CUT**2, color=GREY, linewidth=1, linestyle=":", label="white noise")
    axes.set_xticks(range(len(names)), [n.replace(" ", "\n") for n in names], fontsize=8)
    axes.set_ylabel("fraction of high frequencies")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_ylim(0, 1)
    _legend_above(figure, axes)
    return figure


def _group(part: Part) -> str:
    return " before" if part.name.endswith(" before") else "head" if part.name.startswith("head") else ""


def modulator_maps(models: Sequence[tuple[str, np.ndarray, list[Block], list[list[Part]]]]) -> Figure:
    """One row per block: the image, then every part's mean absolute value, each on its own scale."""
    rows = [
        (n, photo, place, parts)
        for n, photo, places, found in models
        for place, parts in zip(places, found, strict=True)
    ]
    titles = list(dict.fromkeys(part.name for *_, parts in rows for part in parts if not part.name.endswith(" before")))
    figure, panels = _figure(1.45 * (len(titles) + 1) + 0.3, 1.75 * len(rows) + 0.7, len(rows), len(titles) + 1)
    for row, (name, photo, place, parts) in zip(panels, rows, strict=True):
        row[0].imshow(photo)
        row[0].set_title(f"{name}\nblock {place.label}", fontsize=8)
        by_name = {part.name: part for part in parts}
        for axes, title in zip(row[1:], titles, strict=True):
            if title in by_name:
                axes.imshow(by_name[title].picture.numpy(), cmap="viridis", interpolation="nearest")
                axes.set_title(f"{title}\nenergy {by_name[title].energy:.2g}", fontsize=8)
        for axes in row:
            axes.set_axis_off()
    return figure


def cka(first: str, second: str, rows: Sequence[Block], columns: Sequence[Block], values: Tensor) -> Figure:
    """A heat map, with the first model from top to bottom and the second from left to right."""
    figure, ((axes,),) = _figure(7.2, 6.4)
    image = axes.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=1, origin="upper", aspect="auto")
    for axis, places in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = -(-len(places) // 24)
        axis.set_ticks(range(0, len(places), step), [place.label for place in places[::step]], fontsize=8)
    axes.set_ylabel(f"{first}: block (stage.number)")
    axes.set_xlabel(f"{second}: block (stage.number)")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="CKA (1: equal up to rotation and scale)")
    return figure


def components(models: Sequence[tuple[str, list[Components]]]) -> Figure:
    """The fraction of the variance in the first components; one panel per stage."""
    stages = max(len(found) for _, found in models)
    figure, (panels,) = _figure(2.6 * stages + 0.6, 3.6, columns=stages, sharey=True)
    for i, (name, found) in enumerate(models):
        for axes, stage in zip(panels, found, strict=False):
            shares = (stage.variances.cumsum(0) / stage.variances.sum()).tolist()
            axes.plot(range(1, len(shares) + 1), shares, label=name, **{**_line(i), "marker": None})
            axes.set_title(f"stride {stage.stride}", fontsize=9)
            axes.set_xlabel("components")
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("fraction of the variance")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylim(0, 1.02)
    _legend_above(figure, panels[0])
    return figure


def component_maps(photos: Sequence[np.ndarray], models: Sequence[tuple[str, list[Components]]]) -> Figure:
    """The first three components as colours: a column per photo, a row per model and stage."""
    rows = [(name, stage) for name, found in models for stage in found]
    height, width = photos[0].shape[:2]
    side = 1.7
    figure, panels = _figure(
        max(side * len(photos) + 1.2, 7), side * height / width * (len(rows) + 1) + 0.9, len(rows) + 1, len(photos)
    )
    for axes, photo in zip(panels[0], photos, strict=True):
        axes.imshow(photo)
    for row, (_, stage) in zip(panels[1:], rows, strict=True):
        for axes, picture in zip(row, stage.pictures, strict=True):
            axes.imshow(picture.numpy(), interpolation="nearest")
    for row, title in zip(panels, ["photo", *(f"{name}\nstride {stage.stride}" for name, stage in rows)], strict=True):
        row[0].set_ylabel(title, fontsize=8.5)
    for axes in panels.flatten():
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
    return figure


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, sharey: bool | str = False
) -> tuple[Figure, Any]:
    """A figure, with its size in inches, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False, sharey=sharey)  # type: ignore[arg-type]
    for axes in panels.flatten():
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.88", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def _line(i: int) -> dict[str, Any]:
    """Line style of model i, distinguishable with and without colour."""
    return {**_points(i), "linestyle": LINES[i % len(LINES)], "linewidth": 1.5}


def _points(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "", "markersize": 5}


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Place the legend of one panel above all panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8.5, frameon=False)
