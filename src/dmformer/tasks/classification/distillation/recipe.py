"""Options shared by the recipes that train a classifier with or without a teacher."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from ....utils.errors import UserError
from ...recipe import FIXED, FREE
from ..image_recipe import ImageRecipe


@dataclass(frozen=True)
class TaughtRecipe(ImageRecipe):
    """A teacher to learn from."""

    teacher: str | None = field(default=None, metadata=FIXED)
    """Trained classifier to learn from: efficientnet-lite0, 1 or 2 (extra `teacher`), a run's best/ folder,
    an exported .onnx file, hf-hub:owner/name, or a timm model with published weights.
    Its classes may differ from the data's. It sees the same crops as the model."""
    teacher_size: int | None = field(default=None, metadata=FIXED)
    """Size of the teacher's images in pixels; by default the size it was trained for."""
    teacher_weight: float = field(default=1.0, metadata=FREE)
    """Weight of the teacher's soft labels in the loss."""
    label_weight: float = field(default=1.0, metadata=FREE)
    """Weight of the labels in the loss, when there is a teacher."""
    temperature: float = field(default=1.0, metadata=FREE)
    """Temperature that softens the teacher's and the model's probabilities before comparison."""
    feature_loss: Literal["none", "cosine", "mse"] = field(default="none", metadata=FIXED)
    """Loss that compares the model's pooled features, after a linear layer, with the teacher's."""
    feature_weight: float = field(default=1.0, metadata=FREE)
    """Weight of the feature loss."""
    teacher_cache: str | None = field(default=None, metadata=FREE)
    """Folder that caches the teacher's predictions. Missing ones are computed before the first epoch,
    so that epochs run without the teacher. None runs the teacher at every step."""
    teacher_views: int = field(default=4, metadata=FREE)
    """Crops of each photo in the cache; epochs use them in turn."""
    teacher_classes: int = field(default=20, metadata=FREE)
    """Number of probabilities kept per cached prediction, the largest; the other classes share the rest."""

    def check(self) -> None:
        super().check()
        self._check_counts("teacher_views", "teacher_classes")
        self._check_not_negative("teacher_weight", "label_weight", "feature_weight")
        if self.temperature <= 0:
            raise UserError(f"--temperature is {self.temperature:g}: it must be above 0.")
        if self.teacher is None:
            for name in ("teacher_size", "teacher_cache"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name.replace('_', '-')} is for a teacher: name one with --teacher.")

    def alone(self) -> Self:
        return replace(self, teacher=None, teacher_size=None, teacher_cache=None, feature_loss="none")
