"""What the reports share: a page that needs no network, script or other file, with plots and tables in both themes."""

import math
import statistics
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from ..utils.files import write_whole
from ..utils.intervals import Score

MATRIX_CLASSES, COUNTED_CLASSES = 40, 15
"""Most classes with a confusion matrix, and with figures written in it."""
CONFUSIONS = 20
LISTED_CLASSES, WORST, BEST = 50, 25, 5
"""Above so many classes only the worst and the best are listed."""
BROKEN = 50


@dataclass(frozen=True)
class Theme:
    """Colours of the plots; the two of data are from Okabe and Ito's palette, safe for the colour-blind."""

    text: str
    line: str
    first: str
    second: str


_LIGHT = Theme(text="#4a5058", line="#d5d9de", first="#0072b2", second="#d55e00")
_DARK = Theme(text="#aab2bc", line="#3a4149", first="#56b4e9", second="#e69f00")


def write_page(path: Path, title: str, sections: dict[str, tuple[str, str]], style: str = "") -> None:
    """Write the page to `path`, whole or not at all.

    Args:
        path: Of the file.
        title: As text.
        sections: By their anchors, (heading, body); both HTML.
        style: CSS beside that of every page.
    """
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, (heading, _) in sections.items())
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>{body}</section>\n'
        for key, (heading, body) in sections.items()
    )
    write_whole(path, _PAGE.format(title=escaped(title), style=_STYLE + style, links=links, sections=bodies))


def escaped(text: str) -> str:
    """Escaped for text and attributes; bytes of file names that are no Unicode, which UTF-8 refuses, become marks."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def shown_name(text: str) -> str:
    """A name from the data, kept from turning round the sentence about it if it is written from right to left."""
    return f"<bdi>{escaped(text)}</bdi>"


def model_name(title: str) -> str:
    """What stands before "on" in the title; HTML."""
    return shown_name(title.split(" on ")[0] if " on " in title else "the model")


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def interval(score: Score) -> str:
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def photos(n: int, kind: str = "") -> str:
    return f"{n:,} {kind}{' ' if kind else ''}photo{'' if n == 1 else 's'}"


def plot(draw: Callable[[Axes, Theme], None], alt: str, size: tuple[float, float] = (3.9, 2.8)) -> str:
    """A plot in both themes, of which the browser shows one; size in inches."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_svg(draw, _DARK, size)}">'
        f'<img class="plot" alt="{escaped(alt)}" src="{_svg(draw, _LIGHT, size)}"></picture>'
    )


def _svg(draw: Callable[[Axes, Theme], None], theme: Theme, size: tuple[float, float]) -> str:
    """A plot as a data URI."""
    with matplotlib.rc_context(_plot_style(theme)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, theme)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def _plot_style(theme: Theme) -> dict[Any, Any]:
    """matplotlib's settings; text as outlines, and the same bytes from the same data."""
    coloured = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    lines = {"axes.edgecolor": theme.line, "grid.color": theme.line, "legend.frameon": False}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    outlines = {"font.size": 10, "text.usetex": False, "svg.fonttype": "path", "svg.hashsalt": "dmformer"}
    return dict.fromkeys(coloured, theme.text) | lines | spines | outlines


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def column(history: list[dict[str, float]], key: str) -> list[float]:
    """Values of a column of metrics.csv, nan where there is none."""
    return [float(row.get(key, math.nan)) for row in history]


def finite(history: list[dict[str, float]], key: str) -> list[float]:
    return [value for value in column(history, key) if math.isfinite(value)]


Line = tuple[list[float], list[float]]
"""Abscissas and ordinates."""


def curves(
    axes: Axes,
    theme: Theme,
    lines: dict[str, Line],
    title: str,
    by: str,
    shares: bool = False,
    margin: float = 0.5,
) -> None:
    """Draw one or two lines of the training.

    Args:
        axes: To draw on.
        theme: Its two colours of data are those of the lines.
        lines: By their labels; one line alone may have none.
        title: Of the plot.
        by: Of the horizontal axis, where only whole numbers are.
        shares: Whether the values are shares, and to be shown in percent.
        margin: Free on either side of the lines, in units of the horizontal axis.
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
) -> str:
    """A plot of columns of metrics.csv with their labels, by another column; none where none of them was measured."""
    lines = {label: line for key, label in labels.items() if (line := _line(history, by, key))[0]}
    if not lines:
        return ""
    alt = f"{title} by {by}."
    for label, (_, values) in lines.items():
        first, last = (percent(v) if shares else f"{v:.3g}" for v in (values[0], values[-1]))
        alt += f" {label or 'from'} {first} to {last};"
    return plot(lambda a, t: curves(a, t, lines, title, by, shares, margin), alt.rstrip(";") + ".", size)


def _line(history: list[dict[str, float]], by: str, key: str) -> Line:
    """A column by another, without the rows in which it was not measured."""
    points = zip(column(history, by), column(history, key), strict=True)
    measured = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in measured], [y for _, y in measured]


def worst_to_best(values: list[float], each: int) -> dict[str, list[int]]:
    """Photos to show by heading, so many of each from the worst on; few photos make one group, nan are left out."""
    ranked = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: values[i])
    if len(ranked) <= 3 * each:
        return {"All photos, the worst first": ranked} if ranked else {}
    middle = (len(ranked) - each) // 2
    return {"Worst": ranked[:each], "Middle": ranked[middle : middle + each], "Best": ranked[-each:]}


def table(label: str, head: list[str], rows: list[str], kind: str = "") -> str:
    """A table that scrolls by itself on a narrow screen, by the keyboard too. `rows` are HTML."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    head_row = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{kind}">'
        f"{head_row}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def bar(share: float) -> str:
    """A cell of a table, with a bar behind its figure."""
    return f'<td class="bar" style="--share:{share:.3f}">{percent(share)}</td>'


def shortened(rows: list[str], columns: int) -> tuple[str, list[str]]:
    """A sentence, or none, and the rows (HTML) of the classes, worst first, without those between if there are many."""
    if len(rows) <= LISTED_CLASSES:
        return "", rows
    left_out = len(rows) - WORST - BEST
    gap = f'<tr><td class="gap" colspan="{columns}">{left_out:,} classes between are left out</td></tr>'
    told = f"<p>These are the {WORST} worst and the {BEST} best of {len(rows):,} classes.</p>"
    return told, [*rows[:WORST], gap, *rows[-BEST:]]


def top_confusions(confusion: list[list[int]]) -> list[tuple[int, int, int]]:
    """(truth, prediction, count) of the most frequent errors, the first class first among equals."""
    cells = ((t, p, n) for t, row in enumerate(confusion) for p, n in enumerate(row) if n and t != p)
    return sorted(cells, key=lambda cell: -cell[2])[:CONFUSIONS]


def confusions_table(confusion: list[list[int]], names: list[str], counted: str) -> str:
    """The most frequent errors; `counted` heads the column of what the confusion counts."""
    rows = [
        f"<tr><td>{shown_name(names[t])}</td><td>{shown_name(names[p])}</td><td>{n:,}</td>"
        f"{bar(n / sum(confusion[t]))}</tr>"
        for t, p, n in top_confusions(confusion)
    ]
    head = ["Truth", "Prediction", counted, "Of the class"]
    return table("Most frequent confusions", head, rows, "pairs") if rows else "<p>There is none.</p>"


def matrix(confusion: list[list[int]], names: list[str], figures: Callable[[int, float], tuple[str, str]]) -> str:
    """The confusion as a table and not a plot: names may be in any script, and the cells can be read aloud.

    Args:
        confusion: Counts by truth and prediction.
        names: Of the classes.
        figures: From a cell's count and its share of the row to what stands in it and what its tooltip tells.
    """
    counted = len(names) <= COUNTED_CLASSES
    rows = []
    for t, counts in enumerate(confusion):
        n_row = max(sum(counts), 1)
        cells = "".join(
            _cell(t == p, n / n_row, f"{names[t]} → {names[p]}", figures(n, n / n_row), counted)
            for p, n in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{shown_name(names[t])}</th>{cells}</tr>')
    head = ["truth ↓ prediction →", *(f'<span class="up">{shown_name(name)}</span>' for name in names)]
    return table("Confusion matrix", head, rows, "matrix" if counted else "matrix small")


def _cell(right: bool, share: float, label: str, figures: tuple[str, str], counted: bool) -> str:
    """Coloured by the root of its share of the row: else rare errors could not be seen beside the diagonal."""
    kind = "right" if right else "wrong" if share else "none"
    style = f"--share:{math.sqrt(share):.3f}"
    shown, told = figures
    return f'<td class="{kind}" style="{style}" title="{escaped(label)}: {told}">{shown if counted else ""}</td>'


def tiles(figures: list[tuple[str, Score | str | None, str]]) -> str:
    """Label, value and meaning of the figures that are to catch the eye; one without value is left out."""
    return f'<dl class="tiles">{"".join(_tile(*figure) for figure in figures if figure[1] is not None)}</dl>'


def _tile(label: str, figure: Score | str | None, meaning: str) -> str:
    among = interval(figure) if isinstance(figure, Score) else ""
    value = percent(figure.value) if isinstance(figure, Score) else figure
    range_ = f'<dd class="interval">95 %: {among}</dd>' if among else ""
    return f'<div><dt>{label}</dt><dd class="figure">{value}</dd>{range_}<dd class="note">{meaning}</dd></div>'


def jpeg(image: Image.Image, alt: str) -> str:
    """A picture in its own size."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    uri = _data_uri("image/jpeg", buffer.getvalue())
    return f'<img alt="{escaped(alt)}" width="{image.width}" height="{image.height}" src="{uri}">'


def missing(alt: str) -> str:
    """What stands for a picture that cannot be made."""
    return f'<div class="missing" role="img" aria-label="{escaped(alt)}">cannot be shown</div>'


def broken_files(broken: list[tuple[str, str]]) -> str:
    if not broken:
        return "<p>All files could be read.</p>"
    more = f" These are the first {BROKEN}." if len(broken) > BROKEN else ""
    were = "file could not be read and was" if len(broken) == 1 else "files could not be read and were"
    rows = [f"<tr><td>{shown_name(file)}</td><td>{escaped(reason)}</td></tr>" for file, reason in broken[:BROKEN]]
    return f"<p>{len(broken):,} {were} left out.{more}</p>" + table("Broken files", ["File", "Reason"], rows, "words")


def making(facts: dict[str, str], history: list[dict[str, float]], recipe: str, rows_are: str = "epochs") -> str:
    """How it was made: the fact "command" apart, the other facts, what the history tells of speed, and the recipe."""
    html = ""
    if "command" in facts:
        html = f'<pre role="region" tabindex="0" aria-label="Command"><code>{escaped(facts["command"])}</code></pre>'
    told = {k: v for k, v in facts.items() if k != "command"} | _throughput(history, rows_are)
    rows = [f'<tr><th scope="row">{escaped(key)}</th><td>{escaped(value)}</td></tr>' for key, value in told.items()]
    html += table("Facts", [], rows, "words") if rows else ""
    return html + (
        f"<details><summary>The whole recipe</summary>"
        f'<pre role="region" tabindex="0" aria-label="Recipe"><code>{escaped(recipe)}</code></pre></details>'
    )


def _throughput(history: list[dict[str, float]], rows_are: str) -> dict[str, str]:
    """Medians, since the first row pays for warming up."""
    facts = {}
    if speeds := finite(history, "images_per_second"):
        facts["throughput"] = f"{statistics.median(speeds):,.0f} images per second (median of the {rows_are})"
    if waits := finite(history, "wait_share"):
        facts["waiting for data"] = f"{percent(statistics.median(waits))} of the time (median of the {rows_are})"
    if memory := finite(history, "memory_gb"):
        facts["peak memory"] = f"{max(memory):.2f} GB"
    return facts


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1><bdi>{title}</bdi></h1><nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{sections}</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #59616b; --line: #dfe3e8; --panel: #f5f7f9;
  --right: #0072b2; --wrong: #d55e00; --right-text: #00629a; --wrong-text: #b04a00; --depth: 62%; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e4e8ed; --quiet: #a1aab5; --line: #30363d;
  --panel: #1d2126; --right: #56b4e9; --wrong: #e69f00; --right-text: #7cc5f0; --wrong-text: #f0b429; --depth: 48%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; }
h3 { margin: 1.6rem 0 .2rem; font-size: 1rem; }
p { max-width: 46rem; margin: 0 0 .9rem; }
section { margin-top: 2.4rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
#verdict { margin-top: 1.2rem; }
#verdict h2 { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.verdict { max-width: 52rem; text-wrap: balance; font-size: 1.3rem; line-height: 1.4; }
a { color: var(--right-text); }
:focus-visible { outline: 2px solid var(--right); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0 0; padding: 0; list-style: none; }
nav { font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tiles div { padding: .8rem .7rem; border-radius: .5rem; background: var(--panel); }
.tiles dt { font-size: .8rem; font-weight: 600; }
.tiles dd { margin: 0; font-size: .8rem; line-height: 1.35; color: var(--quiet); }
.tiles dd.figure { font-size: 1.6rem; line-height: 1.4; color: var(--text); white-space: nowrap; }
.tiles dd.interval { color: var(--text); margin-bottom: .3rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plot { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: end; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .pairs :nth-child(2), .words th, .words td { min-width: 7rem; text-align: start;
  white-space: normal; }
thead th { vertical-align: bottom; font-weight: 600; color: var(--quiet); }
.bar { min-width: 9.5rem; background: linear-gradient(to right, color-mix(in srgb, var(--right) 70%, var(--page))
  calc(var(--share) * 100%), var(--panel) 0) no-repeat .5rem center / calc(100% - 4.9rem) .8rem; }
.gap { color: var(--quiet); font-style: italic; }
.matrix th, .matrix td { border: 1px solid var(--page); }
.matrix td { min-width: 3rem; padding: .4rem; text-align: center; }
.matrix tbody th { font-weight: 400; max-width: 14rem; }
.matrix thead th { padding: .3rem; text-align: center; }
.matrix thead th:first-child { text-align: start; font-weight: 400; font-size: .8rem; }
.up { display: inline-block; writing-mode: vertical-rl; text-orientation: sideways;
  transform: rotate(180deg); max-height: 10rem; text-align: start; white-space: normal;
  overflow: hidden; overflow-wrap: anywhere; }
.small { margin-bottom: 1.2rem; font-size: .7rem; line-height: 1.1; }
.small td { min-width: 1.2rem; padding: 0; height: 1.2rem; }
.small tbody th, .small thead th { padding: 0 .3rem; }
.right { background: color-mix(in srgb, var(--right) calc(var(--share) * var(--depth)), var(--panel)); }
.wrong { background: color-mix(in srgb, var(--wrong) calc(var(--share) * var(--depth)), var(--panel)); }
.none { background: var(--panel); color: var(--quiet); }
.keys { white-space: nowrap; }
.keys span { --share: .8; padding: .1rem .5rem; border-radius: .25rem; font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; padding: 0;
  list-style: none; }
figure { margin: 0; }
figure img, .missing { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  border-radius: .4rem; background: var(--panel); }
.missing { display: grid; place-items: center; color: var(--quiet); font-size: .85rem; }
figcaption { margin-top: .4rem; font-size: .82rem; line-height: 1.4; }
figcaption dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; margin: 0; }
figcaption dt, .file { color: var(--quiet); }
figcaption dd { margin: 0; }
.right-text { color: var(--right-text); }
.wrong-text { color: var(--wrong-text); }
.file { font-size: .75rem; }
pre { overflow-x: auto; padding: .8rem 1rem; border-radius: .5rem; background: var(--panel); font-size: .85rem; }
summary { cursor: pointer; margin-top: 1rem; }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
