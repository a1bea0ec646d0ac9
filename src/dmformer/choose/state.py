"""What has been measured so far: choose.json, saved after every measurement."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import write_whole, writing_to
from ..utils.machine import processor
from .candidates import Question

STATE = "choose.json"
VERSION = 2
"""Of what is saved."""


@dataclass
class State:
    """Measurements by name. What follows from them, such as who fell out, is worked out again and not saved."""

    question: dict[str, Any]
    version: int = VERSION
    machine: str = field(default_factory=processor)
    gmacs_per_second: dict[str, float] = field(default_factory=dict)
    """Of a large product of matrices, by number of threads."""
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Parameters (millions), GMACs, and height and width of a photo, of each entrant."""
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of each candidate that was built, or the reason why it cannot be: "failed"."""
    image_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of training per image, of each entrant."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """The rounds of the race that have begun."""
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each training run: its folder, seconds, and score on the validation photos with its 95 % interval."""
    longest: dict[str, int] = field(default_factory=dict)
    """Epochs of the training after the final, of the winner and of finalists that could not be exported."""
    seconds: float = 0.0
    """Time spent on all of this."""
    winner: dict[str, Any] = field(default_factory=dict)
    """The winner's run, exported file and test scores."""


def read_state(folder: Path) -> State:
    """The state in a folder.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    path = folder / STATE
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.get("version") != VERSION:
            raise ValueError("another version of this package wrote it")
        return State(**values)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {STATE} to go on from: start without --resume.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): start again with another --out.") from None


def save_state(state: State, folder: Path) -> None:
    with writing_to(folder):
        write_whole(folder / STATE, json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n")


def question_of(state: State) -> Question:
    return Question.of_values(state.question)
