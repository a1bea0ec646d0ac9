"""The report of a multi-label run: one HTML page that needs no network, no script and no other file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from ...report.page import (
    Passage,
    Picture,
    Plot,
    Theme,
    class_list,
    history_plot,
    percent,
    plot,
    write_run_page,
)
from ..classification.report import PICTURES, Report
from .metrics import LabelScore, MultiLabelScores, measures

DRAWN = 8
"""Maximum number of classes whose curves are drawn, those with the lowest average precision."""


@dataclass(frozen=True)
class _Card:
    """A photo with a wrong label, and all its labels."""

    file: str
    picture: Picture
    label: str
    probability: float
    threshold: float
    truth: str
    prediction: str


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all."""
    scores: MultiLabelScores = report.scores
    scored = sorted((c for c in scores.classes if c.ap is not None), key=lambda c: c.ap or 0.0)
    missed, false = _wrong(report)
    values = {
        "measures": measures(scores),
        "weakest": scored[0],
        "never": sum(c.f1 == 0 for c in scored),
        "per_photo": float(report.targets.sum() / len(report.targets)),
        "training": _training(report.history),
        "classes": class_list(scored, len(scores.classes)),
        "curves": _curves(report, scored),
        "missed": [_card(report, i, k) for i, k in missed],
        "false": [_card(report, i, k) for i, k in false],
    }
    write_run_page(path, "tasks/multilabel/report.html", report, values)


def _training(history: list[dict[str, float]]) -> list[Plot]:
    if not history:
        return []
    losses = {"train_loss": "training", "val_loss": "validation"}
    figures = {"val_map": "mAP", "val_macro_f1": "macro F1"}
    return [
        *history_plot(history, "epoch", "Loss", losses, False, (3.9, 2.8)),
        *history_plot(history, "epoch", "Validation", figures, True, (3.9, 2.8)),
        *history_plot(history, "epoch", "Learning rate", {"lr": ""}, False, (2.3, 2.8)),
    ]


def _curves(report: Report, scored: list[LabelScore]) -> Passage:
    """Precision against recall: of all labels together, then of the weakest classes."""
    micro = report.scores.micro_f1.value
    told = "Each curve runs through every threshold; the dot is the one in use."
    if len(scored) > DRAWN:
        told += f" The {DRAWN} classes with the lowest average precision are drawn."
    together = precision_recall(report.probabilities.flatten(), report.targets.flatten())
    plots = [_curve_plot("All labels together", together, None, f"micro F1 {percent(micro)} at the thresholds in use")]
    for each in scored[:DRAWN]:
        k = report.scores.classes.index(each)
        curve = precision_recall(report.probabilities[:, k], report.targets[:, k])
        dot = (each.recall or 0.0, each.precision)
        plots.append(_curve_plot(each.name, curve, dot, f"average precision {percent(each.ap)}"))
    return Passage(told, plots)


def precision_recall(probabilities: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """(N), (N) -> recall and precision at every threshold between two probabilities, the highest first."""
    values, order = probabilities.sort(descending=True)
    right = labels[order].cumsum(0)
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    chosen = torch.arange(1, len(values) + 1)
    recall, precision = right / right[-1].clamp(min=1), right / chosen
    return recall[last].tolist(), precision[last].tolist()


def _curve_plot(title: str, curve: tuple[list[float], list[float]], dot: tuple[float, float] | None, told: str) -> Plot:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(*curve, color=theme.first, linewidth=1.6)
        if dot is not None:
            axes.plot(*dot, marker="o", color=theme.second)
        axes.set_title(title if len(title) <= 28 else f"{title[:27]}…", fontsize=11)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    return plot(draw, f"Precision against recall of {title}: {told}.", (2.9, 2.5))


def _wrong(report: Report) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The labels that are missed with the lowest probability, and the false ones with the highest: image and class.

    Each image is shown once in each list.
    """
    thresholds = torch.tensor([c.threshold for c in report.scores.classes])
    chosen, truth = report.probabilities >= thresholds, report.targets > 0
    missed = torch.where(truth & ~chosen, report.probabilities, torch.inf)
    false = torch.where(chosen & ~truth, report.probabilities, -torch.inf)
    low, of_low = missed.min(1)
    high, of_high = false.max(1)
    first = [i for i in low.argsort(stable=True).tolist() if low[i] < torch.inf][:PICTURES]
    second = [i for i in high.argsort(descending=True, stable=True).tolist() if high[i] > -torch.inf][:PICTURES]
    return [(i, int(of_low[i])) for i in first], [(i, int(of_high[i])) for i in second]


def _card(report: Report, i: int, k: int) -> _Card:
    thresholds = torch.tensor([c.threshold for c in report.scores.classes])
    file, label, probability = report.image_names[i], report.class_names[k], float(report.probabilities[i, k])
    truth, prediction = (_joined(report, row) for row in (report.targets[i] > 0, report.probabilities[i] >= thresholds))
    alt = f"{file}: labels {truth}, predicted {prediction}; {label} {percent(probability)}"
    return _Card(file, report.thumbnail(i, alt), label, probability, float(thresholds[k]), truth, prediction)


def _joined(report: Report, row: Tensor) -> str:
    return ", ".join(report.class_names[k] for k in row.nonzero()[:, 0].tolist()) or "none"
