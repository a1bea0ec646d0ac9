"""The report of a semantic segmentation run: one HTML page that needs no network and no other file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.palette import Palette
from ...report.drawing import IGNORED, named_overlay
from ...report.page import (
    MATRIX_CLASSES,
    ClassKey,
    Passage,
    PhotoRow,
    Picture,
    RunReport,
    class_list,
    column,
    confusion_of,
    css,
    finite,
    history_plot,
    jpeg,
    percent,
    worst_to_best,
    write_run_page,
)
from .metrics import SegmentationScores, measures

PICTURES = 4
"""Of the worst, of the middle and of the best."""
WIDTH, HEIGHT = 360, 480
"""Most of a picture."""
OPACITY = 0.7
NAMED = 3
"""Most classes that a picture's alternative text tells."""
CELL = 6
"""Pixels of a picture between which the class named on hover can change."""


@dataclass(frozen=True, kw_only=True)
class SegmentationReport(RunReport):
    """What a page is made of; its history has a row for each validation."""

    scores: SegmentationScores
    split: str
    """test or validation"""
    class_names: list[str]
    """K names"""
    palette: Palette
    """K colours (red, green, blue; 0 to 255)"""
    image_names: list[str]
    """N names"""
    image_ious: list[float]
    """N: each image's mean IoU over the classes in it; nan where no pixel is labelled."""
    load: Callable[[int], tuple[Image.Image, np.ndarray, np.ndarray]]
    """Image i as RGB, its truth and its prediction; masks (H, W), uint8, 255 where ignored. If it raises, the page
    shows placeholders."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""
    notes: Sequence[str] = ()
    """Remarks on the data."""


def write_segmentation_report(path: Path, report: SegmentationReport) -> None:
    """Write the page to `path`, whole or not at all."""
    scores, colours = report.scores, [css(rgb) for rgb in report.palette]
    common = max(scores.classes, key=lambda c: c.share)
    scored = [(c.iou, c, colour) for c, colour in zip(scores.classes, colours, strict=True) if c.iou is not None]
    groups, occurring = _pictures(report)
    keys = [ClassKey(*each) for each in zip(report.class_names, colours, strict=True)]
    values = {
        "common": common,
        "measures": measures(scores),
        # Called everywhere, it has its share as IoU; the other classes that are there have none.
        "baseline": common.share / sum(c.share > 0 for c in scores.classes),
        "weakest": min((c for c in scores.classes if c.share), key=lambda c: c.iou or 0.0),
        "training": _training(report.history),
        "classes": class_list(sorted(scored, key=lambda each: each[0]), len(scores.classes)),
        "confusion": confusion_of(scores.confusion, report.class_names, _figures),
        "groups": groups,
        # Of all classes, or if they are many of those in the pictures.
        "legend": [key for k, key in enumerate(keys) if len(keys) <= MATRIX_CLASSES or k in occurring],
    }
    write_run_page(path, "tasks/segmentation/report.html", report, values, "rows of metrics.csv")


def _figures(n: int, share: float) -> tuple[str, str]:
    """What stands in a cell of the confusion matrix, and what its tooltip tells."""
    return f"{100 * share:.0f}" if n else "", percent(share)


def _training(history: list[dict[str, float]]) -> Passage | None:
    if not history:
        return None
    plots = [
        ("Loss", {"train_loss": "training", "val_loss": "validation"}, False),
        ("Right pixels", {"train_accuracy": "training", "val_aacc": "validation"}, True),
        ("Validation, mean of classes", {"val_miou": "IoU", "val_macc": "accuracy"}, True),
        ("Learning rate", {"lr": ""}, False),
    ]
    margin = max(0.02 * max(finite(history, "iteration"), default=0.0), 0.5)
    drawn = [history_plot(history, "iteration", *each, (5, 2.7), margin) for each in plots]
    return Passage(_told(history), [each for found in drawn for each in found])


def _told(history: list[dict[str, float]]) -> str:
    told = []
    if losses := finite(history, "train_loss"):
        last = max(finite(history, "iteration"), default=math.nan)
        told.append(f"At iteration {last:,.0f} the loss is {losses[-1]:.3f} in training")
        if validated := finite(history, "val_loss"):
            told.append(f" and {validated[-1]:.3f} on the validation photos")
        told.append(".")
    if mious := finite(history, "val_miou"):
        best = column(history, "val_miou").index(max(mious))
        told.append(f" Mean IoU is highest at iteration {history[best]['iteration']:,.0f}: {percent(max(mious))}.")
    return "".join(told)


def _pictures(report: SegmentationReport) -> tuple[dict[str, list[PhotoRow]], set[int]]:
    """Photo, truth and prediction side by side, by heading; and the classes that are in the pictures."""
    occurring: set[int] = set()
    groups = {}
    for heading, indices in worst_to_best(report.image_ious, PICTURES).items():
        groups[heading] = []
        for i in indices:
            panels, classes = _triptych(report, i)
            groups[heading].append(PhotoRow(report.image_names[i], panels, report.image_ious[i]))
            occurring |= classes
    return groups, occurring


def _triptych(report: SegmentationReport, i: int) -> tuple[list[tuple[str, Picture]], set[int]]:
    """The three pictures with their captions, and the classes in the truth or the prediction."""
    name = report.image_names[i]
    try:
        image, *masks = report.load(i)
        photo = image.convert("RGB")
        photo.thumbnail((WIDTH, HEIGHT))
        truth, prediction = (_resized(ids, photo.size) for ids in masks)
        panels = [
            ("photo", jpeg(photo, f"{name}: photo")),
            ("truth", _mask(report, photo, truth, f"{name}: truth")),
            ("prediction", _mask(report, photo, prediction, f"{name}: prediction")),
        ]
        return panels, set(np.unique([truth, prediction]).tolist())
    except Exception:  # whatever ails one photo, the report is worth more than the photo
        return [(kind, Picture(f"{name}: {kind}")) for kind in ("photo", "truth", "prediction")], set()


def _resized(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))


def _mask(report: SegmentationReport, photo: Image.Image, ids: np.ndarray, what: str) -> Picture:
    names = report.class_names
    drawn = named_overlay(photo, ids, names, report.palette, OPACITY)
    return replace(jpeg(drawn, f"{what}, {_most(ids, names)}"), areas=_areas(ids, names))


def _areas(ids: np.ndarray, names: list[str]) -> list[tuple[str, str]]:
    """The classes in a mask with their areas as SVG paths, made of the rows of cells of `CELL` pixels."""
    cells = ids[CELL // 2 :: CELL, CELL // 2 :: CELL]
    areas = []
    for k in np.unique(cells[cells != IGNORED]).tolist():
        ends = np.diff(np.pad(cells == k, ((0, 0), (1, 1))).astype(np.int8))
        runs = zip(*np.nonzero(ends == 1), np.nonzero(ends == -1)[1], strict=True)
        path = "".join(f"M{CELL * x} {CELL * y}h{CELL * (end - x)}v{CELL}h{CELL * (x - end)}z" for y, x, end in runs)
        areas.append((names[k], path))
    return areas


def _most(ids: np.ndarray, names: list[str]) -> str:
    """The classes with most pixels, in words."""
    classes, pixels = np.unique(ids[ids != IGNORED], return_counts=True)
    order = np.argsort(-pixels, kind="stable")[:NAMED]
    return "mostly " + ", ".join(names[classes[k]] for k in order) if len(order) else "not labelled"
