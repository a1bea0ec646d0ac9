"""The one table of tasks: a trained model of any by where it is, and the job of any recipe.

A task is imported when it is opened, and no other with it.
"""

from typing import TYPE_CHECKING

from .classification.recipes import ClassificationRecipe
from .config import task_of
from .detection.recipes import DetectionRecipe
from .job import Job
from .pretraining.recipes import PretrainingRecipe
from .recipe import Recipe
from .segmentation.recipes import SegmentationRecipe

if TYPE_CHECKING:
    from .classification.classifier import Classifier
    from .detection.detector import Detector
    from .segmentation.segmenter import Segmenter


def open_trained(source: str) -> "Classifier | Segmenter | Detector":
    """A trained model from a run's best/ folder, or the run's folder, or from hf-hub:owner/name.

    Raises:
        UserError: Not such a folder, an unknown architecture, weights that do not fit.
    """
    match task_of(source):
        case "segmentation":
            from .segmentation.segmenter import open_segmenter

            return open_segmenter(source)
        case "detection":
            from .detection.detector import open_detector

            return open_detector(source)
        case _:
            from .classification.classifier import open_classifier

            return open_classifier(source)


def open_job(recipe: Recipe) -> Job:
    """The job of a recipe, its data opened.

    Raises:
        UserError: A mistake in the data.
    """
    if isinstance(recipe, ClassificationRecipe):
        from .classification.training import ClassificationJob

        return ClassificationJob(recipe)
    if isinstance(recipe, PretrainingRecipe):
        from .pretraining.training import PretrainingJob

        return PretrainingJob(recipe)
    if isinstance(recipe, SegmentationRecipe):
        from .segmentation.training import SegmentationJob

        return SegmentationJob(recipe)
    if isinstance(recipe, DetectionRecipe):
        from .detection.training import DetectionJob

        return DetectionJob(recipe)
    raise TypeError(f"no job is known for {type(recipe).__name__}")
