"""The report of a pretraining run: what the features are worth, and what they find alike."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...report.page import Picture, Plot, RunReport, history_plot, jpeg, write_run_page
from .metrics import PretrainingScores, measures

THUMBNAIL = 128

Shown = tuple[str, Image.Image | None, float | None]
"""A photo's name, the photo unless it cannot be read, its cosine with the query unless it is that."""


@dataclass(frozen=True)
class Neighbours:
    """A photo and those whose features are nearest, the nearest first."""

    query: Shown
    nearest: list[Shown]


@dataclass(frozen=True, kw_only=True)
class PretrainingReport(RunReport):
    """What a page is made of; its title is MODEL pretrained on DATA."""

    scores: PretrainingScores
    teacher: str | None
    neighbours: list[Neighbours]
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""


def write_pretraining_report(path: Path, report: PretrainingReport) -> None:
    """Write the page to `path`, whole or not at all."""
    sources = report.scores.sources
    values = {
        "model": report.title.split(" pretrained on ")[0],
        "measures": measures(report.scores),
        "mean_top1": sum(source.top1.value for source in sources) / len(sources) if sources else None,
        "plots_of_training": _training(report.history),
        "rows": [[_photo(shown) for shown in (row.query, *row.nearest)] for row in report.neighbours],
    }
    write_run_page(path, "tasks/pretraining/report.html", report, values)


def _training(history: list[dict[str, float]]) -> list[Plot]:
    curves = [
        ("Loss", {"train_loss": ""}, False),
        ("Agreement with the teacher", {"train_agreement": "training", "val_agreement": "held out"}, True),
        ("Accuracy, mean of the sources", {"train_top1": "training", "val_top1": "held out"}, True),
    ]
    return [drawn for each in curves for drawn in history_plot(history, "epoch", *each, (3.9, 2.8))]


def _photo(shown: Shown) -> tuple[str, str, Picture]:
    """The photo's name, what its caption begins with, and the photo in a small size."""
    name, image, cosine = shown
    caption = "photo" if cosine is None else f"{cosine:.2f}"
    if image is None:
        return name, caption, Picture(name)
    image = image.convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return name, caption, jpeg(image, name)
