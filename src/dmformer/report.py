"""The report of a classification run: one HTML page that needs no network, no script and no other file."""

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
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from .files import write_whole
from .tasks.classification import ClassScore, Score, Scores

MATRIX_CLASSES, COUNTED_CLASSES = 40, 15
"""Most classes with a confusion matrix, and with the counts written in it."""
CONFUSIONS = 20
LISTED_CLASSES, WORST, BEST = 50, 25, 5
"""Above so many classes only the worst and the best are listed."""
PICTURES, THUMBNAIL = 12, 224
BROKEN = 50
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


@dataclass(frozen=True)
class _Theme:
    """Colours of the plots; the two of data are from Okabe and Ito's palette, safe for the colour-blind."""

    text: str
    line: str
    first: str
    second: str


_LIGHT = _Theme(text="#4a5058", line="#d5d9de", first="#0072b2", second="#d55e00")
_DARK = _Theme(text="#aab2bc", line="#3a4149", first="#56b4e9", second="#e69f00")


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all."""
    sections = {
        "verdict": ("Verdict", _verdict(report) + _tiles(report.scores)),
        "training": ("Training", _training(report.history)),
        "confusion": ("Confusion", _confusion(report.scores, report.class_names)),
        "classes": ("Classes", _classes(report.scores.classes)),
        "calibration": ("Calibration", _calibration(report)),
        "pictures": ("Pictures", _pictures(report)),
        "files": ("Broken files", _broken(report.broken)),
        "making": ("How it was made", _making(report)),
    }
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for key, (heading, _) in sections.items())
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>{body}</section>\n'
        for key, (heading, body) in sections.items()
    )
    title = _text(report.title)
    write_whole(path, _PAGE.format(title=title, style=_STYLE, links=links, sections=bodies))


def _text(text: str) -> str:
    """Escaped for text and attributes; bytes of file names that are no Unicode, which UTF-8 refuses, become marks."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def _name(text: str) -> str:
    """A name from the data, kept from turning round the sentence about it if it is written from right to left."""
    return f"<bdi>{_text(text)}</bdi>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _interval(score: Score) -> str:
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _photos(n: int, kind: str = "") -> str:
    return f"{n:,} {kind}{' ' if kind else ''}photo{'' if n == 1 else 's'}"


def _svg(draw: Callable[[Axes, _Theme], None], theme: _Theme, size: tuple[float, float]) -> str:
    """A plot as a data URI; size in inches."""
    with matplotlib.rc_context(_plot_style(theme)):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, theme)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def _plot_style(theme: _Theme) -> dict[Any, Any]:
    """matplotlib's settings; text as outlines, and the same bytes from the same data."""
    coloured = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    lines = {"axes.edgecolor": theme.line, "grid.color": theme.line, "legend.frameon": False}
    spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    outlines = {"font.size": 10, "text.usetex": False, "svg.fonttype": "path", "svg.hashsalt": "dmformer"}
    return dict.fromkeys(coloured, theme.text) | lines | spines | outlines


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _plot(draw: Callable[[Axes, _Theme], None], alt: str, size: tuple[float, float] = (3.9, 2.8)) -> str:
    """A plot in both themes, of which the browser shows one."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_svg(draw, _DARK, size)}">'
        f'<img class="plot" alt="{_text(alt)}" src="{_svg(draw, _LIGHT, size)}"></picture>'
    )


def _table(label: str, head: list[str], rows: list[str], kind: str = "") -> str:
    """A table that scrolls by itself on a narrow screen, by the keyboard too. `rows` are HTML."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    head_row = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{kind}">'
        f"{head_row}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(report: Report) -> str:
    """The result in words, against the answer that needs no model."""
    scores, model = report.scores, report.title.split(" on ")[0] if " on " in report.title else "the model"
    common = max(scores.classes, key=lambda c: c.count)
    baseline, top1 = common.count / scores.count, scores.top1
    doubt = "" if top1.low > baseline else " The data do not show that the model does better than that."
    return (
        f'<p class="verdict">On {_photos(scores.count, _text(report.split))} {_name(model)} is right '
        f"{_percent(top1.value)} of the time (95\u00a0% interval {_interval(top1)}); "
        f"always answering '{_name(common.name)}' would be right {_percent(baseline)}.{doubt}</p>"
        f"<p>{_weakness(scores, report.class_names)}</p>"
    )


def _weakness(scores: Scores, names: list[str]) -> str:
    confusions = _top_confusions(scores.confusion)
    if not confusions:
        return "It made no error on these photos."
    worst = min((c for c in scores.classes if c.count), key=lambda c: c.f1)
    truth, prediction, n = confusions[0]
    return (
        f"It is weakest on '{_name(worst.name)}' (F1 {_percent(worst.f1)}); its most frequent error is to take "
        f"'{_name(names[truth])}' for '{_name(names[prediction])}' ({n:,} of {_photos(scores.classes[truth].count)})."
    )


def _top_confusions(confusion: list[list[int]]) -> list[tuple[int, int, int]]:
    """(truth, prediction, images) of the most frequent errors, the first class first among equals."""
    cells = ((t, p, n) for t, row in enumerate(confusion) for p, n in enumerate(row) if n and t != p)
    return sorted(cells, key=lambda cell: -cell[2])[:CONFUSIONS]


def _tiles(scores: Scores) -> str:
    figures: list[tuple[str, Score | str | None, str]] = [
        ("Top-1 accuracy", scores.top1, "first answer right"),
        ("Top-5 accuracy", scores.top5, "right one among five answers"),
        ("Balanced accuracy", scores.balanced_accuracy, "every class counts the same"),
        ("Macro F1", scores.macro_f1, "precision and recall, mean of classes"),
        ("AUROC", None if scores.auroc is None else f"{scores.auroc:.3f}", "1 ranks perfectly, 0.5 is chance"),
        ("Calibration error", _percent(scores.calibration_error), "confidence against truth, 0 is best"),
    ]
    return f'<dl class="tiles">{"".join(_tile(*figure) for figure in figures if figure[1] is not None)}</dl>'


def _tile(label: str, figure: Score | str | None, meaning: str) -> str:
    interval = _interval(figure) if isinstance(figure, Score) else ""
    value = _percent(figure.value) if isinstance(figure, Score) else figure
    range_ = f'<dd class="interval">95 %: {interval}</dd>' if interval else ""
    return f'<div><dt>{label}</dt><dd class="figure">{value}</dd>{range_}<dd class="note">{meaning}</dd></div>'


def _column(history: list[dict[str, float]], key: str) -> list[float]:
    return [float(row.get(key, math.nan)) for row in history]


def _finite(history: list[dict[str, float]], key: str) -> list[float]:
    return [value for value in _column(history, key) if math.isfinite(value)]


def _training(history: list[dict[str, float]]) -> str:
    if not history:
        return "<p>No epoch was recorded.</p>"
    epoch, train_loss, val_loss = (_column(history, key)[-1] for key in ("epoch", "train_loss", "val_loss"))
    told = (
        f"After epoch {epoch:.0f} the loss is {train_loss:.3f} in training and {val_loss:.3f} on the validation photos."
    )
    if balanced := _finite(history, "val_balanced_accuracy"):
        best = _column(history, "val_balanced_accuracy").index(max(balanced))
        told += f" Balanced accuracy is highest at epoch {history[best]['epoch']:.0f}: {_percent(max(balanced))}."
    losses = {"train_loss": "training", "val_loss": "validation"}
    accuracies = {"val_top1": "top-1", "val_balanced_accuracy": "balanced"}
    return (
        f'<p>{told}</p><div class="plots">'
        + _plot(lambda a, t: _curves(a, t, history, losses, "Loss"), f"Loss by epoch. {told}")
        + _plot(lambda a, t: _curves(a, t, history, accuracies, "Validation accuracy"), f"Accuracy by epoch. {told}")
        + _plot(lambda a, t: _curves(a, t, history, {"lr": ""}, "Learning rate"), "Learning rate by epoch.", (2.3, 2.8))
        + "</div>"
    )


def _curves(axes: Axes, theme: _Theme, history: list[dict[str, float]], keys: dict[str, str], title: str) -> None:
    """Lines by epoch; `keys` are columns with their labels. Accuracies are shares, and shown in percent."""
    epochs = _column(history, "epoch")
    marker = "o" if len(history) <= 30 else ""
    for (key, label), colour in zip(keys.items(), (theme.first, theme.second), strict=False):
        axes.plot(epochs, _column(history, key), color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if any(key.startswith("val_top") for key in keys):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if len(keys) > 1:
        axes.legend()
    else:
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def _confusion(scores: Scores, names: list[str]) -> str:
    """As a table and not a plot: names may be in any script, and the cells can be read aloud."""
    K, confusions = len(names), _top_confusions(scores.confusion)
    if K > MATRIX_CLASSES:
        html = f"<p>A matrix of {K:,} classes cannot be read; the most frequent confusions instead.</p>"
    else:
        what = "how many of its photos" if K <= COUNTED_CLASSES else "by their colour what share of its photos"
        html = f"<p>Each row is a true class; its cells tell {what} got which answer: "
        html += (
            '<span class="keys"><span class="right">right</span> <span class="wrong">wrong</span></span></p>'
            + _matrix(scores, names)
        )
    if K > COUNTED_CLASSES:
        rows = [
            f"<tr><td>{_name(names[t])}</td><td>{_name(names[p])}</td><td>{n:,}</td>"
            f"{_bar(n / scores.classes[t].count)}</tr>"
            for t, p, n in confusions
        ]
        head = ["Truth", "Prediction", "Photos", "Of the class"]
        html += _table("Most frequent confusions", head, rows, "pairs") if rows else "<p>There is none.</p>"
    return html


def _matrix(scores: Scores, names: list[str]) -> str:
    counted = len(names) <= COUNTED_CLASSES
    rows = []
    for t, counts in enumerate(scores.confusion):
        n_row = max(sum(counts), 1)
        cells = "".join(_cell(t == p, n, n / n_row, f"{names[t]} → {names[p]}", counted) for p, n in enumerate(counts))
        rows.append(f'<tr><th scope="row">{_name(names[t])}</th>{cells}</tr>')
    head = ["truth ↓ prediction →", *(f'<span class="up">{_name(name)}</span>' for name in names)]
    return _table("Confusion matrix", head, rows, "matrix" if counted else "matrix small")


def _cell(right: bool, n: int, share: float, label: str, counted: bool) -> str:
    """Coloured by the root of its share of the row: else rare errors could not be seen beside the diagonal."""
    kind = "right" if right else "wrong" if n else "none"
    style = f"--share:{math.sqrt(share):.3f}"
    return f'<td class="{kind}" style="{style}" title="{_text(label)}: {n:,}">{n if counted else ""}</td>'


def _bar(share: float) -> str:
    return f'<td class="bar" style="--share:{share:.3f}">{_percent(share)}</td>'


def _classes(classes: list[ClassScore]) -> str:
    present = sorted((c for c in classes if c.count), key=lambda c: c.f1)
    absent = len(classes) - len(present)
    rows = [
        f"<tr><td>{_name(c.name)}</td>{_bar(c.precision)}{_bar(c.recall)}{_bar(c.f1)}<td>{c.count:,}</td></tr>"
        for c in present
    ]
    html = "<p>The class with the lowest F1 comes first. Precision: of the photos called so, how many are. "
    html += "Recall: of the photos that are so, how many were found.</p>"
    if len(rows) > LISTED_CLASSES:
        left_out = len(rows) - WORST - BEST
        gap = f'<tr><td class="gap" colspan="5">{left_out:,} classes between are left out</td></tr>'
        html += f"<p>These are the {WORST} worst and the {BEST} best of {len(rows):,} classes.</p>"
        rows = [*rows[:WORST], gap, *rows[-BEST:]]
    if absent:
        have = "has" if absent == 1 else "have"
        html += f"<p>{absent:,} of {len(classes):,} classes {have} no photo here and so no row.</p>"
    return html + _table("Scores of the classes", ["Class", "Precision", "Recall", "F1", "Photos"], rows)


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
    told = f"The calibration error is {_percent(report.scores.calibration_error)}: the model's mean confidence is "
    told += f"{_percent(mean)} and it is right {_percent(report.scores.top1.value)} of the time, so on the whole it is "
    told += f"{surer}. Bars on the diagonal would mean that of the answers given with 80 % confidence 80 % are right; "
    told += "bars below it mean too much confidence. Bins with few photos say little."
    return (
        f'<p>{told}</p><div class="plots">'
        + _plot(
            lambda a, t: _reliability(a, t, accuracy, counts), f"Share of right answers by confidence. {told}", (5, 3)
        )
        + _plot(lambda a, t: _bins(a, t, counts), "Number of photos by confidence.", (5, 3))
        + "</div>"
    )


def _reliability(axes: Axes, theme: _Theme, accuracy: Tensor, counts: Tensor) -> None:
    centres = (torch.arange(BINS) + 0.5) / BINS
    filled = counts > 0
    axes.bar(centres[filled].tolist(), accuracy[filled].tolist(), width=0.9 / BINS, color=theme.first, alpha=0.6)
    axes.plot([0, 1], [0, 1], color=theme.second, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1.02)
    _confidence_axis(axes, "Right answers by confidence")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _bins(axes: Axes, theme: _Theme, counts: Tensor) -> None:
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
    alt = f"{report.image_names[i]}: truth {truth}, prediction {answer}, {_percent(float(share))} confident"
    return (
        f"<li><figure>{_thumbnail(report.load_image, i, alt)}<figcaption><dl><dt>truth</dt><dd>{_name(truth)}</dd>"
        f'<dt>prediction</dt><dd class="{verdict}-text">{_name(answer)} {"✓" if right else "✗"}</dd>'
        f'<dt>confidence</dt><dd>{_percent(float(share))}</dd></dl><span class="file">'
        f"{_name(report.image_names[i])}</span></figcaption></figure></li>"
    )


def _thumbnail(load_image: Callable[[int], Image.Image], i: int, alt: str) -> str:
    try:
        image = load_image(i).convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=85)
    except Exception:  # whatever ails one photo, the report is worth more than the photo
        return f'<div class="missing" role="img" aria-label="{_text(alt)}">cannot be shown</div>'
    uri = _data_uri("image/jpeg", buffer.getvalue())
    return f'<img alt="{_text(alt)}" width="{image.width}" height="{image.height}" src="{uri}">'


def _broken(broken: list[tuple[str, str]]) -> str:
    if not broken:
        return "<p>All files could be read.</p>"
    more = f" These are the first {BROKEN}." if len(broken) > BROKEN else ""
    were = "file could not be read and was" if len(broken) == 1 else "files could not be read and were"
    rows = [f"<tr><td>{_name(file)}</td><td>{_text(reason)}</td></tr>" for file, reason in broken[:BROKEN]]
    return f"<p>{len(broken):,} {were} left out.{more}</p>" + _table("Broken files", ["File", "Reason"], rows, "words")


def _making(report: Report) -> str:
    html = ""
    if "command" in report.facts:
        html = (
            f'<pre role="region" tabindex="0" aria-label="Command"><code>{_text(report.facts["command"])}</code></pre>'
        )
    facts = {k: v for k, v in report.facts.items() if k != "command"} | _throughput(report.history)
    rows = [f'<tr><th scope="row">{_text(key)}</th><td>{_text(value)}</td></tr>' for key, value in facts.items()]
    html += _table("Facts", [], rows, "words") if rows else ""
    return html + (
        f"<details><summary>The whole recipe</summary>"
        f'<pre role="region" tabindex="0" aria-label="Recipe"><code>{_text(report.recipe)}</code></pre></details>'
    )


def _throughput(history: list[dict[str, float]]) -> dict[str, str]:
    """Medians, since the first epoch pays for warming up."""
    facts = {}
    if speeds := _finite(history, "images_per_second"):
        facts["throughput"] = f"{statistics.median(speeds):,.0f} images per second (median of the epochs)"
    if waits := _finite(history, "wait_share"):
        facts["waiting for data"] = f"{_percent(statistics.median(waits))} of the time (median of the epochs)"
    if memory := _finite(history, "memory_gb"):
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
