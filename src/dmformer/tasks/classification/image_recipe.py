"""Options shared by the recipes that train a model of whole images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...utils.errors import UserError
from ...utils.views import Views
from ..recipe import FIXED, FREE, READ, Recipe


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Crops, augmentation and epochs."""

    head: Literal["drop", "keep", "imagenet1k"] = field(default="drop", metadata=FIXED)
    """What to do with the classifier of the starting weights: drop it for other classes, keep it,
    or take the rows of ImageNet-1K's classes from ImageNet-22K's (imagenet1k)."""

    interpolation: Literal["bicubic", "bilinear"] = field(default="bicubic", metadata=FIXED)
    """Interpolation when images are resized."""
    crop_scale: tuple[float, float] = field(default=(0.08, 1.0), metadata=FREE)
    """Area of the random crop, as fractions of the image."""
    crop_ratio: tuple[float, float] = field(default=(0.75, 1.3333333333333333), metadata=FREE)
    """Aspect ratio (width over height) of the random crop."""
    vflip: float = field(default=0.0, metadata=FREE)
    """Probability of a vertical flip."""
    color_jitter: float = field(default=0.0, metadata=FREE)
    """Strength of random brightness, contrast and saturation; only without auto_augment."""
    auto_augment: str | None = field(default=None, metadata=FREE)
    """timm's augmentation policy, e.g. rand-m9-mstd0.5-inc1 (RandAugment); none disables it."""
    erasing: float = field(default=0.0, metadata=FREE)
    """Probability of erasing a random rectangle."""

    epochs: int = field(default=100, metadata=FREE)
    """Number of epochs."""
    warmup_epochs: float = field(default=5.0, metadata=FREE)
    """Epochs of linear warm-up."""
    cooldown_epochs: int = field(default=0, metadata=FREE)
    """Number of the epochs, at the end, with the lowest learning rate."""
    drop_rate: float = field(default=0.0, metadata=FREE)
    """Dropout rate before the classifier."""

    def check(self) -> None:
        super().check()
        self._check_counts("epochs")
        self._check_not_negative("warmup_epochs", "color_jitter", "cooldown_epochs")
        self._check_shares("vflip", "erasing", "drop_rate")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError("--crop-scale takes two fractions of the image, the smaller first, e.g. 0.5 1.0.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError("--crop-ratio takes two ratios of width to height, the smaller first, e.g. 0.75 1.33.")
        if self.head != "drop" and not self.weights and self.pretrained == "none":
            raise UserError(f"--head {self.head} takes the classifier of the starting weights: give --weights.")


@dataclass(frozen=True)
class ClassifierRecipe(ImageRecipe):
    """How a classifier is scored, of one label or several labels per photo."""

    crop_pct: float = field(default=0.9, metadata=FIXED)
    """Fraction of the resized image that validation uses."""
    tta: Views = field(default="none", metadata=FIXED)
    """Test-time augmentation, in the scores at the end and from then on wherever best/ is used: flip averages
    the probabilities of the photo and its mirror image; flips those of 4 views, with both upside down."""
    folds: int | None = field(default=None, metadata=FIXED | READ)
    """Train one model for each of so many folds: equal parts of the training and validation photos, each class
    alike. Each model is validated on its fold and trained on the others; best/ is then their ensemble."""
    fold: int | None = field(default=None, metadata=FIXED | READ)
    """With --folds: train only this one, from 1 on, as an ordinary run."""

    @property
    def title(self) -> str:
        """MODEL on DATA, for the report."""
        fold = "" if self.fold is None else f", fold {self.fold} of {self.folds}"
        return f"{self.model} on {Path(str(self.data)).name}{fold}"

    @property
    def in_folds(self) -> bool:
        return self.folds is not None and self.fold is None

    def check(self) -> None:
        super().check()
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"--crop-pct is {self.crop_pct}: it must be above 0 and at most 1.")
        if self.folds is not None and self.folds < 2:
            raise UserError(f"--folds is {self.folds}: it must be 2 or more.")
        if self.fold is not None and not 1 <= self.fold <= (self.folds or 0):
            raise UserError(f"--fold is {self.fold}: it must be from 1 to the number of --folds.")
        if self.in_folds and self.minutes is not None:
            raise UserError("--minutes is for one run: give --epochs with --folds.")
