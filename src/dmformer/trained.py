"""A trained model of either task, by where it is."""

from .classifier import Classifier, open_classifier
from .config_file import task_of
from .segmenter import Segmenter, open_segmenter


def open_trained(source: str) -> Classifier | Segmenter:
    """A trained model from a run's best/ folder, or the run's folder, or from hf-hub:owner/name.

    Raises:
        UserError: Not such a folder, an unknown architecture, weights that do not fit.
    """
    return open_segmenter(source) if task_of(source) == "segmentation" else open_classifier(source)
