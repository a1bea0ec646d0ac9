"""DINO over any backbone, with transformers' deformable attention, layers and matching."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from ....data.selection import Selection
from ....models.features import last_maps
from ....nn.layers import StridedConv2d
from ....utils.extras import needs
from .base import Target, mean_over_processes
from .denoising import IGNORED, LEAST, Denoising, denoising, visibility
from .dense import DenseDetector

STRIDES = [8, 16, 32, 64]

WIDTH, HEADS, POINTS, HIDDEN = 256, 8, 4, 2048
"""Channels, attention heads, points per head and level, and hidden channels of an MLP (DINO, its table of
hyper-parameters)."""

WEIGHTS = {"classification": 1.0, "l1": 5.0, "giou": 2.0}

MATCHING = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}


def dino(backbone: nn.Module, channels: Sequence[int], num_classes: int, queries: int = 900) -> DenseDetector:
    """DINO with 4 scales (Zhang et al. 2022): strides 8, 16, 32 and 64.

    Args:
        queries: Number of boxes that the decoder refines; an image with fewer places has one per place.
    """
    return Dino(backbone, channels, num_classes, queries)


@dataclass(frozen=True)
class Memory:
    """A batch after the encoder: the places of all levels in a row, N of them, starting with the finest.

    Tensors with 1 for B are the same for all images.

    Attributes:
        features: (B, N, 256).
        centres: (B, N, 2), x and y of each place, as fractions of its image.
        inside: (B, N), False in padding; None without padding.
        extents: (B, 4, 2), width and height of the image as fractions of each level's map.
        shapes: (4, 2), rows and columns of each level's map.
        shape_list: The same as numbers.
    """

    features: Tensor
    centres: Tensor
    inside: Tensor | None
    extents: Tensor
    shapes: Tensor
    shape_list: list[tuple[int, int]]


@dataclass(frozen=True)
class Answer:
    """Predictions of one layer for its queries: logits (B, Q, K); boxes (B, Q, 4) as centre and size in fractions;
    float32."""

    logits: Tensor
    boxes: Tensor


class Dino(DenseDetector):
    """See `dino`. Boxes are fractions of the image without its padding: centre, width and height.

    Every layer has its own two heads, as in MMDetection; the authors' code shares one pair in the whole decoder.

    Args:
        layers: Number of layers of the encoder, and of the decoder.
    """

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], num_classes: int, queries: int, layers: int = 6
    ) -> None:
        chosen = Selection(threshold=0.0, per_level=None, iou=None, most=300)
        super().__init__(num_classes, chosen, STRIDES, queries=queries)
        with needs("det", "DINO"):
            from transformers import DeformableDetrConfig
            from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
            from transformers.models.deformable_detr.modeling_deformable_detr import (
                DeformableDetrDecoder,
                DeformableDetrEncoder,
                DeformableDetrMLPPredictionHead,
            )
        settings: dict[str, Any] = {
            "d_model": WIDTH,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_n_points": POINTS,
            "decoder_n_points": POINTS,
            "encoder_ffn_dim": HIDDEN,
            "decoder_ffn_dim": HIDDEN,
            "num_feature_levels": len(STRIDES),
            "dropout": 0.0,
        }
        config = DeformableDetrConfig(**settings)
        self.backbone = backbone
        self.project = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in channels[1:])
        self.project.append(StridedConv2d(channels[-1], WIDTH, 3, stride=2, padding=1))
        self.project_norm = nn.ModuleList(InsideGroupNorm(32, WIDTH) for _ in STRIDES)
        self.level_embedding = nn.Parameter(torch.randn(len(STRIDES), WIDTH))
        self.encoder = DeformableDetrEncoder(config).layers
        self.proposal = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.content = nn.Parameter(torch.randn(queries, WIDTH))
        self.label_embedding = nn.Embedding(num_classes, WIDTH)
        self.query_position = DeformableDetrMLPPredictionHead(2 * WIDTH, WIDTH, WIDTH, num_layers=2)
        self.decoder = DeformableDetrDecoder(config).layers
        self.decoder_norm = nn.LayerNorm(WIDTH)
        # The first heads belong to the proposals.
        self.class_heads = nn.ModuleList(nn.Linear(WIDTH, num_classes) for _ in range(1 + layers))
        self.box_heads = nn.ModuleList(
            DeformableDetrMLPPredictionHead(WIDTH, WIDTH, 4, num_layers=3) for _ in range(1 + layers)
        )
        self.matcher = DeformableDetrHungarianMatcher(**MATCHING)
        self._initialise()

    def _initialise(self) -> None:
        """As in the authors' code: before training, no class is likely and no layer moves its boxes."""
        for part in (self.project, self.encoder, self.proposal, self.query_position, self.decoder):
            for name, parameter in part.named_parameters():
                # Those two are zeros, so that a head starts with fixed points along its own direction.
                if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    nn.init.xavier_uniform_(parameter)
        for convolution in self.project:
            nn.init.zeros_(cast(Tensor, convolution.bias))
        for head in self.class_heads:
            nn.init.constant_(cast(Tensor, head.bias), -math.log((1 - 0.01) / 0.01))
        for head in self.box_heads:
            last = cast(nn.ModuleList, head.layers)[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def backbone_module(self) -> nn.Module:
        return self.backbone

    def candidates(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        memory = self.encode(x, sizes)
        first = self.propose(memory)
        last = self.decode(memory, first.boxes)[-1]
        inside_batch = last.boxes * _sides(x, sizes)[:, None].repeat(1, 1, 2) / _sides(x, None).repeat(1, 2)
        return torch.cat([box_convert(inside_batch, "cxcywh", "xyxy"), last.logits.float().sigmoid()], -1)

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        labels = [target["labels"] for target in targets]
        boxes = [
            box_convert(target["boxes"] / target["boxes"].new_tensor([width, height] * 2), "xyxy", "cxcywh")
            for target, (height, width) in zip(targets, images.image_sizes, strict=True)
        ]
        memory = self.encode(images.tensors, images.image_sizes)
        first = self.propose(memory)
        noise = denoising(labels, boxes, self.num_classes)
        answers = self.decode(memory, first.boxes, noise)
        with torch.autocast(images.tensors.device.type, enabled=False):
            objects = memory.features.new_tensor(sum(map(len, labels)), dtype=torch.float32)
            count = mean_over_processes(objects).clamp(min=1)
            noisy = 0 if noise is None else noise.labels.shape[1]
            losses = _named("proposal", [self._matched_losses(first, labels, boxes, count)])
            matching = [Answer(each.logits[:, noisy:], each.boxes[:, noisy:]) for each in answers]
            losses |= _named("decoder", [self._matched_losses(each, labels, boxes, count) for each in matching])
            if noise is None:  # keeps the embedding in the graph, for processes that wait for each other's gradients
                nothing = 0 * self.label_embedding.weight.sum()
                return losses | _named("denoising", [dict.fromkeys(WEIGHTS, nothing)])
            parts = [Answer(each.logits[:, :noisy], each.boxes[:, :noisy]) for each in answers]
            return losses | _named(
                "denoising",
                [answer_losses(each, noise.wanted_labels, noise.wanted_boxes, count * noise.groups) for each in parts],
            )

    def encode(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Memory:
        """Images (B, 3, H, W), and their (height, width) if there is padding -> their encoded places.

        An image's fractions are exact (a reconstruction: the authors round its sides up to whole places of each level).
        """
        sides = _sides(x, sizes)
        maps = last_maps(self.backbone, x)[1:]
        last = maps[-1]
        if sizes is not None:  # zeros outside the image, as outside the batch
            _, inside = _grid(last, STRIDES[2], sides)
            last = last * inside.unflatten(1, last.shape[-2:])[:, None]
        rows, positions, centres, insides, extents, shape_list = [], [], [], [], [], []
        for level, (stride, m) in enumerate(zip(STRIDES, [*maps, last], strict=True)):
            m = self.project[level](m)
            height, width = m.shape[-2:]
            centre, inside = _grid(m, stride, sides)
            m = self.project_norm[level](m, None if sizes is None else inside.unflatten(1, (height, width)))
            rows.append(m.flatten(2).transpose(1, 2))
            positions.append(sine(centre, temperature=20) + self.level_embedding[level])
            centres.append(centre)
            insides.append(inside)
            extents.append(sides / (stride * _pair(width, height, x)))
            shape_list.append((height, width))
        features, position, centres = torch.cat(rows, 1), torch.cat(positions, 1), torch.cat(centres, 1)
        inside, extents = None if sizes is None else torch.cat(insides, 1), torch.stack(extents, 1)
        shapes = torch.stack([_pair(height, width, x) for height, width in shape_list])
        for layer in self.encoder:
            features = layer(
                features,
                inside,
                spatial_position_embeddings=position,
                reference_points=centres[:, :, None] * extents[:, None],
                spatial_shapes=shapes,
                spatial_shapes_list=shape_list,
            )
        return Memory(features, centres, inside, extents, shapes, shape_list)

    def propose(self, memory: Memory) -> Answer:
        """Predictions at the places most likely to hold objects, as many as there are queries (DINO, section 3.4).

        A place at the very edge of an image or in its padding is used only if no others are left.
        """
        features = self.proposal(memory.features)
        logits = self.class_heads[0](features)
        # Places that start in the padding have their centres beyond 1.
        usable = ((memory.centres > 0.01) & (memory.centres < 0.99)).all(-1)
        scores = logits.amax(-1).masked_fill(~usable, -math.inf)
        chosen = scores.topk(torch.sym_min(self.content.shape[0], scores.shape[1]), sorted=True).indices[..., None]
        # A place's first box is 0.05 of the image wide and high on the finest level, and twice as much on every next.
        sides = [
            memory.centres.new_full((height * width, 2), 0.05 * 2**i)
            for i, (height, width) in enumerate(memory.shape_list)
        ]
        boxes = torch.cat([memory.centres, torch.cat(sides).expand_as(memory.centres)], -1)
        batch = logits.shape[0]
        start = boxes.expand(batch, -1, -1).gather(1, chosen.expand(-1, -1, 4))
        features = features.gather(1, chosen.expand(-1, -1, WIDTH))
        return Answer(logits.gather(1, chosen.expand(-1, -1, self.num_classes)), self._moved(0, features, start))

    def decode(self, memory: Memory, boxes: Tensor, noise: Denoising | None = None) -> list[Answer]:
        """Initial boxes (B, Q, 4) -> the predictions of every layer, with those of the noisy queries before them.

        A layer's box starts where the layer before left it, and gradients flow through this one additional layer (DINO,
        section 3.5); the places where it samples and what it passes on carry no gradients.
        """
        reference = boxes.detach()
        content = self.content[: boxes.shape[1]].expand(boxes.shape[0], -1, -1)
        visible = None
        if noise is not None:
            reference = torch.cat([noise.boxes, reference], 1)
            content = torch.cat([self.label_embedding(noise.labels), content], 1)
            visible = visibility(noise, boxes.shape[1])
        start, answers = reference, []
        for i, layer in enumerate(self.decoder, 1):
            content = layer(
                content,
                self.query_position(sine(reference, temperature=10000)),
                reference_points=reference[:, :, None] * memory.extents[:, None].repeat(1, 1, 1, 2),
                spatial_shapes=memory.shapes,
                spatial_shapes_list=memory.shape_list,
                encoder_hidden_states=memory.features,
                encoder_attention_mask=memory.inside,
                attention_mask=visible,
            )
            normed = self.decoder_norm(content)
            answers.append(Answer(self.class_heads[i](normed), self._moved(i, normed, start)))
            start = self._moved(i, content, reference)
            reference = start.detach()
        return answers

    def _moved(self, head: int, features: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (B, Q, 4), moved by a head's output for features (B, Q, 256)."""
        return (self.box_heads[head](features).float() + boxes.logit(LEAST)).sigmoid()

    def _matched_losses(
        self, answer: Answer, labels: list[Tensor], boxes: list[Tensor], count: Tensor
    ) -> dict[str, Tensor]:
        """Losses of queries in which the best query for each object should match it, and the others should match
        nothing."""
        wanted_labels = torch.full_like(answer.logits[..., 0], self.num_classes, dtype=torch.int64)
        wanted_boxes = torch.zeros_like(answer.boxes)
        if any(map(len, labels)):  # the matcher needs one
            outputs = {"logits": answer.logits.float(), "pred_boxes": answer.boxes.nan_to_num()}
            objects = [{"class_labels": i, "boxes": b} for i, b in zip(labels, boxes, strict=True)]
            for image, (queries, matched) in enumerate(self.matcher(outputs, objects)):
                wanted_labels[image, queries] = labels[image][matched]
                wanted_boxes[image, queries] = boxes[image][matched]
        return answer_losses(answer, wanted_labels, wanted_boxes, count)


class InsideGroupNorm(nn.GroupNorm):
    """Group normalisation with the mean and variance over an image's places without its padding (a reconstruction).

    Otherwise, the detections in an image would depend on the sizes of the other images in its batch.
    """

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape, with `inside` (B, H, W) True in the image."""
        if inside is None:
            return super().forward(x)
        groups, axes = x.float().unflatten(1, (self.num_groups, -1)), (2, 3, 4)
        weight = inside[:, None, None] / (inside.sum((1, 2)) * groups.shape[2]).view(-1, 1, 1, 1, 1)
        centred = groups - (groups * weight).sum(axes, keepdim=True)
        variance = (centred.square() * weight).sum(axes, keepdim=True)
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def sine(shares: Tensor, temperature: float) -> Tensor:
    """Fractions (..., n) -> (..., 128 n): sine and cosine of each at 64 wavelengths, from 1 to nearly `temperature`.

    The temperatures are 20 for a place and 10000 for a box, as in the authors' code.
    """
    steps = torch.arange(WIDTH // 4, device=shares.device) / (WIDTH // 4)
    angles = shares[..., None] * (2 * math.pi * temperature**-steps)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


def answer_losses(answer: Answer, labels: Tensor, boxes: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Focal, L1 and generalised IoU loss, summed over the queries, with their weights, divided by `count` objects.

    Args:
        labels: (B, Q), target classes, K for no object, `IGNORED` for no target.
        boxes: (B, Q, 4), target boxes of queries that have a class.
    """
    num_classes = answer.logits.shape[-1]
    asked = labels != IGNORED
    objects = asked & (labels < num_classes)
    classes = F.one_hot(labels[asked], num_classes + 1)[:, :-1].float()
    found, wanted = answer.boxes[objects], boxes[objects]
    corners = [box_convert(each, "cxcywh", "xyxy") for each in (found, wanted)]
    losses = {
        "classification": sigmoid_focal_loss(answer.logits.float()[asked], classes, 0.25, 2, reduction="sum"),
        "l1": F.l1_loss(found, wanted, reduction="sum"),
        "giou": generalized_box_iou_loss(*corners, reduction="sum"),
    }
    return {name: WEIGHTS[name] * loss / count for name, loss in losses.items()}


def _named(part: str, layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of a part of the model, each the sum over its layers."""
    return {f"{part}_{name}": torch.stack([layer[name] for layer in layers]).sum() for name in WEIGHTS}


def _grid(m: Tensor, stride: int, sides: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of a map (B, C, H, W), by rows, its centre as fractions of an image, and whether it starts inside
    it.

    The image's width and height are `sides` (B, 2); the results are (B, HW, 2) and (B, HW).
    """
    columns, rows = torch.arange(m.shape[-1], device=m.device), torch.arange(m.shape[-2], device=m.device)
    corners = stride * torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
    return (corners + stride / 2) / sides[:, None], (corners < sides[:, None]).all(-1)


def _pair(first: int, second: int, like: Tensor) -> Tensor:
    """Two numbers, known to a graph only at run time, as (2), float32."""
    return torch.stack([torch.scalar_tensor(n, dtype=torch.float32, device=like.device) for n in (first, second)])


def _sides(x: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Tensor:
    """Width and height of each image (B, 2), or without `sizes` those of the batch (1, 2), float32."""
    if sizes is None:
        return _pair(x.shape[-1], x.shape[-2], x)[None]
    return torch.tensor([(width, height) for height, width in sizes], dtype=torch.float32, device=x.device)
