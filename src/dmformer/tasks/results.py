"""What all tasks do at the end of a run."""

import json
from pathlib import Path
from typing import Any

from ..utils.files import write_whole


def reported_split(splits: Any) -> tuple[Any, str]:
    """The images that the report is about, and their name: the test images if there are any, else validation's."""
    return (splits.test, "test") if splits.test else (splits.val, "validation")


def write_scores(folder: Path, scores: Any) -> None:
    """Write scores.json."""
    write_whole(folder / "scores.json", json.dumps(scores.to_dict(), indent=2, ensure_ascii=False) + "\n")
