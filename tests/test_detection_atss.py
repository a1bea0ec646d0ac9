"""ATSS: which anchors are assigned to an object, losses, decoding, export."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from dmformer.models.features import open_backbone
from dmformer.tasks.detection.frameworks.atss import ATSS, BoxHead, assign, atss, centerness_of
from dmformer.tasks.detection.frameworks.base import batched
from dmformer.tasks.detection.frameworks.dense import DenseDetector

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.fixture
def model() -> ATSS:
    torch.manual_seed(0)
    return atss(*open_backbone("dmformer_n", "a detector", backbone_args=TINY), num_classes=3)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def boxes_within(n: int, side: float, seed: int) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed)) * side
    return torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)


def overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """Intersection and union of two boxes."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return common, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common


def giou_loss(a: list[float], b: list[float]) -> float:
    common, union = overlap(a, b)
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - common / union + (around - union) / around


def focal_loss(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def in_two_processes(work: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The results of work(0) and work(1) as the two processes of a distributed training, here two threads."""
    numbers: dict[int, Tensor] = {}
    all_here = threading.Barrier(2, timeout=60)

    def all_reduce(number: Tensor) -> None:
        numbers[threading.get_ident()] = number.clone()
        all_here.wait()
        number.copy_(sum(numbers.values()))
        all_here.wait()

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    monkeypatch.undo()
    return found


def test_assignment_worked_by_hand():
    anchors = torch.tensor([[0, 0, 16, 16], [8, 0, 24, 16], [24, 0, 40, 16], [-8, -8, 24, 24], [16, -8, 48, 24.0]])
    # The two nearest of each level: all but the third. IoUs with the object: 1, 1/3, 1/4, 0; their mean is 0.396, their
    # standard deviation 0.427 (with n - 1), so the threshold 0.823.
    first = torch.tensor([[0, 0, 16, 16.0]])
    assert assign(anchors, [3, 2], first, nearest=2).tolist() == [0, -1, -1, -1, -1]
    # A second object with IoUs 1/3, 1, 1/4, 1/9: mean 0.424, deviation 0.395, threshold 0.819.
    second = torch.tensor([[0, 0, 16, 16.0], [8, 0, 24, 16]])
    assert assign(anchors, [3, 2], second, nearest=2).tolist() == [0, 1, -1, -1, -1]


def test_the_deviation_is_taken_with_n_minus_1():
    # IoUs 0.6, 0.6, 0.25, 0.25: mean 0.425; the deviation is 0.202 with n - 1 (threshold 0.627, none is positive) and
    # 0.175 with n (threshold 0.6).
    anchors = torch.tensor([[0, 0, 16, 16], [8, 0, 24, 16], [-8, -8, 24, 24], [0, -8, 32, 24.0]])
    assert assign(anchors, [2, 2], torch.tensor([[4, 0, 20, 16.0]]), nearest=2).tolist() == [-1] * 4


def test_a_positive_has_its_centre_inside_the_object():
    # IoUs 0.2, 0, 0: the threshold is 0.067 + 0.115, but the centre (6, 8) is outside.
    far = [[-30, -30, -20, -20.0], [-60, -60, -40, -40]]
    box = torch.tensor([[0, 0, 4, 16.0]])
    assert assign(torch.tensor([[2, 0, 10, 16.0], *far]), [1, 1, 1], box, nearest=1).tolist() == [-1, -1, -1]
    assert assign(torch.tensor([[-2, 0, 6, 16.0], *far]), [1, 1, 1], box, nearest=1).tolist() == [0, -1, -1]


def test_an_anchor_of_two_objects_goes_to_the_higher_overlap():
    anchors = torch.tensor([[0, 0, 16, 16], [-30, -30, -20, -20], [-60, -60, -40, -40.0]])
    boxes = torch.tensor([[0, 0, 16, 12], [0, 0, 16, 14.0]])  # IoUs 0.75 and 0.875, both above their thresholds
    assert assign(anchors, [1, 1, 1], boxes, nearest=1).tolist() == [1, -1, -1]
    assert assign(anchors, [1, 1, 1], boxes.flip(0), nearest=1).tolist() == [0, -1, -1]


def assign_by_loops(anchors: Tensor, counts: list[int], boxes: Tensor, nearest: int) -> list[int]:
    best = [(-1.0, -1)] * len(anchors)
    middles = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors.tolist()]
    for o, box in enumerate(boxes.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates: list[int] = []
        for level in range(len(counts)):
            of_level = range(sum(counts[:level]), sum(counts[: level + 1]))
            candidates += sorted(of_level, key=lambda i: math.dist(middles[i], middle))[:nearest]
        ious = []
        for i in candidates:
            common, union = overlap(anchors[i].tolist(), box)
            ious.append(common / union)
        mean = sum(ious) / len(ious)
        threshold = mean + math.sqrt(sum((iou - mean) ** 2 for iou in ious) / (len(ious) - 1))
        for i, iou in zip(candidates, ious, strict=True):
            x, y = middles[i]
            inside = box[0] + 0.01 < x < box[2] - 0.01 and box[1] + 0.01 < y < box[3] - 0.01
            if iou >= threshold and inside and iou > best[i][0]:
                best[i] = (iou, o)
    return [o for _, o in best]


@pytest.mark.parametrize("seed", range(5))
def test_assignment_against_loops(model, seed):
    by_level = model.anchors.by_level([torch.zeros(1, 1, -(-160 // s), -(-192 // s)) for s in (8, 16, 32, 64, 128)])
    anchors, counts = torch.cat(by_level), [len(level) for level in by_level]
    assert counts == model.levels(160, 192) == [480, 120, 30, 9, 4]
    boxes = boxes_within(12, 160, seed)
    found = assign(anchors, counts, boxes)
    assert found.tolist() == assign_by_loops(anchors, counts, boxes, nearest=9)
    assert len(found.unique()) > 8  # nearly every object has some
    assert assign(anchors, counts, boxes[:0]).tolist() == [-1] * len(anchors)


def test_the_last_levels_are_made_of_the_pyramid(model):
    fpn, x = model.pyramid.fpn, batched(images((64, 96))).tensors
    maps = list(model.pyramid(x).values())
    torch.testing.assert_close(maps[3], fpn.extra_blocks.p6(maps[2]))
    torch.testing.assert_close(maps[4], fpn.extra_blocks.p7(torch.relu(maps[3])))


def test_anchors_are_squares_of_eight_strides(model):
    levels = model.anchors.by_level([torch.zeros(1, 1, 2, 3)] * 5)
    for level, stride in zip(levels, (8, 16, 32, 64, 128), strict=True):
        corner = 4 * stride
        assert level[0].tolist() == [-corner, -corner, corner, corner]
        assert level[4].tolist() == [stride - corner, stride - corner, stride + corner, stride + corner]


def test_centerness_worked_by_hand():
    anchors = torch.tensor([[-4, -4, 4, 4], [0, 0, 8, 8], [0, 0, 8, 8.0]])
    boxes = torch.tensor([[-2, -2, 2, 2], [0, 0, 20, 8], [3, 1, 8, 20.0]])
    # Centres (0, 0), (4, 4), (4, 4): the root of 2/2 * 2/2, of 4/16 * 4/4, and of 1/4 * 3/16.
    assert centerness_of(anchors, boxes).tolist() == pytest.approx([1, 0.5, math.sqrt(3) / 8])


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(model, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 30, 3, generator=generator)
    deltas, centerness = torch.randn(2, 30, 4, generator=generator), torch.randn(2, 30, generator=generator)
    centres = torch.rand(30, 2, generator=generator) * 60 + 20
    anchors = torch.cat([centres - 16, centres + 16], dim=1)
    targets = [
        {"boxes": torch.tensor([[0, 0, 60, 100], [50, 0, 100, 100.0]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.tensor([[5, 5, 99, 90.0]]), "labels": torch.tensor([1])},
    ]
    matched = torch.full((2, 30), -1)
    for b, target in enumerate(targets):
        for i in range(0, 30, 2 + b):
            x, y = centres[i].tolist()
            for o, box in enumerate(target["boxes"].tolist()):
                if box[0] < x < box[2] and box[1] < y < box[3]:
                    matched[b, i] = o

    focal = giou = ctrness = weights = 0.0
    positives = 0
    for b, target in enumerate(targets):
        for i in range(30):
            o = int(matched[b, i])
            for k in range(3):
                focal += focal_loss(logits[b, i, k].item(), o >= 0 and k == target["labels"][o])
            if o < 0:
                continue
            positives += 1
            (x, y), box = centres[i].tolist(), target["boxes"][o].tolist()
            dx, dy, dw, dh = (deltas[b, i] * torch.tensor([0.1, 0.1, 0.2, 0.2])).tolist()
            x_found, y_found, w, h = x + 32 * dx, y + 32 * dy, 32 * math.exp(dw), 32 * math.exp(dh)
            found = [x_found - w / 2, y_found - h / 2, x_found + w / 2, y_found + h / 2]
            across, along = (x - box[0], box[2] - x), (y - box[1], box[3] - y)
            weight = math.sqrt(min(across) / max(across) * min(along) / max(along))
            giou += weight * giou_loss(found, box)
            weights += weight
            p = 1 / (1 + math.exp(-centerness[b, i].item()))
            ctrness -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
    assert positives > 10
    losses = model.compared(logits, deltas, centerness, anchors, matched, targets)
    assert losses["classification"].item() == pytest.approx(focal / positives, rel=1e-5)
    assert losses["bbox_regression"].item() == pytest.approx(2 * giou / max(weights, 1), rel=1e-5)
    assert losses["bbox_ctrness"].item() == pytest.approx(ctrness / positives, rel=1e-5)


def test_the_head_scales_boxes_by_level_and_keeps_distances_below_0():
    torch.manual_seed(0)
    head = BoxHead(32, levels=2)
    head.scales.data = torch.tensor([1.0, 3.0])
    maps = [torch.randn(2, 32, 3, 5), torch.randn(2, 32, 2, 3)]
    deltas, centerness = head(maps)
    assert deltas.min() < 0
    first = 0
    for m, scale in zip(maps, (1.0, 3.0), strict=True):
        for i in range(m.shape[2]):
            for j in range(m.shape[3]):
                place = first + i * m.shape[3] + j
                expected = head.bbox_reg(head.conv(m))[:, :, i, j] * scale
                torch.testing.assert_close(deltas[:, place], expected)
                torch.testing.assert_close(centerness[:, place], head.bbox_ctrness(head.conv(m))[:, 0, i, j])
        first += m.shape[2] * m.shape[3]


def answering(model: ATSS) -> ATSS:
    """The same outputs at every position: class 1, centerness 0.8, a box moved by a tenth and twice as wide."""
    for layer in (model.classes.cls_logits, model.boxes.bbox_reg, model.boxes.bbox_ctrness):
        nn.init.zeros_(layer.weight)
    model.classes.cls_logits.bias.data = torch.tensor([-9.0, 0.0, -9.0])
    model.boxes.bbox_reg.bias.data = torch.tensor([1, 0, 5 * math.log(2), 0])
    model.boxes.bbox_ctrness.bias.data = torch.tensor([math.log(4)])
    model.boxes.scales.data = torch.tensor([1.0, 2, 1, 1, 1])
    return model.eval()


@torch.no_grad()
def test_decoding_worked_by_hand(model):
    found = answering(model).candidates(torch.zeros(1, 3, 64, 128))[0]
    assert len(found) == sum(model.levels(64, 128)) == 128 + 32 + 8 + 2 + 1
    size = torch.tensor([128, 64, 128, 64.0])
    # Level 0, row 1, column 2: an anchor of 64 px around (16, 8), whose centre moves by 6.4.
    torch.testing.assert_close(found[1 * 16 + 2, :4] * size, torch.tensor([22.4 - 64, 8 - 32, 22.4 + 64, 8 + 32]))
    # Level 1, row 1, column 2: 128 px around (32, 16); twice the deltas are 25.6 px and four times the width.
    expected = torch.tensor([57.6 - 256, 16 - 64, 57.6 + 256, 16 + 64])
    torch.testing.assert_close(found[128 + 1 * 8 + 2, :4] * size, expected)
    torch.testing.assert_close(found[:, 5], torch.full((171,), math.sqrt(0.5 * 0.8)))


@torch.no_grad()
def test_what_is_found(model):
    first, second = answering(model)(images((64, 128), (33, 90)))
    for found, (height, width) in ((first, (64, 128)), (second, (33, 90))):
        assert set(found["labels"].tolist()) == {1}  # the others' scores are sqrt(0.0001 * 0.8) < 0.05
        assert 1 < len(found["scores"]) < 100  # NMS
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() == width
        assert found["boxes"][:, 3].max() == height
    assert isinstance(model, DenseDetector)
    assert model.selection.iou == 0.6


@pytest.mark.slow
def test_gradients_reach_every_parameter(model):
    targets = [{"boxes": torch.tensor([[4, 6, 60, 60], [0, 0, 100, 96.0]]), "labels": torch.tensor([0, 2])}, NONE]
    sum(model(images((96, 100), (64, 128)), targets).values()).backward()
    for name, parameter in model.named_parameters():
        if name == "boxes.scales":
            assert parameter.grad[:2].all()  # the last levels have no positive anchor in so small an image
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_images_without_objects(model):
    losses = model(images((64, 64)), [NONE])
    assert losses["classification"] > 0
    assert losses["bbox_regression"] == losses["bbox_ctrness"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_losses_under_autocast_are_float32(model, monkeypatch):
    batch, targets = batched(images((64, 96))), [{"boxes": boxes_within(3, 64, 0), "labels": torch.tensor([0, 1, 2])}]
    seen = {}
    monkeypatch.setattr(model, "compared", lambda *args: seen.setdefault("losses", ATSS.compared(model, *args)))
    answers = model.answers
    monkeypatch.setattr(model, "answers", lambda maps: seen.setdefault("answers", answers(maps)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch, targets)
    by_level = model.anchors.by_level([torch.zeros(1, 1, -(-64 // s), -(-96 // s)) for s in (8, 16, 32, 64, 128)])
    anchors = torch.cat(by_level)
    matched = assign(anchors, model.levels(64, 96), targets[0]["boxes"])[None]
    monkeypatch.undo()
    for name, loss in model.compared(*seen["answers"], anchors, matched, targets).items():
        assert losses[name].dtype == torch.float32
        assert losses[name] == loss


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_export_for_any_size(model):
    class Candidates(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.model.candidates(x)

    # The example's last map must have more than one row and column, because PyTorch treats a side of 1 as fixed.
    sides = {0: Dim("batch", min=1, max=8), 2: 32 * Dim("h", min=1, max=40), 3: 32 * Dim("w", min=1, max=40)}
    program = export(Candidates(), (torch.zeros(2, 3, 160, 192),), dynamic_shapes=(sides,)).module()
    for size in ((1, 3, 224, 160), (3, 3, 192, 288)):
        x = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(program(x), model.candidates(x), rtol=1e-4, atol=1e-5)


def test_two_processes_have_the_losses_of_one_with_both_batches(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    targets = [{"boxes": boxes_within(4, 64, 0), "labels": torch.tensor([0, 1, 2, 1])}, NONE]
    answers = [torch.randn(2, 96, *last, generator=generator) for last in ((3,), (4,), ())]
    anchors = torch.cat(model.anchors.by_level([torch.zeros(1, 1, 8, 8), *([torch.zeros(1, 1, 2, 4)] * 4)]))
    matched = torch.stack([assign(anchors, [64, 8, 8, 8, 8], target["boxes"]) for target in targets])
    assert (matched >= 0).sum() > 4
    whole = model.compared(*answers, anchors, matched, targets)
    one, other = in_two_processes(
        lambda i: model.compared(*(a[i, None] for a in answers), anchors, matched[i, None], [targets[i]]),
        monkeypatch,
    )
    assert other["bbox_regression"] == 0  # its image has no objects
    for name, loss in whole.items():
        torch.testing.assert_close((one[name] + other[name]) / 2, loss)
