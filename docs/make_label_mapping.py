"""Draw docs/label_mapping.svg: `python docs/make_label_mapping.py`. Every id in it is what `map_labels` answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dmformer.tasks.segmentation.label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC
from dmformer.tasks.segmentation.masks import IGNORE, StrangeLabelError, map_labels

PICTURE = Path(__file__).parent / "label_mapping.svg"

INK, FAINT, FRAME, WRONG = "#1f2328", "#818b98", "#d0d7de", "#c4320a"
FILLS = ("#cfe3f8", "#fbe0c3", "#d3ecd6", "#ecd9f4")
NOT_COUNTED = "#e9ecef"
LEFT, STEP, BOX, ROW = 190, 47, (34, 15), 78
"""Of the first column, from column to column, a box's width and height, and from row to row; in points."""

GAP = -1
"""Stands for the ids that are not shown."""


class Row(NamedTuple):
    """A convention: which stored ids are shown, and what becomes of each."""

    title: str
    words: str
    stored: Sequence[int]
    mapped: Callable[[np.ndarray], np.ndarray]
    names: Sequence[str]
    right: Callable[[np.ndarray], np.ndarray] | None = None
    """What it should be, where the row shows a mistake."""


def ade20k(ids: np.ndarray) -> np.ndarray:
    """As ADE20K's masks have to be mapped."""
    return map_labels(ids, 150, reduce_zero_label=True)


ROWS = [
    Row(
        "CamVid",
        "11 classes from 0, 11 is void:\nignore_index=(11,)",
        (0, 1, 2, 3, GAP, 9, 10, 11),
        lambda ids: map_labels(ids, 11, ignore_index=(11,)),
        CAMVID.class_names,
    ),
    Row(
        "Pascal VOC",
        "21 classes from 0 (background),\n255 are borders: the default",
        (0, 1, 2, 3, GAP, 19, 20, 255),
        lambda ids: map_labels(ids, 21),
        VOC.class_names,
    ),
    Row(
        "Cityscapes, labelIds",
        "19 of 34 ids count:\ntable=CITYSCAPES_TRAIN_IDS",
        (0, 7, 8, 9, 11, GAP, 32, 33),
        lambda ids: map_labels(ids, 19, table=CITYSCAPES_TRAIN_IDS),
        CITYSCAPES.class_names,
    ),
    Row(
        "ADE20K",
        "150 classes from 1, 0 is unlabelled:\nreduce_zero_label=True",
        (0, 1, 2, 3, GAP, 149, 150, 255),
        ade20k,
        ADE20K.class_names,
    ),
    Row(
        "Mistake: ids - 1 in 8 bits",
        "0 becomes 255, which is ignored, but\n255 becomes 254, which is not",
        (0, 1, 2, 3, GAP, 149, 150, 255),
        lambda ids: ids.astype(np.uint8) - np.uint8(1),
        ADE20K.class_names,
        ade20k,
    ),
    Row(
        "Mistake: ignoring 0 without a shift",
        "ignore_index=(0, 255): each class is one\ntoo high, and the last is none: an error",
        (0, 1, 2, 3, GAP, 149, 150, 255),
        lambda ids: map_labels(ids, 150, ignore_index=(0, 255)),
        ADE20K.class_names,
        ade20k,
    ),
]


def draw() -> Figure:
    """The whole picture."""
    width, height = LEFT + STEP * 8 + 8, ROW * len(ROWS) + 30
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    box(axes, width / 2, height / 2, "", "white", size=(width - 1, height - 1), edge=FRAME)
    text(axes, LEFT - 6, 16, "above: ids in the file; below: ids that are trained on", FAINT, "left")
    for i, row in enumerate(ROWS):
        draw_row(axes, row, 26 + ROW * i)
    return figure


def draw_row(axes, row: Row, top: float) -> None:
    """One convention: its words, and a column for each id."""
    axes.plot([12, LEFT + STEP * 8 - 4], [top, top], color=FRAME, linewidth=0.8)
    text(axes, 14, top + 17, row.title, WRONG if row.right else INK, "left", weight="bold")
    for i, line in enumerate(row.words.split("\n")):
        text(axes, 14, top + 32 + 12 * i, line, INK, "left", size=7.5)
    for i, stored in enumerate(row.stored):
        x = LEFT + STEP * (i + 0.5)
        if stored == GAP:
            text(axes, x, top + 17, "…")
            text(axes, x, top + 50, "…")
        else:
            draw_column(axes, row, stored, x, top)


def draw_column(axes, row: Row, stored: int, x: float, top: float) -> None:
    """An id in the file, an arrow, and the id that it becomes with the name of that class."""
    mapped = answer(row.mapped, stored)
    wrong = row.right is not None and mapped != answer(row.right, stored)
    ink = WRONG if wrong else INK
    fill = NOT_COUNTED if mapped is None or mapped >= len(row.names) else FILLS[mapped % len(FILLS)]
    box(axes, x, top + 17, str(stored), "white")
    look: dict[str, Any] = dict(arrowstyle="-|>,head_length=3.6,head_width=1.9", mutation_scale=1, shrinkA=0, shrinkB=0)
    axes.add_patch(FancyArrowPatch((x, top + 25.5), (x, top + 41), color=ink, linewidth=0.9, **look))
    box(axes, x, top + 50, "error" if mapped is None else str(mapped), fill, ink)
    names: dict[int | None, str] = {**dict(enumerate(row.names)), IGNORE: "ignored"}
    text(axes, x, top + 65, names.get(mapped, "no class"), ink if wrong else FAINT, size=6.5)


def answer(mapping: Callable[[np.ndarray], np.ndarray], stored: int) -> int | None:
    """What becomes of one id; None is an error."""
    try:
        return int(mapping(np.array([stored]))[0])
    except StrangeLabelError:
        return None


def box(axes, x: float, y: float, label: str, fill: str, ink: str = INK, size=BOX, edge: str | None = None) -> None:
    """A box with round corners around its middle (x, y), and what stands in it."""
    corner = (x - size[0] / 2, y - size[1] / 2)
    look: dict[str, Any] = dict(facecolor=fill, edgecolor=edge or ink, linewidth=0.9)
    axes.add_patch(FancyBboxPatch(corner, size[0], size[1], "round,pad=0,rounding_size=3.5", **look))
    text(axes, x, y, label, ink)


def text(
    axes, x: float, y: float, words: str, ink: str = INK, align: str = "center", size=8.5, weight="normal"
) -> None:
    """A line of text whose middle is at the height y."""
    axes.text(x, y, words, color=ink, fontsize=size, ha=align, va="center_baseline", fontweight=weight)


def main() -> None:
    """Write the picture: letters as outlines, and the same bytes each time."""
    letters: dict[Any, Any] = {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "dmformer"}
    with matplotlib.rc_context(letters):
        draw().savefig(PICTURE, transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
