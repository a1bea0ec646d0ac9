"""Contrastive denoising: noisy copies of an image's objects, from which DINO's decoder learns to recover them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

IGNORED = -1
"""The label of a query that pads an image with fewer objects than another in its batch; it has no target."""

LEAST = 1e-3
"""Minimum nonzero fraction of an image, as in the authors' code; also the minimum side of a noisy box."""


@dataclass(frozen=True)
class Denoising:
    """Noisy queries, M = 2 groups n for n objects in the fullest image.

    Each group has n positives, which should be restored to their objects, followed by n negatives, which should become
    no object. Boxes are fractions of the image: centre, width and height.

    Attributes:
        labels: (B, M), noisy, from 0.
        boxes: (B, M, 4), noisy.
        wanted_labels: (B, M), targets: a class, `num_classes` for no object, or `IGNORED`.
        wanted_boxes: (B, M, 4), likewise.
    """

    labels: Tensor
    boxes: Tensor
    wanted_labels: Tensor
    wanted_boxes: Tensor
    groups: int


def denoising(
    labels: Sequence[Tensor],
    boxes: Sequence[Tensor],
    num_classes: int,
    pairs: int = 100,
    box_noise: float = 1.0,
    label_noise: float = 0.5,
) -> Denoising | None:
    """Noisy copies of objects (DINO, section 3.3); None if no image has an object.

    Every edge of a box moves inwards or outwards: a positive's by up to `box_noise` times half the box's side, a
    negative's by one to two times as much. A box that this turns inside out becomes a line or a point.

    Args:
        labels: (n) for each image, from 0.
        boxes: (n, 4) for each image, as fractions of it: centre, width and height.
        pairs: Approximate number of pairs of positives and negatives: as many groups as fit, but at least one.
        box_noise: The paper's lambda 1; lambda 2 is twice as much.
        label_noise: Half of this fraction of the labels is replaced by random ones, as in the authors' code.
    """
    fullest = max(len(each) for each in labels)
    if fullest == 0:
        return None
    groups = max(pairs // fullest, 1)
    true_labels = pad_sequence(list(labels), batch_first=True, padding_value=IGNORED).repeat(1, 2 * groups)
    true_boxes = pad_sequence(list(boxes), batch_first=True).repeat(1, 2 * groups, 1)
    negative = (torch.arange(2 * groups, device=true_boxes.device) % 2 == 1).repeat_interleave(fullest)

    replaced = torch.rand(true_labels.shape, device=true_boxes.device) < label_noise / 2
    noisy_labels = torch.where(replaced, torch.randint_like(true_labels, num_classes), true_labels.clamp(min=0))

    halves = true_boxes[..., 2:].repeat(1, 1, 2) / 2
    moves = torch.rand_like(true_boxes) + negative[:, None]
    signs = torch.randint_like(true_boxes, 2) * 2 - 1
    corners = box_convert(true_boxes, "cxcywh", "xyxy") + signs * moves * halves * box_noise
    noisy_boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    noisy_boxes = torch.cat([noisy_boxes[..., :2], noisy_boxes[..., 2:].clamp(min=LEAST)], -1)

    wanted_labels = true_labels.masked_fill((true_labels != IGNORED) & negative, num_classes)
    return Denoising(noisy_labels, noisy_boxes, wanted_labels, true_boxes, groups)


def visibility(noise: Denoising, queries: int) -> Tensor:
    """(B, 1, M + queries, M + queries), True where a query (third axis) may attend to another (fourth) in
    self-attention.

    The noisy queries come first. All queries may attend to the matching ones, and noisy ones to those of their own
    group (DN-DETR, "Attention mask"), so that no query learns about an object from another group. No query attends to
    padding (a reconstruction: the authors' code lets a group attend to it).
    """
    batch, noisy = noise.labels.shape
    matching = -1
    group = torch.arange(noisy, device=noise.labels.device) // (noisy // noise.groups)
    group = torch.cat([group, group.new_full((queries,), matching)])
    may = (group[:, None] == group[None]) | (group[None] == matching)
    real = torch.cat([noise.wanted_labels != IGNORED, may.new_ones(batch, queries)], 1)
    return (may & real[:, None])[:, None]
