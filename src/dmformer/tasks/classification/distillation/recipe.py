"""What recipes have in common that train a classifier of whole images, perhaps under a teacher."""

from dataclasses import dataclass
from typing import Literal

from ....utils.errors import UserError
from ...recipe import Recipe


@dataclass(frozen=True)
class TaughtRecipe(Recipe):
    """Crops, augmentation, epochs, and a teacher to learn from."""

    head: Literal["drop", "keep", "imagenet1k"] = "drop"
    """Classifier of the weights to start from: drop it for other classes, keep it, or take the rows of ImageNet-1K's
    classes from ImageNet-22K's."""
    teacher: str | None = None
    """A trained classifier to learn from: efficientnet-lite0, 1 or 2 (extra `teacher`), a run's best/ folder, an
    exported .onnx file, hf-hub:owner/name, or a model of timm with published weights. Its classes may be others than
    the data's. It sees the crops that the model sees."""
    teacher_size: int | None = None
    """Size in pixels of the teacher's images; by default the one that it was trained for."""
    teacher_weight: float = 1.0
    """Weight of the teacher's soft labels in the loss."""
    label_weight: float = 1.0
    """Weight of the labels in the loss, beside a teacher."""
    temperature: float = 1.0
    """Temperature that softens the teacher's and the model's probabilities before they are compared."""
    feature_loss: Literal["none", "cosine", "mse"] = "none"
    """How the model's pooled features, through a linear layer, are compared with those of a teacher."""
    feature_weight: float = 1.0
    """Weight of that comparison in the loss."""
    teacher_cache: str | None = None
    """Folder of the teacher's answers, written before the first epoch as far as they are not there, so that an epoch
    costs no teacher. None asks the teacher at every step."""
    teacher_views: int = 4
    """Crops of each photo in the cache; epochs take them in turn."""
    teacher_classes: int = 20
    """Probabilities kept of each answer in the cache, the largest; what is left is spread over the other classes."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling when images are resized."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as shares of the image."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width over height of the random crop."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; only without auto_augment."""
    auto_augment: str | None = None
    """timm's augmentation policy, e.g. rand-m9-mstd0.5-inc1 (RandAugment); none for none."""
    erasing: float = 0.0
    """Probability of erasing a random rectangle."""

    epochs: int = 100
    """Passes over the training photos."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    cooldown_epochs: int = 0
    """Of the epochs, the last so many at the lowest learning rate."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""

    def check(self) -> None:
        super().check()
        self._check_counts("epochs", "teacher_views", "teacher_classes")
        self._check_not_negative("warmup_epochs", "color_jitter", "cooldown_epochs")
        self._check_not_negative("teacher_weight", "label_weight", "feature_weight")
        self._check_shares("vflip", "erasing", "drop_rate")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError("--crop-scale takes two shares of the image, the smaller first, e.g. 0.5 1.0.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError("--crop-ratio takes two ratios of width to height, the smaller first, e.g. 0.75 1.33.")
        if self.head != "drop" and not self.weights:
            raise UserError(f"--head {self.head} is a head of the weights to start from: name them with --weights.")
        if self.temperature <= 0:
            raise UserError(f"--temperature is {self.temperature:g}: it must be above 0.")
        if self.teacher is None:
            for name in ("teacher_size", "teacher_cache"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name.replace('_', '-')} is for a teacher: name one with --teacher.")
