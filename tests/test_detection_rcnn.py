"""Mask R-CNN against torchvision's own, Cascade R-CNN against plain loops and cases computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from dmformer.models.features import open_backbone
from dmformer.tasks.detection.frameworks.base import batched
from dmformer.tasks.detection.frameworks.cascade_rcnn import (
    CODER_WEIGHTS,
    IOUS,
    cascade_rcnn,
    giou_loss,
    smooth_l1_loss,
)
from dmformer.tasks.detection.frameworks.mask_rcnn import mask_rcnn
from dmformer.tasks.detection.frameworks.pyramid import RoIPool

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CLASSES = 3


def tiny(framework, **options):
    """Over a tiny backbone, with few proposals and samples, and outputs that differ from position to position."""
    torch.manual_seed(0)
    backbone, channels = open_backbone("dmformer_n", "a detector", backbone_args=TINY)
    model = framework(backbone, channels, CLASSES, **options)
    model.rpn._pre_nms_top_n = {"training": 100, "testing": 100}
    model.rpn._post_nms_top_n = {"training": 24, "testing": 24}
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.1)
    for heads in getattr(model, "stages", None) or [model.roi_heads]:
        heads.fg_bg_sampler.batch_size_per_image = 16
        heads.detections_per_img = 6
        nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.1)
        nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.05)
    return model


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def target(boxes, labels, size):
    """Boxes whose masks are the ellipses inside them."""
    boxes = torch.tensor(boxes).reshape(-1, 4)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    places = torch.stack([x, y], dim=-1) - centre[:, None, None]
    masks = ((places / half[:, None, None]) ** 2).sum(-1) <= 1
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks.to(torch.uint8)}


SIZES = [(128, 192), (128, 128)]
TARGETS = [
    target([[10.0, 20.0, 70.0, 90.0], [90.0, 30.0, 180.0, 100.0]], [0, 2], SIZES[0]),
    target([[40.0, 8.0, 100.0, 60.0]], [1], SIZES[1]),
]
EMPTY = [target([], [], size) for size in SIZES]


def torchvisions(model):
    """torchvision's own Mask R-CNN with the same kind of pyramid and the model's state dict."""
    other = TorchvisionMaskRCNN(
        tiny(mask_rcnn).pyramid,
        1 + CLASSES,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        min_size=128,  # images are not resized: in evaluation because of these numbers
        max_size=192,
        _skip_resize=True,  # and in training
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=24,
        rpn_post_nms_top_n_test=24,
        box_batch_size_per_image=16,
        box_detections_per_img=6,
    )
    # Our batches are channels_last: they use other kernels, whose rounding may swap proposals of similar scores.
    other.backbone.register_forward_pre_hook(lambda _, x: x[0].contiguous(memory_format=torch.channels_last))
    other.load_state_dict({name.replace("pyramid.", "backbone.", 1): each for name, each in model.state_dict().items()})
    return other


@torch.no_grad()
@pytest.mark.slow
def test_mask_rcnn_finds_what_torchvisions_finds():
    model = tiny(mask_rcnn)
    x = images(*SIZES)
    found, expected = model.eval()(x), torchvisions(model).eval()(x)
    for each, other, size in zip(found, expected, SIZES, strict=True):
        assert len(each["scores"]) == 6
        assert len(each["labels"].unique()) > 1
        torch.testing.assert_close(each["boxes"], other["boxes"])
        torch.testing.assert_close(each["scores"], other["scores"])
        assert each["labels"].equal(other["labels"] - 1)
        torch.testing.assert_close(paste_masks_in_image(each["masks"], each["boxes"], size), other["masks"])


@pytest.mark.slow
def test_mask_rcnn_loses_what_torchvisions_loses():
    model = tiny(mask_rcnn)
    other = torchvisions(model)
    x = images(*SIZES)
    torch.manual_seed(1)
    losses = model(x, TARGETS)
    torch.manual_seed(1)
    expected = other(x, [{**each, "labels": each["labels"] + 1} for each in TARGETS])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert all(loss > 0 for loss in losses.values())
    torch.testing.assert_close(losses, expected)
    assert [each["labels"].tolist() for each in TARGETS] == [[0, 2], [1]]  # unchanged


@pytest.mark.parametrize("framework", [mask_rcnn, cascade_rcnn])
@pytest.mark.slow
def test_numbers_are_the_papers(framework):
    backbone, channels = open_backbone("dmformer_n", "a detector", backbone_args=TINY)
    model = framework(backbone, channels, CLASSES)
    rpn = model.rpn
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n(), rpn.nms_thresh) == (2000, 1000, 0.7)
    assert (rpn.eval().pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    for heads in getattr(model, "stages", None) or [model.roi_heads]:
        assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
        assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)


@pytest.mark.parametrize(
    ("framework", "name", "depths", "published"),
    [
        # The published SMT-S has one block in its last stage: the second one in the code adds 2.1 M.
        (mask_rcnn, "smt_s", (3, 4, 18, 1), 40),
        (mask_rcnn, "smt_b", (4, 6, 28, 2), 52),
        (cascade_rcnn, "smt_s", (3, 4, 18, 1), 78),
    ],
)
@pytest.mark.slow
def test_published_sizes(framework, name, depths, published):
    backbone, channels = open_backbone(name, "a detector", backbone_args={"depths": depths})
    model = framework(backbone, channels, 80)
    parameters = sum(each.numel() for each in model.parameters())
    if framework is cascade_rcnn:  # SMT's version has boxes per class, which the Cascade R-CNN paper has not
        parameters += 3 * (80 - 1) * 4 * (1024 + 1)
    assert round(parameters / 1e6) == published


@pytest.mark.parametrize("framework", [mask_rcnn, cascade_rcnn])
@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], EMPTY[1]], EMPTY], ids=["full", "mixed", "empty"])
@pytest.mark.slow
def test_gradients_reach_every_parameter(framework, targets):
    model = tiny(framework)
    assert model.predicts_masks
    losses = model(images(*SIZES), targets)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if targets is not EMPTY:
            assert parameter.grad.any(), name
    if targets is EMPTY:
        of_objects = [loss.item() for name, loss in losses.items() if "box_reg" in name or "mask" in name]
        assert of_objects == [0.0] * len(of_objects)
    assert all(loss > 0 for name, loss in losses.items() if "classifier" in name or "objectness" in name)


@pytest.mark.parametrize("framework", [mask_rcnn, cascade_rcnn])
@pytest.mark.slow
def test_boxes_are_not_rounded_under_autocast(framework):
    model = tiny(framework)
    for heads in getattr(model, "stages", None) or [model.roi_heads]:
        heads.detections_per_img = 24  # far enough apart, however a processor computes in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images(*SIZES), TARGETS)
        with torch.no_grad():
            found = model.eval()(images(*SIZES))
            batch = batched(images(*SIZES))
            proposals, _ = model.rpn(batch, model.pyramid(batch.tensors))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    for boxes in [*proposals, *(each["boxes"] for each in found)]:
        assert boxes.dtype == torch.float32
        inside = boxes[(boxes > 64) & (boxes < 128)]  # where bfloat16 resolves half a pixel
        assert len(inside) > 3
        assert (inside != inside.bfloat16().float()).float().mean() > 0.9
    for each in found:
        assert each["scores"].dtype == each["masks"].dtype == torch.float32


@pytest.mark.parametrize("framework", [mask_rcnn, cascade_rcnn])
@pytest.mark.slow
def test_without_masks(framework):
    model = tiny(framework, masks=False)
    targets = [{name: each[name] for name in ("boxes", "labels")} for each in TARGETS]
    assert not any("mask" in name for name in model(images(*SIZES), targets))
    with torch.no_grad():
        found = model.eval()(images(*SIZES))
    assert [set(each) for each in found] == [{"boxes", "scores", "labels"}] * 2
    assert not model.predicts_masks


def test_pooling_of_small_images():
    """33 px padded to 64: torchvision's pooling would infer a stride of 2 for the finest map instead of 4."""
    maps = {str(level): images((64 >> level + 2,) * 2)[0][None] for level in range(4)} | {"pool": torch.zeros(1)}
    box = torch.tensor([[3.0, 5.0, 30.0, 21.0]])
    expected = roi_align(maps["0"], [box], 7, spatial_scale=0.25, sampling_ratio=2)
    torch.testing.assert_close(RoIPool(7)(maps, [box], [(33, 33)]), expected)


@pytest.mark.slow
def test_stages_sample_at_their_overlaps():
    """Boxes that cover 45, 55, 65 and 75 % of the object, then the object's own box."""
    model = tiny(cascade_rcnn, masks=False)
    shares = [0.45, 0.55, 0.65, 0.75]
    proposals = [torch.tensor([[10.0, 10.0, 110.0, 10 + 100 * share] for share in shares])]
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 110.0, 110.0]]), "labels": torch.tensor([2])}]
    for stage, expected in zip(model.stages, [[0, 2, 2, 2, 2], [0, 0, 2, 2, 2], [0, 0, 0, 2, 2]], strict=True):
        stage.fg_bg_sampler.batch_size_per_image = 64
        boxes, _, labels, _ = stage.select_training_samples(proposals, targets)
        assert labels[0].tolist() == expected
        assert boxes[0].equal(torch.cat([proposals[0], targets[0]["boxes"]]))


class Proposed(nn.Module):
    """Use these in place of the proposals."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = boxes

    def forward(self, images, maps, targets=None):
        return list(self.boxes), {}


@torch.no_grad()
def answer(layer, *numbers):
    """Make a layer output these numbers everywhere."""
    layer.weight.zero_()
    layer.bias.copy_(torch.tensor(numbers))


@torch.no_grad()
@pytest.mark.slow
def test_cascade_by_hand():
    """The box moves 10 px right, 20 down, and becomes twice as wide; scores and masks are the means over the stages."""
    model = tiny(cascade_rcnn).eval()
    model.add_module(
        "rpn", Proposed([torch.tensor([[20.0, 20.0, 60.0, 60.0]]), torch.tensor([[100.0, 90.0, 120.0, 110.0]])])
    )
    deltas = [(0.25 * 10, 0, 0, 0), (0, 0.5 * 20, 0, 0), (0, 0, math.log(2) * 15, 0)]
    probabilities = [(0.1, 0.64, 0.22, 0.04), (0.2, 0.5, 0.26, 0.04), (0.3, 0.6, 0.06, 0.04)]
    masks = [(0.5, 0.9, 0.1, 0.3), (0.5, 0.6, 0.2, 0.3), (0.5, 0.3, 0.6, 0.3)]
    for stage, delta, probability, mask in zip(model.stages, deltas, probabilities, masks, strict=True):
        answer(stage.box_predictor.bbox_pred, *delta)
        answer(stage.box_predictor.cls_score, *(math.log(each) + 3 for each in probability))
        answer(stage.get_submodule("mask_predictor.mask_fcn_logits"), *(math.log(each / (1 - each)) for each in mask))
    found = model(images(*SIZES))
    # After the last stage the second box is clipped to its image, 128 px wide.
    for each, box in zip(found, ([10.0, 40.0, 90.0, 80.0], [95.0, 100.0, 128.0, 120.0]), strict=True):
        torch.testing.assert_close(each["boxes"], torch.tensor([box, box]))
        torch.testing.assert_close(each["scores"], torch.tensor([0.58, 0.18]))
        assert each["labels"].tolist() == [0, 1]  # the last class is below 0.05
        expected = torch.tensor([0.6, 0.3])[:, None, None, None].expand(2, 1, 28, 28)
        torch.testing.assert_close(each["masks"], expected)


@torch.no_grad()
@pytest.mark.slow
def test_scores_are_of_all_heads_on_the_boxes_of_the_last():
    model = tiny(cascade_rcnn, masks=False).eval()
    model.add_module("rpn", Proposed([torch.tensor([[20.0, 20.0, 60.0, 60.0]])]))
    answer(model.stages[0].box_predictor.bbox_pred, 10.0, 0.0, 0.0, 0.0)
    for stage in model.stages[1:]:
        answer(stage.box_predictor.bbox_pred, 0.0, 0.0, 0.0, 0.0)
    x = images((128, 128))
    maps, last = model.pyramid(x[0][None]), [torch.tensor([[60.0, 20.0, 100.0, 60.0]])]
    first, second, third = (stage.answers(maps, last, [(128, 128)])[0][0].softmax(0) for stage in model.stages)
    scores = (first + second + third) / 3
    (found,) = model(x)
    assert len(found["scores"]) >= 2
    torch.testing.assert_close(found["scores"], scores[1:][found["labels"]])
    torch.testing.assert_close(found["boxes"], last[0].expand(len(found["boxes"]), -1))


def iou(a, b, generalised=False):
    """For two boxes, in plain numbers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (around - union) / around if generalised else overlap / union


def move(box, delta, weights):
    """A box from its deltas, in plain numbers."""
    dx, dy, dw, dh = (each / weight for each, weight in zip(delta, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def plain_losses(model, maps, proposals, sizes, targets):
    """The losses of the stages of Cascade Mask R-CNN, box by box."""
    losses = {}
    boxes = [each.tolist() for each in proposals]
    truth = [each["boxes"].tolist() for each in targets]
    for k, stage in enumerate(model.stages):
        weight = [1, 0.5, 0.25][k]
        samples = [(i, box) for i in range(len(targets)) for box in boxes[i] + truth[i]]
        pooled = [torch.tensor(box)[None] for _, box in samples]
        by_image = [[b for b, (i, _) in zip(pooled, samples, strict=True) if i == n] for n in range(len(targets))]
        x = stage.box_roi_pool(maps, [torch.cat(each) for each in by_image], sizes)
        logits, deltas = stage.box_predictor(stage.box_head(x))
        classifier, of_boxes, of_masks, moved = [], 0.0, [], [[] for _ in targets]
        for n, (i, box) in enumerate(samples):
            overlaps = [iou(box, each) for each in truth[i]]
            best = max(range(len(overlaps)), key=lambda j: overlaps[j], default=None)
            on_object = best is not None and overlaps[best] >= [0.5, 0.6, 0.7][k]
            label = targets[i]["labels"][best].item() + 1 if on_object else 0
            classifier.append(-logits[n].log_softmax(0)[label].item())
            new = move(box, deltas[n].tolist(), [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)][k])
            if on_object:
                of_boxes += 10 * (1 - iou(new, truth[i][best], generalised=True))
                features = stage.mask_roi_pool(maps, [pooled[n] if i == j else pooled[n][:0] for j in range(2)], sizes)
                mask = stage.mask_predictor(stage.mask_head(features))[0, label]
                wanted = roi_align(targets[i]["masks"][best][None, None].float(), [pooled[n]], 28)[0, 0]
                of_masks.append((mask.clamp(min=0) - mask * wanted + mask.abs().neg().exp().log1p()).mean().item())
            if box not in truth[i]:
                limits = [sizes[i][1], sizes[i][0]] * 2
                moved[i].append([min(max(each, 0), limit) for each, limit in zip(new, limits, strict=True)])
        losses[f"loss_classifier_{k + 1}"] = weight * sum(classifier) / len(samples)
        losses[f"loss_box_reg_{k + 1}"] = weight * of_boxes / len(samples)
        losses[f"loss_mask_{k + 1}"] = weight * sum(of_masks) / len(of_masks)
        boxes = moved
    return losses


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], EMPTY[1]]], ids=["full", "mixed"])
@torch.no_grad()
@pytest.mark.slow
def test_cascade_losses_against_loops(targets):
    model = tiny(cascade_rcnn)
    generator = torch.Generator().manual_seed(1)
    near = [
        each["boxes"].repeat(4, 1) + 12 * torch.randn(4 * len(each["boxes"]), 4, generator=generator)
        for each in TARGETS
    ]
    far = torch.tensor([[0.0, 0.0, 20.0, 30.0], [60.0, 90.0, 128.0, 128.0]])
    model.add_module("rpn", Proposed([torch.cat([each, far]).clamp(0, 128) for each in near]))
    for stage in model.stages:  # all are taken
        stage.fg_bg_sampler.batch_size_per_image = 64
        nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.02)
    x = images(*SIZES)
    losses = model(x, targets)
    padded = torch.stack([F.pad(each, (0, 192 - each.shape[2])) for each in x])
    expected = plain_losses(model, model.pyramid(padded), model.rpn.boxes, SIZES, targets)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_losses_of_boxes_by_hand():
    """(0, 0, 10, 10) moved 5 right: IoU 1/3, no gap in the enclosing box. The delta is 10 x 0.5, the object's 0."""
    deltas = torch.tensor([[5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    box, coder = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), BoxCoder(CODER_WEIGHTS[0])
    assert giou_loss(deltas, box, box, coder).item() == pytest.approx(10 * (1 - 1 / 3))
    assert smooth_l1_loss(deltas, box, box, coder).item() == pytest.approx(5 - 0.5)
    none = torch.zeros(0, 4)
    for loss in (giou_loss, smooth_l1_loss):
        assert loss(deltas[:0], none, none, coder).item() == 0


@pytest.mark.slow
def test_another_loss_of_boxes():
    model = tiny(cascade_rcnn, masks=False, box_loss=smooth_l1_loss)
    boxes = torch.tensor([[12.0, 20.0, 70.0, 92.0], [100.0, 100.0, 120.0, 120.0]])
    model.add_module("rpn", Proposed([boxes]))
    for stage in model.stages:
        answer(stage.box_predictor.bbox_pred, 0.0, 0.0, 0.0, 0.0)
    losses = model(images((128, 192)), [{"boxes": TARGETS[0]["boxes"][:1], "labels": torch.tensor([0])}])
    # The object is 60 x 70 at (40, 55), the box 58 x 72 at (41, 56); one more sample is the object, one is far away.
    for number, weights in enumerate(CODER_WEIGHTS):
        off = (1 / 58, 1 / 72, math.log(60 / 58), math.log(72 / 70))
        each = [share * weight for share, weight in zip(off, weights, strict=True)]
        expected = sum(d**2 / 2 if d < 1 else d - 0.5 for d in each) / 3 * [1, 0.5, 0.25][number]
        assert losses[f"loss_box_reg_{number + 1}"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_no_gradient_from_one_stage_to_the_one_before():
    model = tiny(cascade_rcnn, masks=False)
    losses = model(images(*SIZES), TARGETS)
    second = losses["loss_classifier_2"] + losses["loss_box_reg_2"]
    (of_first,) = torch.autograd.grad(second, [model.stages[0].box_predictor.bbox_pred.weight], allow_unused=True)
    assert of_first is None
    assert [stage.proposal_matcher.high_threshold for stage in model.stages] == IOUS
