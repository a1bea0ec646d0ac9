"""Recipes for classification. `dmformer train RECIPE` runs one; every field can be overridden."""

from dataclasses import replace

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


def imagenet1k_dmformer_s() -> Recipe:
    """torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/: the paper's S.

    From the paper: 300 epochs, 8 GPUs, total batch 1024, learning rate 1e-3, cosine. Reconstructions: the rest.
    """
    return Recipe(
        model="dmformer_s",
        image_size=224,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        epochs=300,
        batch_size=128,
        lr=1e-3,
        lr_batch=1024,
        warmup_epochs=5.0,
        weight_decay=0.05,
        drop_path_rate=0.1,
        precision="bf16",
    )


def imagenet1k_dmformer_l() -> Recipe:
    """torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_l --data imagenet/: the paper's L."""
    return replace(imagenet1k_dmformer_s(), model="dmformer_l", drop_path_rate=0.2)
