"""Recipes for classification. `dmformer train RECIPE` runs one; every field can be overridden."""

from .recipe import Recipe


def elpv() -> Recipe:
    """dmformer train: solar cells, sound or defective, from scratch on a CPU in minutes."""
    return Recipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        data="elpv",
        image_size=96,
        crop_pct=1.0,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        crop_scale=(0.7, 1.0),
        crop_ratio=(0.9, 1.1),
        vflip=0.5,
        color_jitter=0.2,
        label_smoothing=0.05,
        epochs=15,
        batch_size=32,
        lr=3e-3,
        lr_batch=32,
        warmup_epochs=1.0,
        clip_grad=5.0,
        ema=0.99,
    )


def scratch() -> Recipe:
    """dmformer train scratch --data photos/: own photos from scratch, a few thousand of them, on a CPU or a GPU."""
    return Recipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        image_size=128,
        crop_scale=(0.35, 1.0),
        color_jitter=0.3,
        label_smoothing=0.1,
        epochs=30,
        batch_size=32,
        lr=1e-3,
        lr_batch=32,
        warmup_epochs=2.0,
        clip_grad=5.0,
        ema=0.99,
    )


def finetune() -> Recipe:
    """dmformer train finetune --data photos/ --weights best/: from trained weights to own photos."""
    return Recipe(
        model="dmformer_s",
        crop_scale=(0.35, 1.0),
        color_jitter=0.3,
        label_smoothing=0.1,
        epochs=20,
        batch_size=32,
        lr=5e-4,
        lr_batch=256,
        warmup_epochs=1.0,
        layer_decay=0.8,
        clip_grad=5.0,
        drop_path_rate=0.1,
        ema=0.998,
    )
