"""How classifiers are compared by `dmformer choose`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...utils.errors import UserError
from ...utils.intervals import Score
from ..task import Contest

if TYPE_CHECKING:
    from .datasets import Splits
    from .evaluate import Predictions
    from .training import ClassificationJob


def predicted(job: Any, classifier: Any, split: str) -> "Predictions":
    """Predictions of a classifier, with one or several labels per photo, on a job's split "val" or "test"."""
    from .evaluate import predict_split

    return predict_split(classifier, getattr(job.splits, split), job.recipe)


def _scored(job: "ClassificationJob", classifier: Any, split: str) -> Score:
    from .metrics import score

    found = predicted(job, classifier, split)
    return score(found.probabilities, found.targets, job.class_names, resamples=0).top1


def _calibration(data: "Splits") -> list[str]:
    from .datasets import files_of

    if (files := files_of(data.train)) is None:
        raise UserError("int8 needs photos in folders, on which it is calibrated")
    return [str(file) for file in files]


CONTEST = Contest(
    models=(
        "dmformer_n",
        "dmformer_t",
        "van_b0",
        "vitae_t",
        "mobilenetv3_small_100",
        "mobilenetv3_large_100",
        "efficientnet_lite0",
        "resnet18",
    ),
    image_sizes=(96, 128),
    trial=lambda recipe, size, images: replace(recipe, image_size=size),
    scored=_scored,
    calibration=_calibration,
    free_size=False,
)
