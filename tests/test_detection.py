"""What all detectors share: anchors, candidates, their selection, and the detector's folder; and RetinaNet."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dmformer.data.detections import select
from dmformer.data.selection import Selection
from dmformer.models.features import open_backbone
from dmformer.nn.fuse import fuse
from dmformer.tasks.detection.frameworks import dense
from dmformer.tasks.detection.frameworks.anchors import Anchors
from dmformer.tasks.detection.frameworks.base import batched, mean_over_processes
from dmformer.tasks.detection.frameworks.pyramid import Pyramid
from dmformer.tasks.detection.frameworks.retinanet import OCTAVES, RATIOS, STRIDES, RetinaNet, retinanet
from dmformer.tasks.detection.model import detection_model, in_photo
from dmformer.utils.errors import UserError

TINY = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


def tiny(num_classes: int = 4) -> RetinaNet:
    """A RetinaNet over a very small DMFormer, whose outputs differ from position to position."""
    torch.manual_seed(0)
    model = detection_model("dmformer_n", num_classes, retinanet, backbone_args=TINY)
    assert isinstance(model, RetinaNet)
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.1)
    return model


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def targets() -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor([[10.0, 12, 60, 90], [70, 20, 110, 50]]), "labels": torch.tensor([3, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def test_anchors_are_torchvisions_where_its_strides_are_right() -> None:
    anchors = Anchors([[4 * s * o for o in OCTAVES] for s in STRIDES], RATIOS, STRIDES)
    maps = [torch.zeros(1, 1, 256 // s, 128 // s) for s in STRIDES]
    sizes = tuple(tuple(4 * s * o for o in OCTAVES) for s in STRIDES)
    theirs = AnchorGenerator(sizes, (tuple(RATIOS),) * len(sizes))  # type: ignore[arg-type]
    expected = theirs(batched([torch.zeros(3, 256, 128)]), maps)[0]
    assert torch.equal(anchors(maps), expected)
    assert anchors.per_place == 9


def test_anchors_of_levels_that_are_rounded_up() -> None:
    anchors = Anchors([[32.0]], [1.0], [64])
    # an image of 160 px has 3 positions at stride 64: at 0, 64 and 128
    assert anchors([torch.zeros(1, 1, 1, 3)]).tolist() == [[-16, -16, 16, 16], [48, -16, 80, 16], [112, -16, 144, 16]]


class _Passed(nn.Module):
    """Our pyramid as a torchvision backbone."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid, self.out_channels = pyramid, 256

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.pyramid(x)


@pytest.mark.slow
def test_retinanet_is_torchvisions() -> None:
    ours = tiny()
    sizes = tuple(tuple(4 * s * o for o in OCTAVES) for s in STRIDES)
    theirs = TorchvisionRetinaNet(
        _Passed(ours.pyramid),
        num_classes=4,
        anchor_generator=AnchorGenerator(sizes, (tuple(RATIOS),) * len(sizes)),  # type: ignore[arg-type]
        head=ours.head,
        detections_per_img=100,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    theirs.transform.resize = lambda image, target: (image, target)  # type: ignore[method-assign]
    batch = images((128, 100), (90, 128))  # padded to 128 x 128, where torchvision's strides are right
    given = [{k: v.clone() for k, v in t.items()} for t in targets()]
    # drop path and batch statistics are the same in both, because both see one batch
    ours.train(), theirs.train()
    a, b = ours(batch, targets()), theirs(batch, given)
    assert isinstance(a, dict)
    assert set(a) == set(b) == {"classification", "bbox_regression"}
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    ours.eval(), theirs.eval()
    with torch.inference_mode():
        for x, y in zip(ours(batch), theirs(batch), strict=True):
            assert len(x["scores"]) == 100
            torch.testing.assert_close(x["scores"], y["scores"])
            torch.testing.assert_close(x["boxes"], y["boxes"], atol=1e-3, rtol=1e-5)
            assert torch.equal(x["labels"], y["labels"])


@pytest.mark.slow
def test_losses_reach_every_parameter_with_and_without_objects() -> None:
    for given in (targets(), [targets()[1], targets()[1]]):
        model = tiny().train()
        losses = model(images((96, 128), (128, 96)), given)
        assert isinstance(losses, dict)
        torch.stack(list(losses.values())).sum().backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert not without
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_an_empty_batch_pushes_scores_towards_zero() -> None:
    model = tiny().train()
    losses = model(images((96, 96), (96, 96)), [targets()[1]] * 2)
    assert isinstance(losses, dict)
    assert losses["bbox_regression"] == 0
    assert losses["classification"] > 0


@torch.inference_mode()
def test_a_fused_detector_answers_alike() -> None:
    model = tiny().eval()
    x = torch.stack(images((128, 96)))
    torch.testing.assert_close(fuse(model).candidates(x), model.candidates(x), atol=1e-4, rtol=1e-4)  # type: ignore[operator]


@torch.inference_mode()
def test_levels_count_the_candidates() -> None:
    model = tiny().eval()
    for height, width in ((160, 96), (128, 128), (32, 224)):
        assert model.candidates(torch.zeros(1, 3, height, width)).shape == (1, sum(model.levels(height, width)), 8)


def random_candidates(n: int, classes: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner, side = random.uniform(-0.1, 0.9, (n, 2)), random.uniform(0.02, 0.5, (n, 2))
    return np.hstack([corner, corner + side, random.uniform(0, 1, (n, classes)) ** 3]).astype(np.float32)


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(threshold=0.3, per_level=20, iou=0.6, most=7),
        Selection(threshold=0.0, per_level=None, iou=None, most=50),
    ],
)
def test_selection_is_the_same_with_and_without_torch(selection: Selection) -> None:
    for seed in range(5):
        candidates = random_candidates(140, 3, seed)
        levels = [100, 30, 10]
        ours, _ = select(candidates, levels, (90, 120), (96, 128), selection)
        theirs = dense.select(torch.from_numpy(candidates), levels, (90, 120), (96, 128), selection)
        assert 0 < len(ours) <= selection.most
        np.testing.assert_array_equal(ours.labels, theirs["labels"])
        np.testing.assert_allclose(ours.scores, theirs["scores"])
        np.testing.assert_allclose(ours.boxes, theirs["boxes"], rtol=1e-5)


def test_selection_by_hand() -> None:
    """Two boxes of one class overlap by 0.6 (12 of 20 pixels): the higher score stays. Of different classes both do."""
    wide, narrow, apart = [0.0, 0.0, 0.2, 0.1], [0.0, 0.0, 0.12, 0.1], [0.5, 0.5, 1.2, 0.9]
    candidates = np.array(
        [[*wide, 0.9, 0.0], [*narrow, 0.8, 0.0], [*narrow, 0.0, 0.7], [*apart, 0.6, 0.04]], dtype=np.float32
    )
    found, _ = select(candidates, [4], (10, 100), (10, 100), Selection(iou=0.5))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.boxes, [[0, 0, 20, 1], [0, 0, 12, 1], [50, 5, 100, 9]], rtol=1e-6)
    kept, _ = select(candidates, [4], (10, 100), (10, 100), Selection(iou=0.65))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    first, _ = select(candidates, [3, 1], (10, 100), (10, 100), Selection(iou=None, per_level=1))
    assert first.scores.tolist() == pytest.approx([0.9, 0.6])  # the best of each level


def test_boxes_and_masks_come_back_to_the_photo() -> None:
    found = {
        "boxes": torch.tensor([[10.0, 20, 30, 60]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    answer = in_photo(found, (80, 40), (160, 120))
    np.testing.assert_allclose(answer.boxes, [[30, 40, 90, 120]])
    assert answer.masks is not None
    rows, columns = np.nonzero(answer.masks[0])
    assert answer.masks.shape == (1, 160, 120)
    # a mask of ones fills its box, except where its bilinear border fades out
    assert (abs(rows.min() - 40), abs(rows.max() - 120), abs(columns.min() - 30), abs(columns.max() - 90)) <= (2,) * 4


def test_a_batch_is_filled_up_with_zeros() -> None:
    batch = batched(images((40, 70), (33, 20)))
    assert batch.tensors.shape == (2, 3, 64, 96)
    assert batch.image_sizes == [(40, 70), (33, 20)]
    assert torch.equal(batch.tensors[1, :, :33, :20], images((40, 70), (33, 20))[1])
    assert not batch.tensors[1, :, 33:].any()
    assert not batch.tensors[1, :, :, 20:].any()


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "van_b0"])
@pytest.mark.slow
def test_backbones_of_timm_and_ours(name: str) -> None:
    args = {"strict_img_size": False} if name.startswith("swin") else {}
    backbone, channels = open_backbone(name, "a detector", backbone_args=args)
    model = retinanet(backbone, channels, 2).eval()
    with torch.inference_mode():
        assert model.candidates(torch.zeros(1, 3, 64, 96)).shape[-1] == 6


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("vit_tiny_patch16_224", {}, "strides"),
        ("dmformer_n", {"nonsense": 1}, "nonsense"),
        ("vitae_b", {"img_size": 224}, "one size"),
    ],
)
def test_what_cannot_be_a_backbone_is_told(name: str, args: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        detection_model(name, 2, retinanet, backbone_args=args)


def test_a_pyramids_last_levels_come_from_where_the_paper_says() -> None:
    """RetinaNet's P6 comes from the backbone's last map, even if that happens to have 256 channels."""
    backbone, channels = open_backbone("dmformer_t", "a detector")
    assert channels[-1] == 256
    model = retinanet(backbone, channels, 2)
    assert isinstance(model.pyramid, Pyramid)
    assert model.pyramid.fpn.extra_blocks.on_output is False  # type: ignore[union-attr]


def test_numbers_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mean_over_processes(torch.tensor(3.0)).item() == 3
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number: number.add_(4))
    number = torch.tensor(3.0)
    assert mean_over_processes(number).item() == 3.5
    assert number.item() == 3  # its own value stays


def test_what_is_found_in_padding_is_dropped() -> None:
    """An image of 33 x 33 in 64 x 64: the second candidate lies outside the image."""
    candidates = np.array([[0.1, 0.1, 0.3, 0.3, 0.8], [0.8, 0.1, 0.95, 0.4, 0.9]], np.float32)
    for selection in (Selection(), Selection(threshold=0.0, per_level=None, iou=None, most=50)):
        ours, _ = select(candidates, [2], (33, 33), (64, 64), selection)
        theirs = dense.select(torch.from_numpy(candidates), [2], (33, 33), (64, 64), selection)
        assert ours.scores.tolist() == pytest.approx([0.8])
        assert theirs["scores"].tolist() == pytest.approx([0.8])
