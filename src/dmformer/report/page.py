"""What all reports share: pages rendered from templates, and the plots, pictures and tables on them."""

import math
import re
import statistics
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from ..utils.files import write_whole
from ..utils.intervals import Score
from ..utils.visible import visible
from . import CHECK

MATRIX_CLASSES, COUNTED_CLASSES = 40, 15
"""Maximum number of classes for a confusion matrix as a table, and for figures written in it."""
DRAWN_CLASSES, VISIBLE = 300, 0.0005
"""Maximum number of classes for a confusion matrix as a drawing, and the smallest fraction of a row that it shows."""
CONFUSIONS = 20
LISTED_CLASSES, WORST, BEST = 2000, 25, 5
"""With more than `LISTED_CLASSES` classes, only the worst and the best are listed."""
SORTABLE_CLASSES = 15
"""With more classes, the table can be sorted and searched."""


@dataclass(frozen=True)
class Theme:
    """Colours of the plots; the two data colours are from Okabe and Ito's palette, which is safe for the
    colour-blind."""

    text: str
    line: str
    first: str
    second: str


_LIGHT = Theme(text="#4a5058", line="#d5d9de", first="#0072b2", second="#d55e00")
_DARK = Theme(text="#aab2bc", line="#3a4149", first="#56b4e9", second="#e69f00")
_DARK_FOR = {light.encode(): dark.encode() for light, dark in zip(astuple(_LIGHT), astuple(_DARK), strict=True)}


def write_page(path: Path, template: str, values: dict[str, Any]) -> None:
    """Render the page and write it to `path` atomically.

    Args:
        template: Its path in the package; it extends report/templates/base.html.
        values: Values for the template's variables, including `title`. As text: the templates escape it.
    """
    html = _templates().get_template(template).render(values)
    html = _BETWEEN_TAGS.sub("><", html)
    write_whole(path, html)


_BETWEEN_TAGS = re.compile(r">\s*\n\s*<")
"""Line breaks between a template's tags; text from the data is escaped and contains neither bracket."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What the page of every training run is made of; a task's report adds to it."""

    title: str
    """MODEL on DATA; the sentences call the model by what stands before "on"."""
    history: list[dict[str, float]]
    """Rows of metrics.csv; shares from 0 to 1, nan where nothing was measured. May be empty."""
    recipe: str
    """YAML"""
    facts: dict[str, str]
    """What to know of the run by name; "command" is set apart."""


def write_run_page(
    path: Path, template: str, report: RunReport, values: dict[str, Any], rows_are: str = "epochs"
) -> None:
    """`write_page` for a training run: adds its title, its model, and its facts with its speed (`rows_are` says what a
    row of its history is)."""
    facts = report.facts | _throughput(report.history, rows_are)
    model = report.title.split(" on ")[0] if " on " in report.title else "the model"
    checked = path.with_name(CHECK).is_file()
    known = {"title": report.title, "report": report, "model": model, "facts": facts, "check": CHECK if checked else ""}
    write_page(path, template, known | values)


@cache
def _templates() -> Environment:
    """All templates of the package; a variable without a value is an error."""
    templates = Environment(
        loader=PackageLoader("dmformer", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "interval": interval, "thousands": "{:,}".format, "visible": visible}
    script = (Path(__file__).parent / "page.js").read_text("utf-8").removesuffix("\n")  # as the page includes it
    digest = b64encode(sha256(f"\n{script}".encode()).digest()).decode()
    templates.globals |= {"number": number, "photos": photos, "script_hash": f"sha256-{digest}"}
    return templates


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def interval(score: Score) -> str:
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def number(n: int, what: str) -> str:
    """A count with its noun, `what` in the singular: "1 photo", "2 photos"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def photos(n: int, kind: str = "") -> str:
    return number(n, f"{kind} photo" if kind else "photo")


@dataclass(frozen=True)
class Plot:
    """A plot in both themes, as data URIs, and a description of it in words."""

    alt: str
    light: str
    dark: str


@dataclass(frozen=True)
class Passage:
    """A paragraph and the plots below it."""

    text: str
    plots: list[Plot]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels; without a URI the page says that it cannot be shown."""

    alt: str
    uri: str = ""
    width: int = 0
    height: int = 0
    areas: Sequence[tuple[str, str]] = ()
    """Names that the page shows on hover, each with its area as an SVG path in pixels."""


@dataclass(frozen=True)
class PhotoRow:
    """A photo as several pictures side by side."""

    name: str
    panels: list[tuple[str, Picture]]
    """Pictures with their captions."""
    value: float
    """The fraction by which photos are ordered."""


@dataclass(frozen=True)
class ClassKey:
    """The colour of a class, as CSS writes it."""

    name: str
    colour: str


def plot(draw: Callable[[Axes, Theme], None], alt: str, size: tuple[float, float] = (3.9, 2.8)) -> Plot:
    """A plot in both themes; size in inches. Drawing takes long, so the dark one is the light one recoloured."""
    with matplotlib.rc_context(_plot_style(_LIGHT)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, _LIGHT)
        light = render(figure)
    dark = re.sub(b"|".join(_DARK_FOR), lambda colour: _DARK_FOR[colour[0]], light)
    return Plot(alt, *(_data_uri("image/svg+xml", image) for image in (light, dark)))


def render(figure: Figure) -> bytes:
    """A figure as SVG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _plot_style(theme: Theme) -> dict[Any, Any]:
    """matplotlib settings: text as outlines, and identical bytes for identical data."""
    coloured = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    lines = {"axes.edgecolor": theme.line, "grid.color": theme.line, "legend.frameon": False}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    outlines = {"font.size": 10, "text.usetex": False, "svg.fonttype": "path", "svg.hashsalt": "dmformer"}
    return dict.fromkeys(coloured, theme.text) | lines | spines | outlines


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def column(history: list[dict[str, float]], key: str) -> list[float]:
    """Values of a column of metrics.csv, nan where missing."""
    return [float(row.get(key, math.nan)) for row in history]


def finite(history: list[dict[str, float]], key: str) -> list[float]:
    return [value for value in column(history, key) if math.isfinite(value)]


Line = tuple[list[float], list[float]]
"""x and y values."""


def curves(
    axes: Axes, theme: Theme, lines: dict[str, Line], title: str, by: str, shares: bool = False, margin: float = 0.5
) -> None:
    """Draw one or two lines of a training run.

    Args:
        theme: Its two data colours are the colours of the lines.
        lines: By label; a single line needs none.
        by: Label of the horizontal axis, which has only whole numbers.
        shares: Whether the values are fractions, to be shown in percent.
        margin: Space left and right of the lines, in units of the horizontal axis.
    """
    positions = [x for xs, _ in lines.values() for x in xs]
    marker = "o" if all(len(xs) <= 30 for xs, _ in lines.values()) else ""
    for (label, (xs, ys)), colour in zip(lines.items(), (theme.first, theme.second), strict=False):
        axes.plot(xs, ys, color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(by)
    axes.set_xlim(min(positions) - margin, max(positions) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if any(lines):
        axes.legend()
    else:
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def history_plot(
    history: list[dict[str, float]],
    by: str,
    title: str,
    labels: dict[str, str],
    shares: bool,
    size: tuple[float, float],
    margin: float = 0.5,
) -> list[Plot]:
    """A plot of columns of metrics.csv, with their labels, against another column; None if none of them was
    measured."""
    lines = {label: line for key, label in labels.items() if (line := _line(history, by, key))[0]}
    if not lines:
        return []
    alt = f"{title} by {by}."
    for label, (_, values) in lines.items():
        first, last = (percent(v) if shares else f"{v:.3g}" for v in (values[0], values[-1]))
        alt += f" {label or 'from'} {first} to {last};"
    return [plot(lambda a, t: curves(a, t, lines, title, by, shares, margin), alt.rstrip(";") + ".", size)]


def _line(history: list[dict[str, float]], by: str, key: str) -> Line:
    """One column against another, without the rows in which it was not measured."""
    points = zip(column(history, by), column(history, key), strict=True)
    measured = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in measured], [y for _, y in measured]


def safe_jpeg(draw: Callable[[], Image.Image], alt: str) -> Picture:
    """A picture at its own size; without the picture if `draw` raises, because the report is worth more than one."""
    try:
        return jpeg(draw(), alt)
    except Exception:
        return Picture(alt)


def worst_to_best(values: list[float], each: int) -> dict[str, list[int]]:
    """Photos to show, by heading, `each` per group from the worst on; few photos make one group; nan are left out."""
    ranked = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: values[i])
    if len(ranked) <= 3 * each:
        return {"All photos, the worst first": ranked} if ranked else {}
    middle = (len(ranked) - each) // 2
    return {"Worst": ranked[:each], "Middle": ranked[middle : middle + each], "Best": ranked[-each:]}


@dataclass(frozen=True)
class ClassList:
    """The classes shown in the table, the worst first; if there are many, without those in the middle."""

    worst: list[Any]
    left_out: int
    best: list[Any]
    total: int
    """Number of all classes, including those without any photo or object."""
    absent: int

    @property
    def sortable(self) -> bool:
        return len(self.worst) > SORTABLE_CLASSES and not self.left_out


def class_list(classes: list[Any], total: int) -> ClassList:
    """The classes that have a score, the worst first."""
    absent = total - len(classes)
    if len(classes) <= LISTED_CLASSES:
        return ClassList(classes, 0, [], total, absent)
    return ClassList(classes[:WORST], len(classes) - WORST - BEST, classes[-BEST:], total, absent)


@dataclass(frozen=True)
class ClassError:
    """How often one class is mistaken for another, and out of how many."""

    truth: str
    prediction: str
    count: int
    of: int


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    kind: str
    """right, wrong or none: its class in the style sheet"""
    depth: float
    """Depth of its colour: the root of its fraction of the row, so that rare errors are visible beside the diagonal."""
    figure: str
    told: str
    """The tooltip."""


@dataclass(frozen=True)
class Confusion:
    """Which classes are mistaken for which."""

    classes: int
    rows: list[tuple[str, list[Cell]]]
    """Rows of the matrix as a table, by true class; none if there are too many classes."""
    drawn: list[tuple[str, list[tuple[int, Cell]]]]
    """Rows of the matrix as a drawing: the columns of the cells that hold something; none if the table is there, or if
    there are too many classes even for that."""
    counted: bool
    """Whether the matrix has room for figures."""
    errors: list[ClassError]
    """The most frequent errors; ties are in the order of the classes."""


def confusion_of(
    counts: list[list[int]], names: list[str], figures: Callable[[int, float], tuple[str, str]]
) -> Confusion:
    """Prepare the confusion for the page.

    Args:
        counts: By true and predicted class.
        figures: Turns a cell's count and its fraction of the row into the cell's text and its tooltip.
    """
    K = len(names)
    cells = ((t, p, n) for t, row in enumerate(counts) for p, n in enumerate(row) if n and t != p)
    frequent = sorted(cells, key=lambda cell: -cell[2])[:CONFUSIONS]
    errors = [ClassError(names[t], names[p], n, sum(counts[t])) for t, p, n in frequent]
    if K > DRAWN_CLASSES:
        return Confusion(K, [], [], False, errors)
    rows = [(names[t], _cells(t, row, names, figures)) for t, row in enumerate(counts)]
    if K <= MATRIX_CLASSES:
        return Confusion(K, rows, [], K <= COUNTED_CLASSES, errors)
    drawn = [(name, [(p, cell) for p, cell in enumerate(row) if cell.depth**2 >= VISIBLE]) for name, row in rows]
    return Confusion(K, [], drawn, False, errors)


def _cells(t: int, counts: list[int], names: list[str], figures: Callable[[int, float], tuple[str, str]]) -> list[Cell]:
    cells = []
    for p, n in enumerate(counts):
        share = n / max(sum(counts), 1)
        figure, told = figures(n, share)
        kind = "right" if t == p else "wrong" if n else "none"
        cells.append(Cell(kind, math.sqrt(share), figure, f"{visible(names[t])} → {visible(names[p])}: {told}"))
    return cells


def css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def jpeg(image: Image.Image, alt: str) -> Picture:
    """A picture at its own size."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return Picture(alt, _data_uri("image/jpeg", buffer.getvalue()), image.width, image.height)


def _throughput(history: list[dict[str, float]], rows_are: str) -> dict[str, str]:
    """Medians, because the first row includes warming up."""
    facts = {}
    if speeds := finite(history, "images_per_second"):
        facts["throughput"] = f"{statistics.median(speeds):,.0f} images per second (median of the {rows_are})"
    if waits := finite(history, "wait_share"):
        facts["waiting for data"] = f"{percent(statistics.median(waits))} of the time (median of the {rows_are})"
    if memory := finite(history, "memory_gb"):
        facts["peak memory"] = f"{max(memory):.2f} GB"
    return facts
