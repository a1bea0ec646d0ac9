"""The page of `dmformer search`: the best trial and its command, scores by option, and all trials."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ..report.page import Plot, Theme, number, plot, write_page
from ..utils.display import duration
from .run import Search, Trial
from .space import Over

PAGE = "search.html"


def write_search(path: Path, search: Search, train: str, command: str) -> None:
    """Write the page to `path` atomically.

    Args:
        train: The command that trains the best trial in full; empty without one.
        command: The command line of the search.
    """
    trials = search.trials
    scored = [trial for trial in trials if trial.scores]
    values = {
        "title": f"A search on {Path(str(search.recipe.data)).name or search.recipe.task}",
        "best": search.best,
        "train": train,
        "headline": search.headline,
        "names": [each.name for each in search.over],
        "trials": [(trial, duration(trial.seconds)) for trial in trials],
        "plots": [_curves(scored, search), *(_scores_by(each, scored) for each in search.over)] if scored else [],
        "tested": bool(search.images[2]),
        "facts": facts(search, trials, command),
    }
    write_page(path, "search/report.html", values)


def facts(search: Search, trials: list[Trial], command: str) -> dict[str, str]:
    """How the search was made."""
    train, val, test = search.images
    complete = sum(trial.complete for trial in trials)
    return {
        "command": command,
        "photos": f"{train} training, {val} validation{f', {test} test' if test else ''}",
        "searched": "; ".join(map(in_words, search.over)),
        "trials": f"{number(len(trials), 'trial')}, {complete} complete, {len(trials) - complete} not",
        "length of a trial": number(search.recipe.validations, search.unit),
        "time of the trials": duration(sum(trial.seconds for trial in trials)),
    }


def in_words(over: Over) -> str:
    """An option with its values: "lr 0.0001 to 0.003, logarithmic"."""
    if over.is_range:
        return f"{over.name} {over.values[0]:g} to {over.values[1]:g}{', logarithmic' if over.log else ''}"
    return f"{over.name} {', '.join(map(str, over.values))}"


def _curves(trials: list[Trial], search: Search) -> Plot:
    """The validation scores of every trial: where it was pruned, its line ends."""
    best = search.best

    def draw(axes: Axes, theme: Theme) -> None:
        for trial in reversed(trials):
            steps = range(1, len(trial.scores) + 1)
            of_best = best is not None and trial.name == best.name
            colour = theme.second if of_best else theme.first if trial.complete else theme.line
            axes.plot(steps, trial.scores, color=colour, linewidth=2 if of_best else 1, marker="o", markersize=3)
        axes.set_title("Validation score; the best trial in orange, pruned ones in grey", fontsize=11)
        axes.set_xlabel(search.unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    told = "; ".join(f"{trial.name} {trial.score:.1%} in {len(trial.scores)}" for trial in trials)
    return plot(draw, f"Validation score by {search.unit}: {told}.", (8.0, 3.4))


def _scores_by(over: Over, trials: list[Trial]) -> Plot:
    """The score of every trial by the value of an option."""
    labels = [] if over.is_range else [str(value) for value in over.values]

    def draw(axes: Axes, theme: Theme) -> None:
        for complete, colour in ((False, theme.line), (True, theme.first)):
            shown = [trial for trial in trials if trial.complete == complete]
            values = [trial.values[over.name] for trial in shown]
            places = values if over.is_range else [over.values.index(value) for value in values]
            axes.plot(places, [max(trial.scores) for trial in shown], "o", color=colour, markersize=5)
        if over.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        if labels:
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_title(over.name, fontsize=11)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    told = "; ".join(f"{trial.values[over.name]}: {trial.score:.1%}" for trial in trials)
    return plot(draw, f"Validation score by {over.name}: {told}.")
