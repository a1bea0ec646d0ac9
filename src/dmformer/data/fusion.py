"""Objects found in several views of one image, merged: test-time augmentation of detectors, without torch."""

from collections.abc import Sequence

import numpy as np

from .detections import Detections, ious

IOU = 0.55
"""IoU above which two boxes of a class show the same object (Weighted boxes fusion, section 3)."""


def mirrored(found: Detections, size: tuple[int, int], axes: tuple[int, ...]) -> Detections:
    """The objects found in a mirrored image, as objects of the image itself.

    Args:
        found: Masks, if any, are (n, h, w), within the boxes.
        size: Height and width of the image in pixels.
        axes: Along which it is mirrored: -1 swaps left and right, -2 top and bottom.
    """
    boxes = found.boxes.copy()
    for axis in axes:
        low, high = (0, 2) if axis == -1 else (1, 3)
        boxes[:, low], boxes[:, high] = size[axis] - found.boxes[:, high], size[axis] - found.boxes[:, low]
    masks = None if found.masks is None else np.flip(found.masks, axes)
    return Detections(boxes, found.scores, found.labels, masks)


def fused(views: Sequence[Detections], most: int) -> Detections:
    """Weighted boxes fusion (arXiv 1910.13302, section 3) of the objects found in V views of an image.

    From the highest score down, each object joins the cluster of its class whose box overlaps its own most, if the IoU
    is above `IOU`, or starts one. The box of a cluster is the mean of its objects' boxes, weighted by their scores. Its
    score is their sum divided by V: their mean, times the fraction of the views that they were found in. Masks within
    the boxes are averaged like the boxes (a reconstruction: the paper has none).

    Unlike in the paper, a cluster takes at most one object of each view. Otherwise, the duplicates that detectors
    without suppression find, with low scores, would lower the mean score of the object that they duplicate.

    Args:
        views: Masks, if any, are (n, h, w), probabilities within the boxes, all of one size.
        most: Maximum number of objects.
    """
    boxes, scores, labels = (
        np.concatenate([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels")
    )
    view_of = np.repeat(np.arange(len(views)), [len(view) for view in views])
    n, count = len(scores), 0
    cluster_of, classes, seen = np.zeros(n, int), np.zeros(n, np.int64), np.zeros((n, len(views)), bool)
    means, sums = np.zeros((n, 4)), np.zeros(n)
    for i in np.argsort(-scores, kind="stable"):
        may_join = (classes[:count] == labels[i]) & ~seen[:count, view_of[i]]
        overlaps = ious(boxes[i], means[:count]) * may_join
        if overlaps.max(initial=0.0) > IOU:
            k = int(overlaps.argmax())
        else:
            k, count = count, count + 1
        cluster_of[i], classes[k], seen[k, view_of[i]] = k, labels[i], True
        sums[k] += scores[i]
        means[k] += (boxes[i] - means[k]) * (scores[i] / sums[k])
    order = np.argsort(-sums[:count], kind="stable")[:most]
    masks = None
    if all(view.masks is not None for view in views):
        every = np.concatenate([view.masks for view in views if view.masks is not None])
        totals = np.zeros((count, *every.shape[1:]), np.float32)
        np.add.at(totals, cluster_of, every * (scores / sums[cluster_of])[:, None, None])
        masks = totals[order]
    return Detections(
        means[order].astype(np.float32), (sums[order] / len(views)).astype(np.float32), classes[order], masks
    )
