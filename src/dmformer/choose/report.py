"""The page of `dmformer choose`: who won, how sure that is, the front, and who fell out where and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ..report.page import Plot, Theme, number, plot, write_page
from ..utils.display import duration
from . import race
from .candidates import Candidate, Entrant
from .limits import FIGURES, Limits
from .run import Choice, Fallen

PAGE = "choice.html"

FAR = 3
"""A limit on latency this many times as high as all models' is not drawn, because it would squeeze the others."""


@dataclass(frozen=True)
class Row:
    """A finalist in the table."""

    name: str
    form: str
    score: float
    interval: tuple[float, float]
    seeds: str
    latency: str
    memory: str
    disk: str
    level: bool
    in_front: bool


def write_choice(path: Path, choice: Choice, command: str) -> None:
    """Write the page to `path` atomically."""
    measured = [(name, figures) for name, figures in choice.state.measured.items() if "failed" not in figures]
    values = {
        "title": f"A backbone for {Path(choice.question.data).name}",
        "choice": choice,
        "winner": choice.winner,
        "verdict": verdict(choice),
        "epochs": lambda n: number(n, "epoch"),
        "certainty": certainty(choice),
        "rows": finalists(choice),
        "plots": [_front_plot(choice)],
        "limits": limits_in_words(choice.question.limits),
        "fallen": _in_words(choice.fallen),
        "measured": sorted(measured, key=lambda each: each[1]["latency_ms"]),
        "energy": any(figures["energy_j"] is not None for _, figures in measured),
        "costs": choice.state.costs,
        "facts": facts(choice, command),
    }
    write_page(path, "choose/report.html", values)


def limits_in_words(limits: Limits) -> str:
    """The limits: "latency 20 ms, disk 20 MB"; "none" without any."""
    told = [
        f"{word} {getattr(limits, name):g} {unit}"
        for name, (word, unit) in FIGURES.items()
        if getattr(limits, name) is not None
    ]
    return ", ".join(told) or "none"


def verdict(choice: Choice) -> str:
    """The winner and its figures in a sentence or two; and whether others are as good."""
    winner = choice.winner
    candidate = next(c for c in choice.forms[winner["entrant"]] if c.name == winner["candidate"])
    figures = choice.figures(candidate)
    test = winner["test"]
    told = (
        f"{named(candidate.entrant)} in {in_words(candidate)}: {choice.figure} {test['value']:.1%} on "
        f"{winner['count']:,} {winner['split']} photos (95 % interval {test['low']:.1%} to {test['high']:.1%}), "
        f"{figures['latency_ms']:.1f} ms a call."
    )
    if level := winner["level"]:
        told += f" It is a tie: the validation photos do not tell it from {and_so(level)}."
    return told


def named(entrant: Entrant) -> str:
    """An entrant in words: "van_b0 with atss at 320 px"."""
    return f"{entrant.model}{f' with {entrant.head}' if entrant.head else ''} at {entrant.image_size} px"


def and_so(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def in_words(candidate: Candidate) -> str:
    """A form and its threads: "openvino int8, 2 threads"."""
    threads = number(candidate.threads, "thread")
    form = "PyTorch, fused" if candidate.form == "fused" else candidate.form.replace("-", " ")
    return f"{form}, {threads}"


def certainty(choice: Choice) -> list[str]:
    """How sure the ranking is, in sentences."""
    first, *others = choice.finalists
    images = choice.images[1]
    told = [
        f"{first.name} leads on {images:,} validation photos with {choice.figure} {first.score:.1%}; its interval, of "
        f"chance in the choice of these photos and of the seeds, goes from {first.low:.1%} to {first.high:.1%}."
    ]
    if len(first.seeds) > 1:
        told.append(
            f"Its {len(first.seeds)} trainings with different seeds reached {min(first.seeds):.1%} to "
            f"{max(first.seeds):.1%}."
        )
    else:
        why = "There was time for" if choice.question.seeds > 1 else "It was asked for"
        told.append(f"{why} one training of each finalist only, so the spread of the seeds is unknown.")
    level = race.level_with(first, others)
    for other in level:
        ratio = choice.latency(other.name) / choice.latency(first.name)
        speed = f"takes {ratio:.2g} times as long" if ratio >= 1 else f"is {1 / ratio:.2g} times as fast"
        told.append(f"{other.name} is level with it: {other.score:.1%}, and the intervals overlap. It {speed}.")
    if others and not level:
        told.append("No other finalist is level with it: their intervals do not overlap with its own.")
    spread = max(max(each.seeds) - min(each.seeds) for each in choice.finalists)
    early = [f.name for f in choice.fallen if f.level or (f.behind is not None and f.behind <= spread)]
    if early:
        told.append(
            f"{and_so(early)} fell out in an earlier round although no farther behind the last that went on than by "
            "chance in the photos or in the seed: with another seed, they might have gone on."
        )
    if choice.winner["epochs"] > choice.state.rounds[-1]["epochs"]:
        told.append(
            f"After the final, {choice.winner['entrant']} was trained for {number(choice.winner['epochs'], 'epoch')} "
            f"and reached {choice.winner['validation']:.1%}: these are the weights that were exported and scored."
        )
    if choice.winner["entrant"] != first.name:
        told.append(f"{first.name} could not be exported in a form that meets the limits.")
    if choice.winner["split"] == "test":
        told.append("The test photos took no part in the choice: they were scored once, by the winner.")
    else:
        told.append("There are no test photos: the winner was chosen on the photos of its score, so that is too high.")
    return told


def finalists(choice: Choice) -> list[Row]:
    """The finalists for the table, the most accurate first."""
    first = choice.finalists[0]
    level = {each.name for each in race.level_with(first, choice.finalists)}
    on_front = race.front({each.name: (each.score, choice.latency(each.name)) for each in choice.finalists})
    rows = []
    for each in choice.finalists:
        chosen = [c for c in choice.forms[each.name] if c.name == choice.winner["candidate"]]
        candidate = (chosen or choice.forms[each.name])[0]
        figures = choice.figures(candidate)
        rows.append(
            Row(
                each.name,
                in_words(candidate),
                each.score,
                (each.low, each.high),
                ", ".join(f"{100 * seed:.1f}" for seed in each.seeds),
                f"{figures['latency_ms']:.1f} ({figures['latency_low']:.1f} to {figures['latency_high']:.1f})",
                "–" if figures["memory_mb"] is None else f"{figures['memory_mb']:.0f}",
                f"{figures['disk_mb']:.1f}",
                each.name in level,
                each.name in on_front,
            )
        )
    return rows


def facts(choice: Choice, command: str) -> dict[str, str]:
    """How the choice was made."""
    question, images = choice.question, choice.images
    test = f", {images[2]} test" if images[2] else ""
    return {
        "command": command,
        "photos": f"{images[0]} training, {images[1]} validation{test}",
        "limits": limits_in_words(question.limits),
        "photos per call": str(question.batch_size),
        "machine": choice.state.machine,
        "time": f"{duration(choice.state.seconds)}; {duration(3600 * question.hours)} were given",
        "recipe of the trials": question.recipe,
        "rounds": "; ".join(
            f"{number(len(each['names']), 'model')}, {number(each['epochs'], 'epoch')}, {number(each['seeds'], 'seed')}"
            for each in choice.state.rounds
        ),
        "weights of the winner": f"trained for {number(choice.winner['epochs'], 'epoch')}",
    }


def _in_words(fallen: list[Fallen]) -> list[Fallen]:
    words = {
        "bounds": "before it was built",
        "limits": "when it was measured",
        "measuring": "it could not be measured",
        "training": "it could not be trained",
        "final": "in the final",
    }
    return [replace(each, stage=words.get(each.stage, f"in {each.stage}")) for each in fallen]


def _front_plot(choice: Choice) -> Plot:
    """Validation score against latency: the finalists with their intervals, and those that fell out in the race."""
    final = {each.name: each for each in choice.finalists}
    points = {name: (score, choice.latency(name)) for name, score in choice.scores.items()}
    on_front = race.front({name: points[name] for name in final})

    def draw(axes: Axes, theme: Theme) -> None:
        out = [point for name, point in points.items() if name not in final]
        axes.plot([t for _, t in out], [a for a, _ in out], "o", color=theme.line, label="fell out, fewer epochs")
        for each in final.values():
            low, high = each.score - each.low, each.high - each.score
            axes.errorbar(
                points[each.name][1],
                each.score,
                [[low], [high]],
                fmt="o",
                color=theme.second if each.name == choice.winner["entrant"] else theme.first,
                capsize=3,
            )
        line = [points[name] for name in on_front]
        axes.plot([t for _, t in line], [a for a, _ in line], color=theme.first, linewidth=1, zorder=0)
        for name, (score, latency) in points.items():
            size = "small" if name in final else "x-small"
            axes.annotate(name, (latency, score), (6, 4), textcoords="offset points", fontsize=size)
        limit = choice.question.limits.latency_ms
        if limit is not None and limit < FAR * max(latency for _, latency in points.values()):
            axes.axvline(limit, color=theme.second, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
        axes.set_xlabel(f"ms a call of {number(choice.question.batch_size, 'photo')}, logarithmic")
        axes.set_title(f"{choice.figure} on validation", fontsize=11)

    told = "; ".join(f"{name} {score:.1%} in {latency:.1f} ms" for name, (score, latency) in points.items())
    return plot(draw, f"{choice.figure} on the validation photos against latency: {told}.", (8.0, 4.6))
