"""A trained multi-label classifier: a classifier with a threshold for every class."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...data.limits import Range
from ...utils.errors import UserError
from ..classification.classifier import Classifier, read_classifier, save_classifier
from ..config import TrainedFolder, folder_for, read_as

TASK = "multilabel"


@dataclass(frozen=True)
class MultiLabelClassifier(Classifier):
    """A classifier whose classes do not exclude each other; a `LabelPredictor`."""

    thresholds: tuple[float, ...] = ()
    """(K) A class applies from this probability on."""
    task = TASK
    several = True

    def as_probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) -> (B, K), each from 0 to 1."""
        return logits.sigmoid()


@dataclass(frozen=True)
class Thresholds:
    """What config.json has more than a classifier's."""

    thresholds: tuple[float, ...] = field()


def save_multilabel(
    folder: Path,
    model: nn.Module,
    state: dict[str, Tensor],
    class_names: list[str],
    data_config: dict[str, Any],
    values: Range | None,
    thresholds: tuple[float, ...],
    tta: str = "none",
) -> None:
    """`save_classifier`, with the thresholds in config.json."""
    more = {"task": TASK, "thresholds": list(thresholds)}
    save_classifier(folder, model, state, class_names, data_config, values, tta, more)


def open_multilabel(source: str | TrainedFolder) -> MultiLabelClassifier:
    """Open a trained multi-label classifier from a run's best/ folder, or the run's folder.

    Raises:
        UserError: No such folder, a model of another kind, or weights or thresholds that do not fit.
    """
    trained = folder_for(TASK, source, "a multi-label classifier")
    thresholds = read_as(Thresholds, trained, "a multi-label classifier").thresholds
    classifier = read_classifier(trained, several=True)
    if len(thresholds) != len(classifier.class_names) or not all(0 <= value <= 1 for value in thresholds):
        raise UserError(f"{trained.path} needs a threshold from 0 to 1 for each of its classes.")
    own = {each.name: getattr(classifier, each.name) for each in fields(classifier)}
    return MultiLabelClassifier(**own, thresholds=thresholds)
