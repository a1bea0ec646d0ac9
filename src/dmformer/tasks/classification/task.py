"""Classification as a `Task`."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.display import Track
from ...utils.errors import UserError
from ..kinds import check_kind
from ..task import OWN_TEST, Demo, Summary, Task, check_paths, figure_lines, recipes_in
from . import imagenet, recipes
from .contest import CONTEST
from .recipes import ClassificationRecipe

if TYPE_CHECKING:
    from ..check import View
    from ..config import TrainedFolder
    from .classifier import Classifier
    from .datasets import Splits
    from .metrics import Scores
    from .training import ClassificationJob

NAMED_SETS = ("torch", "hfds", "hfids", "wds", "tfds")
"""Prefixes of the sets that timm knows by name."""


def _open_data(recipe: ClassificationRecipe, track: Track) -> "Splits":
    from .datasets import open_splits

    return open_splits(recipe, track)


def _view(recipe: ClassificationRecipe, data: "Splits") -> "View | None":
    from .view import view

    return view(data)


def _recognises(data: str) -> bool:
    from .layout import is_labelled

    return data == "elpv" or is_labelled(Path(data))


def _job(recipe: ClassificationRecipe, data: "Splits | None") -> "ClassificationJob":
    from .training import ClassificationJob

    return ClassificationJob(recipe, data)


def _open(source: "str | TrainedFolder") -> "Classifier":
    from .classifier import open_classifier

    return open_classifier(source)


def _evaluate(
    source: "str | TrainedFolder | Classifier",
    data: str,
    workers: int | None = None,
    max_broken: float = ClassificationRecipe.max_broken,
    max_pixels: int | None = None,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
    split: str = ClassificationRecipe.val_split,
    data_root: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    run_of: str | None = None,
    tta: str = "auto",
) -> "Scores":
    recipe = ClassificationRecipe(
        data=data, data_root=data_root, val_split=split, workers=workers, max_broken=max_broken, device=device
    )
    recipe.check()
    from .evaluate import evaluate

    place = None if data == OWN_TEST else data

    def scoring(loader: Iterable) -> Iterable:
        return progress(loader, "scoring")

    return evaluate(source, place, batch_size, recipe, scoring, say, max_pixels, run_of, tta)


def _conclude_folds(recipe: ClassificationRecipe, data: "Splits", folder: Path, facts: Mapping[str, str]) -> Summary:
    from .folds import conclude_folds

    return conclude_folds(recipe, data, folder, facts)


def summary(scores: "Scores", split: str) -> Summary:
    from ..measures import lines_of
    from .metrics import measures

    return Summary([f"{scores.count} images ({split})", *figure_lines(*lines_of(measures(scores)))])


def check_data(data: str) -> None:
    """Raise UserError for what is neither a place, elpv, nor a named set of timm's."""
    prefix, _, rest = data.partition("/")
    if data in ("elpv", OWN_TEST) or (rest and prefix.lower() in NAMED_SETS) or Path(data).exists():
        return
    near = difflib.get_close_matches(prefix, ["elpv", *NAMED_SETS], n=1)
    hint = f"did you mean {near[0]}? Otherwise, " if near else ""
    raise UserError(
        f"unknown data '{data}': {hint}give a folder of class folders, an archive of one, a table of paths and labels, "
        "elpv, or a set's name such as torch/cifar10 or hfds/OWNER/NAME."
    )


def _check_places(recipe: ClassificationRecipe) -> None:
    check_data(recipe.data)
    check_kind(recipe.data, recipe.task)
    check_paths(recipe.val_data, recipe.test_data)


CLASSIFICATION = Task(
    name=ClassificationRecipe.task,
    model="classifier",
    answer="labels",
    recipe=ClassificationRecipe,
    recipes=recipes_in(recipes),
    demos={"elpv": Demo("classify", lambda data: data == "elpv")},
    papers=recipes_in(imagenet),
    open_data=_open_data,
    view=_view,
    recognises=_recognises,
    job=_job,
    open=_open,
    evaluate=_evaluate,
    summary=summary,
    headline="top-1",
    figure=lambda scores: scores.top1.value,
    check_places=_check_places,
    check_data=check_data,
    default_data=OWN_TEST,
    options=("split", "data_root", "batch_size", "tta"),
    conclude_folds=_conclude_folds,
    contest=CONTEST,
)
