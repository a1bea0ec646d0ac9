"""Jobs: what each kind of training brings to the loop: data, model, loss, validation, best weights, report."""

from ..recipes import ClassificationRecipe, DetectionRecipe, PretrainingRecipe, Recipe, SegmentationRecipe
from .job import Job


def open_job(recipe: Recipe) -> Job:
    """The job of a recipe, its data opened.

    Raises:
        UserError: A mistake in the data.
    """
    if isinstance(recipe, ClassificationRecipe):
        from .classification import ClassificationJob

        return ClassificationJob(recipe)
    if isinstance(recipe, PretrainingRecipe):
        from .pretraining import PretrainingJob

        return PretrainingJob(recipe)
    if isinstance(recipe, SegmentationRecipe):
        from .segmentation import SegmentationJob

        return SegmentationJob(recipe)
    if isinstance(recipe, DetectionRecipe):
        from .detection import DetectionJob

        return DetectionJob(recipe)
    raise TypeError(f"no job is known for {type(recipe).__name__}")


__all__ = ["Job", "open_job"]
