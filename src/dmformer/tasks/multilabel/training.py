"""Training a multi-label classifier."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..classification.evaluate import check_broken, predict_all
from ..classification.labelled_job import LabelledJob
from ..classification.loaders import train_loader
from ..classification.model import build_model, preprocessing
from ..folders import first_few
from .classifier import save_multilabel
from .datasets import LabelSplits, open_label_splits
from .evaluate import several_labels
from .metrics import DEFAULT, FEWEST, best_thresholds, score
from .recipes import MultiLabelRecipe

LARGEST_WEIGHT = 20.0
"""Of the positives of a rare class: with larger ones, single images decide the gradient."""


class MultiLabelJob(LabelledJob):
    """See `Job`."""

    headline = "val_map"

    def __init__(self, recipe: MultiLabelRecipe, data: LabelSplits | None = None) -> None:
        splits = data or open_label_splits(recipe)
        super().__init__(recipe, splits, several_labels(splits))
        self.labels = torch.from_numpy(splits.labels)
        self.thresholds = (DEFAULT,) * len(self.class_names)
        self.asymmetric = AsymmetricLossMultiLabel()
        self.positive_weights = self._positive_weights()
        self.notes = [*splits.notes, *self._few()]

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        return build_model(self.recipe, self.class_names)

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return train_loader(self.splits.train, self.recipe, rank, world, pin_memory)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(inputs).float()
        labels = self.labels[targets.cpu()].to(logits.device)
        if self.recipe.loss == "asymmetric":
            loss = self.asymmetric(logits, labels) / labels.numel()
        else:
            weights = None if self.positive_weights is None else self.positive_weights.to(logits.device)
            loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        return loss, {"labels_right": ((logits > 0) == (labels > 0)).float().mean()}

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        found = predict_all(model, loader, device, gather, as_probabilities=torch.sigmoid)
        check_broken(self.splits.val, found.broken, self.recipe.max_broken)
        labels = self.labels[found.targets]
        self.thresholds = best_thresholds(found.probabilities, labels)
        scores = score(found.probabilities, labels, self.class_names, self.thresholds, resamples=0)
        return {
            "val_loss": float(F.binary_cross_entropy(found.probabilities, labels)),
            "val_map": scores.map.value,
            "val_macro_f1": scores.macro_f1.value,
        }

    def line(self, row: dict[str, float]) -> str:
        return (
            "epoch {epoch:g} of {epochs}: loss {train_loss:.3f}, validation loss {val_loss:.3f}, mAP {val_map:.1%}, "
            "macro F1 {val_macro_f1:.1%}, {images_per_second:.0f} images/s, "
            "{wait_share:.1%} waiting for data".format(**row, epochs=self.epochs)
        )

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        config, values = preprocessing(self.recipe, self.recipe.crop_pct), self.splits.train.reading.values
        save_multilabel(folder, model, state, self.class_names, config, values, self.thresholds, self.recipe.tta)

    def contents(self) -> Iterator[str]:
        for split in (self.splits.train, self.splits.val, self.splits.test):
            for i in range(len(split) if split else 0):
                yield f"{split.filename(i)} {' '.join(self._names(split.target(i)))}"  # type: ignore[union-attr]

    def _names(self, row: int) -> list[str]:
        return [self.class_names[k] for k in self.labels[row].nonzero()[:, 0].tolist()]

    def _positive_weights(self) -> Tensor | None:
        """(K) weights of the positives in the loss, or None for equal weights."""
        if self.recipe.class_weights == "none":
            return None
        labels = self.labels[self.splits.train.targets]
        positives = labels.sum(0)
        return ((len(labels) - positives) / positives.clamp(min=1)).clamp(max=LARGEST_WEIGHT)

    def _few(self) -> list[str]:
        """A remark on classes that get no threshold of their own."""
        positives = self.labels[self.splits.val.targets].sum(0)
        few = [name for name, n in zip(self.class_names, positives.tolist(), strict=True) if n < FEWEST]
        if not few:
            return []
        told = f"{len(few)} of {len(self.class_names)} classes have fewer than {FEWEST} validation photos"
        return [f"{told} and keep the threshold {DEFAULT:g}: {first_few(few, 8)}"]
