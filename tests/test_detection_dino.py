"""DINO: noisy queries, matching, losses, query selection, refinement, padding and export."""

from itertools import permutations
from math import cos, exp, log, pi, sin

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from dmformer.models.features import open_backbone
from dmformer.tasks.detection.frameworks import dino as module
from dmformer.tasks.detection.frameworks.base import batched
from dmformer.tasks.detection.frameworks.denoising import IGNORED, LEAST, Denoising, denoising, visibility
from dmformer.tasks.detection.frameworks.dino import Answer, Dino, InsideGroupNorm, answer_losses, dino, sine

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


class Patches(nn.Module):
    """A backbone where each position sees only its own pixels; padding is not zero in its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 8, 2**i, stride=2**i) for i in range(2, 6))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [level(x) for level in self.levels]


def detector(queries: int = 12, layers: int = 2, backbone: nn.Module | None = None, moved: bool = True) -> Dino:
    """A small DINO for 3 classes; `moved` is as after some training, with no weight at zero any more."""
    torch.manual_seed(0)
    model = Dino(backbone or Patches(), [8] * 4, 3, queries, layers)
    if moved:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in ("box_heads", "class_heads", "sampling_offsets", "attention_weights")):
                    parameter += 0.05 * torch.randn_like(parameter)
    return model


def target(*boxes: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    labels = list(range(len(boxes))) if labels is None else labels
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def random_answer(batch: int, queries: int, num_classes: int) -> Answer:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(batch, queries, 4, generator=generator) * 0.4 + 0.2
    return Answer(2 * torch.randn(batch, queries, num_classes, generator=generator), boxes)


def corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def giou(one: list[float], other: list[float]) -> float:
    """Rezatofighi et al. 2019, for boxes as centre and size."""
    (a, b, c, d), (e, f, g, h) = corners(one), corners(other)
    overlap = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
    union = one[2] * one[3] + other[2] * other[3] - overlap
    hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
    return overlap / union - (hull - union) / hull


def focal(logit: float, positive: bool) -> float:
    """Lin et al. 2017, with alpha 0.25 and gamma 2."""
    p = 1 / (1 + exp(-logit))
    return -0.25 * (1 - p) ** 2 * log(p) if positive else -0.75 * p**2 * log(1 - p)


def test_losses_are_those_of_plain_loops():
    answer = random_answer(2, 4, 3)
    labels = torch.tensor([[3, 0, 2, IGNORED], [3, 3, IGNORED, 1]])
    boxes = random_answer(2, 4, 1).boxes.flip(1)
    expected = dict.fromkeys(module.WEIGHTS, 0.0)
    for image in range(2):
        for query in range(4):
            label = labels[image, query].item()
            if label == IGNORED:
                continue
            logits = answer.logits[image, query].tolist()
            expected["classification"] += sum(focal(logit, k == label) for k, logit in enumerate(logits)) / 5
            if label < 3:
                found, wanted = answer.boxes[image, query].tolist(), boxes[image, query].tolist()
                expected["l1"] += 5 * sum(abs(f - w) for f, w in zip(found, wanted, strict=True)) / 5
                expected["giou"] += 2 * (1 - giou(found, wanted)) / 5
    losses = answer_losses(answer, labels, boxes, torch.tensor(5.0))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    low = answer.logits.bfloat16()
    focal_low = answer_losses(Answer(low, answer.boxes), labels, boxes, torch.tensor(5.0))["classification"]
    focal_high = answer_losses(Answer(low.float(), answer.boxes), labels, boxes, torch.tensor(5.0))["classification"]
    assert focal_low == focal_high


@pytest.mark.slow
def test_matching_is_the_cheapest_of_all():
    model, images = detector(), 24
    answer, things = random_answer(images, 5, 3), random_answer(images, 3, 3)
    labels, boxes = list(things.logits.argmax(-1)), list(things.boxes.flip(0))
    labels[0], boxes[0] = labels[0][:1], boxes[0][:1]
    objects = [{"class_labels": i, "boxes": b} for i, b in zip(labels, boxes, strict=True)]
    matched = model.matcher({"logits": answer.logits, "pred_boxes": answer.boxes}, objects)
    for image, (queries, order) in enumerate(matched):
        costs = {}
        for query, found in enumerate(answer.boxes[image].tolist()):
            for thing, wanted in enumerate(boxes[image].tolist()):
                logit = answer.logits[image, query, labels[image][thing]].item()
                far = sum(abs(f - w) for f, w in zip(found, wanted, strict=True))
                likely = focal(logit, True) - focal(logit, False)
                costs[query, thing] = 2 * likely + 5 * far - 2 * giou(found, wanted)
        sums = {
            chosen: sum(costs[query, thing] for thing, query in enumerate(chosen))
            for chosen in permutations(range(5), len(boxes[image]))
        }
        best = min(sums, key=lambda chosen: sums[chosen])
        assert {int(t): int(q) for q, t in zip(queries, order, strict=True)} == dict(enumerate(best))


@pytest.mark.slow
def test_losses_count_objects_once():
    model, image = detector(), torch.rand(3, 64, 96)
    thing, nothing = target([8, 8, 40, 50], [30, 10, 90, 60]), target()
    one = model([image], [thing])
    twice = model([image, image], [thing, thing])
    beside = model([image, image], [thing, nothing])
    for name in one:
        if not name.startswith("denoising"):
            torch.testing.assert_close(twice[name], one[name], rtol=1e-4, atol=1e-5)
        if name in ("proposal_l1", "decoder_giou"):
            torch.testing.assert_close(beside[name], one[name], rtol=1e-4, atol=1e-5)
    assert beside["decoder_classification"] > one["decoder_classification"]


@pytest.mark.slow
def test_denoising_losses_are_shared_by_objects_and_groups():
    model, image = detector(layers=2, moved=False), torch.rand(3, 64, 96)
    torch.manual_seed(3)
    losses = model([image, image], [target([8, 8, 40, 50], [30, 10, 90, 60]), target([0, 0, 50, 50])])
    boxes = [torch.tensor([[24 / 96, 29 / 64, 32 / 96, 42 / 64], [60 / 96, 35 / 64, 60 / 96, 50 / 64]])]
    boxes.append(torch.tensor([[25 / 96, 25 / 64, 50 / 96, 50 / 64]]))
    torch.manual_seed(3)
    noise = denoising([torch.tensor([0, 1]), torch.tensor([0])], boxes, 3)
    assert noise is not None
    far = giou_far = 0.0
    for image, objects in enumerate(boxes):  # no layer moves a box yet
        for group in range(50):
            for thing, true in enumerate(objects.tolist()):
                noisy = noise.boxes[image, 4 * group + thing].clamp(LEAST, 1 - LEAST).tolist()
                far += sum(abs(n - t) for n, t in zip(noisy, true, strict=True))
                giou_far += 1 - giou(noisy, true)
    assert losses["denoising_l1"].item() == pytest.approx(2 * 5 * far / (3 * 50), rel=1e-4)
    assert losses["denoising_giou"].item() == pytest.approx(2 * 2 * giou_far / (3 * 50), rel=1e-4)


def test_sines():
    found = sine(torch.tensor([[0.25, 0.7]]), temperature=10000)
    expected = [
        turn(2 * pi * share / 10000 ** (step / 64))
        for share in (0.25, 0.7)
        for step in range(64)
        for turn in (sin, cos)
    ]
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=1e-5)


def test_noisy_queries():
    labels = [torch.tensor([5, 700, 3]), torch.tensor([9]), torch.zeros(0, dtype=torch.int64)]
    boxes = [torch.rand(len(each), 4) * 0.1 + torch.tensor([0.4, 0.4, 0.3, 0.3]) for each in labels]
    torch.manual_seed(0)
    noise = denoising(labels, boxes, num_classes=1000, pairs=100, box_noise=0.4)
    assert noise is not None
    assert noise.groups == 33
    assert noise.labels.shape == (3, 6 * 33)
    assert noise.wanted_labels[0, :12].tolist() == [5, 700, 3, 1000, 1000, 1000] * 2
    assert noise.wanted_labels[1, :6].tolist() == [9, -1, -1, 1000, -1, -1]
    assert (noise.wanted_labels[2] == IGNORED).all()
    grouped = noise.boxes[0].view(33, 2, 3, 4)
    torch.testing.assert_close(noise.wanted_boxes[0].view(33, 2, 3, 4), boxes[0].expand(33, 2, 3, 4))
    edges = torch.cat([grouped[..., :2] - grouped[..., 2:] / 2, grouped[..., :2] + grouped[..., 2:] / 2], -1)
    true = torch.tensor([corners(box) for box in boxes[0].tolist()])
    moves = (edges - true).abs() / boxes[0][:, 2:].repeat(1, 2)  # relative to the sides of the box
    assert moves[:, 0].max() < 0.2
    assert moves[:, 0].max() > 0.19
    assert moves[:, 1].min() > 0.2
    assert moves[:, 1].max() < 0.4
    assert moves[:, 1].max() > 0.39
    inwards = ((edges - true) * torch.tensor([1, 1, -1, -1]) > 0).float()
    assert inwards.mean((0, 1, 2)).tolist() == pytest.approx([0.5] * 4, abs=0.1)
    flipped = noise.labels[0] != torch.tensor([5, 700, 3]).repeat(66)
    assert flipped.float().mean().item() == pytest.approx(0.25, abs=0.08)


def test_noisy_queries_without_label_noise_and_at_the_edge():
    labels, boxes = [torch.tensor([1, 0])], [torch.tensor([[0.05, 0.9, 0.1, 0.2], [0.5, 0.5, 1, 1]])]
    noise = denoising(labels, boxes, num_classes=2, label_noise=0.0)
    assert noise is not None
    assert noise.labels[0].tolist() == [1, 0] * 100
    assert noise.boxes[..., 2:].min().item() == pytest.approx(LEAST)  # some negatives are turned inside out
    lower, upper = noise.boxes[..., :2] - noise.boxes[..., 2:] / 2, noise.boxes[..., :2] + noise.boxes[..., 2:] / 2
    assert lower.min() > -LEAST
    assert upper.max() < 1 + LEAST


def test_groups_of_many_and_of_no_objects():
    many = denoising([torch.zeros(150, dtype=torch.int64)], [torch.rand(150, 4)], num_classes=2)
    assert many is not None
    assert (many.groups, many.labels.shape) == (1, (1, 300))
    assert denoising([torch.zeros(0, dtype=torch.int64)] * 2, [torch.zeros(0, 4)] * 2, num_classes=2) is None


def test_visibility_by_hand():
    wanted = torch.tensor([[0, 3, 0, 3], [IGNORED] * 4])
    noise = Denoising(wanted.clamp(min=0), torch.zeros(2, 4, 4), wanted, torch.zeros(2, 4, 4), groups=2)
    visible = visibility(noise, queries=2)
    assert visible[0, 0].int().tolist() == [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert visible[1, 0].int().tolist() == [[0, 0, 0, 0, 1, 1]] * 6


def test_noisy_queries_do_not_affect_matching_queries_or_other_groups():
    model = detector().eval()
    memory = model.encode(torch.rand(1, 3, 64, 64), None)
    first = model.propose(memory)
    noise = denoising([torch.tensor([0, 2])], [torch.rand(1, 2, 4)[0] * 0.5 + 0.2], num_classes=3, pairs=4)
    assert noise is not None
    other = Denoising(noise.labels.clone(), noise.boxes.clone(), noise.wanted_labels, noise.wanted_boxes, noise.groups)
    other.labels[:, :4] = 1
    other.boxes[:, :4] = 0.5
    with torch.no_grad():
        alone = model.decode(memory, first.boxes)[-1]
        one, two = model.decode(memory, first.boxes, noise)[-1], model.decode(memory, first.boxes, other)[-1]
    for each in (one, two):
        torch.testing.assert_close(each.boxes[:, 8:], alone.boxes)
        torch.testing.assert_close(each.logits[:, 8:], alone.logits)
    torch.testing.assert_close(two.logits[:, 4:8], one.logits[:, 4:8])
    assert (two.logits[:, :4] - one.logits[:, :4]).abs().max() > 0.01


def test_the_likeliest_places_become_queries():
    model = detector(moved=False).eval()
    with torch.no_grad():
        memory = model.encode(torch.rand(2, 3, 64, 96), [(64, 96), (40, 50)])
        chosen = model.propose(memory)
        logits = model.class_heads[0](model.proposal(memory.features))
    maps = [(8, 12, 8, 0.05), (4, 6, 16, 0.1), (2, 3, 32, 0.2), (1, 2, 64, 0.4)]
    for image, (height, width) in enumerate([(64, 96), (40, 50)]):
        found = []
        place = 0
        for rows, columns, stride, side in maps:
            for row in range(rows):
                for column in range(columns):
                    x, y = (column + 0.5) * stride / width, (row + 0.5) * stride / height
                    if 0.01 < x < 0.99 and 0.01 < y < 0.99:
                        found.append((logits[image, place].max().item(), [x, y, side, side], logits[image, place]))
                    place += 1
        best = sorted(found, key=lambda each: -each[0])[:12]
        torch.testing.assert_close(chosen.boxes[image], torch.tensor([box for _, box, _ in best]))
        torch.testing.assert_close(chosen.logits[image], torch.stack([logit for _, _, logit in best]))


def test_before_training_no_layer_moves_a_box_and_no_class_is_likely():
    model = detector(moved=False).eval()
    with torch.no_grad():
        memory = model.encode(torch.rand(1, 3, 64, 64), None)
        first = model.propose(memory)
        for answer in model.decode(memory, first.boxes):
            torch.testing.assert_close(answer.boxes, first.boxes)
    assert torch.stack([head.bias for head in model.class_heads]).sigmoid().unique().item() == pytest.approx(0.01)
    attention = model.decoder[1].encoder_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert attention.value_proj.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=0.01)
    offsets = model.encoder[0].self_attn.sampling_offsets.bias.view(8, 4, 4, 2)
    torch.testing.assert_close(offsets[0, :, 2], torch.tensor([3.0, 0]).expand(4, 2))  # the third point to the right


def test_gradients_look_forward_twice():
    model = detector(layers=3)
    memory = model.encode(torch.rand(1, 3, 64, 64), None)
    answers = model.decode(memory, model.propose(memory).boxes)

    def reached(answer: Answer) -> list[int]:
        lasts = [head.layers[-1].weight for head in model.box_heads]
        found = torch.autograd.grad(answer.boxes.sum(), lasts, retain_graph=True, allow_unused=True)
        return [i for i, gradient in enumerate(found) if gradient is not None and gradient.abs().max() > 0]

    assert [reached(answer) for answer in answers] == [[1], [1, 2], [2, 3]]


def test_group_norm_leaves_padding_out():
    norm, x = InsideGroupNorm(2, 6), torch.randn(2, 6, 4, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    inside = torch.zeros(2, 4, 5, dtype=torch.bool)
    inside[0], inside[1, :3, :2] = True, True
    y = norm(x, inside)
    torch.testing.assert_close(y[0], norm(x)[0])
    torch.testing.assert_close(y[1, :, :3, :2], norm(x[1:, :, :3, :2])[0])


@pytest.mark.parametrize("size", [(64, 96), (75, 90)])
@pytest.mark.slow
def test_padding_changes_nothing(size):
    model, image = detector().eval(), torch.rand(3, *size)
    with torch.no_grad():
        (alone,) = model([image])
        beside, _ = model([image, torch.rand(3, 160, 130)])
        padded = nn.functional.pad(image, (0, 224 - size[1], 0, 128 - size[0]))[None]
        (filled,) = model.detect(ImageList(padded, [size]))
    assert alone["boxes"].shape == (36, 4)
    for found in (beside, filled):
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["boxes"] / 100, alone["boxes"] / 100, rtol=0, atol=1e-4)
        assert torch.equal(found["labels"], alone["labels"])


def test_without_padding_sizes_are_not_needed():
    model, x = detector().eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.candidates(x), model.candidates(x, [(64, 96)] * 2))


def test_candidates_are_shares_of_the_batch():
    model = detector(moved=False).eval()
    batch = batched([torch.rand(3, 64, 64), torch.rand(3, 128, 160)])
    with torch.no_grad():
        boxes = model.candidates(batch.tensors, batch.image_sizes)[0, :, :4]
        first = model.propose(model.encode(batch.tensors, batch.image_sizes)).boxes[0]
    expected = [[x * 64 / side for x, side in zip(corners(box), (160, 128) * 2, strict=True)] for box in first.tolist()]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_images_smaller_than_the_queries():
    model = detector(queries=100).eval()
    assert model.levels(64, 96) == [100]
    assert model.levels(32, 32) == [16 + 4 + 1 + 1]
    with torch.no_grad():
        found = model([torch.rand(3, 32, 32)])
    assert found[0]["scores"].shape == (22 * 3,)
    assert found[0]["scores"].isfinite().all()


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.slow
def test_gradients_reach_every_parameter(amp):
    model = detector(layers=2, queries=30)
    things = [target([8, 8, 40, 50], [30.0, 10, 90, 60]), target()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        losses = model([torch.rand(3, 64, 96), torch.rand(3, 80, 64)], things)
    assert all(loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone.levels.0"):  # of stride 4, which is not used
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_batches_without_objects_keep_every_parameter_in_the_graph():
    model = detector()
    losses = model([torch.rand(3, 64, 64)] * 2, [target(), target()])
    assert {name: loss.item() for name, loss in losses.items() if "classification" not in name or "den" in name} == {
        f"{part}_{name}": 0
        for part in ("proposal", "decoder", "denoising")
        for name in module.WEIGHTS
        if name != "classification" or part == "denoising"
    }
    assert losses["proposal_classification"] > 0
    torch.stack(list(losses.values())).sum().backward()
    lacking = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert lacking == ["backbone.levels.0.weight", "backbone.levels.0.bias"]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_it_learns_one_image():
    torch.manual_seed(0)
    backbone, channels = open_backbone("dmformer_n", "a detector", backbone_args=TINY)
    model = Dino(backbone, channels, 2, queries=20, layers=1)
    image = torch.zeros(3, 64, 64)
    image[0, 8:40, 16:56] = 2
    things = [target([16, 8, 56, 40], labels=[1])]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(30):
        loss = torch.stack(list(model([image], things).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.3
    torch.testing.assert_close(found["boxes"][0], torch.tensor([16.0, 8, 56, 40]), rtol=0, atol=4)


@pytest.mark.slow
def test_published_size_and_selection():
    backbone, channels = open_backbone("dmformer_n", "a detector", backbone_args=TINY)
    model = dino(backbone, channels, 80)
    own = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in backbone.parameters())
    attention = 256 * 256 * 2 + 256 * 2 + 257 * 8 * 4 * 4 * 3
    encoder = attention + 257 * 2048 + 2049 * 256 + 4 * 256
    decoder = encoder + 4 * 257 * 256 + 2 * 256
    projection = sum(c * 256 for c in (16, 24, 32)) + 9 * 32 * 256 + 4 * 3 * 256
    heads = 7 * (257 * 80 + 2 * 257 * 256 + 257 * 4)
    queries = 900 * 256 + 80 * 256 + 513 * 256 + 257 * 256
    norms = 257 * 256 + 4 * 256 + 4 * 256  # the proposals' projection and norm, the decoder's norm, level embeddings
    assert own == 6 * (encoder + decoder) + projection + heads + queries + norms
    assert (model.selection.threshold, model.selection.iou, model.selection.most) == (0.0, None, 300)


class Candidates(nn.Module):
    """The module that is exported."""

    def __init__(self, model: Dino) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.candidates(x)


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_exports_for_every_batch_and_size():
    model = Candidates(detector(queries=60, layers=2)).eval()
    batch, height, width = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    shapes = {"x": {0: batch, 2: 32 * height, 3: 32 * width}}
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(2, 3, 96, 128),), dynamic_shapes=shapes).module()
        for size in [(1, 3, 160, 96), (3, 3, 128, 192)]:
            x = torch.rand(size)
            torch.testing.assert_close(program(x), model(x))
