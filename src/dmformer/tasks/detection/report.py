"""The report of a detection run: one HTML page that needs no network, no script and no other file."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from PIL import Image

from ...data.detections import Detections
from ...data.palette import Palette
from ...report.drawing import draw_detections, draw_frames, draw_objects
from ...report.page import (
    BROKEN,
    MATRIX_CLASSES,
    Theme,
    bar,
    column,
    escaped,
    finite,
    history_plot,
    interval,
    jpeg,
    making,
    missing,
    model_name,
    percent,
    photos,
    plot,
    shortened,
    shown_name,
    table,
    tiles,
    worst_to_best,
    write_page,
)
from ...utils.intervals import Score
from .metrics import APART, RECALLS, ClassAP, DetectionScores, Mistake, match, overlaps, reasons

if TYPE_CHECKING:
    from .datasets import Annotations

CROPS, CROP = 12, 256
"""Wrong detections and missed objects that are shown, and the longer side of their pictures."""
CONTEXT, AT_LEAST = 2.5, 0.3
"""Side of a crop, by the longer side of its box, and at least, by that of the photo."""
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


@dataclass(frozen=True)
class DetectionReport:
    """What a page is made of."""

    title: str
    """MODEL on DATA; the sentences call the model by what stands before "on"."""
    scores: DetectionScores
    split: str
    """test or validation"""
    class_names: list[str]
    """K names"""
    palette: Palette
    """K colours (red, green, blue; 0 to 255)"""
    history: list[dict[str, float]]
    """Rows of metrics.csv, by epoch; shares from 0 to 1, nan where nothing was measured. Columns that begin with
    "train_" are parts of the loss, but for "train_loss" itself. May be empty."""
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
    recipe: str
    """YAML"""
    facts: dict[str, str]
    """What to know of the run by name; "command" is set apart."""


def write_detection_report(path: Path, report: DetectionReport) -> None:
    """Write the page to `path`, whole or not at all."""
    judged = _judge(report.found, report.truths)
    sections = {
        "verdict": ("Verdict", _verdict(report, judged) + _tiles(report.scores)),
        "training": ("Training", _training(report.history)),
        "sizes": ("Sizes", _sizes(report)),
        "classes": ("Classes", _classes(report.scores, report.palette)),
        "curves": ("Precision and recall", _precision_recall(report.scores)),
        "wrong": ("Wrong detections", _wrong(report, judged)),
        "missed": ("Missed objects", _missed(report, judged)),
        "pictures": ("Pictures", _pictures(report, judged)),
        "faults": ("Faults in the annotations", _faults(report.faults)),
        "making": ("How it was made", making(report.facts, report.history, report.recipe)),
    }
    write_page(path, report.title, sections, _STYLE)


@dataclass(frozen=True)
class _Judged:
    """Every detection and object judged, at IoU 0.5."""

    threshold: float
    """Score from which on detections are shown and counted: that with the highest F1 of all classes together."""
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


def _judge(found: list[Detections], truths: "list[Annotations]") -> _Judged:
    matches = [match(*pair) for pair in zip(found, truths, strict=True)]
    right = [(place >= 0) & ~ignored for place, ignored in matches]
    counted = [~ignored for _, ignored in matches]
    scores = np.concatenate([each.scores[kept] for each, kept in zip(found, counted, strict=True)])
    hits = np.concatenate([each[kept] for each, kept in zip(right, counted, strict=True)])
    threshold = _best_threshold(scores, hits, sum(int((~truth.crowd).sum()) for truth in truths))
    missed = []
    for each, truth, (place, _) in zip(found, truths, matches, strict=True):
        left = ~truth.crowd
        left[place[(place >= 0) & (each.scores >= threshold)]] = False
        missed.append(np.flatnonzero(left))
    told = [reasons(each, truth, place) for each, truth, (place, _) in zip(found, truths, matches, strict=True)]
    return _Judged(threshold, right, told, missed)


def _best_threshold(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """The score from which on F1 is highest; 0.5 where nothing is right."""
    if not right.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * right[order].cumsum() / (np.arange(len(order)) + 1 + objects)
    ends = np.append(scores[order][1:] != scores[order][:-1], True)  # equal scores pass a threshold together
    return float(scores[order][np.where(ends, f1, 0.0).argmax()])


def _verdict(report: DetectionReport, judged: _Judged) -> str:
    """The result in words, what it is weakest on, and what most often goes wrong."""
    scores, split = report.scores, escaped(report.split)
    if scores.boxes.ap is None or scores.boxes.ap50 is None:
        return f'<p class="verdict">On {photos(scores.images, split)} there is no object, so nothing can be scored.</p>'
    among = scores.ap50_interval
    doubt = "" if among is None else f", 95\u00a0% interval {interval(among)}"
    html = (
        f'<p class="verdict">On {photos(scores.images, split)} with {_count(scores.objects, "object")} '
        f"{model_name(report.title)} reaches an AP of {percent(scores.boxes.ap)} (AP50 {percent(scores.boxes.ap50)}"
        f"{doubt}).</p>"
    )
    return html + f"<p>{_working_point(report, judged)}</p><p>{_weakness(report, judged)}</p>"


def _working_point(report: DetectionReport, judged: _Judged) -> str:
    hits, wrong = sum(judged.hits(report.found)), len(judged.wrong(report.found))
    if hits == 0:
        return "Nothing that it finds is right."
    return (
        f"With a score of {_score(judged.threshold)} or more, where F1 is highest on these photos, it finds {hits:,} "
        f"of {_count(report.scores.objects, 'object')}, and {percent(hits / (hits + wrong))} of its "
        f"{_count(hits + wrong, 'detection')} are right. Right means that the class is, and that the boxes overlap by "
        "half or more (IoU)."
    )


def _weakness(report: DetectionReport, judged: _Judged) -> str:
    told = ""
    if len(scored := [(c.ap, c) for c in report.scores.classes if c.ap is not None]) > 1:
        ap, worst = min(scored, key=lambda each: each[0])
        told = f"It is weakest on '{shown_name(worst.name)}' (AP {percent(ap)}). "
    wrong = judged.wrong(report.found)
    missed = sum(len(each) for each in judged.missed)
    if not wrong:
        none = "No detection is wrong" if sum(judged.hits(report.found)) else "It finds nothing"
        return told + (f"{none} with this score or more; {_count(missed, 'object')} missed." if missed else "")
    ((kind, n),) = Counter(reason for _, _, reason in wrong).most_common(1)
    return told + (
        f"Objects that are missed: {missed:,}; detections that are wrong: {len(wrong):,}, most often because of this: "
        f"{kind} ({n:,} of {len(wrong):,})."
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _score(score: float) -> str:
    return f"{100 * score:.0f}\u00a0%"


def _tiles(scores: DetectionScores) -> str:
    boxes, masks = scores.boxes, scores.masks
    figures: list[tuple[str, Score | str | None, str]] = [
        ("AP", _or_none(boxes.ap), "average precision, mean of IoU 0.5 to 0.95 and of classes"),
        ("AP50", scores.ap50_interval, "where an overlap (IoU) of 0.5 is enough"),
        ("AP75", _or_none(boxes.ap75), "where an overlap of 0.75 is asked for"),
        ("AR100", _or_none(boxes.ar100), "objects found among 100 detections, mean as of AP"),
        ("Mask AP", None if masks is None else _or_none(masks.ap), "overlap of the masks and not of the boxes"),
    ]
    return tiles(figures) if boxes.ap is not None else ""


def _or_none(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _or_dash(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _training(history: list[dict[str, float]]) -> str:
    if not history:
        return "<p>No epoch was recorded.</p>"
    plots = [
        ("Training loss", {"train_loss": ""}, False, 3.9),
        ("Validation", {"val_ap": "AP", "val_ap50": "AP50"}, True, 3.9),
        ("Learning rate", {"lr": ""}, False, 2.3),
    ]
    drawn = "".join(
        history_plot(history, "epoch", title, labels, shares, (width, 2.8)) for title, labels, shares, width in plots
    )
    html = f'<p>{_told(history)}</p><div class="plots">{drawn}</div>'
    names = [name for name in history[-1] if name.startswith("train_") and name != "train_loss"]
    titles = {name: name.removeprefix("train_").replace("_", " ") for name in names}
    parts = "".join(
        history_plot(history, "epoch", title, {name: ""}, False, (2.9, 2.2)) for name, title in titles.items()
    )
    return html + (f'<h3>Parts of the loss</h3><div class="plots">{parts}</div>' if parts else "")


def _told(history: list[dict[str, float]]) -> str:
    told = ""
    if losses := finite(history, "train_loss"):
        told = f"After epoch {max(finite(history, 'epoch'), default=math.nan):.0f} the loss is {losses[-1]:.3f}."
    if aps := finite(history, "val_ap"):
        best = column(history, "val_ap").index(max(aps))
        told += f" AP on the validation photos is highest at epoch {history[best]['epoch']:.0f}: {percent(max(aps))}."
    return told


def _sizes(report: DetectionReport) -> str:
    boxes, masks = report.scores.boxes, report.scores.masks
    areas = np.concatenate([truth.areas[~truth.crowd] for truth in report.truths])
    small, large = areas < SMALL**2, areas >= LARGE**2
    rows = [
        ("small", f"less than {SMALL} × {SMALL} pixels", small, boxes.small, masks and masks.small),
        ("medium", f"from there to {LARGE} × {LARGE} pixels", ~small & ~large, boxes.medium, masks and masks.medium),
        ("large", "more", large, boxes.large, masks and masks.large),
    ]
    html = "<p>By the area of an object in the photo's own pixels, that of its outline where it has one.</p>"
    head = ["Objects", "Area", "Number", "AP", *(["Mask AP"] if masks else [])]
    cells = [
        f"<tr><td>{name}</td><td>{meaning}</td><td>{int(which.sum()):,}</td><td>{_or_dash(ap)}</td>"
        + (f"<td>{_or_dash(mask_ap)}</td></tr>" if masks else "</tr>")
        for name, meaning, which, ap, mask_ap in rows
    ]
    return html + table("AP by size", head, cells, "pairs")


def _classes(scores: DetectionScores, palette: Palette) -> str:
    masks = scores.masks is not None
    scored = [(c.ap, c, rgb) for c, rgb in zip(scores.classes, palette, strict=True) if c.ap is not None]
    rows = [_class_row(ap, c, rgb, masks) for ap, c, rgb in sorted(scored, key=lambda each: each[0])]
    if not rows:
        return "<p>No class has an object here.</p>"
    html = "<p>The class with the lowest AP comes first. AP (average precision): how many of the detections are right, "
    html += "mean of all shares of objects to be found and of overlaps from 0.5 to 0.95. AR: how many of the objects "
    html += "are found at all.</p>"
    head = ["Class", "AP", "AP50", "AR", *(["Mask AP"] if masks else []), "Objects"]
    told, rows = shortened(rows, len(head))
    html += told
    if absent := len(scores.classes) - len(scored):
        have = "has" if absent == 1 else "have"
        html += f"<p>{absent:,} of {len(scores.classes):,} classes {have} no object here and so no row.</p>"
    return html + table("Scores of the classes", head, rows)


def _class_row(ap: float, c: ClassAP, rgb: tuple[int, int, int], masks: bool) -> str:
    mask_ap = f"<td>{_or_dash(c.mask_ap)}</td>" if masks else ""
    return (
        f"<tr><td>{_swatch(rgb)}{shown_name(c.name)}</td>{bar(ap)}<td>{_or_dash(c.ap50)}</td><td>{_or_dash(c.ar100)}"
        f"</td>{mask_ap}<td>{c.objects:,}</td></tr>"
    )


def _swatch(rgb: tuple[int, int, int]) -> str:
    return '<i class="swatch" style="--own:#{:02x}{:02x}{:02x}"></i>'.format(*rgb)


def _precision_recall(scores: DetectionScores) -> str:
    if not scores.curves.iou50:
        return "<p>There is no object to find.</p>"
    lines = {"IoU 0.5": scores.curves.iou50, "IoU 0.75": scores.curves.iou75}
    alt = "Precision by recall, mean of the classes, at an overlap of 0.5 and of 0.75."
    html = "<p>The lower the score from which detections count, the more objects are found (recall), and the fewer of "
    html += "the detections are right (precision). The area below a line is its AP. Mean of the classes:</p>"
    html += plot(lambda a, t: _precision_curves(a, t, lines), alt, (5, 3))
    scored = [(c, line) for c, line in zip(scores.classes, scores.curves.classes, strict=True) if line is not None]
    if not 1 < len(scored) <= CURVES:
        return html
    figures = "".join(_class_curve(c, line) for c, line in scored)
    return html + f'<h3>Each class at IoU 0.5</h3><div class="plots">{figures}</div>'


def _class_curve(c: ClassAP, line: list[float]) -> str:
    alt = f"Precision of {c.name} by recall."
    drawn = plot(lambda a, t: _precision_curves(a, t, {"": line}), alt, (2.9, 2.2))
    return f"<figure>{drawn}<figcaption>{shown_name(c.name)}: AP50 {_or_dash(c.ap50)}</figcaption></figure>"


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


def _wrong(report: DetectionReport, judged: _Judged) -> str:
    wrong = judged.wrong(report.found)
    if not wrong:
        return f"<p>There is none with a score of {_score(judged.threshold)} or more.</p>"
    counts = Counter(reason for _, _, reason in wrong)
    rows = [
        f"<tr><td>{reason}</td><td>{_MEANINGS[reason]}</td><td>{counts[reason]:,}</td>"
        f"{bar(counts[reason] / len(wrong))}</tr>"
        for reason in sorted(counts, key=lambda reason: -counts[reason])
    ]
    html = f"<p>Of {_count(len(wrong), 'wrong detection')} with a score of {_score(judged.threshold)} or more:</p>"
    html += table("Kinds of wrong detections", ["Kind", "What is there", "Number", "Share"], rows, "pairs")
    html += "<h3>The surest of them</h3><p>Look for objects here that nobody marked, and for what misleads the model. "
    html += "White frames are the objects of the truth.</p>"
    cards = "".join(_wrong_card(report, i, d, reason) for i, d, reason in wrong[:CROPS])
    return html + f'<ul class="crops">{cards}</ul>'


def _wrong_card(report: DetectionReport, i: int, d: int, reason: Mistake) -> str:
    each, truth = report.found[i], report.truths[i]
    label, score = int(each.labels[d]), float(each.scores[d])
    told = [
        ("found", f"{_named(report, label)} {_score(score)}"),
        ("kind", f'<span class="wrong-text">{reason}</span>'),
    ]
    if reason is not Mistake.NOTHING:
        overlap = overlaps(each.boxes[d : d + 1], truth.boxes, truth.crowd)[0]
        there = int(np.where(truth.crowd, 0.0, overlap).argmax())
        told.append(("there", f"{_named(report, int(truth.labels[there]))}, IoU {overlap[there]:.2f}"))

    def drawn(photo: Image.Image) -> Image.Image:
        crop, window, scale = _cropped(photo, each.boxes[d])
        crop = draw_frames(crop, _moved(truth.boxes[~truth.crowd], window, scale))
        one = Detections(_moved(each.boxes[d : d + 1], window, scale), each.scores[d : d + 1], each.labels[d : d + 1])
        return draw_detections(crop, one, report.class_names, report.palette)

    alt = f"{report.image_names[i]}: {report.class_names[label]} found, {reason}"
    return _card(_picture(report, i, drawn, alt), told, report.image_names[i])


def _missed(report: DetectionReport, judged: _Judged) -> str:
    all_ = [(i, int(k)) for i, each in enumerate(judged.missed) for k in each]
    if not all_:
        return "<p>No object is missed.</p>"
    was = "was" if len(all_) == 1 else "were"
    some = f" These are {CROPS} of them." if len(all_) > CROPS else ""
    html = (
        f"<p>{_count(len(all_), 'object')} {was} not found with a score of {_score(judged.threshold)} or more.{some} "
    )
    html += "The largest of every class come first.</p>"
    cards = "".join(_missed_card(report, i, k) for i, k in _largest_of_classes(report.truths, all_)[:CROPS])
    return html + f'<ul class="crops">{cards}</ul>'


def _largest_of_classes(truths: "list[Annotations]", objects: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Images and objects: of every class the largest, then of every class the second, and so on."""
    seen: Counter[int] = Counter()
    ranks = {}
    for i, k in sorted(objects, key=lambda object_: -truths[object_[0]].areas[object_[1]]):
        label = int(truths[i].labels[k])
        ranks[i, k] = seen[label]
        seen[label] += 1
    return sorted(ranks, key=lambda object_: ranks[object_])


def _missed_card(report: DetectionReport, i: int, k: int) -> str:
    truth = report.truths[i]
    label = int(truth.labels[k])
    width, height = (truth.boxes[k, 2:] - truth.boxes[k, :2]).tolist()

    def drawn(photo: Image.Image) -> Image.Image:
        crop, window, scale = _cropped(photo, truth.boxes[k])
        box = _moved(truth.boxes[k : k + 1], window, scale)
        return draw_objects(crop, box, truth.labels[k : k + 1], report.class_names, report.palette)

    told = [("missed", _named(report, label)), ("size", f"{width:.0f} × {height:.0f} pixels")]
    alt = f"{report.image_names[i]}: {report.class_names[label]} that is missed"
    return _card(_picture(report, i, drawn, alt), told, report.image_names[i])


def _named(report: DetectionReport, label: int) -> str:
    return _swatch(report.palette[label]) + shown_name(report.class_names[label])


def _card(picture: str, told: list[tuple[str, str]], name: str) -> str:
    rows = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in told)
    return (
        f"<li><figure>{picture}<figcaption><dl>{rows}</dl>"
        f'<span class="file">{shown_name(name)}</span></figcaption></figure></li>'
    )


def _picture(report: DetectionReport, i: int, drawn: Callable[[Image.Image], Image.Image], alt: str) -> str:
    try:
        return jpeg(drawn(report.load(i).convert("RGB")), alt)
    except Exception:  # whatever ails one photo, the report is worth more than the photo
        return missing(alt)


def _cropped(photo: Image.Image, box: np.ndarray) -> tuple[Image.Image, tuple[int, int], float]:
    """A box with what is round it, the left upper corner of that in the photo, and its scale."""
    left, upper, right, lower = box.tolist()
    side = max(CONTEXT * max(right - left, lower - upper), AT_LEAST * max(photo.size))
    width, height = (max(min(math.ceil(side), whole), 1) for whole in photo.size)
    x = round(min(max((left + right - width) / 2, 0), photo.width - width))
    y = round(min(max((upper + lower - height) / 2, 0), photo.height - height))
    scale = CROP / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return photo.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)), (x, y), scale


def _moved(boxes: np.ndarray, window: tuple[int, int], scale: float) -> np.ndarray:
    """Boxes (n, 4) in pixels of a crop."""
    return (boxes - np.tile(np.array(window, np.float32), 2)) * scale


def _pictures(report: DetectionReport, judged: _Judged) -> str:
    f1 = _f1(report, judged)
    groups = worst_to_best(f1, PICTURES)
    if not groups:
        return "<p>No photo has an object, and nothing was found.</p>"
    html = f"<p>What is found with a score of {_score(judged.threshold)} or more, beside the truth. F1 of a photo: of "
    html += "what is found or is there, how much is both.</p>" + _legend(
        report, [i for g in groups.values() for i in g]
    )
    for heading, indices in groups.items():
        cards = "".join(_pair(report, i, judged.threshold, f1[i]) for i in indices)
        html += f'<h3>{heading}</h3><ul class="pairs-of-photos">{cards}</ul>'
    return html


def _f1(report: DetectionReport, judged: _Judged) -> list[float]:
    """Of each photo at the threshold; nan where nothing is there and nothing is found."""
    wrong = Counter(i for i, _, _ in judged.wrong(report.found))
    f1 = []
    for i, hits in enumerate(judged.hits(report.found)):
        all_ = 2 * hits + wrong[i] + len(judged.missed[i])
        f1.append(2 * hits / all_ if all_ else math.nan)
    return f1


def _legend(report: DetectionReport, indices: list[int]) -> str:
    """Of all classes, or if they are many of those in the pictures: tags cannot show the letters of every script."""
    K = len(report.class_names)
    occurring = {int(label) for i in indices for label in [*report.found[i].labels, *report.truths[i].labels]}
    shown = range(K) if K <= MATRIX_CLASSES else sorted(occurring)
    items = "".join(f"<li>{_named(report, k)}</li>" for k in shown)
    return f'<ul class="legend" aria-label="Colours of the classes">{items}</ul>'


def _pair(report: DetectionReport, i: int, threshold: float, f1: float) -> str:
    truth = report.truths[i]
    single = ~truth.crowd

    def found(photo: Image.Image) -> Image.Image:
        each = (report.found[i] if report.masks is None else report.masks(i)).above(threshold)
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
    n_found, n_there = int((report.found[i].scores >= threshold).sum()), int(single.sum())
    figures = "".join(
        f"<figure>{_picture(report, i, drawn, f'{name}: {what}')}<figcaption>{what}</figcaption></figure>"
        for drawn, what in ((found, f"{n_found:,} found"), (there, f"{_count(n_there, 'object')} in the truth"))
    )
    return (
        f'<li><figure><div class="pair">{figures}</div><figcaption><span class="file">{shown_name(name)}</span> '
        f"F1 {percent(f1)}</figcaption></figure></li>"
    )


def _reduced(photo: Image.Image) -> tuple[Image.Image, float]:
    """A photo in a size for the page, and its scale."""
    scale = min(WIDTH / photo.width, HEIGHT / photo.height, 1.0)
    return photo.resize((max(round(photo.width * scale), 1), max(round(photo.height * scale), 1))), scale


def _reduced_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, H, W) -> (n, h, w), bool."""
    small = [np.asarray(Image.fromarray(mask.astype(bool)).resize(size, Image.Resampling.NEAREST)) for mask in masks]
    return np.stack(small) if small else np.zeros((0, size[1], size[0]), bool)


def _faults(faults: list[tuple[str, str]]) -> str:
    if not faults:
        return "<p>Nothing had to be left out.</p>"
    more = f" These are the first {BROKEN}." if len(faults) > BROKEN else ""
    was = "was" if len(faults) == 1 else "were"
    rows = [f"<tr><td>{shown_name(what)}</td><td>{escaped(why)}</td></tr>" for what, why in faults[:BROKEN]]
    html = f"<p>{_count(len(faults), 'thing')} {was} faulty and left out.{more}</p>"
    return html + table("Faults in the annotations", ["What", "Reason"], rows, "words")


_STYLE = """.swatch { display: inline-block; width: .9rem; height: .9rem; margin-inline-end: .35rem;
  vertical-align: -.12rem; background: var(--own); border-radius: .15rem;
  border: 1px solid color-mix(in srgb, var(--text) 45%, transparent); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 1rem; padding: 0; list-style: none;
  font-size: .85rem; }
.plots figure img { width: auto; aspect-ratio: auto; background: none; }
.plots figcaption { margin: 0; text-align: center; }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.2rem 1rem; margin: 0;
  padding: 0; list-style: none; }
.pairs-of-photos { display: grid; gap: 1.4rem; margin: .6rem 0 0; padding: 0; list-style: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem .6rem; }
.pair img { aspect-ratio: auto; max-height: 26rem; }
.pair .missing { aspect-ratio: 4 / 3; }
.pair figcaption { margin: .2rem 0 0; color: var(--quiet); }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } }
"""
