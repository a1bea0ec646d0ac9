"""The report of a semantic segmentation run: one HTML page that needs no network, no script and no other file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.palette import Palette
from ...report.drawing import IGNORED, overlay
from ...report.page import (
    COUNTED_CLASSES,
    MATRIX_CLASSES,
    broken_files,
    column,
    confusions_table,
    escaped,
    finite,
    history_plot,
    interval,
    jpeg,
    making,
    matrix,
    missing,
    model_name,
    percent,
    photos,
    shortened,
    shown_name,
    table,
    tiles,
    top_confusions,
    worst_to_best,
    write_page,
)
from .metrics import ClassIoU, SegmentationScores

PICTURES = 4
"""Of the worst, of the middle and of the best."""
WIDTH, HEIGHT = 360, 480
"""Most of a picture."""
OPACITY = 0.7
NAMED = 3
"""Most classes that a picture's alternative text tells."""


@dataclass(frozen=True)
class SegmentationReport:
    """What a page is made of."""

    title: str
    """MODEL on DATA; the sentences call the model by what stands before "on"."""
    scores: SegmentationScores
    split: str
    """test or validation"""
    class_names: list[str]
    """K names"""
    palette: Palette
    """K colours (red, green, blue; 0 to 255)"""
    history: list[dict[str, float]]
    """Rows of metrics.csv, by iteration; shares from 0 to 1, nan where nothing was measured. May be empty."""
    image_names: list[str]
    """N names"""
    image_ious: list[float]
    """N: each image's mean IoU over the classes in it; nan where no pixel is labelled."""
    load: Callable[[int], tuple[Image.Image, np.ndarray, np.ndarray]]
    """Image i as RGB, its truth and its prediction; masks (H, W), uint8, 255 where ignored. If it raises, the page
    shows placeholders."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""
    recipe: str
    """YAML"""
    facts: dict[str, str]
    """What to know of the run by name; "command" is set apart."""


def write_segmentation_report(path: Path, report: SegmentationReport) -> None:
    """Write the page to `path`, whole or not at all."""
    sections = {
        "verdict": ("Verdict", _verdict(report) + _tiles(report.scores)),
        "training": ("Training", _training(report.history)),
        "classes": ("Classes", _classes(report.scores.classes, report.palette)),
        "confusion": ("Confusion", _confusion(report.scores.confusion, report.class_names)),
        "pictures": ("Pictures", _pictures(report)),
        "files": ("Broken files", broken_files(report.broken)),
        "making": ("How it was made", making(report.facts, report.history, report.recipe, "rows of metrics.csv")),
    }
    write_page(path, report.title, sections, _STYLE)


def _verdict(report: SegmentationReport) -> str:
    """The result in words, against the answer that needs no model."""
    scores, miou = report.scores, report.scores.miou
    common = max(scores.classes, key=lambda c: c.share)
    # Called everywhere, it has its share as IoU; the other classes that are there have none.
    baseline = common.share / sum(c.share > 0 for c in scores.classes)
    doubt = "" if miou.low > baseline else " The data do not show that the model does better than that."
    return (
        f'<p class="verdict">On {photos(scores.images, escaped(report.split))} {model_name(report.title)} reaches a '
        f"mean IoU of {percent(miou.value)} (95\u00a0% interval {interval(miou)}); "
        f"calling every pixel '{shown_name(common.name)}' would reach {percent(baseline)}.{doubt}</p>"
        f"<p>{_weakness(scores, report.class_names)}</p>"
    )


def _weakness(scores: SegmentationScores, names: list[str]) -> str:
    confusions = top_confusions(scores.confusion)
    if not confusions:
        return "It made no error on these photos."
    worst = min((c for c in scores.classes if c.share), key=lambda c: c.iou or 0.0)
    truth, prediction, n = confusions[0]
    return (
        f"It is weakest on '{shown_name(worst.name)}' (IoU {percent(worst.iou or 0.0)}); its most frequent error is to "
        f"take '{shown_name(names[truth])}' for '{shown_name(names[prediction])}' "
        f"({percent(n / sum(scores.confusion[truth]))} of the true class's pixels)."
    )


def _tiles(scores: SegmentationScores) -> str:
    return tiles(
        [
            ("Mean IoU", scores.miou, "overlap of truth and prediction, mean of classes"),
            ("Mean accuracy", percent(scores.macc), "pixels of a class that were found, mean of classes"),
            ("Pixel accuracy", percent(scores.aacc), f"right ones of all {scores.pixels:,} labelled pixels"),
        ]
    )


def _training(history: list[dict[str, float]]) -> str:
    if not history:
        return "<p>No training was recorded.</p>"
    told = _told(history)
    plots = [
        ("Loss", {"train_loss": "training", "val_loss": "validation"}, False),
        ("Right pixels", {"train_accuracy": "training", "val_aacc": "validation"}, True),
        ("Validation, mean of classes", {"val_miou": "IoU", "val_macc": "accuracy"}, True),
        ("Learning rate", {"lr": ""}, False),
    ]
    margin = max(0.02 * max(finite(history, "iteration"), default=0.0), 0.5)
    drawn = "".join(
        history_plot(history, "iteration", title, labels, shares, (5, 2.7), margin) for title, labels, shares in plots
    )
    return f'<p>{told}</p><div class="plots">{drawn}</div>'


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


def _classes(classes: list[ClassIoU], palette: Palette) -> str:
    scored = [(c.iou, c, _css(rgb)) for c, rgb in zip(classes, palette, strict=True) if c.iou is not None]
    rows = [
        f'<tr><td>{shown_name(c.name)}</td><td class="own" style="--share:{iou:.3f};--own:{css}"><i></i>{percent(iou)}'
        f"</td><td>{'–' if c.accuracy is None else percent(c.accuracy)}</td><td>{_share(c.share)}</td></tr>"
        for iou, c, css in sorted(scored, key=lambda each: each[0])
    ]
    html = "<p>The class with the lowest IoU comes first. IoU (intersection over union): of the pixels that are so or "
    html += "are called so, how many are both. Accuracy: of the pixels that are so, how many were found. Share: of all "
    html += "labelled pixels, how many are so.</p>"
    told, rows = shortened(rows, 4)
    html += told
    if absent := len(classes) - len(scored):
        have = "has" if absent == 1 else "have"
        html += f"<p>{absent:,} of {len(classes):,} classes {have} no pixel here and so no row.</p>"
    return html + table("Scores of the classes", ["Class", "IoU", "Accuracy", "Share"], rows)


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _share(share: float) -> str:
    return percent(share) if share >= 0.0005 or not share else "&lt;\u00a00.1\u00a0%"


def _confusion(confusion: list[list[int]], names: list[str]) -> str:
    K = len(names)
    if K > MATRIX_CLASSES:
        html = f"<p>A matrix of {K:,} classes cannot be read; the most frequent confusions instead.</p>"
    else:
        what = "what percentage" if K <= COUNTED_CLASSES else "by their colour what share"
        html = f"<p>Each row is a true class; its cells tell {what} of its pixels got which answer: "
        html += '<span class="keys"><span class="right">right</span> <span class="wrong">wrong</span></span></p>'
        html += matrix(confusion, names, lambda n, share: (f"{100 * share:.0f}" if n else "", percent(share)))
    return html + (confusions_table(confusion, names, "Pixels") if K > COUNTED_CLASSES else "")


@dataclass(frozen=True)
class _Triptych:
    """Photo, truth and prediction side by side."""

    panels: list[tuple[str, str]]
    """What each is, and its picture; HTML."""
    classes: set[int]
    """Those in the truth or the prediction."""


def _pictures(report: SegmentationReport) -> str:
    groups = worst_to_best(report.image_ious, PICTURES)
    if not groups:
        return "<p>No photo has labelled pixels.</p>"
    triptychs = {i: _triptych(report, i) for indices in groups.values() for i in indices}
    html = "<p>Where the truth is not labelled it shows the photo, and what is predicted there does not count. The IoU "
    html += "of a photo is the mean of the classes in it.</p>"
    html += _legend(report, set().union(*(triptych.classes for triptych in triptychs.values())))
    for heading, indices in groups.items():
        cards = "".join(_card(report, i, triptychs[i]) for i in indices)
        html += f'<h3>{heading}</h3><ul class="triptychs">{cards}</ul>'
    return html


def _triptych(report: SegmentationReport, i: int) -> _Triptych:
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
        return _Triptych(panels, set(np.unique([truth, prediction]).tolist()))
    except Exception:  # whatever ails one photo, the report is worth more than the photo
        return _Triptych([(kind, missing(f"{name}: {kind}")) for kind in ("photo", "truth", "prediction")], set())


def _resized(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))


def _mask(report: SegmentationReport, photo: Image.Image, ids: np.ndarray, what: str) -> str:
    return jpeg(overlay(photo, ids, report.palette, OPACITY), f"{what}, {_most(ids, report.class_names)}")


def _most(ids: np.ndarray, names: list[str]) -> str:
    """The classes with most pixels, in words."""
    classes, pixels = np.unique(ids[ids != IGNORED], return_counts=True)
    order = np.argsort(-pixels, kind="stable")[:NAMED]
    return "mostly " + ", ".join(names[classes[k]] for k in order) if len(order) else "not labelled"


def _legend(report: SegmentationReport, occurring: set[int]) -> str:
    """Of all classes, or if they are many of those in the pictures."""
    K = len(report.class_names)
    items = "".join(
        f'<li><i style="--own:{_css(report.palette[k])}"></i>{shown_name(report.class_names[k])}</li>'
        for k in range(K)
        if K <= MATRIX_CLASSES or k in occurring
    )
    return f'<ul class="legend" aria-label="Colours of the classes">{items}</ul>'


def _card(report: SegmentationReport, i: int, triptych: _Triptych) -> str:
    figures = "".join(f"<figure>{picture}<figcaption>{what}</figcaption></figure>" for what, picture in triptych.panels)
    return (
        f'<li><figure><div class="triptych">{figures}</div><figcaption><span class="file">'
        f"{shown_name(report.image_names[i])}</span> IoU {percent(report.image_ious[i])}</figcaption></figure></li>"
    )


_STYLE = """.own { position: relative; min-width: min(24rem, 36vw); }
.own i { position: absolute; inset: 50% auto auto .5rem; width: calc((100% - 5.4rem) * var(--share)); height: .85rem;
  translate: 0 -50%; }
.own i, .legend i { background: var(--own); border: 1px solid color-mix(in srgb, var(--text) 45%, transparent);
  border-radius: .15rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 1rem; padding: 0; list-style: none;
  font-size: .85rem; }
.legend i { display: inline-block; width: .9rem; height: .9rem; margin-inline-end: .35rem; vertical-align: -.12rem; }
.triptychs { display: grid; gap: 1.4rem; margin: .6rem 0 0; padding: 0; list-style: none; }
.triptych { display: grid; grid-template-columns: repeat(3, 1fr); gap: .2rem .6rem; }
.triptych img { aspect-ratio: auto; }
.triptych .missing { aspect-ratio: 4 / 3; }
.triptych figcaption { margin: .2rem 0 0; color: var(--quiet); }
@media (max-width: 40rem) { .triptych { grid-template-columns: 1fr 1fr; }
  .triptych > :first-child { grid-column: 1 / -1; } }
"""
