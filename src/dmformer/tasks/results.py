"""What all tasks do at the end of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import write_whole
from .recipe import Recipe


@dataclass(frozen=True)
class Summary:
    """Scores as the command prints them: lines, then a table of classes if there is one."""

    lines: Sequence[str]
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def reported_split(splits: Any) -> tuple[Any, str]:
    """The images that the report is about, and their name: the test images if there are any, else validation's."""
    return (splits.test, "test") if splits.test else (splits.val, "validation")


def fold_folder(run: Path, fold: int) -> Path:
    """The folder of one fold, from 1 on, of a run in folds."""
    return run / f"fold-{fold}"


def refuse_trained(run: Recipe, split: str) -> None:
    """Raise UserError if a run in folds held no photos out: an ensemble knows all photos but the test photos."""
    if run.in_folds and split != "test":
        raise UserError(
            "each photo was in the training of some of the folds, so the ensemble cannot be scored on it: name others "
            "with --data. The run's report.html has the score of each photo by the fold that was not trained on it."
        )


def write_scores(folder: Path, scores: Any) -> None:
    """Write scores.json from a dataclass."""
    write_whole(folder / "scores.json", json.dumps(asdict(scores), indent=2, ensure_ascii=False) + "\n")
