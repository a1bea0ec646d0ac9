"""What the training loop asks of a kind of training."""

from collections.abc import Callable
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
        class_names: Of the data.
        notes: What the user should know of the data before it is trained on.
        size: Of the images, in words.
        images: To train on, to validate on, and to test on (0 for none).
        epochs: Passes of the loop, each ended by a validation.
        unit: What to call one: epoch or round.
        headline: The column of metrics.csv whose best row gives the best weights.
    """

    class_names: list[str]
    notes: list[str]
    images: tuple[int, int, int]
    size: str
    epochs: int
    unit: str
    headline: str

    @property
    def param_groups(self) -> Callable[[nn.Module], list[dict[str, Any]]] | None:
        """From a model to the groups of its parameters for the optimiser; None for timm's own."""
        ...

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        """The model with its starting weights, and its frozen parts, to be kept in evaluation mode."""
        ...

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        """Batches of inputs, targets and positions of an epoch; position ~i says that image i was broken."""
        ...

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader: ...

    def schedule(self) -> dict[str, Any]:
        """Arguments of timm's `create_scheduler_v2`, in epochs."""
        ...

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, with its graph, and other figures of it, means over the batch, left on the device."""
        ...

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Any], Any]
    ) -> Figures:
        """Columns of metrics.csv; `gather` joins tensors (..., N) of all processes along their first dimension."""
        ...

    def check_resumed(self, progress: Progress, updates: int) -> None:
        """Raise UserError where a saved state does not suit epochs of so many steps of the weights."""
        ...

    def line(self, row: Figures) -> str:
        """A row of metrics.csv in words."""
        ...

    def check_broken(self, broken: list[int]) -> None:
        """Raise UserError where too many training images, given by position, could not be read."""
        ...

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Write a model, with these weights and all that is needed to use it, to a folder."""
        ...

    def conclude(self, folder: Path, progress: Progress, command: str) -> tuple[Any, str]:
        """Score best/ of a run on the test split, else on validation; write scores.json and report.html.

        Returns:
            The scores and the split's name.
        """
        ...
