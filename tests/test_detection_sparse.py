"""Sparse R-CNN: matching, losses, the dynamic head, the stages, the detections."""

import itertools
import math
import sys

import pytest
import torch
from test_detection_atss import focal_loss, giou_loss, images, in_two_processes
from torch import Tensor, nn

from dmformer.models.features import open_backbone
from dmformer.tasks.detection.frameworks.base import batched
from dmformer.tasks.detection.frameworks.sparse_rcnn import Interaction, SparseRCNN, Stage, sparse_rcnn
from dmformer.utils.errors import UserError

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def make(proposals: int = 4, stages: int = 1) -> SparseRCNN:
    torch.manual_seed(0)
    backbone, channels = open_backbone("dmformer_n", "a detector", backbone_args=TINY)
    return sparse_rcnn(backbone, channels, num_classes=3, proposals=proposals, stages=stages)


@pytest.fixture(scope="module")
def model() -> SparseRCNN:
    """With four proposals and one stage; tests do not change it."""
    return make()


def some_boxes(n: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=generator) * 90
    return torch.cat([corners.amin(1), corners.amax(1) + 5], dim=1)


def centred(box: list[float], width: float, height: float) -> list[float]:
    left, upper, right, lower = box
    return [(left + right) / 2 / width, (upper + lower) / 2 / height, (right - left) / width, (lower - upper) / height]


def l1(a: list[float], b: list[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def cost(logit: float, box: list[float], truth: list[float], width: float, height: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    of_class = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    apart = l1(centred(box, width, height), centred(truth, width, height))
    return 2 * of_class + 5 * apart + 2 * (giou_loss(box, truth) - 1)


def cheapest(logits: Tensor, boxes: Tensor, target: dict[str, Tensor], width: float, height: float) -> dict[int, int]:
    """The proposal matched to each object: the cheapest of all assignments."""
    objects = list(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True))

    def total(choice: tuple[int, ...]) -> float:
        return sum(
            cost(logits[p, label].item(), boxes[p].tolist(), box, width, height)
            for p, (label, box) in zip(choice, objects, strict=True)
        )

    return dict(enumerate(min(itertools.permutations(range(len(boxes)), len(objects)), key=total)))


@pytest.fixture(params=range(4))
def case(request) -> tuple[Tensor, Tensor, list[dict[str, Tensor]], Tensor]:
    """Logits and boxes of three images with 4 proposals each, with 3, 0 and 1 objects, and the scales of the images."""
    generator = torch.Generator().manual_seed(request.param)
    logits, boxes = torch.randn(3, 4, 3, generator=generator), some_boxes(12, generator).reshape(3, 4, 4)
    targets = [
        {"boxes": some_boxes(n, generator), "labels": torch.randint(3, (n,), generator=generator)} for n in (3, 0, 1)
    ]
    return logits, boxes, targets, torch.tensor([[[100, 120, 100, 120]], [[90, 90, 90, 90]], [[200, 96, 200, 96.0]]])


def test_matching_against_all_permutations(model, case):
    logits, boxes, targets, scales = case
    for i, (proposals, objects) in enumerate(model.matched(logits, boxes, targets, scales)):
        width, height = scales[i, 0, :2].tolist()
        expected = cheapest(logits[i], boxes[i], targets[i], width, height)
        assert dict(zip(objects.tolist(), proposals.tolist(), strict=True)) == expected


def test_more_objects_than_proposals(model):
    generator = torch.Generator().manual_seed(0)
    target = {"boxes": some_boxes(6, generator), "labels": torch.arange(6) % 3}
    boxes, scale = some_boxes(4, generator)[None], torch.full((1, 1, 4), 100.0)
    [(proposals, objects)] = model.matched(torch.randn(1, 4, 3), boxes, [target], scale)
    assert sorted(proposals.tolist()) == [0, 1, 2, 3]
    assert len(set(objects.tolist())) == 4
    assert model.compared(torch.randn(1, 4, 3), boxes, [target], scale)["bbox_l1"].isfinite()


def test_losses_against_loops(model, case):
    logits, boxes, targets, scales = case
    focal = apart = giou = 0.0
    for i, target in enumerate(targets):
        width, height = scales[i, 0, :2].tolist()
        own = {p: o for o, p in cheapest(logits[i], boxes[i], target, width, height).items()}
        for p in range(4):
            label = int(target["labels"][own[p]]) if p in own else None
            focal += sum(focal_loss(logits[i, p, k].item(), k == label) for k in range(3))
            if p in own:
                box, truth = boxes[i, p].tolist(), target["boxes"][own[p]].tolist()
                apart += l1(centred(box, width, height), centred(truth, width, height))
                giou += giou_loss(box, truth)
    losses = model.compared(logits, boxes, targets, scales)
    assert losses["classification"].item() == pytest.approx(2 * focal / 4, rel=1e-5)
    assert losses["bbox_l1"].item() == pytest.approx(5 * apart / 4, rel=1e-5)
    assert losses["bbox_giou"].item() == pytest.approx(2 * giou / 4, rel=1e-5)


def test_two_processes_have_the_losses_of_one_with_both_batches(model, case, monkeypatch):
    logits, boxes, targets, scales = case
    whole = model.compared(logits, boxes, targets, scales)
    parts = [slice(0, 2), slice(2, 3)]

    def work(i: int) -> dict[str, Tensor]:
        return model.compared(*(of_all[parts[i]] for of_all in (logits, boxes, targets, scales)))

    one, other = in_two_processes(work, monkeypatch)
    for name, loss in whole.items():
        torch.testing.assert_close((one[name] + other[name]) / 2, loss)


@torch.no_grad()
def test_interaction_against_a_loop_over_proposals():
    torch.manual_seed(0)
    layer = Interaction(16)
    for norm in (layer.norm1, layer.norm2, layer.norm3):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    features, regions = torch.randn(2, 3, 16), torch.randn(6, 16, 7, 7)
    found = layer(features, regions)
    for b in range(2):
        for p in range(3):
            made = layer.matrices.weight @ features[b, p] + layer.matrices.bias
            first, second = made[: 16 * 64].reshape(16, 64), made[16 * 64 :].reshape(64, 16)
            rows = []
            for i in range(7):
                for j in range(7):
                    x = torch.relu(layer.norm1(regions[3 * b + p, :, i, j] @ first))
                    rows.append(torch.relu(layer.norm2(x @ second)))
            torch.testing.assert_close(found[b, p], torch.relu(layer.norm3(layer.out(torch.cat(rows)))))


@torch.no_grad()
def test_stage_in_plain_operations():
    torch.manual_seed(0)
    stage = Stage(16, num_classes=3)
    features, regions = torch.randn(2, 5, 16), torch.randn(10, 16, 7, 7)
    logits, deltas, new = stage(features, regions)
    q, k, v = (features @ stage.attention.in_proj_weight.T + stage.attention.in_proj_bias).split(16, -1)
    q, k, v = (x.reshape(2, 5, 8, 2).transpose(1, 2) for x in (q, k, v))
    attended = (q @ k.transpose(2, 3) / math.sqrt(2)).softmax(-1) @ v
    x = stage.norm1(features + stage.attention.out_proj(attended.transpose(1, 2).reshape(2, 5, 16)))
    x = stage.norm2(x + stage.interaction(x, regions))
    x = stage.norm3(x + stage.mlp[2](torch.relu(stage.mlp[0](x))))
    torch.testing.assert_close(new, x)
    fc, norm, _, last = stage.classes
    torch.testing.assert_close(logits, last(torch.relu(norm(fc(x)))))
    for fc, norm in ((stage.boxes[i], stage.boxes[i + 1]) for i in (0, 3, 6)):
        x = torch.relu(norm(fc(x)))
    torch.testing.assert_close(deltas, stage.boxes[9](x))
    assert torch.sigmoid(last.bias).tolist() == pytest.approx([0.01] * 3)


class Fixed(nn.Module):
    """A stage with the same outputs for every proposal; it records its inputs."""

    def __init__(self, deltas: list[float], logits: list[float]) -> None:
        super().__init__()
        self.deltas, self.logits = nn.Parameter(torch.tensor(deltas)), nn.Parameter(torch.tensor(logits))

    def forward(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.features, self.regions = features, regions
        every = features.shape[:2]
        return self.logits.expand(*every, -1), self.deltas.expand(*every, -1), features + 1


@pytest.fixture
def fixed() -> SparseRCNN:
    """Two stages of `Fixed`: the first moves boxes, the second widens them."""
    model = make(proposals=2)
    model.stages = nn.ModuleList([Fixed([0.2, -0.4, 0, 0], [0, 0, 0.0]), Fixed([0, 0, math.log(2), 0], [-1, 2.0, 1])])
    model.proposal_boxes.data = torch.tensor([[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.25]])
    return model.eval()


@torch.no_grad()
def test_decoding_worked_by_hand(fixed):
    batch = batched(images((60, 80), (96, 100)))
    (_, first), (logits, second) = fixed.answers(batch)
    # In the first image: (0, 0, 80, 60), and (0, 22.5, 40, 37.5). Centres move by 0.2 / 2 of the width to the right and
    # 0.4 / 2 of the height up.
    torch.testing.assert_close(first[0], torch.tensor([[8, -12, 88, 48], [4, 19.5, 44, 34.5]]))
    torch.testing.assert_close(second[0], torch.tensor([[-32, -12, 128, 48], [-16, 19.5, 64, 34.5]]))
    torch.testing.assert_close(second[1, 0], torch.tensor([-40, -19.2, 160, 76.8]))
    assert logits.shape == (2, 2, 3)
    one, other = fixed.stages
    torch.testing.assert_close(one.features, fixed.proposal_features.expand(2, -1, -1))
    torch.testing.assert_close(other.features, one.features + 1)


@torch.no_grad()
def test_what_is_found(fixed):
    first, second = fixed(images((60, 80), (96, 100)))
    scores = torch.tensor([2, 2, 1, 1, -1, -1.0]).sigmoid()
    for found in (first, second):
        torch.testing.assert_close(found["scores"], scores)
        assert found["labels"].tolist() == [1, 1, 2, 2, 0, 0]
    rows = sorted(first["boxes"][:2].tolist())
    assert rows == [[0, 0, 80, 48], pytest.approx([0, 19.5, 64, 34.5])]  # clipped to the image
    fixed.most = 3
    assert [len(found["scores"]) for found in fixed(images((60, 80), (96, 100)))] == [3, 3]


@torch.no_grad()
def test_what_lies_beyond_the_image_is_not_found(fixed):
    """A box in the padding does not displace one inside the image."""
    fixed.proposal_boxes.data[1] = torch.tensor([1.75, 0.5, 0.25, 0.25])
    fixed.most = 3
    for found in fixed(images((60, 80), (96, 100))):
        assert found["labels"].tolist() == [1, 2, 0]
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()


@torch.no_grad()
def test_regions_are_of_the_level_of_their_size(fixed, monkeypatch):
    maps = {str(level): torch.full((1, 256, 256 >> level, 256 >> level), 10.0**level) for level in range(5)}
    monkeypatch.setattr(fixed.pyramid, "forward", lambda x: maps)
    for side, value in ((60, 1), (130, 10), (230, 100), (470, 1000), (900, 1000)):  # 112, 224 and 448 separate P2 to P5
        fixed.proposal_boxes.data = torch.tensor([0.5, 0.5, side / 1024, side / 1024]).repeat(2, 1)
        fixed.answers(batched(images((1024, 1024))))
        torch.testing.assert_close(fixed.stages[0].regions, torch.full((2, 256, 7, 7), float(value)))


@torch.no_grad()
def test_regions_are_where_the_boxes_are(fixed, monkeypatch):
    # Images of 33 px are padded to 64, so strides must not be inferred from the image size. The values of the map at
    # stride 4 are its column numbers: RoIAlign without a half-pixel shift reads x / 4 from the centre of a box.
    columns = torch.arange(16.0).expand(1, 256, 16, 16)
    maps = {"0": columns, **{str(level): torch.zeros(1, 256, 16 >> level, 16 >> level) for level in range(1, 5)}}
    monkeypatch.setattr(fixed.pyramid, "forward", lambda x: maps)
    fixed.proposal_boxes.data = torch.tensor([[14 / 33, 0.5, 28 / 33, 28 / 33], [0.5, 0.5, 0.5, 0.5]])
    fixed.answers(batched(images((33, 33))))
    torch.testing.assert_close(fixed.stages[0].regions[0, 0, 3], torch.arange(7.0) + 0.5)


def test_boxes_are_passed_on_without_gradient(fixed):
    fixed.train()
    (_, first), (_, second) = fixed.answers(batched(images((64, 64))))
    one, other = fixed.stages
    second.sum().backward(retain_graph=True)
    assert one.deltas.grad is None
    assert other.deltas.grad is not None
    first.sum().backward()
    assert one.deltas.grad.any()
    assert fixed.proposal_boxes.grad.any()


def test_every_stage_is_supervised(fixed):
    batch, targets = (
        batched(images((64, 64))),
        [{"boxes": torch.tensor([[5, 5, 40, 50.0]]), "labels": torch.tensor([1])}],
    )
    losses = fixed.losses(batch, targets)
    stages = [fixed.compared(*answer, targets, torch.full((1, 1, 4), 64.0)) for answer in fixed.answers(batch)]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, stages[0][name] + stages[1][name])
        assert stages[0][name] != stages[1][name]


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    model = make(proposals=8, stages=2)
    sizes = torch.tensor([0.5, 2, 3, 6]).repeat(2)  # so that every level of the pyramid has some
    model.proposal_boxes.data[:, 2:] = sizes[:, None]
    targets = [{"boxes": torch.tensor([[4, 6, 60, 60], [0, 0, 100, 96.0]]), "labels": torch.tensor([0, 2])}, NONE]
    sum(model(images((96, 100), (64, 128)), targets).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    model.zero_grad()
    losses = model(images((64, 64)), [NONE])
    assert losses["classification"] > 0
    assert losses["bbox_l1"] == losses["bbox_giou"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_losses_under_autocast_are_float32(model, monkeypatch):
    target = {"boxes": torch.tensor([[5, 5, 40, 50], [20, 8, 60, 60.0]]), "labels": torch.tensor([1, 2])}
    batch, seen, answers = batched(images((64, 96))), [], model.answers
    monkeypatch.setattr(model, "answers", lambda images: seen.extend(answers(images)) or seen)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch, [target])
    [answer] = seen
    for name, loss in model.compared(*answer, [target], torch.tensor([[[96, 64, 96, 64.0]]])).items():
        assert losses[name].dtype == torch.float32
        assert losses[name] == loss


def test_a_training_that_diverges_has_a_loss_that_is_no_number(model):
    target = {"boxes": torch.tensor([[5, 5, 40, 50.0]]), "labels": torch.tensor([1])}
    nothing = torch.full((1, 4, 4), math.nan)
    losses = model.compared(nothing[..., :3], nothing, [target], torch.full((1, 1, 4), 64.0))
    assert all(loss.isnan() for loss in losses.values())


@pytest.mark.parametrize("package", ["scipy", "transformers"])
def test_a_missing_package_is_told(monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the extra 'det' \({package}"):
        make()
