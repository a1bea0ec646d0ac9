"""Several labels per photo as a `Task`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...utils.errors import UserError
from ..results import Summary
from ..task import OWN_TEST, Task, check_paths, figure_lines, later, recipes_in
from . import recipes
from .contest import CONTEST
from .recipes import MultiLabelRecipe

if TYPE_CHECKING:
    from .metrics import MultiLabelScores


def _summary(scores: "MultiLabelScores", split: str) -> Summary:
    from ..measures import lines_of
    from .metrics import measures

    lines = [f"{scores.count} images ({split})", *figure_lines(*lines_of(measures(scores)))]
    ranked = sorted(scores.classes, key=lambda c: 2.0 if c.ap is None else c.ap)
    rows = [
        [
            c.name,
            *("" if v is None else v for v in (c.ap, c.precision, c.recall, c.f1)),
            f"{c.threshold:.3f}",
            str(c.count),
        ]
        for c in ranked
    ]
    return Summary(lines, ["class", "AP", "precision", "recall", "F1", "threshold", "photos"], rows)


def _check_places(recipe: MultiLabelRecipe) -> None:
    check_paths(recipe.data, recipe.val_data, recipe.test_data)


def _check_options(options: Mapping[str, Any]) -> None:
    if not 0 <= (threshold := options.get("threshold", 0.0)) <= 1:
        raise UserError(f"--threshold is {threshold:g}: it must be from 0 to 1.")


MULTILABEL = Task(
    name=MultiLabelRecipe.task,
    model="multi-label classifier",
    answer="tags",
    recipe=MultiLabelRecipe,
    recipes=recipes_in(recipes),
    open_data=later(__package__, ".datasets", "open_label_splits"),
    view=later(__package__, ".view", "view"),
    job=later(__package__, ".training", "MultiLabelJob"),
    open=later(__package__, ".classifier", "open_multilabel"),
    evaluate=later(__package__, ".evaluate", "evaluate"),
    summary=_summary,
    headline="mAP",
    figure=lambda scores: scores.map.value,
    check_places=_check_places,
    default_data=OWN_TEST,
    options=("batch_size", "threshold", "tta"),
    check_options=_check_options,
    conclude_folds=later(__package__, ".evaluate", "conclude_folds"),
    contest=CONTEST,
)
