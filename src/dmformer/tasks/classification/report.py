"""The report of a classification run: one HTML page that needs no network and no other file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from ...report.page import (
    Line,
    Passage,
    Picture,
    RunReport,
    Theme,
    class_list,
    column,
    confusion_of,
    curves,
    finite,
    percent,
    plot,
    safe_jpeg,
    write_run_page,
)
from .metrics import Scores, measures

PICTURES, THUMBNAIL = 12, 224
BINS = 15
"""As many as the calibration error has."""


@dataclass(frozen=True, kw_only=True)
class Report(RunReport):
    """What a page about a classifier is made of, with one label or several labels per photo."""

    scores: Any
    """What the task's `score` returns."""
    split: str
    """test or validation"""
    class_names: list[str]
    """K names"""
    probabilities: Tensor
    """(N, K)"""
    targets: Tensor
    """(N) classes; for several labels (N, K), 0 or 1"""
    image_names: list[str]
    """N names"""
    load_image: Callable[[int], Image.Image]
    """Image i as RGB, of any size; if it raises, the page shows a placeholder."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""
    answers_are: str = ""
    """What each answer is the mean of, if it is one."""
    notes: Sequence[str] = ()
    """Remarks on the data: what was left out, and what to know before trusting the scores."""

    def thumbnail(self, i: int, alt: str) -> Picture:
        """Photo i, reduced, or a placeholder if it cannot be loaded."""

        def reduced() -> Image.Image:
            image = self.load_image(i).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            return image

        return safe_jpeg(reduced, alt)


@dataclass(frozen=True)
class _Card:
    """A photo and what it was taken for."""

    file: str
    picture: Picture
    truth: str
    prediction: str
    right: bool
    """Classes may share a name."""
    confidence: float


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all."""
    scores: Scores = report.scores
    common = max(scores.classes, key=lambda c: c.count)
    present = sorted((c for c in scores.classes if c.count), key=lambda c: c.f1)
    answered = [sum(column) for column in zip(*scores.confusion, strict=True)]
    unpredicted = [c.name for c, n in zip(scores.classes, answered, strict=True) if c.count and not n]
    errors, unsure = _most_telling(report)
    values = {
        "common": common,
        "measures": measures(scores),
        "baseline": common.count / scores.count,
        "weakest": present[0],
        "unpredicted": unpredicted,
        "gap": scores.top1.value - scores.balanced_accuracy.value,
        "training": _training(report.history),
        "confusion": confusion_of(scores.confusion, report.class_names, lambda n, _: (str(n), f"{n:,}")),
        "classes": class_list(present, len(scores.classes)),
        "calibration": _calibration(report),
        "errors": [_card(report, i) for i in errors],
        "unsure": [_card(report, i) for i in unsure],
    }
    write_run_page(path, "tasks/classification/report.html", report, values)


def _training(history: list[dict[str, float]]) -> Passage | None:
    if not history:
        return None
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
    plots = [
        plot(lambda a, t: curves(a, t, losses, "Loss", "epoch"), f"Loss by epoch. {told}"),
        plot(
            lambda a, t: curves(a, t, accuracies, "Validation accuracy", "epoch", shares=True),
            f"Accuracy by epoch. {told}",
        ),
        plot(lambda a, t: curves(a, t, rates, "Learning rate", "epoch"), "Learning rate by epoch.", (2.3, 2.8)),
    ]
    return Passage(told, plots)


def _lines(history: list[dict[str, float]], labels: dict[str, str]) -> dict[str, Line]:
    """By epoch, for columns with their labels."""
    return {label: (column(history, "epoch"), column(history, key)) for key, label in labels.items()}


def _calibration(report: Report) -> Passage:
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
    reliability = f"Share of right answers by confidence. {told}"
    plots = [
        plot(lambda a, t: _reliability(a, t, accuracy, counts), reliability, (5, 3)),
        plot(lambda a, t: _bins(a, t, counts), "Number of photos by confidence.", (5, 3)),
    ]
    return Passage(told, plots)


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


def _most_telling(report: Report) -> tuple[list[int], list[int]]:
    """Photos to show: the errors, the most confident first, and those whose first two answers are closest together."""
    probabilities = report.probabilities.detach().float().cpu()
    top = probabilities.topk(min(2, probabilities.shape[1])).values
    wrong = probabilities.argmax(1) != report.targets.cpu()
    errors = torch.where(wrong, top[:, 0], -1.0).argsort(descending=True, stable=True)
    unsure = (top[:, 0] - top[:, -1]).argsort(stable=True)
    return errors[: min(PICTURES, int(wrong.sum()))].tolist(), unsure[:PICTURES].tolist()


def _card(report: Report, i: int) -> _Card:
    share, k = report.probabilities[i].max(0)
    file, confidence = report.image_names[i], float(share)
    truth, answer = (report.class_names[int(label)] for label in (report.targets[i], k))
    right = int(k) == int(report.targets[i])
    alt = f"{file}: truth {truth}, prediction {answer}, {percent(confidence)} confident"
    return _Card(file, report.thumbnail(i, alt), truth, answer, right, confidence)
