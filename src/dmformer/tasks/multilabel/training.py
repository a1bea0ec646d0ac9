"""Training a multi-label classifier."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...utils.views import WORDS
from ..classification.evaluate import check_broken, predict_all
from ..classification.loaders import ImageSet, eval_loader, train_loader, validation_loader, with_reasons
from ..classification.model import build_model, cosine_schedule, preprocessing
from ..progress import Progress
from ..results import reported_split, write_scores
from .classifier import open_multilabel, save_multilabel
from .datasets import LabelSplits, open_label_splits
from .metrics import DEFAULT, FEWEST, MultiLabelScores, best_thresholds, score
from .recipes import MultiLabelRecipe
from .report import MultiLabelReport, write_report

LARGEST_WEIGHT = 20.0
"""Of the positives of a rare class: with larger ones, single images decide the gradient."""


class MultiLabelJob:
    """See `Job`."""

    headline, unit = "val_map", "epoch"
    param_groups = None

    def __init__(self, recipe: MultiLabelRecipe, data: LabelSplits | None = None) -> None:
        self.recipe = recipe
        self.splits = self.data = splits = data or open_label_splits(recipe)
        self.class_names, self.labels = splits.class_names, torch.from_numpy(splits.labels)
        self.images = (len(splits.train), len(splits.val), len(splits.test) if splits.test else 0)
        self.size = f"{recipe.image_size} px"
        self.epochs = recipe.epochs
        self.thresholds = (DEFAULT,) * len(self.class_names)
        self.asymmetric = AsymmetricLossMultiLabel()
        self.positive_weights = self._positive_weights()
        self.notes = [*splits.notes, *self._few()]

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        return build_model(self.recipe, self.class_names)

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return train_loader(self.splits.train, self.recipe, rank, world, pin_memory)

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return validation_loader(self.splits.val, self.recipe, self.recipe.crop_pct, rank, world, pin_memory)

    def schedule(self) -> dict[str, Any]:
        return cosine_schedule(self.recipe)

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

    def check_resumed(self, progress: Progress, updates: int) -> None:
        """Accept any number of steps: an epoch is a pass over the images."""

    def line(self, row: dict[str, float]) -> str:
        return (
            "epoch {epoch:g} of {epochs}: loss {train_loss:.3f}, validation loss {val_loss:.3f}, mAP {val_map:.1%}, "
            "macro F1 {val_macro_f1:.1%}, {images_per_second:.0f} images/s, "
            "{wait_share:.1%} waiting for data".format(**row, epochs=self.epochs)
        )

    def check_broken(self, broken: list[int]) -> None:
        check_broken(self.splits.train, broken, self.recipe.max_broken)

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        config, values = preprocessing(self.recipe, self.recipe.crop_pct), self.splits.train.reading.values
        save_multilabel(folder, model, state, self.class_names, config, values, self.thresholds, self.recipe.tta)

    def contents(self) -> Iterator[str]:
        for split in (self.splits.train, self.splits.val, self.splits.test):
            for i in range(len(split) if split else 0):
                yield f"{split.filename(i)} {' '.join(self._names(split.target(i)))}"  # type: ignore[union-attr]

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[MultiLabelScores, str]:
        recipe, splits = self.recipe, self.splits
        split, name = reported_split(splits)
        classifier = open_multilabel(str(folder / "best"))
        device = classifier.on_device(recipe.device)
        transform, at_least = classifier.transform(), classifier.at_least
        loader = eval_loader(split, transform, at_least, recipe.batch_size, recipe.workers)
        found = predict_all(classifier.network, loader, device, as_probabilities=classifier.as_probabilities)
        check_broken(split, found.broken, recipe.max_broken)
        labels, positions = self.labels[found.targets], found.positions.tolist()
        scores = score(found.probabilities, labels, splits.class_names, classifier.thresholds)
        images = loader.dataset
        assert isinstance(images, ImageSet)
        broken = with_reasons(splits.train, progress.broken, transform, at_least)
        broken += with_reasons(split, found.broken, transform, at_least)
        write_scores(folder, scores)
        write_report(
            folder / "report.html",
            MultiLabelReport(
                title=recipe.title,
                scores=scores,
                split=name,
                class_names=splits.class_names,
                history=progress.history,
                probabilities=found.probabilities,
                labels=labels,
                image_names=[split.filename(i) for i in positions],
                load_image=lambda i: images.picture(positions[i]),
                broken=broken,
                notes=self.notes,
                answers_are=WORDS[classifier.tta],
                recipe=recipe.to_yaml(),
                facts=facts,
            ),
        )
        return scores, name

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
        return [f"{told} and keep the threshold {DEFAULT:g}: {', '.join(few[:8])}{', …' if len(few) > 8 else ''}"]
