"""How segmenters are compared by `dmformer choose`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...utils.intervals import Score
from ..task import Contest
from .recipes import HEAD_NAMES, SegmentationRecipe

if TYPE_CHECKING:
    from ..folders import Fault
    from .datasets import PairSplits
    from .training import SegmentationJob


def _trial(recipe: SegmentationRecipe, size: int, images: int) -> SegmentationRecipe:
    """At another size, photos are also resized in proportion, unless they keep their own."""
    steps = max(images // recipe.batch_size, 1)
    resize, window = (
        None if side is None else max(round(side * size / recipe.image_size), 32)
        for side in (recipe.resize, recipe.window)
    )
    sized = replace(recipe, image_size=size, resize=resize, window=window, validate_every=steps)
    return replace(sized, iterations=max(recipe.iterations // steps, 1) * steps)


def _scored(job: "SegmentationJob", segmenter: Any, split: str) -> Score:
    from .evaluate import count_pixels
    from .loaders import eval_pairs_loader
    from .metrics import score_masks

    part = getattr(job.splits, split)
    device = segmenter.on_device(job.recipe.device)
    loader = eval_pairs_loader(part, segmenter.transform(), job.recipe.workers)
    counts = count_pixels(segmenter.model, loader, len(job.class_names), device, segmenter.config.window)
    return score_masks(counts.confusion, counts.images, job.class_names).miou


def _calibration(data: "tuple[PairSplits, list[Fault]]") -> list[str]:
    return [str(path) for path in data[0].train.images]


CONTEST = Contest(
    models=("dmformer_n", "van_b0", "mobilenetv3_large_100", "resnet18"),
    image_sizes=(192, 256),
    trial=_trial,
    scored=_scored,
    calibration=_calibration,
    head="head",
    heads=tuple(HEAD_NAMES),
)
