"""Whether a resumed run finds the data that it was started with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tasks.job import Job
from ..utils.errors import UserError


def data_of(job: Job) -> dict[str, Any]:
    """What a resumed run must find again: the classes, the numbers of images, and a digest of their names."""
    digest = hashlib.sha256()
    for line in job.contents():
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return {"classes": list(job.class_names), "images": list(job.images), "digest": digest.hexdigest()}


def check_same_data(run: Path, saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError if a run's photos or classes differ from those it was started with.

    Args:
        run: The run's folder.
        saved: Its data as `data_of` described it; empty for a run of an earlier version.
        found: The data now.
    """
    if not saved or saved == found:
        return
    if saved["classes"] != found["classes"]:
        told = f"the classes {_listed(found['classes'])} instead of {_listed(saved['classes'])}"
    elif saved["images"] != found["images"]:
        told = "{} training, {} validation and {} test photos".format(*found["images"])
        told += " instead of {}, {} and {}".format(*saved["images"])
    else:
        told = "photos of other names, or with other labels"
    raise UserError(f"{run} cannot be resumed with other data: there are {told}. Give its --data, or start a new run.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
