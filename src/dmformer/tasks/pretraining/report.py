"""The report of a pretraining run: what the features are worth, and what they find alike."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...report.page import (
    broken_files,
    escaped,
    history_plot,
    interval,
    jpeg,
    making,
    missing,
    model_name,
    percent,
    photos,
    shown_name,
    table,
    tiles,
    write_page,
)
from .metrics import PretrainingScores

THUMBNAIL = 128

Shown = tuple[str, Image.Image | None, float | None]
"""A photo's name, the photo unless it cannot be read, its cosine with the query unless it is that."""


@dataclass(frozen=True)
class Neighbours:
    """A photo and those whose features are nearest, the nearest first."""

    query: Shown
    nearest: list[Shown]


@dataclass(frozen=True)
class PretrainingReport:
    """What a page is made of."""

    title: str
    """MODEL pretrained on DATA"""
    scores: PretrainingScores
    teacher: str | None
    history: list[dict[str, float]]
    """Rows of metrics.csv, an epoch each; shares from 0 to 1."""
    neighbours: list[Neighbours]
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""
    recipe: str
    """YAML"""
    facts: dict[str, str]
    """What to know of the run by name; "command" is set apart."""


def write_pretraining_report(path: Path, report: PretrainingReport) -> None:
    """Write the page to `path`, whole or not at all."""
    sections = {
        "verdict": ("Verdict", _verdict(report)),
        "training": ("Training", _training(report)),
        "sources": ("Sources", _sources(report.scores)),
        "neighbours": ("Nearest neighbours", _neighbours(report.neighbours)),
        "files": ("Broken files", broken_files(report.broken)),
        "making": ("How it was made", making(report.facts, report.history, report.recipe)),
    }
    write_page(path, report.title, sections, _STYLE)


def _verdict(report: PretrainingReport) -> str:
    scores = report.scores
    told = f"{model_name(report.title.replace(' pretrained', ' on'))} has seen {scores.images_seen:,} images. "
    if scores.agreement is not None:
        told += (
            f"On {photos(scores.count, 'held-out')} its first answer is that of the teacher "
            f"{shown_name(report.teacher or '')} {percent(scores.agreement.value)} of the time."
        )
    elif scores.sources:
        mean = sum(source.top1.value for source in scores.sources) / len(scores.sources)
        told += f"On {photos(scores.count, 'held-out')} it is right {percent(mean)} of the time."
    probe = scores.probe
    more = "Give --probe FOLDER, with class folders, to learn what the features are worth on data of your own."
    if probe is not None:
        more = (
            f"On {shown_name(probe.data)}, {photos(probe.test_images, 'test')} of {probe.classes:,} classes, a linear "
            f"classifier of its frozen features is right {percent(probe.linear.value)} of the time "
            f"(95\u00a0% interval {interval(probe.linear)}) after {photos(probe.train_images)}."
        )
    figures = tiles(
        [
            ("Agreement", scores.agreement, "first answer is the teacher's"),
            ("Linear probe", probe.linear if probe else None, "frozen features, a linear classifier"),
            ("Nearest neighbours", probe.knn if probe else None, "frozen features, a vote of the 20 nearest"),
        ]
    )
    return f'<p class="verdict">{told}</p><p>{more}</p>{figures}'


def _training(report: PretrainingReport) -> str:
    if not report.history:
        return "<p>No epoch was recorded.</p>"
    curves: list[tuple[str, dict[str, str], bool]] = [
        ("Loss", {"train_loss": ""}, False),
        ("Agreement with the teacher", {"train_agreement": "training", "val_agreement": "held out"}, True),
        ("Accuracy, mean of the sources", {"train_top1": "training", "val_top1": "held out"}, True),
    ]
    told = "<p>Training looks at crops, of one view in turn; held-out photos are looked at as a whole.</p>"
    drawn = [history_plot(report.history, "epoch", title, keys, shares, (3.9, 2.8)) for title, keys, shares in curves]
    return f'{told}<div class="plots">{"".join(drawn)}</div>'


def _sources(scores: PretrainingScores) -> str:
    if not scores.sources:
        return "<p>No source has labels: everything was learnt from the teacher.</p>"
    rows = [
        f"<tr><td>{shown_name(s.name)}</td><td>{s.classes:,}</td><td>{percent(s.top1.value)}</td>"
        f"<td>{interval(s.top1)}</td></tr>"
        for s in scores.sources
    ]
    told = "<p>Each labelled source has a classifier of its own, which only training needs. On its held-out photos:</p>"
    return told + table("Sources", ["Source", "Classes", "Top-1", "95\u00a0% interval"], rows)


def _neighbours(neighbours: list[Neighbours]) -> str:
    if not neighbours:
        return "<p>There are too few held-out photos to compare.</p>"
    rows = "".join(
        f'<ul class="near">{_photo(row.query)}{"".join(_photo(shown) for shown in row.nearest)}</ul>'
        for row in neighbours
    )
    told = "<p>Each row begins with a held-out photo; the others are the held-out photos whose features are nearest, "
    return f"{told}with their cosine. Photos that people would put together should stand together.</p>{rows}"


def _photo(shown: Shown) -> str:
    name, image, cosine = shown
    caption = "photo" if cosine is None else f"{cosine:.2f}"
    if image is None:
        picture = missing(name)
    else:
        image = image.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        picture = jpeg(image, name)
    caption += f' <span class="file">{escaped(name)}</span>'
    return f"<li><figure>{picture}<figcaption>{caption}</figcaption></figure></li>"


_STYLE = """
.near { display: grid; grid-template-columns: repeat(7, minmax(0, 1fr)); gap: .6rem; padding: 0; margin: 0 0 1rem;
  list-style: none; }
.near li:first-child { padding-right: .6rem; border-right: 2px solid var(--right); }
@media (max-width: 40rem) { .near { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
"""
