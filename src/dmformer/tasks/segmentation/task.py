"""Semantic segmentation as a `Task`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...utils.errors import UserError
from ...utils.extras import require
from ..kinds import check_kind
from ..results import Summary
from ..task import OWN_TEST, Demo, Task, check_paths, figure_lines, holds_files, later, recipes_in
from . import ade20k, recipes
from .contest import CONTEST
from .recipes import HEAD_NAMES, SegmentationRecipe

if TYPE_CHECKING:
    from .metrics import SegmentationScores


def _summary(scores: "SegmentationScores", split: str) -> Summary:
    from ..measures import lines_of
    from .metrics import measures

    heading = f"{scores.images} images ({split}), {scores.pixels:,} labelled pixels"
    rows = [
        [c.name, *("" if v is None else v for v in (c.iou, c.accuracy)), c.share]
        for c in sorted(scores.classes, key=lambda c: -1 if c.iou is None else c.iou)
    ]
    return Summary(
        [heading, *figure_lines(*lines_of(measures(scores)))], ["class", "IoU", "accuracy", "of the pixels"], rows
    )


def _check_places(recipe: SegmentationRecipe) -> None:
    check_paths(recipe.data, recipe.masks)
    if recipe.masks is None:
        check_kind(recipe.data, recipe.task)
    require("seg", HEAD_NAMES[recipe.head], "segmentation_models_pytorch" if recipe.head == "fpn" else "transformers")


def _check_options(options: Mapping[str, Any]) -> None:
    check_paths(options.get("masks"))
    window, scales = options.get("window"), options.get("scales", (1.0,))
    if window is not None and window < 32:
        raise UserError(f"--window is {window}: it must be 32 or more.")
    if not scales or min(scales) <= 0:
        raise UserError("--scales takes factors above 0, e.g. 0.75 1 1.25.")


SEGMENTATION = Task(
    name=SegmentationRecipe.task,
    model="segmenter",
    answer="masks",
    recipe=SegmentationRecipe,
    recipes=recipes_in(recipes),
    demos={"camvid": Demo("segment", holds_files("0001TP_", "0006R0_", "0016E5_", "Seq05VD_"))},
    papers=recipes_in(ade20k),
    open_data=later(__package__, ".checks", "open_checked"),
    view=later(__package__, ".view", "view"),
    recognises=later(__package__, ".datasets", "has_masks"),
    job=later(__package__, ".training", "SegmentationJob"),
    open=later(__package__, ".segmenter", "open_segmenter"),
    evaluate=later(__package__, ".evaluate", "evaluate_masks"),
    summary=_summary,
    headline="mIoU",
    figure=lambda scores: scores.miou.value,
    check_places=_check_places,
    default_data=OWN_TEST,
    options=("masks", "reduce_zero_label", "ignore_index", "colours", "window", "scales", "flip", "out", "overwrite"),
    check_options=_check_options,
    contest=CONTEST,
)
