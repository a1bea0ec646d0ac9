"""Recipes for ADE20K, as the paper of DMFormer states them."""

from dataclasses import replace

from .recipes import SegmentationRecipe


def ade20k_fpn() -> SegmentationRecipe:
    """The paper's DMFormer-S with Semantic FPN on ADE20K.

    From the paper: 40k iterations, AdamW at 2e-4, polynomial decay of power 0.9, total batch 16 on 8 GPUs.
    Reconstructions: crops of 512, weight decay 1e-4 (VAN's), drop path 0.1.
    """
    return SegmentationRecipe(
        model="dmformer_s",
        data="ADEChallengeData2016",
        reduce_zero_label=True,
        image_size=512,
        resize=512,
        batch_size=2,
        lr=2e-4,
        lr_batch=16,
        lr_min=0.0,
        weight_decay=1e-4,
        drop_path_rate=0.1,
        sync_batchnorm=True,
    )


def ade20k_upernet() -> SegmentationRecipe:
    """The paper's DMFormer-S with UperNet on ADE20K.

    From the paper: 160k iterations, AdamW at 6e-5, 1,500 iterations of warm-up, then linear decay, total batch 16 on
    8 GPUs. Reconstructions: crops of 512, weight decay 0.01 (VAN's, SMT's and ViTAEv2's), drop path 0.1. Those
    three are trained in the same way, with another drop path: `--model smt_s --drop-path-rate 0.2`; 0.3 for smt_b and
    van_b3, 0.4 for van_b4, 0.2 for vitaev2_s.
    """
    return replace(
        ade20k_fpn(),
        head="upernet",
        lr=6e-5,
        weight_decay=0.01,
        iterations=160_000,
        validate_every=16_000,
        warmup_iterations=1_500,
        power=1.0,
    )
