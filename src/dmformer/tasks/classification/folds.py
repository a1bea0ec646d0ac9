"""What follows the training of all folds: out-of-fold predictions, scores with their spread, an ensemble, a page."""

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...report.page import write_page
from ...utils.files import write_whole
from ...utils.intervals import Score
from ...utils.views import WORDS
from ..measures import lines_of
from ..results import Summary, fold_folder, write_scores
from ..task import figure_lines
from .classifier import Classifier, save_ensemble
from .datasets import Split, Splits
from .evaluate import Predictions, predict_split
from .image_recipe import ClassifierRecipe
from .kind import Kind, one_label

OUT_OF_FOLD = "out_of_fold.csv"


@dataclass(frozen=True)
class FoldScores:
    """Scores of a run in folds, all of the task's own kind.

    Attributes:
        out_of_fold: Of all photos, each predicted by the model that was not trained on it.
        folds: Of each model on its own fold.
        test: Of each model on the test photos; empty if there are none.
        ensemble: Of the mean of all models on the test photos, if there are any.
    """

    out_of_fold: Any
    folds: list[Any]
    test: list[Any]
    ensemble: Any | None


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a figure over the folds."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} %"


def conclude_folds(recipe: ClassifierRecipe, splits: Splits, run: Path, facts: Mapping[str, str]) -> Summary:
    """`conclude` for one label per photo."""
    return conclude(recipe, splits, run, facts, one_label(splits.class_names))


def conclude(recipe: ClassifierRecipe, splits: Splits, run: Path, facts: Mapping[str, str], kind: Kind) -> Summary:
    """Score the best weights of every fold; write best/, their ensemble, out_of_fold.csv, scores.json and report.html.

    Args:
        recipe: The recipe of the whole run.
        splits: Its data, in folds.
        run: Its folder, with fold-1, fold-2, … in it.
        facts: How it was made, for the page.
    """
    places = [fold_folder(run, i) / "best" for i in range(1, len(splits.folds) + 1)]
    members = [kind.open(str(place)) for place in places]
    vals = [splits.of_fold(i).val for i in range(1, len(members) + 1)]
    own = [predict_split(member, val, recipe) for member, val in zip(members, vals, strict=True)]
    probabilities = torch.cat([found.probabilities for found in own])
    targets = torch.cat([found.targets for found in own])
    write_whole(run / OUT_OF_FOLD, _csv(own, vals, splits.class_names, kind.label))
    save_ensemble(run / "best", places, kind.more(probabilities, targets))
    ensemble = kind.open(str(run / "best"))
    test = [predict_split(member, splits.test, recipe) for member in members] if splits.test else []

    def scored(found: Predictions, member: Classifier) -> Any:
        return kind.score(found.probabilities, found.targets, member, False)

    together = None
    if test:  # the mean over members and views, as the ensemble's network computes it
        mean = torch.stack([found.probabilities for found in test]).mean(0)
        together = kind.score(mean, test[0].targets, ensemble, True)
    scores = FoldScores(
        kind.score(probabilities, targets, ensemble, True),
        [scored(found, member) for found, member in zip(own, members, strict=True)],
        [scored(found, member) for found, member in zip(test, members, strict=bool(test))],
        together,
    )
    write_scores(run, scores)
    _write_page(run / "report.html", recipe, scores, kind, facts)
    return _summary(scores, kind)


def _csv(
    own: Sequence[Predictions], vals: Sequence[Split], class_names: Sequence[str], label: Callable[[int], str]
) -> str:
    """A row for each photo, by name: its file, its label, the fold that predicted it, the probability of each class."""
    rows: list[list[Any]] = [
        [val.filename(position), label(target), fold, *(f"{value:.4f}" for value in row)]
        for fold, (found, val) in enumerate(zip(own, vals, strict=True), 1)
        for position, target, row in zip(
            found.positions.tolist(), found.targets.tolist(), found.probabilities.tolist(), strict=True
        )
    ]
    rows.sort(key=lambda row: row[0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "fold", *(f"probability of {name}" for name in class_names)])
    writer.writerows(rows)
    return text.getvalue()


def _values(kind: Kind, scores: Any) -> dict[str, float]:
    """The measures with intervals, by name."""
    return {m.name: m.figure.value for m in kind.measures(scores) if isinstance(m.figure, Score)}


def spreads(each: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of each figure over two or more folds."""
    columns = {name: [values[name] for values in each] for name in each[0]}
    return {name: Spread(statistics.mean(column), statistics.stdev(column)) for name, column in columns.items()}


def _summary(scores: FoldScores, kind: Kind) -> Summary:
    values = partial(_values, kind)
    lines = [f"{scores.out_of_fold.count} images, each predicted by the fold that was not trained on it"]
    lines += figure_lines(*lines_of(kind.measures(scores.out_of_fold)))
    tables = {"each fold on its own images": [values(s) for s in scores.folds]}
    if scores.ensemble is not None:
        tables["each fold on the test images"] = [values(s) for s in scores.test]
    for what, each in tables.items():
        spread = ", ".join(f"{name} {figure}" for name, figure in spreads(each).items())
        lines.append(f"{what} (mean ± standard deviation of {len(each)} folds): {spread}")
    if scores.ensemble is not None:
        lines.append(f"the ensemble on {scores.ensemble.count} test images")
        lines += figure_lines(*lines_of(kind.measures(scores.ensemble)))
    return Summary(lines)


def _write_page(path: Path, recipe: ClassifierRecipe, scores: FoldScores, kind: Kind, facts: Mapping[str, str]) -> None:
    own, test = ([_values(kind, s) for s in each] for each in (scores.folds, scores.test))
    values = {
        "title": f"{recipe.title}, {len(own)} folds",
        "scores": scores,
        "measures": kind.measures(scores.out_of_fold),
        "ensemble": [] if scores.ensemble is None else kind.measures(scores.ensemble),
        "together": {} if scores.ensemble is None else _values(kind, scores.ensemble),
        "names": list(own[0]),
        "own": own,
        "test": test,
        "own_spread": spreads(own),
        "test_spread": spreads(test) if test else {},
        "answers_are": WORDS[recipe.tta],
        "out_of_fold": OUT_OF_FOLD,
        "recipe": recipe.to_yaml(),
        "facts": dict(facts),
    }
    write_page(path, "tasks/classification/folds.html", values)
