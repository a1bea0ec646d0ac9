"""Several labels per photo as a `Task`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.display import Track
from ...utils.errors import UserError
from ..task import OWN_TEST, Summary, Task, check_paths, figure_lines, recipes_in
from . import recipes
from .contest import CONTEST
from .recipes import MultiLabelRecipe

if TYPE_CHECKING:
    from ..check import View
    from ..config import TrainedFolder
    from .classifier import MultiLabelClassifier
    from .datasets import LabelSplits
    from .metrics import MultiLabelScores
    from .training import MultiLabelJob


def _open_data(recipe: MultiLabelRecipe, track: Track) -> "LabelSplits":
    from .datasets import open_label_splits

    return open_label_splits(recipe, track)


def _view(recipe: MultiLabelRecipe, data: "LabelSplits") -> "View":
    from .view import view

    return view(data)


def _job(recipe: MultiLabelRecipe, data: "LabelSplits | None") -> "MultiLabelJob":
    from .training import MultiLabelJob

    return MultiLabelJob(recipe, data)


def _open(source: "str | TrainedFolder") -> "MultiLabelClassifier":
    from .classifier import open_multilabel

    return open_multilabel(source)


def _evaluate(
    source: "str | TrainedFolder | MultiLabelClassifier",
    data: str,
    workers: int | None = None,
    max_broken: float = MultiLabelRecipe.max_broken,
    max_pixels: int | None = None,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
    batch_size: int = 64,
    device: str = "auto",
    run_of: str | None = None,
    tta: str = "auto",
) -> "MultiLabelScores":
    from .evaluate import evaluate

    place = None if data == OWN_TEST else data

    def scoring(loader: Iterable) -> Iterable:
        return progress(loader, "scoring")

    return evaluate(source, place, batch_size, workers, max_broken, scoring, say, device, max_pixels, run_of, tta)


def _conclude_folds(recipe: MultiLabelRecipe, data: "LabelSplits", folder: Path, facts: Mapping[str, str]) -> Summary:
    from .evaluate import conclude_folds

    return conclude_folds(recipe, data, folder, facts)


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
    open_data=_open_data,
    view=_view,
    job=_job,
    open=_open,
    evaluate=_evaluate,
    summary=_summary,
    headline="mAP",
    figure=lambda scores: scores.map.value,
    check_places=_check_places,
    default_data=OWN_TEST,
    options=("batch_size", "threshold", "tta"),
    check_options=_check_options,
    conclude_folds=_conclude_folds,
    contest=CONTEST,
)
