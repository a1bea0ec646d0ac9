"""The page about a set of photos: a map, likely wrong labels, near-duplicates, atypical photos."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from ..data.palette import default_palette
from ..report.page import Picture, Plot, Theme, css, number, percent, plot, safe_jpeg, write_page
from .features import Embedded
from .findings import AROUND, Pair, Suspect, centred, near_duplicates, neighbours, pca, umap, wrong_labels

MAPPED, MAP_SIDE = 1500, 80
"""Maximum number of photos on the map, and the side of their pictures in pixels: all of them are in the page."""
SHOWN, SIDE = 24, 160
"""Maximum number of photos in each list, and the side of their pictures."""
COLOURED = 20
"""Maximum number of classes with colours."""
ALIKE = 0.95
"""Minimum cosine of near-duplicates."""


@dataclass(frozen=True)
class Dot:
    """A photo on the map, in percent from the left and from the top."""

    left: float
    top: float
    colour: str
    name: str
    label: str
    picture: Picture


@dataclass(frozen=True)
class Card:
    """A photo in a list, with what is told about it."""

    file: str
    picture: Picture
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """What the page is about."""

    suspects: list[Suspect]
    agreement: float
    """Fraction of the labels that a linear probe of the features agrees with"""
    pairs: list[Pair]
    atypical: list[int]
    typicality: list[float]
    """Mean cosine of each photo with its nearest."""
    points: np.ndarray
    """(N, 2) principal components"""
    variance: list[float]
    curved: np.ndarray | None
    """(N, 2) by UMAP, if it is installed"""


def find(embedded: Embedded) -> Findings:
    """Everything that the page tells."""
    values = centred(embedded.values)
    cosines, places = neighbours(values, AROUND)
    typicality = cosines.mean(1)
    points, variance = pca(values)
    classes = embedded.class_names
    suspects, agreement = wrong_labels(values, embedded.targets, len(classes)) if len(classes) > 1 else ([], 0.0)
    atypical = typicality.argsort(stable=True).tolist()
    pairs = near_duplicates(cosines, places, ALIKE)
    return Findings(suspects, agreement, pairs, atypical, typicality.tolist(), points, variance, umap(values))


def write_embedding_page(path: Path, title: str, embedded: Embedded, command: str) -> Findings:
    """Write the page to `path`, whole or not at all, and return what it tells.

    Args:
        title: What the photos are.
        command: The command that made it.
    """
    found, names = find(embedded), embedded.class_names
    coloured = 0 < len(names) <= COLOURED
    palette = [css(colour) for colour in default_palette(len(names))] if coloured else []
    colours = [palette[names.index(label)] for label in embedded.labels] if coloured else []
    shown = np.linspace(0, len(embedded) - 1, min(len(embedded), MAPPED)).astype(int).tolist()
    points = found.points if found.curved is None else found.curved
    values = {
        "title": title,
        "embedded": embedded,
        "classes": len(names),
        "found": found,
        "keys": list(zip(names, palette, strict=False)),
        "dots": _dots(embedded, points, shown, colours),
        "components": [] if found.curved is None else [_components(found, colours)],
        "plane": _plane(found),
        "suspects": [_suspect(embedded, suspect) for suspect in found.suspects[:SHOWN]],
        "pairs": [_pair(embedded, pair) for pair in found.pairs[:SHOWN]],
        "atypical": [
            _card(embedded, i, [("similarity", f"{found.typicality[i]:.2f}")]) for i in found.atypical[:SHOWN]
        ],
        "around": AROUND,
        "facts": {
            "command": command,
            "photos": number(len(embedded), "photo"),
            "features": f"{embedded.values.shape[1]:,} of {embedded.model}",
        },
    }
    write_page(path, "embed/page.html", values)
    return found


def _dots(embedded: Embedded, points: np.ndarray, shown: list[int], colours: list[str]) -> list[Dot]:
    low, high = points.min(0), points.max(0)
    places = (points - low) / np.maximum(high - low, 1e-12)
    return [
        Dot(
            1 + 98 * float(places[i, 0]),
            99 - 98 * float(places[i, 1]),
            colours[i] if colours else "var(--right)",
            embedded.names[i],
            embedded.labels[i] if embedded.labels else "",
            _picture(embedded, i, MAP_SIDE),
        )
        for i in shown
    ]


def _plane(found: Findings) -> str:
    """What the map shows."""
    if found.curved is not None:
        return "UMAP: photos that are close together are alike; distances between groups mean little."
    share = percent(sum(found.variance))
    return f"The first two principal components, which hold {share} of the features' variance."


def _components(found: Findings, colours: list[str]) -> Plot:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.scatter(*found.points.T, s=4, c=colours or theme.first)
        axes.set_title("Principal components", fontsize=11)
        axes.set_xlabel(f"first, {percent(found.variance[0])} of the variance")
        axes.set_ylabel(f"second, {percent(found.variance[1])}")

    return plot(draw, "The photos by the first two principal components of their features.", (5, 4))


def _suspect(embedded: Embedded, suspect: Suspect) -> Card:
    names = embedded.class_names
    facts = [
        ("label", f"{names[suspect.given]} {percent(suspect.of_given)}"),
        ("likelier", f"{names[suspect.likely]} {percent(suspect.of_likely)}"),
    ]
    return _card(embedded, suspect.photo, facts)


def _pair(embedded: Embedded, pair: Pair) -> tuple[str, list[Card]]:
    return f"{pair.cosine:.3f}", [_card(embedded, i, []) for i in (pair.first, pair.second)]


def _card(embedded: Embedded, i: int, facts: list[tuple[str, str]]) -> Card:
    label = [("label", embedded.labels[i])] if embedded.labels and not any(key == "label" for key, _ in facts) else []
    return Card(embedded.names[i], _picture(embedded, i, SIDE), [*label, *facts])


def _picture(embedded: Embedded, i: int, side: int) -> Picture:
    return safe_jpeg(_thumbnail(lambda: embedded.picture(i), side), embedded.names[i])


def _thumbnail(load: Callable[[], Image.Image], side: int) -> Callable[[], Image.Image]:
    def draw() -> Image.Image:
        image = load().convert("RGB")
        image.thumbnail((side, side))
        return image

    return draw
