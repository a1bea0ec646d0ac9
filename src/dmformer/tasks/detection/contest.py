"""How detectors are compared by `dmformer choose`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from ...utils.errors import UserError
from ...utils.intervals import Score
from ..task import Contest
from .recipes import DetectionRecipe, Framework

if TYPE_CHECKING:
    from .datasets import BoxSplits
    from .training import DetectionJob


def _trial(recipe: DetectionRecipe, size: int, images: int) -> DetectionRecipe:
    return replace(recipe, image_size=size, validate_every=1).completed(recipe, {"image_size"})


def _scored(job: "DetectionJob", detector: Any, split: str) -> Score:
    from .evaluate import find_objects
    from .loaders import eval_boxes_loader

    part = getattr(job.splits, split)
    device = detector.on_device(job.recipe.device)
    loader = eval_boxes_loader(part, detector.transform(), job.recipe.workers)
    meter, _ = find_objects(detector.model, loader, part, device, masks=False)
    return meter.ap()


def _calibration(data: "BoxSplits") -> list[str]:
    raise UserError("a detector is not exported in 8 bits")


CONTEST = Contest(
    models=("dmformer_n", "van_b0", "mobilenetv3_large_100", "resnet18"),
    image_sizes=(256, 320),
    trial=_trial,
    scored=_scored,
    calibration=_calibration,
    head="framework",
    heads=get_args(Framework),
    multiple=32,
)
