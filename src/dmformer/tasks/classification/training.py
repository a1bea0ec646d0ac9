"""Training a classifier."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...utils.errors import UserError
from .classifier import save_classifier
from .datasets import Splits, open_splits
from .distillation.distillation import Distillation
from .distillation.loaders import ViewSet
from .distillation.student import CLASSES, Mixing, Student, check_teachable, own_state
from .evaluate import check_broken, predict_all
from .kind import one_label
from .labelled_job import LabelledJob
from .loaders import train_loader
from .metrics import score
from .model import build_model, preprocessing
from .recipes import ClassificationRecipe

TEACHER = "teacher classes"
"""Name of the student's layer for a teacher with other classes."""


class ClassificationJob(LabelledJob):
    """See `Job`."""

    headline = "val_top1"

    def __init__(self, recipe: ClassificationRecipe, data: Splits | None = None) -> None:
        splits = data or open_splits(recipe)
        super().__init__(recipe, splits, one_label(splits.class_names))
        self.mixup: Mixing | None = None
        self.class_weights = class_weights(recipe, splits)
        self.distillation = None
        if recipe.teacher is not None:
            self.distillation = Distillation(recipe, [splits.train], [splits.val], [Path(recipe.data).name])

    @property
    def teacher_head(self) -> str:
        """Name of the student's layer that learns from the teacher: its classifier if their classes are the same."""
        teacher = self.distillation.teacher if self.distillation else None
        return TEACHER if teacher and teacher.class_names != self.class_names else CLASSES

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        model, frozen = build_model(self.recipe, self.class_names)
        if self.distillation is None or self.distillation.teacher is None:
            return model, frozen
        check_teachable(model, self.recipe.model)
        heads = self.distillation.heads
        if self.teacher_head != CLASSES:
            heads[self.teacher_head] = len(self.distillation.teacher.class_names)
        return Student(model, heads), frozen

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        if self.distillation is None:
            loader = train_loader(self.splits.train, self.recipe, rank, world, pin_memory)
        else:
            loader = self.distillation.train_loader([self.recipe.image_size], rank, world, pin_memory)
        self.views = loader.dataset
        self.mixup = make_mixup(self.recipe, len(self.class_names), loader)
        return loader

    def loss(self, model: nn.Module, inputs: Tensor, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        labels = targets if self.distillation is None else targets["label"]
        inputs, wanted = self.mixup(inputs, labels) if self.mixup else (inputs, labels)
        outputs = model(inputs)
        logits = outputs if self.distillation is None else outputs[CLASSES]
        loss = F.cross_entropy(
            logits.float(),
            wanted,
            weight=self.class_weights.to(logits.device) if self.class_weights is not None else None,
            label_smoothing=0.0 if self.mixup else self.recipe.label_smoothing,
        )
        figures = {"top1": (logits.argmax(1) == labels).float().mean()}
        if self.distillation is not None and (answers := self.distillation.answers(targets)) is not None:
            answers = self.mixup.mixed(answers) if self.mixup else answers
            taught, more = self.distillation.loss(outputs, self.teacher_head, answers)
            loss = self.recipe.label_weight * loss + taught
            figures |= more
        return loss, figures

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        found = predict_all(model, loader, device, gather)
        check_broken(self.splits.val, found.broken, self.recipe.max_broken)
        scores = score(found.probabilities, found.targets, self.class_names, resamples=0)
        chosen = found.probabilities.gather(1, found.targets[:, None]).clamp(min=1e-12)
        return {
            "val_loss": float(-chosen.log().mean()),
            "val_top1": scores.top1.value,
            "val_balanced_accuracy": scores.balanced_accuracy.value,
        }

    def line(self, row: dict[str, float]) -> str:
        return (
            "epoch {epoch:g} of {epochs}: loss {train_loss:.3f}, validation loss {val_loss:.3f}, "
            "accuracy {val_top1:.1%}, balanced {val_balanced_accuracy:.1%}, {images_per_second:.0f} images/s, "
            "{wait_share:.1%} waiting for data".format(**row, epochs=self.epochs)
        )

    def check_broken(self, broken: list[int]) -> None:
        if isinstance(self.views, ViewSet):
            for position in broken:
                self.views.reason(position)  # an image that differs from the one the teacher saw ends the run
        super().check_broken(broken)

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        if isinstance(model, Student):
            model, state = model.model, own_state(state)
        config = preprocessing(self.recipe, self.recipe.crop_pct)
        values = self.splits.train.reading.values
        save_classifier(folder, model, state, self.class_names, config, values, self.recipe.tta)

    def contents(self) -> Iterator[str]:
        for split in (self.splits.train, self.splits.val, self.splits.test):
            if split is not None and split.targets is not None:
                names = split.filename if split.has_names else lambda i: ""
                yield from (f"{names(i)} {k}" for i, k in enumerate(split.targets.tolist()))


def make_mixup(recipe: ClassificationRecipe, num_classes: int, loader: Any) -> Mixing | None:
    """timm's mixup and CutMix, or None if the recipe has neither."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    if getattr(loader.batch_sampler, "batch_size", recipe.batch_size) % 2:
        raise UserError("--mixup and --cutmix mix pairs: --batch-size must be even.")
    return Mixing(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def class_weights(recipe: ClassificationRecipe, splits: Splits) -> Tensor | None:
    """(K) class weights in the loss, with mean 1 over the training images, or None for equal weights."""
    if recipe.class_weights == "none":
        return None
    if splits.train.targets is None:
        raise UserError("--class-weights balanced needs all labels before training, which a stream does not provide.")
    counts = np.bincount(splits.train.targets, minlength=len(splits.class_names)).clip(min=1)
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
