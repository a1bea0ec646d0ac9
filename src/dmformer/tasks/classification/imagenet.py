"""Recipes for ImageNet, as the papers state them.

torchrun --nproc-per-node 8 -m dmformer train imagenet1k_van_b2 --data imagenet/

Batch sizes are per process, with eight processes. What no paper states is DeiT's, as in the authors' code bases:
RandAugment 9/0.5, mixup 0.8, CutMix 1, label smoothing 0.1, erasing 0.25; it is a reconstruction unless repeated below.
"""

from dataclasses import replace

from .recipes import ClassificationRecipe


def _imagenet1k(model: str, drop_path_rate: float) -> ClassificationRecipe:
    """300 epochs of AdamW at 1e-3 for a batch of 1,024, weight decay 0.05, warm-up 5, as for DMFormer and VAN."""
    return ClassificationRecipe(
        model=model,
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
        drop_path_rate=drop_path_rate,
        precision="bf16",
    )


def imagenet1k_dmformer_s() -> ClassificationRecipe:
    """The paper's DMFormer-S on ImageNet-1K.

    From the paper: 300 epochs, 8 GPUs, total batch 1024, learning rate 1e-3, cosine. Reconstructions: the rest.
    """
    return _imagenet1k("dmformer_s", 0.1)


def imagenet1k_dmformer_l() -> ClassificationRecipe:
    """The paper's DMFormer-L on ImageNet-1K."""
    return _imagenet1k("dmformer_l", 0.2)


def _van(model: str, drop_path_rate: float) -> ClassificationRecipe:
    return replace(_imagenet1k(model, drop_path_rate), epochs=310, cooldown_epochs=10)


def imagenet1k_van_b0() -> ClassificationRecipe:
    """VAN-B0 on ImageNet-1K; published: 75.4 %."""
    return _van("van_b0", 0.1)


def imagenet1k_van_b1() -> ClassificationRecipe:
    """VAN-B1 on ImageNet-1K; published: 81.1 %."""
    return _van("van_b1", 0.1)


def imagenet1k_van_b2() -> ClassificationRecipe:
    """VAN-B2 on ImageNet-1K; published: 82.8 %."""
    return _van("van_b2", 0.1)


def imagenet1k_van_b3() -> ClassificationRecipe:
    """VAN-B3 on ImageNet-1K; published: 83.9 %."""
    return _van("van_b3", 0.2)


def imagenet1k_van_b4() -> ClassificationRecipe:
    """VAN-B4 on ImageNet-1K (published: 84.2 %); its drop path, 0.2, is a reconstruction."""
    return _van("van_b4", 0.2)


def imagenet22k_van_b4() -> ClassificationRecipe:
    """VAN-B4 on ImageNet-22K: 90 epochs, batch 8,192, 4e-3; for B5 and B6 use --model."""
    wide = replace(_imagenet1k("van_b4", 0.2), epochs=90, lr=4e-3, lr_batch=8192)
    return replace(wide, batch_size=128, accumulate=8, max_broken=0.01)


def imagenet22k_to_1k_van_b4() -> ClassificationRecipe:
    """VAN-B4 from ImageNet-22K to 1K (published: 85.7 %): --weights runs/NAME/best, keeps matching head rows."""
    return replace(
        _imagenet1k("van_b4", 0.2),
        head="imagenet1k",
        epochs=30,
        batch_size=64,
        lr=5e-5,
        lr_batch=512,
        weight_decay=1e-8,
        mixup=0.0,
        cutmix=0.0,
    )


def imagenet22k_to_1k_384_van_b4() -> ClassificationRecipe:
    """VAN-B4 from ImageNet-22K to 1K at 384 px (published: 86.6 %): --weights runs/NAME/best."""
    return replace(imagenet22k_to_1k_van_b4(), image_size=384, crop_pct=1.0, batch_size=32, accumulate=2)


def _smt(model: str, drop_path_rate: float) -> ClassificationRecipe:
    return replace(
        _imagenet1k(model, drop_path_rate), lr=2e-3, mixup=0.2, clip_grad=5.0, lr_min=1e-5, crop_pct=224 / 256
    )


def imagenet1k_smt_t() -> ClassificationRecipe:
    """SMT-T on ImageNet-1K (published: 82.2 %): 2e-3, clipped at 5, mixup 0.2."""
    return _smt("smt_t", 0.1)


def imagenet1k_smt_s() -> ClassificationRecipe:
    """SMT-S on ImageNet-1K; published: 83.7 %."""
    return _smt("smt_s", 0.2)


def imagenet1k_smt_b() -> ClassificationRecipe:
    """SMT-B on ImageNet-1K; published: 84.3 %."""
    return _smt("smt_b", 0.3)


def imagenet22k_smt_l() -> ClassificationRecipe:
    """SMT-L on ImageNet-22K; drop path 0.4 from the paper, otherwise the recipe of its smaller sizes for 90 epochs."""
    return replace(_smt("smt_l", 0.4), epochs=90, max_broken=0.01)


def imagenet22k_to_1k_smt_l() -> ClassificationRecipe:
    """SMT-L from ImageNet-22K to 1K (published: 87.1 %); the schedule is VAN's, a reconstruction."""
    return replace(imagenet22k_to_1k_van_b4(), model="smt_l", drop_path_rate=0.4, crop_pct=224 / 256)


def imagenet22k_to_1k_384_smt_l() -> ClassificationRecipe:
    """SMT-L from ImageNet-22K to 1K at 384 px (published: 88.1 %); the schedule is VAN's, a reconstruction."""
    return replace(imagenet22k_to_1k_384_van_b4(), model="smt_l", drop_path_rate=0.4)


def imagenet1k_vitae_t() -> ClassificationRecipe:
    """ViTAE-T on ImageNet-1K (published: 75.3 %); for 6M, 13M and S use --model.

    From the paper's code: batch 512, 1e-3 (an article on it gives 1e-4), weight decay 0.03, warm-up 10, minimum rate
    1e-5, a moving average of 0.99996, mixup and CutMix as in T2T-ViT. Reconstruction: drop path 0.1.
    """
    return replace(
        _imagenet1k("vitae_t", 0.1),
        batch_size=64,
        lr_batch=512,
        lr_min=1e-5,
        weight_decay=0.03,
        warmup_epochs=10.0,
        ema=0.99996,
    )


def imagenet1k_vitaev2_s() -> ClassificationRecipe:
    """ViTAEv2-S on ImageNet-1K; published: 82.6 %."""
    return _imagenet1k("vitaev2_s", 0.1)


def imagenet1k_vitaev2_48m() -> ClassificationRecipe:
    """ViTAEv2-48M on ImageNet-1K; published: 83.8 %."""
    return replace(_imagenet1k("vitaev2_48m", 0.25), weight_decay=0.055)


def imagenet1k_vitaev2_b() -> ClassificationRecipe:
    """ViTAEv2-B on ImageNet-1K; published: 84.6 %."""
    return replace(_imagenet1k("vitaev2_b", 0.4), weight_decay=0.065)
