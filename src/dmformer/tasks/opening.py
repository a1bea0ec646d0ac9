"""A trained model of any task by where it is, and the job of any recipe.

A task is imported when it is opened, and no other with it.
"""

from typing import TYPE_CHECKING, Any

from .config import TrainedFolder, read_folder
from .recipe import Recipe
from .table import TASKS, task_for

if TYPE_CHECKING:
    from .job import Job


def open_trained(source: str | TrainedFolder) -> Any:
    """A trained model from a run's best/ folder, or the run's folder, or from hf-hub:owner/name.

    Raises:
        UserError: Not such a folder, an unknown architecture, weights that do not fit.
    """
    if isinstance(source, str) and source.startswith("hf-hub:"):
        return task_for(None).open(source)
    trained = read_folder(source)
    return task_for(trained).open(trained)


def open_job(recipe: Recipe) -> "Job":
    """The job of a recipe, its data opened.

    Raises:
        UserError: A mistake in the data.
    """
    return TASKS[recipe.task].job(recipe)
