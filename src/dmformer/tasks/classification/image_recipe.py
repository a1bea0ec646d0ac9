"""Options shared by the recipes that train a classifier of whole images."""

from dataclasses import dataclass, field
from typing import Literal

from ...utils.errors import UserError
from ..recipe import FIXED, FREE, Recipe


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
