"""The table of all tasks."""

from ..utils.errors import UserError, unknown
from .classification.task import CLASSIFICATION
from .config import DEFAULT_TASK, TrainedFolder
from .detection.task import DETECTION
from .multilabel.task import MULTILABEL
from .pretraining.task import PRETRAINING
from .segmentation.task import SEGMENTATION
from .task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (CLASSIFICATION, MULTILABEL, PRETRAINING, SEGMENTATION, DETECTION)
}
"""Every task by name. To add one, add a folder with its record, and list the record here."""


def task_for(trained: TrainedFolder | None) -> Task:
    """The task of a trained folder, or with None of a model on a hub; UserError if it is unknown."""
    name = DEFAULT_TASK if trained is None else trained.task
    if name not in TASKS:
        raise UserError(f"{trained}: {unknown('task', name, TASKS)}")
    return TASKS[name]
