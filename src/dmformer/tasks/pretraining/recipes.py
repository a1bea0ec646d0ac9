"""Recipes for pretraining: general features from many photos, labelled or not, with a teacher if there is one."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...utils.errors import UserError
from ..classification.distillation.recipe import TaughtRecipe
from ..recipe import FREE, READ


@dataclass(frozen=True)
class PretrainingRecipe(TaughtRecipe):
    """Pretrain a backbone. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "pretraining"

    data: tuple[str, ...] = field(default=(), metadata=FREE | READ)
    """Sources of photos. A folder or .tar of class folders is labelled and gets a classifier of its own;
    any other folder is searched recursively for photos without labels."""
    unlabelled: tuple[str, ...] = field(default=(), metadata=FREE | READ)
    """More folders of photos, whose subfolders are not classes."""
    sizes: tuple[int, ...] = field(default=(64, 96, 128), metadata=FREE)
    """Sizes of the training images in pixels, used one after the other."""
    size_shares: tuple[float, ...] = field(default=(), metadata=FREE)
    """Fraction of the epochs at each size; by default the same for each."""
    probe: str | None = field(default=None, metadata=FREE)
    """Folder of class folders to score the features on at the end, by nearest neighbours and a linear probe."""

    def check(self) -> None:
        super().check()
        if not self.data and not self.unlabelled:
            raise UserError("pretraining needs photos: name one or several folders with --data or --unlabelled.")
        if not self.sizes or min(self.sizes) < 32:
            raise UserError("--sizes takes sizes in pixels, 32 or more each, e.g. 64 96 128.")
        if self.size_shares and (len(self.size_shares) != len(self.sizes) or min(self.size_shares) <= 0):
            raise UserError(f"--size-shares takes a fraction above 0 for each of the {len(self.sizes)} sizes.")

    def size(self, epoch: int) -> int:
        """Size of the training images in pixels in an epoch, counted from 0."""
        shares = self.size_shares or (1.0,) * len(self.sizes)
        done, total = 0.0, sum(shares)
        for size, share in zip(self.sizes, shares, strict=True):
            done += share
            if epoch < round(done / total * self.epochs):
                return size
        return self.sizes[-1]


def pretrain() -> PretrainingRecipe:
    """General features from many photos, --data A B C, with labels or a --teacher."""
    return PretrainingRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        image_size=128,
        val_share=0.02,
        crop_scale=(0.35, 1.0),
        color_jitter=0.2,
        feature_loss="cosine",
        teacher_views=2,
        epochs=20,
        batch_size=64,
        lr=2e-3,
        lr_batch=64,
        warmup_epochs=0.5,
        clip_grad=5.0,
        ema=0.999,
        save_every=500,
    )
