"""Open a trained model of any task from its location, and the job of any recipe.

Only the task that is opened is imported.
"""

from typing import TYPE_CHECKING, Any

from .config import TrainedFolder, read_folder
from .recipe import Recipe
from .table import TASKS, task_for
from .view import View

if TYPE_CHECKING:
    from .job import Job


def open_trained(source: str | TrainedFolder) -> Any:
    """Open a trained model from a run's best/ folder, or the run's folder, or from hf-hub:owner/name.

    Raises:
        UserError: No such folder, an unknown architecture, or weights that do not fit.
    """
    if isinstance(source, str) and source.startswith("hf-hub:"):
        return task_for(None).open(source)
    trained = read_folder(source)
    return task_for(trained).open(trained)


def open_job(recipe: Recipe, data: Any = None) -> "Job":
    """The job of a recipe, with its data, which is opened unless the task's `open_data` has opened it before.

    Raises:
        UserError: A mistake in the data.
    """
    return TASKS[recipe.task].job(recipe, data)


def view_of(recipe: Recipe, job: "Job") -> View | None:
    """What the page on a job's data shows; None for data sets of other packages."""
    return TASKS[recipe.task].view(job.data)
