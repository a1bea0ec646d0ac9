"""How far a run has got, and the facts of how it was made."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from ..utils.version import __version__
from .recipe import Recipe


@dataclass
class Progress:
    """How far a run has got; saved with its state."""

    epoch: int = 0
    step: int = 0
    """Steps of the epoch done so far."""
    sums: dict[str, float] = field(default_factory=dict)
    """Loss and other training figures, summed over the steps of the epoch done so far."""
    best: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    """Positions of training images that could not be read."""
    updates: int = 0
    """Weight updates per epoch."""
    steps: int = 0
    """Batches per epoch."""
    images: int = 0
    """Images per step, over all processes; 0 in a state of an earlier version."""
    data: dict[str, Any] = field(default_factory=dict)
    """What a resumed run must find again: the classes, the numbers of images, and a digest of their names."""

    def add(self, figures: dict[str, float]) -> None:
        """Add a step and its figures."""
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in figures.items()}

    def mean(self, name: str) -> float:
        """Mean of a figure over the steps of the epoch done so far."""
        return self.sums[name] / self.step

    def since_best(self, headline: str) -> int:
        """Validations since the best one so far, by a column of the history; 0 while no score is above 0."""
        scores = [row[headline] for row in self.history]
        return len(scores) - 1 - scores.index(max(scores)) if scores and max(scores) > 0 else 0

    @classmethod
    def read(cls, last: Path) -> "Progress":
        """The progress in a saved state, where accelerate writes the first of our own objects."""
        progress = cls()
        progress.load_state_dict(torch.load(last / "custom_checkpoint_0.pkl", weights_only=False))
        return progress

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def history_facts(history: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """When and by which commands a run was started and resumed."""
    facts: dict[str, str] = {}
    for line in history:
        when = f"{line['time']} on {line['host']}"
        if line["event"] == "started":
            facts |= {"command": line["command"], "started": when}
        elif line["event"] == "resumed":
            facts[f"resumed {sum(name.startswith('resumed') for name in facts) + 1}"] = f"{when}: {line['command']}"
    return facts


def run_facts(
    recipe: Recipe,
    images: tuple[int, int, int],
    progress: Progress,
    device: torch.device,
    history: Sequence[Mapping[str, str]],
    early: str = "",
) -> dict[str, str]:
    """Facts for the report on how a run was made.

    Args:
        recipe: The run's recipe.
        images: Numbers of images to train on, to validate on and to test on.
        progress: The run's progress.
        device: Where it was trained.
        history: Every command of its life: its event, time, host and text.
        early: Why training stopped before its last epoch, if it did.
    """
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    minutes, seconds = divmod(round(progress.seconds), 60)
    test = f", {images[2]} test" if images[2] else ""
    return {
        **history_facts(history),
        "images": f"{images[0]} training, {images[1]} validation{test}",
        "ended": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "duration": f"{minutes} min {seconds} s of training",
        **({"stopped early": early} if early else {}),
        "machine": f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"dmformer {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"timm {timm.__version__}, Python {platform.python_version()}",
        "seed": str(recipe.seed),
    }
