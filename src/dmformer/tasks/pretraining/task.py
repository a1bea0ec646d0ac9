"""Pretraining as a `Task`: trained in its own way, but opened, scored and used as a classifier."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ..classification.task import CLASSIFICATION
from ..results import Summary
from ..task import check_paths, figure_lines, later, recipes_in
from . import recipes
from .recipes import PretrainingRecipe

if TYPE_CHECKING:
    from .metrics import PretrainingScores


def _summary(scores: "PretrainingScores", split: str) -> Summary:
    from ..measures import lines_of
    from .metrics import measures

    agreement, *probed = lines_of(measures(scores))
    sources = ((source.name, source.top1) for source in scores.sources)
    lines = [
        f"{scores.count} images ({split}), after {scores.images_seen:,} images seen",
        *figure_lines(agreement, *sources),
    ]
    if (probe := scores.probe) is not None:
        lines.append(f"{probe.test_images} images of {probe.data}, features frozen")
        lines += figure_lines(*probed)
    return Summary(lines)


def _check_places(recipe: PretrainingRecipe) -> None:
    check_paths(*recipe.data, *recipe.unlabelled, recipe.probe)


def _photos(recipe: PretrainingRecipe) -> str:
    return (recipe.data or recipe.unlabelled)[0]


PRETRAINING = replace(
    CLASSIFICATION,
    name=PretrainingRecipe.task,
    recipe=PretrainingRecipe,
    recipes=recipes_in(recipes),
    open_data=later(__package__, ".sources", "open_sources"),
    demos={},
    next_step="dmformer train classify --data PHOTOS --weights {best}",
    papers={},
    view=later(__package__, ".sources", "view"),
    recognises=lambda data: False,
    job=later(__package__, ".training", "PretrainingJob"),
    summary=_summary,
    check_places=_check_places,
    photos=_photos,
    exports=lambda stated: False,  # it has no classes to predict
    contest=None,
)
