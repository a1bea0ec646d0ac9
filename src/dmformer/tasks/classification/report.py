"""The report of a classification run: one HTML page that needs no network, no script and no other file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from ...report.page import (
    COUNTED_CLASSES,
    MATRIX_CLASSES,
    Line,
    Theme,
    bar,
    broken_files,
    column,
    confusions_table,
    curves,
    escaped,
    finite,
    interval,
    jpeg,
    making,
    matrix,
    missing,
    model_name,
    percent,
    photos,
    plot,
    shortened,
    shown_name,
    table,
    tiles,
    top_confusions,
    write_page,
)
from .metrics import ClassScore, Scores

PICTURES, THUMBNAIL = 12, 224
BINS = 15
"""As many as the calibration error has."""


@dataclass(frozen=True)
class Report:
    """What a page is made of."""

    title: str
    """MODEL on DATA; the sentences call the model by what stands before "on"."""
    scores: Scores
    split: str
    """test or validation"""
    class_names: list[str]
    """K names"""
    history: list[dict[str, float]]
    """Rows of metrics.csv, an epoch each; shares from 0 to 1. May be empty."""
    probabilities: Tensor
    """(N, K)"""
    targets: Tensor
    """(N)"""
    image_names: list[str]
    """N names"""
    load_image: Callable[[int], Image.Image]
    """Image i as RGB, of any size; if it raises, the page shows a placeholder."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""
    recipe: str
    """YAML"""
    facts: dict[str, str]
    """What to know of the run by name; "command" is set apart."""


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all."""
    sections = {
        "verdict": ("Verdict", _verdict(report) + _tiles(report.scores)),
        "training": ("Training", _training(report.history)),
        "confusion": ("Confusion", _confusion(report.scores, report.class_names)),
        "classes": ("Classes", _classes(report.scores.classes)),
        "calibration": ("Calibration", _calibration(report)),
        "pictures": ("Pictures", _pictures(report)),
        "files": ("Broken files", broken_files(report.broken)),
        "making": ("How it was made", making(report.facts, report.history, report.recipe)),
    }
    write_page(path, report.title, sections)


def _verdict(report: Report) -> str:
    """The result in words, against the answer that needs no model."""
    scores = report.scores
    common = max(scores.classes, key=lambda c: c.count)
    baseline, top1 = common.count / scores.count, scores.top1
    doubt = "" if top1.low > baseline else " The data do not show that the model does better than that."
    return (
        f'<p class="verdict">On {photos(scores.count, escaped(report.split))} {model_name(report.title)} is right '
        f"{percent(top1.value)} of the time (95\u00a0% interval {interval(top1)}); "
        f"always answering '{shown_name(common.name)}' would be right {percent(baseline)}.{doubt}</p>"
        f"<p>{_weakness(scores, report.class_names)}</p>"
    )


def _weakness(scores: Scores, names: list[str]) -> str:
    confusions = top_confusions(scores.confusion)
    if not confusions:
        return "It made no error on these photos."
    worst = min((c for c in scores.classes if c.count), key=lambda c: c.f1)
    truth, prediction, n = confusions[0]
    of = photos(scores.classes[truth].count)
    return (
        f"It is weakest on '{shown_name(worst.name)}' (F1 {percent(worst.f1)}); its most frequent error is to take "
        f"'{shown_name(names[truth])}' for '{shown_name(names[prediction])}' ({n:,} of {of})."
    )


def _tiles(scores: Scores) -> str:
    return tiles(
        [
            ("Top-1 accuracy", scores.top1, "first answer right"),
            ("Top-5 accuracy", scores.top5, "right one among five answers"),
            ("Balanced accuracy", scores.balanced_accuracy, "every class counts the same"),
            ("Macro F1", scores.macro_f1, "precision and recall, mean of classes"),
            ("AUROC", None if scores.auroc is None else f"{scores.auroc:.3f}", "1 ranks perfectly, 0.5 is chance"),
            ("Calibration error", percent(scores.calibration_error), "confidence against truth, 0 is best"),
        ]
    )


def _training(history: list[dict[str, float]]) -> str:
    if not history:
        return "<p>No epoch was recorded.</p>"
    epoch, train_loss, val_loss = (column(history, key)[-1] for key in ("epoch", "train_loss", "val_loss"))
    told = (
        f"After epoch {epoch:.0f} the loss is {train_loss:.3f} in training and {val_loss:.3f} on the validation photos."
    )
    if balanced := finite(history, "val_balanced_accuracy"):
        best = column(history, "val_balanced_accuracy").index(max(balanced))
        told += f" Balanced accuracy is highest at epoch {history[best]['epoch']:.0f}: {percent(max(balanced))}."
    losses = _lines(history, {"train_loss": "training", "val_loss": "validation"})
    accuracies = _lines(history, {"val_top1": "top-1", "val_balanced_accuracy": "balanced"})
    rates = _lines(history, {"lr": ""})
    return (
        f'<p>{told}</p><div class="plots">'
        + plot(lambda a, t: curves(a, t, losses, "Loss", "epoch"), f"Loss by epoch. {told}")
        + plot(
            lambda a, t: curves(a, t, accuracies, "Validation accuracy", "epoch", shares=True),
            f"Accuracy by epoch. {told}",
        )
        + plot(lambda a, t: curves(a, t, rates, "Learning rate", "epoch"), "Learning rate by epoch.", (2.3, 2.8))
        + "</div>"
    )


def _lines(history: list[dict[str, float]], labels: dict[str, str]) -> dict[str, Line]:
    """By epoch, for columns with their labels."""
    return {label: (column(history, "epoch"), column(history, key)) for key, label in labels.items()}


def _confusion(scores: Scores, names: list[str]) -> str:
    K, confusion = len(names), scores.confusion
    if K > MATRIX_CLASSES:
        html = f"<p>A matrix of {K:,} classes cannot be read; the most frequent confusions instead.</p>"
    else:
        what = "how many of its photos" if K <= COUNTED_CLASSES else "by their colour what share of its photos"
        html = f"<p>Each row is a true class; its cells tell {what} got which answer: "
        html += '<span class="keys"><span class="right">right</span> <span class="wrong">wrong</span></span></p>'
        html += matrix(confusion, names, lambda n, _: (str(n), f"{n:,}"))
    return html + (confusions_table(confusion, names, "Photos") if K > COUNTED_CLASSES else "")


def _classes(classes: list[ClassScore]) -> str:
    present = sorted((c for c in classes if c.count), key=lambda c: c.f1)
    absent = len(classes) - len(present)
    rows = [
        f"<tr><td>{shown_name(c.name)}</td>{bar(c.precision)}{bar(c.recall)}{bar(c.f1)}<td>{c.count:,}</td></tr>"
        for c in present
    ]
    html = "<p>The class with the lowest F1 comes first. Precision: of the photos called so, how many are. "
    html += "Recall: of the photos that are so, how many were found.</p>"
    told, rows = shortened(rows, 5)
    html += told
    if absent:
        have = "has" if absent == 1 else "have"
        html += f"<p>{absent:,} of {len(classes):,} classes {have} no photo here and so no row.</p>"
    return html + table("Scores of the classes", ["Class", "Precision", "Recall", "F1", "Photos"], rows)


def _calibration(report: Report) -> str:
    confidence, predictions = report.probabilities.detach().float().cpu().max(1)
    right = (predictions == report.targets.cpu()).float()
    bins = (torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1).clamp(0, BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    accuracy = torch.bincount(bins, right, minlength=BINS) / counts.clamp(min=1)
    mean = confidence.mean().item()
    gap = mean - report.scores.top1.value
    surer = "surer than it should be" if gap > 0 else "less sure than it could be"
    surer = "about as sure as it should be" if abs(gap) < 0.01 else surer
    told = f"The calibration error is {percent(report.scores.calibration_error)}: the model's mean confidence is "
    told += f"{percent(mean)} and it is right {percent(report.scores.top1.value)} of the time, so on the whole it is "
    told += f"{surer}. Bars on the diagonal would mean that of the answers given with 80 % confidence 80 % are right; "
    told += "bars below it mean too much confidence. Bins with few photos say little."
    return (
        f'<p>{told}</p><div class="plots">'
        + plot(
            lambda a, t: _reliability(a, t, accuracy, counts), f"Share of right answers by confidence. {told}", (5, 3)
        )
        + plot(lambda a, t: _bins(a, t, counts), "Number of photos by confidence.", (5, 3))
        + "</div>"
    )


def _reliability(axes: Axes, theme: Theme, accuracy: Tensor, counts: Tensor) -> None:
    centres = (torch.arange(BINS) + 0.5) / BINS
    filled = counts > 0
    axes.bar(centres[filled].tolist(), accuracy[filled].tolist(), width=0.9 / BINS, color=theme.first, alpha=0.6)
    axes.plot([0, 1], [0, 1], color=theme.second, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1.02)
    _confidence_axis(axes, "Right answers by confidence")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _bins(axes: Axes, theme: Theme, counts: Tensor) -> None:
    axes.bar([(i + 0.5) / BINS for i in range(BINS)], counts.tolist(), width=0.9 / BINS, color=theme.first, alpha=0.6)
    _confidence_axis(axes, "Photos by confidence")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _confidence_axis(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlim(0, 1)
    axes.set_xlabel("confidence")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _pictures(report: Report) -> str:
    probabilities = report.probabilities.detach().float().cpu()
    top = probabilities.topk(min(2, probabilities.shape[1])).values
    wrong = probabilities.argmax(1) != report.targets.cpu()
    errors = torch.where(wrong, top[:, 0], -1.0).argsort(descending=True, stable=True)[
        : min(PICTURES, int(wrong.sum()))
    ]
    unsure = (top[:, 0] - top[:, -1]).argsort(stable=True)[:PICTURES]
    html = "<h3>Most confident errors</h3>"
    if len(errors):
        html += "<p>Look for wrong labels here, and for what misleads the model.</p>" + _grid(report, errors.tolist())
    else:
        html += "<p>There is no error to show.</p>"
    html += "<h3>Least certain</h3><p>The first two answers are closest together: photos like these are often the ones "
    html += "worth adding.</p>"
    return html + _grid(report, unsure.tolist())


def _grid(report: Report, indices: list[int]) -> str:
    return f'<ul class="grid">{"".join(_card(report, i) for i in indices)}</ul>'


def _card(report: Report, i: int) -> str:
    share, prediction = report.probabilities[i].max(0)
    truth, answer = report.class_names[int(report.targets[i])], report.class_names[int(prediction)]
    right = int(prediction) == int(report.targets[i])
    verdict = "right" if right else "wrong"
    alt = f"{report.image_names[i]}: truth {truth}, prediction {answer}, {percent(float(share))} confident"
    return (
        f"<li><figure>{_thumbnail(report.load_image, i, alt)}<figcaption><dl><dt>truth</dt><dd>{shown_name(truth)}</dd>"
        f'<dt>prediction</dt><dd class="{verdict}-text">{shown_name(answer)} {"✓" if right else "✗"}</dd>'
        f'<dt>confidence</dt><dd>{percent(float(share))}</dd></dl><span class="file">'
        f"{shown_name(report.image_names[i])}</span></figcaption></figure></li>"
    )


def _thumbnail(load_image: Callable[[int], Image.Image], i: int, alt: str) -> str:
    try:
        image = load_image(i).convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return jpeg(image, alt)
    except Exception:  # whatever ails one photo, the report is worth more than the photo
        return missing(alt)
