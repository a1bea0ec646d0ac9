"""What a job needs to train with a teacher: loaders of views, the teacher's outputs, the losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from ....utils.display import track
from ....utils.errors import UserError
from ....utils.machine import available_cores
from ..datasets import Split
from .cache import Cache, open_cache
from .loaders import ViewSet, eval_appearance, train_appearance, views_loader
from .recipe import TaughtRecipe
from .student import feature_loss, soft_label_loss, whole_distribution
from .teacher import Answers, Teacher, open_teacher, quick_on_cpu
from .views import Photos, Views

FEATURES = "teacher features"
"""Name of the student's layer that is compared with the teacher's features."""


class Distillation:
    """A recipe's teacher, and the images that teacher and student see.

    Args:
        recipe: Only its teacher options, crops and augmentation are used here.
        train, val: Parts of the data sets, one per set, to train on and to validate on.

    Raises:
        UserError: No such teacher, a teacher without the required features, or a set that is a stream.
    """

    def __init__(
        self, recipe: TaughtRecipe, train: Sequence[Split], val: Sequence[Split], names: Sequence[str]
    ) -> None:
        for split, name in zip(train, names, strict=True):
            if split.is_stream:
                raise UserError(f"{name} is a stream, which has no photos to come back to: a teacher needs them.")
        self.recipe = recipe
        self.teacher: Teacher | None = None
        if recipe.teacher is not None:
            self.teacher = open_teacher(recipe.teacher, recipe.teacher_size)
            if recipe.feature_loss != "none" and self.teacher.num_features is None:
                raise UserError(f"the teacher {recipe.teacher} gives no features: leave out --feature-loss.")
        self.train, self.val, self.names = train, val, names
        self.views = Views(recipe.crop_scale, recipe.crop_ratio, recipe.hflip, recipe.vflip, recipe.seed)
        self.middle = Views((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, recipe.seed)
        """The largest centred square of an image, for validation."""

    @property
    def heads(self) -> dict[str, int]:
        """Layers that the student needs for the teacher's features."""
        if self.teacher is None or self.teacher.num_features is None or self.recipe.feature_loss == "none":
            return {}
        return {FEATURES: self.teacher.num_features}

    def train_loader(self, sizes: Sequence[int], rank: int, world: int, pin_memory: bool) -> DataLoader:
        """Training views, at each epoch's size in pixels."""
        recipe = self.recipe
        views = self._views(self.train, self.views, sizes, training=True)
        return views_loader(views, recipe.batch_size, recipe.workers, rank, world, pin_memory, recipe.seed)

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        """Centre squares of the validation images, at the recipe's image size."""
        recipe = self.recipe
        views = self._views(self.val, self.middle, [recipe.image_size], training=False)
        return views_loader(views, recipe.batch_size, recipe.workers, rank, world, pin_memory)

    def _views(self, splits: Sequence[Split], views: Views, sizes: Sequence[int], training: bool) -> ViewSet:
        photos = Photos(splits, self.names, whole=training)
        sources = np.concatenate([np.full(len(split), i) for i, split in enumerate(splits)])
        cache = self._cache(photos, views, training)
        asked = (self.teacher.image_size, self.teacher.interpolation) if self.teacher and cache is None else None
        appearance = train_appearance(self.recipe) if training else eval_appearance(self.recipe)
        return ViewSet(
            photos,
            np.concatenate(photos.indices),
            np.concatenate([np.full(len(s), -1) if s.targets is None else s.targets for s in splits]),
            sources,
            views,
            sizes,
            appearance,
            self.recipe.interpolation,
            cache,
            asked,
            training,
            self.recipe.seed,
        )

    def _cache(self, photos: Photos, views: Views, training: bool) -> Cache | None:
        """The recipe's cache, for all images of its data sets; the first process writes what is missing."""
        recipe, teacher = self.recipe, self.teacher
        if teacher is None or recipe.teacher_cache is None:
            return None
        root = Path(recipe.teacher_cache)
        held = [*root.iterdir()] if root.is_dir() else [root] if root.exists() else []
        if not all((path / "cache.json").is_file() or (path.is_dir() and not any(path.iterdir())) for path in held):
            raise UserError(f"--teacher-cache {root} holds something else: name a folder of its own.")
        # The validation images change with the split: each choice of them has a cache of its own.
        folder = root / ("training" if training else f"validation-{photos.digest[:8]}")
        state = PartialState()
        device = state.device or torch.device("cpu")

        def opened() -> Cache:
            quick: list[Teacher] = []  # created when the first output is missing

            def answer(images: Tensor) -> Any:
                if not quick:
                    quick.append(quick_on_cpu(teacher, available_cores()) if device.type == "cpu" else teacher)
                    quick[0].to(device)
                return quick[0](images.to(device))

            return open_cache(
                folder,
                photos,
                teacher,
                views,
                recipe.teacher_views if training else 1,
                recipe.teacher_classes,
                recipe.feature_loss != "none",
                workers=recipe.workers,
                answer=answer,
                progress=lambda batches, what: track(batches, what, state.is_main_process),
            )

        if state.is_main_process:
            cache = opened()
        state.wait_for_everyone()
        return cache if state.is_main_process else opened()

    def answers(self, targets: dict[str, Tensor]) -> Answers | None:
        """The teacher's outputs for a batch, computed or from the cache."""
        if self.teacher is None:
            return None
        if "view" in targets:
            return self.teacher.to(targets["view"].device)(targets["view"])
        whole = whole_distribution(targets["classes"], targets["probabilities"], len(self.teacher.class_names))
        return Answers(whole, targets.get("features"))

    def loss(self, outputs: dict[str, Tensor], head: str, answers: Answers) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted losses of the student's layer `head` and its features against the teacher's outputs; and
        figures."""
        recipe, logits = self.recipe, outputs[head]
        loss = recipe.teacher_weight * soft_label_loss(logits, answers.probabilities, recipe.temperature)
        figures = {"agreement": (logits.argmax(1) == answers.probabilities.argmax(1)).float().mean()}
        if FEATURES in outputs and recipe.feature_loss != "none":
            assert answers.features is not None
            difference = feature_loss(outputs[FEATURES], answers.features, recipe.feature_loss)
            loss = loss + recipe.feature_weight * difference
            figures["features"] = difference.detach()
        return loss, figures
