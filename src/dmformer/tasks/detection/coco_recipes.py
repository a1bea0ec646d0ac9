"""Recipes for COCO: six detectors, each for 12 epochs (1x) and 36 (3x), on 8 GPUs with 2 images each.

torchrun --nproc-per-node 8 -m dmformer train coco_mask_rcnn_1x --data coco/ --weights dmformer_s/

From the papers of VAN, SMT and ViTAEv2: AdamW, a batch of 16, drops at epochs 8 and 11 or 27 and 33, shorter sides of
480 to 800. VAN and ViTAEv2 use a learning rate of 1e-4, and so does DMFormer-S here (a reconstruction, as its paper
gives none). SMT-S is trained with `--model smt_s --drop-path-rate 0.2`, with Mask R-CNN also `--lr 2e-4`.
Reconstructions: weight decay 0.05 where none is given, 500 iterations of warm-up, drop path 0.1 (SMT's 0.2 as in its
UperNet), BatchNorm statistics kept as in the weights.
"""

from dataclasses import replace

from .recipes import DetectionRecipe, Framework


def _coco(framework: Framework) -> DetectionRecipe:
    return DetectionRecipe(
        model="dmformer_s",
        framework=framework,
        data="coco",
        batch_size=2,
        lr=1e-4,
        lr_batch=16,
        lr_min=0.0,
        drop_path_rate=0.1,
        norm_statistics="kept",
    )


def _three_times(recipe: DetectionRecipe) -> DetectionRecipe:
    return replace(recipe, epochs=36, drops=(27, 33))


def coco_mask_rcnn_1x() -> DetectionRecipe:
    """Mask R-CNN on COCO, 12 epochs; published: VAN-B2 46.4 box and 41.8 mask AP, ViTAEv2-S 46.3 and 41.8."""
    return _coco("mask_rcnn")


def coco_mask_rcnn_3x() -> DetectionRecipe:
    """Mask R-CNN on COCO, 36 epochs; published: SMT-S 49.0 box and 43.4 mask AP, ViTAEv2-S 47.8 and 42.6."""
    return _three_times(coco_mask_rcnn_1x())


def coco_cascade_rcnn_1x() -> DetectionRecipe:
    """Cascade Mask R-CNN on COCO, 12 epochs; published: ViTAEv2-S 50.6 box and 43.6 mask AP.

    The BatchNorms of its heads, which have no statistics in the weights, are computed over all processes.
    """
    return replace(_coco("cascade_rcnn"), sync_batchnorm=True)


def coco_cascade_rcnn_3x() -> DetectionRecipe:
    """Cascade Mask R-CNN on COCO, 36 epochs; published: SMT-S 51.9 box and 44.7 mask AP."""
    return _three_times(coco_cascade_rcnn_1x())


def coco_retinanet_1x() -> DetectionRecipe:
    """RetinaNet on COCO, 12 epochs; published: VAN-B2 44.9 AP."""
    return _coco("retinanet")


def coco_retinanet_3x() -> DetectionRecipe:
    """RetinaNet on COCO, 36 epochs; published: SMT-S 47.3 AP."""
    return _three_times(coco_retinanet_1x())


def coco_atss_1x() -> DetectionRecipe:
    """ATSS on COCO, 12 epochs."""
    return _coco("atss")


def coco_atss_3x() -> DetectionRecipe:
    """ATSS on COCO, 36 epochs; published: SMT-S 49.9 AP."""
    return _three_times(coco_atss_1x())


def coco_sparse_rcnn_1x() -> DetectionRecipe:
    """Sparse R-CNN with 300 proposals on COCO, 12 epochs.

    From SMT's paper: learning rate 2.5e-5, weight decay 1e-4, gradients clipped at 1.
    """
    return replace(_coco("sparse_rcnn"), lr=2.5e-5, weight_decay=1e-4, clip_grad=1.0, queries=300)


def coco_sparse_rcnn_3x() -> DetectionRecipe:
    """Sparse R-CNN with 300 proposals on COCO, 36 epochs; published: SMT-S 50.2 AP."""
    return _three_times(coco_sparse_rcnn_1x())


def coco_dino_1x() -> DetectionRecipe:
    """DINO with 4 scales on COCO, 12 epochs, with a drop at 11.

    From DINO's paper: learning rate 1e-4, weight decay 1e-4, gradients clipped at 0.1, 900 queries. The backbone's
    rate, a tenth of that, is `--backbone-lr 0.1`, which is set here.
    """
    return replace(_coco("dino"), weight_decay=1e-4, clip_grad=0.1, queries=900, drops=(11,), backbone_lr=0.1)


def coco_dino_3x() -> DetectionRecipe:
    """DINO with 4 scales on COCO, 36 epochs, with drops at 27 and 33; published: SMT-S 54.0 AP."""
    return _three_times(coco_dino_1x())
