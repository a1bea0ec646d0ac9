"""The page of `dmformer explain`, and the pictures on it: where models find classes on photos."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from ..report.drawing import heat_over
from ..report.page import Picture, Plot, Theme, jpeg, plot, write_page

MIDDLE_GREY = 128
"""Background of the colour scale."""
SMALL = 192
"""Pictures with a shorter side below this, in pixels, are enlarged."""
WIDTH, HEIGHT = 320, 420
"""Maximum size of a picture on the page, in pixels."""
EVIDENCE = ("no evidence for the class", "the most evidence")
ENDS = dict.fromkeys(("grad-cam", "grad-cam++", "layer-cam"), EVIDENCE) | {
    "eigen-cam": ("no part of the strongest pattern", "the strongest part")
}
"""What 0 and 1 mean, by method."""


@dataclass(frozen=True)
class Panel:
    """One class on one photo."""

    label: str
    score: float
    """The class's probability; for a segmenter, the fraction of pixels predicted as the class; for a detector, the
    object's score."""
    picture: Image.Image
    where: str
    """Position of the map's highest value, in words; "" if the map is 0 everywhere."""
    note: str = ""
    correlation: float | None = None
    """Rank correlation with the map of the model with random weights."""


@dataclass(frozen=True)
class View:
    """One photo as one model sees it, with a map for each class."""

    model: str
    of_pixels: bool
    of_boxes: bool
    seen: Image.Image
    panels: list[Panel]
    control: Image.Image | None = None
    """The first panel's map from the model with random weights."""


@dataclass(frozen=True)
class ModelFacts:
    """What the page says about a model."""

    name: str
    layer: str
    cell: tuple[int, int]
    """Height and width in pixels of one value of the map."""
    grid: tuple[int, int]
    """Height and width in values of the map of the first photo."""
    finer: str = ""
    """What to do if these are few."""
    verdict: str = ""
    """Result of the check; "" if there was none."""
    cascade: list[tuple[str, float | None]] = field(default_factory=list)
    """The part whose weights were randomised last, from the head down, and the mean rank correlation."""


@dataclass(frozen=True)
class ExplanationReport:
    """Contents of the page."""

    method: str
    models: list[ModelFacts]
    photos: list[tuple[str, list[View]]]
    """The views of each photo, by its name."""
    left_out: int
    """Number of photos that the page does not show."""
    rows: list[tuple[str, str, str, float | None]]
    """Photo, model, class and rank correlation of each map."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""


def write_explanation(path: Path, report: ExplanationReport) -> None:
    """Write the page to `path` atomically."""
    names = [model.name for model in report.models]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    views = [view for _, seen in report.photos for view in seen]
    cascades = [(model.name, drawn) for model in report.models for drawn in _cascade(model)]
    values = {
        "title": f"Where {listed} {'looks' if len(names) == 1 else 'look'}",
        "report": report,
        "names": names,
        "checked": any(model.verdict for model in report.models),
        "ends": ENDS[report.method],
        "colours": _RAMP,
        "segmenters": any(view.of_pixels for view in views),
        "detectors": any(view.of_boxes for view in views),
        "controls": any(view.control for view in views),
        "photos_shown": [(name, [_shown(name, view) for view in seen]) for name, seen in report.photos],
        "cascades": cascades,
    }
    write_page(path, "interpret/report.html", values)


def side_by_side(seen: Image.Image, over: Image.Image, method: str) -> Image.Image:
    """The photo and the photo under its map, above a colour scale with its meaning, on white."""
    gap, bar = 8, 34
    width = 2 * seen.width + gap
    image = Image.new("RGB", (width, seen.height + gap + bar), "white")
    image.paste(seen, (0, 0))
    image.paste(over, (seen.width + gap, 0))
    top = seen.height + gap
    ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (12, width))
    image.paste(Image.fromarray(heat_over(MIDDLE_GREY, ramp).round().astype(np.uint8)), (0, top))
    draw, (least, most) = ImageDraw.Draw(image), ENDS[method]
    font = ImageFont.load_default(12)
    for size in range(12, 5, -1):
        font = ImageFont.load_default(size)
        if font.getlength(f"0: {least}   1: {most}") <= width:
            break
    draw.text((0, top + 15), f"0: {least}", fill="black", font=font)
    draw.text((width - 1, top + 15), f"1: {most}", fill="black", font=font, anchor="ra")
    return image


def enlarged(image: Image.Image, resample: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """A small picture, enlarged by a whole number."""
    factor = max(-(-SMALL // min(image.size)), 1)
    return image if factor == 1 else image.resize((factor * image.width, factor * image.height), resample)


def for_page(image: Image.Image) -> Image.Image:
    """A picture, reduced to the size on the page."""
    image = image.copy()
    image.thumbnail((WIDTH, HEIGHT))
    return image


def whereabouts(values: np.ndarray) -> str:
    """Where a map (H, W) is highest, in words; "" if it is 0 everywhere."""
    if not values.any():
        return ""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    height, width = values.shape
    vertical = ("top", "", "bottom")[min(int(3 * row / height), 2)]
    horizontal = ("left", "", "right")[min(int(3 * column / width), 2)]
    return " ".join(word for word in (vertical, horizontal) if word) or "middle"


@dataclass(frozen=True)
class _Shown:
    """A view with its pictures as data URIs."""

    view: View
    seen: Picture
    panels: list[tuple[Panel, Picture]]
    control: Picture | None


def _shown(name: str, view: View) -> _Shown:
    panels = []
    for panel in view.panels:
        place = f"highest at the {panel.where}" if panel.where else "0 everywhere"
        panels.append((panel, jpeg(panel.picture, f"{panel.label} on {name}: {place}")))
    control = view.control and jpeg(view.control, f"control of {view.panels[0].label} on {name}")
    return _Shown(view, jpeg(view.seen, f"{name} as {view.model} sees it"), panels, control)


def _cascade(model: ModelFacts) -> list[Plot]:
    """A plot of the cascade, if it has two values or more."""
    points = [(part, value) for part, value in model.cascade if value is not None]
    if len(points) < 2:
        return []

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0, color=theme.line, linewidth=1)
        axes.plot(range(len(points)), [v for _, v in points], color=theme.first, marker="o", markersize=4)
        axes.set_xticks(range(len(points)), [part if i == 0 else f"+ {part}" for i, (part, _) in enumerate(points)])
        axes.tick_params(axis="x", rotation=30 if len(points) > 4 else 0)
        axes.set_ylim(min(-0.25, *(v - 0.05 for _, v in points)), 1.02)
        axes.set_ylabel("rank correlation")

    alt = "Rank correlation by the randomised parts: " + ", ".join(f"{part} {value:.2f}" for part, value in points)
    return [plot(draw, alt + ".", (4.6, 2.8))]


_RAMP = ", ".join(
    "rgb({:.0f} {:.0f} {:.0f})".format(*colour) for colour in heat_over(MIDDLE_GREY, np.linspace(0, 1, 11)[None])[0]
)
"""The colours of the maps from 0 to 1, in CSS."""
