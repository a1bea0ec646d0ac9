"""Classification as a `Task`."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.errors import UserError
from ..kinds import check_kind
from ..results import Summary
from ..task import OWN_TEST, Demo, Task, check_paths, figure_lines, later, recipes_in
from . import imagenet, recipes
from .contest import CONTEST
from .recipes import ClassificationRecipe

if TYPE_CHECKING:
    from .metrics import Scores

NAMED_SETS = ("torch", "hfds", "hfids", "wds", "tfds")
"""Prefixes of the sets that timm knows by name."""


def _recognises(data: str) -> bool:
    from .layout import is_labelled

    return data == "elpv" or is_labelled(Path(data))


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
    open_data=later(__package__, ".datasets", "open_splits"),
    view=later(__package__, ".view", "view"),
    recognises=_recognises,
    job=later(__package__, ".training", "ClassificationJob"),
    open=later(__package__, ".classifier", "open_classifier"),
    evaluate=later(__package__, ".evaluate", "evaluate"),
    summary=summary,
    headline="top-1",
    figure=lambda scores: scores.top1.value,
    check_places=_check_places,
    check_data=check_data,
    default_data=OWN_TEST,
    options=("split", "data_root", "batch_size", "tta"),
    conclude_folds=later(__package__, ".folds", "conclude_folds"),
    contest=CONTEST,
)
