"""Object detection and instance segmentation as a `Task`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...utils.display import Track
from ...utils.errors import UserError
from ...utils.extras import require
from ..kinds import check_kind
from ..results import Summary
from ..task import OWN_TEST, Demo, Task, check_paths, figure_line, holds_files, recipes_in
from . import coco_recipes, recipes
from .contest import CONTEST
from .recipes import WITH_TRANSFORMERS, DetectionRecipe

if TYPE_CHECKING:
    from ..config import TrainedFolder
    from ..view import View
    from .datasets import BoxSplits
    from .detector import Detector
    from .metrics import DetectionScores
    from .training import DetectionJob


def _open_data(recipe: DetectionRecipe, track: Track) -> "BoxSplits":
    from .datasets import open_checked

    return open_checked(recipe, track)


def _view(data: "BoxSplits") -> "View | None":
    from .view import view

    return view(data)


def _recognises(data: str) -> bool:
    from .datasets import has_boxes

    return has_boxes(data)


def _job(recipe: DetectionRecipe, data: "BoxSplits | None") -> "DetectionJob":
    from .training import DetectionJob

    return DetectionJob(recipe, data)


def _open(source: "str | TrainedFolder") -> "Detector":
    from .detector import open_detector

    return open_detector(source)


def _evaluate(source: "str | TrainedFolder | Detector", data: str, **options: Any) -> "DetectionScores":
    from .evaluate import evaluate_boxes

    return evaluate_boxes(source, None if data == OWN_TEST else data, **options)


def _summary(scores: "DetectionScores", split: str) -> Summary:
    lines = [f"{scores.images} images ({split}), {scores.objects:,} objects"]
    for kind, ap in (("boxes", scores.boxes), ("masks", scores.masks)):
        if ap is None:
            continue
        interval = scores.ap50_interval if kind == "boxes" else None
        among = f"   95 % interval {interval.low:.1%} to {interval.high:.1%}" if interval else ""
        lines += [figure_line(f"AP of {kind}", ap.ap or 0.0), figure_line("AP50", ap.ap50 or 0.0) + among]
        sized = (("AP75", ap.ap75), ("small", ap.small), ("medium", ap.medium), ("large", ap.large), ("AR", ap.ar100))
        lines.append("  " + ", ".join(f"{name} {value:.1%}" for name, value in sized if value is not None))
    rows = [
        [c.name, *("" if v is None else v for v in (c.ap, c.ap50, c.ar100)), str(c.objects)]
        for c in sorted(scores.classes, key=lambda c: 2.0 if c.ap is None else c.ap)
    ]
    return Summary(lines, ["class", "AP", "AP50", "AR", "objects"], rows)


def _check_places(recipe: DetectionRecipe) -> None:
    check_paths(recipe.data, recipe.images)
    if recipe.images is None:
        check_kind(recipe.data, recipe.task)
    more = ("transformers", "scipy") if recipe.framework in WITH_TRANSFORMERS else ()
    require("det", "training a detector", "faster_coco_eval", *more)


def _photos(recipe: DetectionRecipe) -> str:
    return recipe.images or recipe.data


def _check_options(options: Mapping[str, Any]) -> None:
    check_paths(options.get("images"))
    if not 0 <= (threshold := options.get("threshold", 0.0)) <= 1:
        raise UserError(f"--threshold is {threshold:g}: it must be from 0 to 1.")


DETECTION = Task(
    name=DetectionRecipe.task,
    model="detector",
    answer="boxes",
    recipe=DetectionRecipe,
    recipes=recipes_in(recipes),
    demos={"bccd": Demo("detect", holds_files("BloodImage_"))},
    papers=recipes_in(coco_recipes),
    open_data=_open_data,
    view=_view,
    recognises=_recognises,
    job=_job,
    open=_open,
    evaluate=_evaluate,
    summary=_summary,
    headline="AP",
    figure=lambda scores: scores.boxes.ap or 0.0,
    check_places=_check_places,
    default_data=OWN_TEST,
    photos=_photos,
    options=("images", "threshold", "out", "overwrite", "tta"),
    check_options=_check_options,
    contest=CONTEST,
)
