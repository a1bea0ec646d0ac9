"""How far a run has got, and the facts of how it was made."""

import os
import platform
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision

from ..utils.version import __version__


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

    def add(self, figures: dict[str, float]) -> None:
        """Add a step and its figures."""
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in figures.items()}

    def mean(self, name: str) -> float:
        """Mean of a figure over the steps of the epoch done so far."""
        return self.sums[name] / self.step

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def run_facts(images: tuple[int, int, int], progress: Progress, device: torch.device, command: str) -> dict[str, str]:
    """Facts for the report on how a run was made; `images` are the numbers to train on, to validate on and to test
    on."""
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    minutes, seconds = divmod(round(progress.seconds), 60)
    test = f", {images[2]} test" if images[2] else ""
    return {
        "command": command or "dmformer.train.loop.train(recipe)",
        "images": f"{images[0]} training, {images[1]} validation{test}",
        "duration": f"{minutes} min {seconds} s of training",
        "machine": f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"dmformer {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"timm {timm.__version__}, Python {platform.python_version()}",
    }
