"""A trained model of any task, by where it is."""

from .classifier import Classifier, open_classifier
from .config_file import task_of
from .detector import Detector, open_detector
from .segmenter import Segmenter, open_segmenter


def open_trained(source: str) -> Classifier | Segmenter | Detector:
    """A trained model from a run's best/ folder, or the run's folder, or from hf-hub:owner/name.

    Raises:
        UserError: Not such a folder, an unknown architecture, weights that do not fit.
    """
    match task_of(source):
        case "segmentation":
            return open_segmenter(source)
        case "detection":
            return open_detector(source)
        case _:
            return open_classifier(source)
