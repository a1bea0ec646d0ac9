"""The page of `dmformer explain`, and the pictures on it: where models find classes on photos."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from ..report.drawing import heat_over
from ..report.page import (
    Theme,
    broken_files,
    escaped,
    jpeg,
    percent,
    photos,
    plot,
    shown_name,
    table,
    write_page,
)

MIDDLE_GREY = 128
"""What lies below the colours where they are explained."""
SMALL = 192
"""Pictures whose shorter side is below so many pixels are enlarged, by a whole number."""
WIDTH, HEIGHT = 320, 420
"""Most of a picture on the page, in pixels."""
LISTED = 200
"""Most rows of the table of the check."""

ENDS = {
    "grad-cam": ("nothing that speaks for the class", "what speaks most for it"),
    "grad-cam++": ("nothing that speaks for the class", "what speaks most for it"),
    "layer-cam": ("nothing that speaks for the class", "what speaks most for it"),
    "eigen-cam": ("no part of the strongest pattern", "most of it"),
}
"""What 0 and 1 mean, by method."""


@dataclass(frozen=True)
class Panel:
    """One class on one photo."""

    label: str
    score: float
    """The class's probability, or the share of the pixels that a segmenter calls so."""
    picture: Image.Image
    where: str
    """Of the map's highest value, in words; none if it has nothing on it."""
    note: str = ""
    correlation: float | None = None
    """Of the map with that of the model with weights drawn anew."""


@dataclass(frozen=True)
class View:
    """One photo as one model sees it."""

    model: str
    task: str
    seen: Image.Image
    panels: list[Panel]
    control: Image.Image | None = None
    """The first panel's map, of the model with weights drawn anew."""


@dataclass(frozen=True)
class ModelFacts:
    """What the page tells of a model."""

    name: str
    layer: str
    cell: tuple[int, int]
    """Height and width in pixels that one value of the map stands for."""
    verdict: str = ""
    """What the check found; none if it was not made."""
    cascade: list[tuple[str, float | None]] = field(default_factory=list)
    """Mean rank correlation by what part, from the head down, was drawn anew last."""


@dataclass(frozen=True)
class ExplanationReport:
    """What a page is made of."""

    method: str
    models: list[ModelFacts]
    photos: list[tuple[str, list[View]]]
    """By name."""
    left_out: int
    """Photos that the page does not show."""
    rows: list[tuple[str, str, str, float | None]]
    """Photo, model, class and rank correlation of every map."""
    broken: list[tuple[str, str]]
    """Files that could not be read, with the reason."""


def write_explanation(path: Path, report: ExplanationReport) -> None:
    """Write the page to `path`, whole or not at all."""
    sections = {
        "verdict": ("Verdict", _verdict(report)),
        "reading": ("How to read the pictures", _reading(report)),
        "photos": ("Photos", _photos(report)),
    }
    if any(model.verdict for model in report.models):
        sections["check"] = ("Does it depend on what was learnt?", _check(report))
    sections["files"] = ("Broken files", broken_files(report.broken))
    looks = "looks" if len(report.models) == 1 else "look"
    write_page(path, f"Where {_listed([model.name for model in report.models])} {looks}", sections, _STYLE)


def side_by_side(seen: Image.Image, over: Image.Image, method: str) -> Image.Image:
    """The photo, the photo under its map, and below them what the colours mean, on white."""
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
    """A small picture as a larger one."""
    factor = max(-(-SMALL // min(image.size)), 1)
    return image if factor == 1 else image.resize((factor * image.width, factor * image.height), resample)


def for_page(image: Image.Image) -> Image.Image:
    """A picture in the size that the page has it."""
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


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _verdict(report: ExplanationReport) -> str:
    names = _listed([shown_name(model.name) for model in report.models])
    n = len(report.photos) + report.left_out
    finds = "finds" if len(report.models) == 1 else "find"
    html = f'<p class="verdict">The pictures show where on {photos(n)} {names} {finds} what speaks for a class.</p>'
    if report.method == "eigen-cam":
        html = f'<p class="verdict">The pictures show the strongest pattern in {names} on {photos(n)}, of no class in '
        html += "particular: Eigen-CAM does not ask for one.</p>"
    for model in report.models:
        told = model.verdict or "It was not checked whether the pictures depend on what was learnt."
        html += f"<p>{shown_name(model.name)}: {escaped(told)}</p>"
    return html


def _reading(report: ExplanationReport) -> str:
    least, most = ENDS[report.method]
    html = f'<div class="ramp"><span aria-hidden="true"></span><div><b>0</b> {least}</div>'
    html += f"<div><b>1</b> {most}</div></div>"
    html += "<ul class='told'><li>The photo below the colours is grey, so that every colour is the map's.</li>"
    html += "<li>Each picture has a scale of its own: 1 is its own highest place. A bright spot does not mean that the "
    html += "model is sure; that is what the percentage below the picture says.</li>"
    for model in report.models:
        of = f" of {shown_name(model.name)}" if len(report.models) > 1 else ""
        html += f"<li>The map{of} is coarse: each of its values stands for {model.cell[0]} x {model.cell[1]} pixels "
        html += f"(layer <code>{escaped(model.layer)}</code>), smoothed between.</li>"
    html += "<li>It shows where, not why: two models may look at the same place and see different things there, and "
    html += "what lies outside may matter too.</li>"
    if any(view.task == "segmentation" for _, views in report.photos for view in views):
        html += "<li>Of a segmenter: what speaks for the class in the pixels that it takes for it, which the white "
        html += "line surrounds; the percentage is their share.</li>"
    if any(view.control for _, views in report.photos for view in views):
        html += "<li>The last picture of a row is the control: the same map of the model with weights drawn anew, "
        html += (
            "which knows nothing. A map that looks like its control shows the photo, not what was learnt. How alike "
        )
        html += "they are is the figure after 'control': 1 alike, 0 nothing in common, below 0 opposite.</li>"
    return html + "</ul>"


def _photos(report: ExplanationReport) -> str:
    html = "".join(
        f"<article><h3>{shown_name(name)}</h3>{''.join(_view(report, name, view) for view in views)}</article>"
        for name, views in report.photos
    )
    if report.left_out:
        html += f"<p>The pictures of {photos(report.left_out, 'more')} lie beside this page.</p>"
    return html


def _view(report: ExplanationReport, name: str, view: View) -> str:
    heading = f"<h4>{shown_name(view.model)}</h4>" if len(report.models) > 1 else ""
    figures = _figure(view.seen, f"{name} as {view.model} sees it", "as the model sees it")
    for panel in view.panels:
        place = f"highest at the {panel.where}" if panel.where else "nothing anywhere"
        lines = [f"<b>{shown_name(panel.label)}</b> {_score(panel.score, view.task)}"]
        if panel.correlation is not None:
            lines.append(f'<span class="file">control: {panel.correlation:+.2f}</span>')
        if panel.note:
            lines.append(f'<span class="file">{escaped(panel.note)}</span>')
        figures += _figure(panel.picture, f"{panel.label} on {name}: {place}", "<br>".join(lines))
    if view.control is not None:
        label = view.panels[0].label
        told = f'control of {shown_name(label)}<br><span class="file">weights drawn anew</span>'
        figures += _figure(view.control, f"control of {label} on {name}", told)
    return f'{heading}<div class="views">{figures}</div>'


def _score(score: float, task: str) -> str:
    return percent(score) + (" of the pixels" if task == "segmentation" else "")


def _figure(picture: Image.Image, alt: str, caption: str) -> str:
    return f"<figure>{jpeg(picture, alt)}<figcaption>{caption}</figcaption></figure>"


def _check(report: ExplanationReport) -> str:
    html = "<p>All weights of the model are drawn anew, and the same maps are made of the model, which knows nothing "
    html += "now. The rank correlation of two maps is 1 where they order the places of the photo alike, 0 where they "
    html += (
        "have nothing to do with each other, below 0 where they are opposites. A map that changes passes; that does "
    )
    html += "not prove it right. (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.)</p>"
    drawn = ""
    for model in report.models:
        points = [(part, value) for part, value in model.cascade if value is not None]
        if len(points) > 1:
            drawn += f"<figure><figcaption>{shown_name(model.name)}</figcaption>{_cascade(points)}</figure>"
    if drawn:
        html += "<p>The curve begins with the head alone drawn anew and goes down to the first stage, until nothing "
        html += "that was learnt is left; it is the mean of the first photos' likeliest classes.</p>"
        html += f'<div class="plots">{drawn}</div>'
    rows = [
        f"<tr><td>{shown_name(photo)}</td><td>{shown_name(model)}</td><td>{shown_name(label)}</td>"
        f"<td>{'–' if value is None else f'{value:+.2f}'}</td></tr>"
        for photo, model, label, value in report.rows[:LISTED]
    ]
    if len(report.rows) > LISTED:
        html += f"<p>These are the first {LISTED} of {len(report.rows):,} maps.</p>"
    return html + table("Rank correlations", ["Photo", "Model", "Class", "Rank correlation"], rows, "pairs")


def _cascade(points: list[tuple[str, float]]) -> str:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0, color=theme.line, linewidth=1)
        axes.plot(range(len(points)), [v for _, v in points], color=theme.first, marker="o", markersize=4)
        axes.set_xticks(range(len(points)), [part if i == 0 else f"+ {part}" for i, (part, _) in enumerate(points)])
        axes.tick_params(axis="x", rotation=30 if len(points) > 4 else 0)
        axes.set_ylim(min(-0.25, *(v - 0.05 for _, v in points)), 1.02)
        axes.set_ylabel("rank correlation")

    alt = "Rank correlation by the parts drawn anew: " + ", ".join(f"{part} {value:.2f}" for part, value in points)
    return plot(draw, alt + ".", (4.6, 2.8))


_RAMP = ", ".join(
    "rgb({:.0f} {:.0f} {:.0f})".format(*colour) for colour in heat_over(MIDDLE_GREY, np.linspace(0, 1, 11)[None])[0]
)

_STYLE = f"""
.ramp {{ display: grid; grid-template-columns: 1fr 1fr; gap: .2rem; max-width: 34rem; margin-bottom: 1rem;
  font-size: .9rem; }}
.ramp span {{ grid-column: 1 / -1; height: 1rem; border-radius: .2rem;
  background: linear-gradient(to right, {_RAMP}); }}
.ramp div:last-child {{ text-align: end; }}
.told {{ max-width: 46rem; padding-inline-start: 1.2rem; }}
h4 {{ margin: 1rem 0 .3rem; font-size: .9rem; font-weight: 600; color: var(--quiet); }}
.views {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11.5rem, 44vw), 1fr)); gap: .8rem;
  align-items: start; }}
.views img {{ aspect-ratio: auto; }}
article {{ break-inside: avoid-page; }}
.plots img {{ aspect-ratio: auto; border-radius: 0; background: none; }}
"""
