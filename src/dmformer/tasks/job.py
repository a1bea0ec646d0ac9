"""What the training loop requires of a kind of training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .progress import Progress

Figures = dict[str, float]


class Job(Protocol):
    """One kind of training.

    Attributes:
        recipe: The run's recipe. The loop replaces it, and `epochs`, when it has measured how many fit into --minutes.
        data: The opened data, as the task's `open_data` returns it.
        class_names: Classes of the data.
        notes: What the user should know about the data before training.
        size: Size of the images, in words.
        images: Number of images to train on, to validate on, and to test on (0 for none).
        epochs: Number of epochs of the loop, each followed by a validation.
        unit: What to call one of them: epoch or validation interval.
        headline: The column of metrics.csv whose best row determines the best weights.
    """

    recipe: Any
    data: Any
    class_names: list[str]
    notes: list[str]
    images: tuple[int, int, int]
    size: str
    epochs: int
    unit: str
    headline: str

    @property
    def param_groups(self) -> Callable[[nn.Module], list[dict[str, Any]]] | None:
        """Maps a model to its parameter groups for the optimiser; None for timm's default groups."""
        ...

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        """The model with its starting weights, and its frozen parts, which stay in evaluation mode."""
        ...

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        """Batches of inputs, targets and positions of an epoch; position ~i means that image i was broken."""
        ...

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader: ...

    def schedule(self) -> dict[str, Any]:
        """Arguments of timm's `create_scheduler_v2`, in epochs."""
        ...

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, with its graph, and other batch means, left on the device."""
        ...

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Any], Any]
    ) -> Figures:
        """Columns of metrics.csv; `gather` joins tensors (..., N) of all processes along their first dimension."""
        ...

    def check_resumed(self, progress: Progress, updates: int) -> None:
        """Raise UserError if a saved state does not match epochs of `updates` weight updates."""
        ...

    def line(self, row: Figures) -> str:
        """A row of metrics.csv in words."""
        ...

    def check_broken(self, broken: list[int]) -> None:
        """Raise UserError if too many training images, given by position, could not be read."""
        ...

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Write a model, with these weights and everything needed to use it, to a folder."""
        ...

    def contents(self) -> Iterator[str]:
        """The images in order, and their labels if they are known, by which a resumed run recognises its data."""
        ...

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[Any, str]:
        """Score the run's best/ on the test split, else on validation; write scores.json and report.html.

        Returns:
            The scores and the split's name.
        """
        ...
