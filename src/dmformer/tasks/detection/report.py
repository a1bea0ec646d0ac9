"""The report of a detection run: one HTML page that needs no network and no other file."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from PIL import Image

from ...data.detections import Detections
from ...data.palette import Palette
from ...report.drawing import cropped, draw_detections, draw_frames, draw_objects, moved
from ...report.page import (
    MATRIX_CLASSES,
    ClassKey,
    Passage,
    PhotoRow,
    Picture,
    Plot,
    RunReport,
    Theme,
    class_list,
    column,
    css,
    finite,
    history_plot,
    number,
    percent,
    plot,
    safe_jpeg,
    worst_to_best,
    write_run_page,
)
from .metrics import APART, RECALLS, ClassAP, DetectionScores, Mistake, match, measures, overlaps, reasons

if TYPE_CHECKING:
    from .datasets import Annotations

CROPS, CROP = 12, 256
"""Wrong detections and missed objects that are shown, and the longer side of their pictures."""
PICTURES, WIDTH, HEIGHT = 3, 480, 560
"""Photos of the worst, of the middle and of the best, and most of a picture's size."""
CURVES = 7
"""Most classes that have a curve each."""
SMALL, LARGE = 32, 96
"""COCO's bounds of sizes: the sides of squares of the area."""

_MEANINGS = {
    Mistake.DUPLICATE: "a surer detection has this object",
    Mistake.WRONG_CLASS: "an object of another class, overlapped by half or more",
    Mistake.BADLY_PLACED: "an object of this class, overlapped by less than half",
    Mistake.NEITHER: "an object of another class, overlapped by less than half",
    Mistake.NOTHING: f"no object is overlapped by {100 * APART:.0f} % or more",
}


@dataclass(frozen=True, kw_only=True)
class DetectionReport(RunReport):
    """What a page is made of; columns of its history that begin with "train_" are the loss and its parts."""

    scores: DetectionScores
    split: str
    """test or validation"""
    threshold: float
    """Score from which on detections are shown and counted, chosen on the validation photos."""
    class_names: list[str]
    """K names"""
    palette: Palette
    """K colours (red, green, blue; 0 to 255)"""
    image_names: list[str]
    """N names"""
    found: list[Detections]
    """N: what was scored; masks are not needed."""
    truths: "list[Annotations]"
    """N"""
    load: Callable[[int], Image.Image]
    """Image i as RGB, in its own size. If it raises, the page shows placeholders."""
    masks: Callable[[int], Detections] | None
    """What is found on image i with its masks; None of a detector of boxes alone."""
    faults: list[tuple[str, str]]
    """What of the annotations or the photos was left out, with the reason."""
    notes: Sequence[str] = ()
    """Remarks on the data."""


def write_detection_report(path: Path, report: DetectionReport) -> None:
    """Write the page to `path`, whole or not at all."""
    scores, judged = report.scores, _judge(report.found, report.truths, report.threshold)
    scored = [(c.ap, c, css(rgb)) for c, rgb in zip(scores.classes, report.palette, strict=True) if c.ap is not None]
    scored.sort(key=lambda each: each[0])
    wrong = judged.wrong(report.found)
    missed = [(i, int(k)) for i, each in enumerate(judged.missed) for k in each]
    groups = worst_to_best(f1 := _f1(report, judged), PICTURES)
    values = {
        "measures": measures(scores),
        "threshold": f"{100 * report.threshold:.0f}\u00a0%",
        "hits": sum(judged.hits(report.found)),
        "kinds": Counter(reason for _, _, reason in wrong).most_common(),
        "meanings": _MEANINGS,
        "weakest": scored[0][1] if len(scored) > 1 else None,
        "training": _training(report.history),
        "loss_parts": _loss_parts(report.history),
        "sizes": _sizes(report),
        "classes": class_list(scored, len(scores.classes)),
        "mean_curves": _mean_curves(scores),
        "class_curves": _class_curves(scores),
        "wrong": len(wrong),
        "wrong_shown": [_wrong(report, *each) for each in wrong[:CROPS]],
        "missed": len(missed),
        "missed_shown": [_missed(report, *each) for each in _largest_of_classes(report.truths, missed)[:CROPS]],
        "groups": {heading: [_pair(report, i, f1[i]) for i in indices] for heading, indices in groups.items()},
        "legend": _legend(report, [i for indices in groups.values() for i in indices]),
    }
    write_run_page(path, "tasks/detection/report.html", report, values)


@dataclass(frozen=True)
class _Judged:
    """Every detection and object judged, at IoU 0.5."""

    threshold: float
    right: list[np.ndarray]
    """Of each image (n), bool."""
    reasons: list[list[Mistake | None]]
    """Of each image (n); None of those that are right or ignored."""
    missed: list[np.ndarray]
    """Of each image the places of the objects that no detection above the threshold is matched to."""

    def wrong(self, found: list[Detections]) -> list[tuple[int, int, Mistake]]:
        """Image, detection and reason of the wrong ones above the threshold, the surest first."""
        all_ = [
            (i, d, reason)
            for i, each in enumerate(self.reasons)
            for d, reason in enumerate(each)
            if reason is not None and found[i].scores[d] >= self.threshold
        ]
        return sorted(all_, key=lambda wrong: -found[wrong[0]].scores[wrong[1]])

    def hits(self, found: list[Detections]) -> list[int]:
        """Of each image the right ones above the threshold."""
        pairs = zip(found, self.right, strict=True)
        return [int((right & (each.scores >= self.threshold)).sum()) for each, right in pairs]


def _judge(found: list[Detections], truths: "list[Annotations]", threshold: float) -> _Judged:
    matches = [match(*pair) for pair in zip(found, truths, strict=True)]
    right = [(place >= 0) & ~ignored for place, ignored in matches]
    missed = []
    for each, truth, (place, _) in zip(found, truths, matches, strict=True):
        left = ~truth.crowd
        left[place[(place >= 0) & (each.scores >= threshold)]] = False
        missed.append(np.flatnonzero(left))
    told = [reasons(each, truth, place) for each, truth, (place, _) in zip(found, truths, matches, strict=True)]
    return _Judged(threshold, right, told, missed)


def _training(history: list[dict[str, float]]) -> Passage | None:
    if not history:
        return None
    plots = [
        ("Training loss", {"train_loss": ""}, False, (3.9, 2.8)),
        ("Validation", {"val_ap": "AP", "val_ap50": "AP50"}, True, (3.9, 2.8)),
        ("Learning rate", {"lr": ""}, False, (2.3, 2.8)),
    ]
    return Passage(_told(history), [drawn for each in plots for drawn in history_plot(history, "epoch", *each)])


def _loss_parts(history: list[dict[str, float]]) -> list[Plot]:
    names = [name for name in (history[-1] if history else {}) if name.startswith("train_") and name != "train_loss"]
    titles = {name: name.removeprefix("train_").replace("_", " ") for name in names}
    drawn = [history_plot(history, "epoch", title, {name: ""}, False, (2.9, 2.2)) for name, title in titles.items()]
    return [each for found in drawn for each in found]


def _told(history: list[dict[str, float]]) -> str:
    told = ""
    if losses := finite(history, "train_loss"):
        told = f"After epoch {max(finite(history, 'epoch'), default=math.nan):.0f} the loss is {losses[-1]:.3f}."
    if aps := finite(history, "val_ap"):
        best = column(history, "val_ap").index(max(aps))
        told += f" AP on the validation photos is highest at epoch {history[best]['epoch']:.0f}: {percent(max(aps))}."
    return told


def _sizes(report: DetectionReport) -> list[tuple[str, str, int, float | None, float | None]]:
    """What each size is called, what it means, how many objects have it, AP and mask AP."""
    boxes, masks = report.scores.boxes, report.scores.masks
    areas = np.concatenate([truth.areas[~truth.crowd] for truth in report.truths])
    small, large = areas < SMALL**2, areas >= LARGE**2
    rows = [
        ("small", f"less than {SMALL} × {SMALL} pixels", small, boxes.small, masks and masks.small),
        ("medium", f"from there to {LARGE} × {LARGE} pixels", ~small & ~large, boxes.medium, masks and masks.medium),
        ("large", "more", large, boxes.large, masks and masks.large),
    ]
    return [(name, meaning, int(which.sum()), ap, mask_ap) for name, meaning, which, ap, mask_ap in rows]


def _mean_curves(scores: DetectionScores) -> Plot | None:
    """None where there is no object to find."""
    if not scores.curves.iou50:
        return None
    lines = {"IoU 0.5": scores.curves.iou50, "IoU 0.75": scores.curves.iou75}
    alt = "Precision by recall, mean of the classes, at an overlap of 0.5 and of 0.75."
    return plot(lambda a, t: _precision_curves(a, t, lines), alt, (5, 3))


def _class_curves(scores: DetectionScores) -> list[tuple[ClassAP, Plot]]:
    """Of each class, if they are few."""
    scored = [(c, line) for c, line in zip(scores.classes, scores.curves.classes, strict=True) if line is not None]

    def curve(c: ClassAP, line: list[float]) -> Plot:
        return plot(lambda a, t: _precision_curves(a, t, {"": line}), f"Precision of {c.name} by recall.", (2.9, 2.2))

    return [(c, curve(c, line)) for c, line in scored] if 1 < len(scored) <= CURVES else []


def _precision_curves(axes: Axes, theme: Theme, lines: dict[str, list[float]]) -> None:
    """Precisions at `RECALLS` by their labels; one line alone has none."""
    for (label, values), colour in zip(lines.items(), (theme.first, theme.second), strict=False):
        axes.plot(RECALLS, values, color=colour, label=label, linewidth=1.6)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if any(lines):
        axes.legend(loc="lower left")


@dataclass(frozen=True)
class _Wrong:
    """A detection that is wrong, and what is there instead."""

    file: str
    picture: Picture
    found: ClassKey
    score: float
    reason: Mistake
    there: ClassKey | None
    overlap: float
    """With what is there, as IoU."""


@dataclass(frozen=True)
class _Missed:
    """An object that is missed, with its size in pixels."""

    file: str
    picture: Picture
    label: ClassKey
    width: float
    height: float


def _wrong(report: DetectionReport, i: int, d: int, reason: Mistake) -> _Wrong:
    each, truth = report.found[i], report.truths[i]
    label, there, overlap = int(each.labels[d]), None, 0.0
    if reason is not Mistake.NOTHING:
        ious = np.where(truth.crowd, 0.0, overlaps(each.boxes[d : d + 1], truth.boxes, truth.crowd)[0])
        there, overlap = _key(report, int(truth.labels[ious.argmax()])), float(ious.max())

    def drawn(photo: Image.Image) -> Image.Image:
        crop, window, scale = cropped(photo, each.boxes[d], CROP)
        crop = draw_frames(crop, moved(truth.boxes[~truth.crowd], window, scale))
        one = Detections(moved(each.boxes[d : d + 1], window, scale), each.scores[d : d + 1], each.labels[d : d + 1])
        return draw_detections(crop, one, report.class_names, report.palette)

    file = report.image_names[i]
    picture = _picture(report, i, drawn, f"{file}: {report.class_names[label]} found, {reason}")
    return _Wrong(file, picture, _key(report, label), float(each.scores[d]), reason, there, overlap)


def _largest_of_classes(truths: "list[Annotations]", objects: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Images and objects: of every class the largest, then of every class the second, and so on."""
    seen: Counter[int] = Counter()
    ranks = {}
    for i, k in sorted(objects, key=lambda object_: -truths[object_[0]].areas[object_[1]]):
        label = int(truths[i].labels[k])
        ranks[i, k] = seen[label]
        seen[label] += 1
    return sorted(ranks, key=lambda object_: ranks[object_])


def _missed(report: DetectionReport, i: int, k: int) -> _Missed:
    truth = report.truths[i]
    label = int(truth.labels[k])
    width, height = (truth.boxes[k, 2:] - truth.boxes[k, :2]).tolist()

    def drawn(photo: Image.Image) -> Image.Image:
        crop, window, scale = cropped(photo, truth.boxes[k], CROP)
        box = moved(truth.boxes[k : k + 1], window, scale)
        return draw_objects(crop, box, truth.labels[k : k + 1], report.class_names, report.palette)

    file = report.image_names[i]
    picture = _picture(report, i, drawn, f"{file}: {report.class_names[label]} that is missed")
    return _Missed(file, picture, _key(report, label), width, height)


def _key(report: DetectionReport, label: int) -> ClassKey:
    return ClassKey(report.class_names[label], css(report.palette[label]))


def _picture(report: DetectionReport, i: int, drawn: Callable[[Image.Image], Image.Image], alt: str) -> Picture:
    return safe_jpeg(lambda: drawn(report.load(i).convert("RGB")), alt)


def _f1(report: DetectionReport, judged: _Judged) -> list[float]:
    """Of each photo at the threshold; nan where nothing is there and nothing is found."""
    wrong = Counter(i for i, _, _ in judged.wrong(report.found))
    f1 = []
    for i, hits in enumerate(judged.hits(report.found)):
        all_ = 2 * hits + wrong[i] + len(judged.missed[i])
        f1.append(2 * hits / all_ if all_ else math.nan)
    return f1


def _legend(report: DetectionReport, indices: list[int]) -> list[ClassKey]:
    """Of all classes, or if they are many of those in the pictures: tags cannot show the letters of every script."""
    K = len(report.class_names)
    occurring = {int(label) for i in indices for label in [*report.found[i].labels, *report.truths[i].labels]}
    shown = range(K) if K <= MATRIX_CLASSES else sorted(occurring)
    return [_key(report, k) for k in shown]


def _pair(report: DetectionReport, i: int, f1: float) -> PhotoRow:
    truth = report.truths[i]
    single = ~truth.crowd

    def found(photo: Image.Image) -> Image.Image:
        each = (report.found[i] if report.masks is None else report.masks(i)).above(report.threshold)
        small, scale = _reduced(photo)
        masks = None if each.masks is None else _reduced_masks(each.masks, small.size)
        scaled = Detections(each.boxes * scale, each.scores, each.labels, masks)
        return draw_detections(small, scaled, report.class_names, report.palette)

    def there(photo: Image.Image) -> Image.Image:
        small, scale = _reduced(photo)
        masks = None
        if report.masks is not None:
            masks = _reduced_masks(truth.masks(photo.height, photo.width)[single], small.size)
        boxes, labels = truth.boxes[single] * scale, truth.labels[single]
        return draw_objects(small, boxes, labels, report.class_names, report.palette, masks)

    name = report.image_names[i]
    n_found, n_there = int((report.found[i].scores >= report.threshold).sum()), int(single.sum())
    captions = {f"{n_found:,} found": found, f"{number(n_there, 'object')} in the truth": there}
    panels = [(what, _picture(report, i, drawn, f"{name}: {what}")) for what, drawn in captions.items()]
    return PhotoRow(name, panels, f1)


def _reduced(photo: Image.Image) -> tuple[Image.Image, float]:
    """A photo in a size for the page, and its scale."""
    scale = min(WIDTH / photo.width, HEIGHT / photo.height, 1.0)
    return photo.resize((max(round(photo.width * scale), 1), max(round(photo.height * scale), 1))), scale


def _reduced_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, H, W) -> (n, h, w), bool."""
    small = [np.asarray(Image.fromarray(mask.astype(bool)).resize(size, Image.Resampling.NEAREST)) for mask in masks]
    return np.stack(small) if small else np.zeros((0, size[1], size[0]), bool)
