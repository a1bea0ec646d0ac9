"""Test-time augmentation of detectors: objects found in mirrored views, mapped back and merged."""

from typing import Any

import numpy as np
import pytest
import torch
from test_detection_export import small_detector
from torch import Tensor, nn

from dmformer.cli.checks import own_options
from dmformer.cli.evaluate import EvalOptions
from dmformer.data.detections import Detections
from dmformer.data.fusion import fused, mirrored
from dmformer.data.selection import Selection
from dmformer.tasks.detection.merged_views import MergedViews
from dmformer.tasks.detection.model import FRAMEWORKS
from dmformer.tasks.table import TASKS
from dmformer.utils.errors import UserError


def found(*rows: tuple[float, ...], masks: np.ndarray | None = None) -> Detections:
    """Objects from rows of four edges, a score and a class, the highest score first."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), masks)


def test_a_cluster_is_the_mean_weighted_by_scores_times_the_fraction_of_views() -> None:
    masks = np.full((3, 2, 2), 0.9, np.float32), np.full((1, 2, 2), 0.1, np.float32)
    one = found((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.6, 1), (50, 50, 60, 60, 0.3, 0), masks=masks[0])
    other = found((2, 0, 12, 10, 0.4, 0), masks=masks[1])
    merged = fused([one, other], most=10)
    # the first: (0.8 * 0 + 0.4 * 2) / 1.2 from the left, a score of (0.8 + 0.4) / 2,
    # a mask of (0.8 * 0.9 + 0.4 * 0.1) / 1.2
    assert np.allclose(merged.boxes, [[2 / 3, 0, 32 / 3, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    assert np.allclose(merged.scores, [0.6, 0.3, 0.15])
    assert merged.labels.tolist() == [0, 1, 0]
    assert merged.masks is not None
    assert np.allclose(merged.masks[:, 0, 0], [0.76 / 1.2, 0.9, 0.9])
    assert len(fused([one, other], most=2)) == 2
    apart = found((4, 0, 14, 10, 0.4, 0))  # an IoU of 6 / 14, below 0.55
    assert np.allclose(fused([found((0, 0, 10, 10, 0.8, 0)), apart], most=10).scores, [0.4, 0.2])
    assert len(fused([found(), found()], most=10)) == 0


def test_merged_objects_follow_the_papers_formula() -> None:
    """Objects that lie apart, in views that move them and miss some: each is a cluster of its own."""
    generator = np.random.default_rng(0)
    corners = 40.0 * np.stack(np.divmod(np.arange(30), 6), 1)
    boxes = np.concatenate([corners, corners + generator.uniform(15, 30, corners.shape)], 1)
    views, rows = [], [[] for _ in boxes]
    for _ in range(4):
        given = [
            (*(box + generator.uniform(-1, 1, 4)), generator.uniform(0.05, 1), i % 3)
            for i, box in enumerate(boxes)
            if generator.random() < 0.7
        ]
        for row in given:
            rows[int(np.abs(boxes - row[:4]).sum(1).argmin())].append(np.array(row))
        views.append(found(*sorted(given, key=lambda row: -row[4])))
    merged = fused(views, most=100)
    clusters = [np.stack(cluster) for cluster in rows if cluster]
    assert len(merged) == len(clusters) > 25
    for cluster in clusters:
        box = (cluster[:, 4:5] * cluster[:, :4]).sum(0) / cluster[:, 4].sum()
        place = np.abs(merged.boxes - box).sum(1).argmin()
        assert np.allclose(merged.boxes[place], box, atol=1e-4)
        assert merged.scores[place] == pytest.approx(cluster[:, 4].mean() * len(cluster) / 4, abs=1e-6)
        assert merged.labels[place] == cluster[0, 5]
    assert (np.diff(merged.scores) <= 0).all()


def test_duplicates_in_a_view_do_not_lower_the_score_of_their_object() -> None:
    one = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.1, 0))
    merged = fused([one, one], most=10)
    assert np.allclose(merged.scores, [0.9, 0.1])
    assert np.allclose(merged.boxes, one.boxes)


class Bright(nn.Module):
    """Finds one object: the bright rectangle, with the bright part of its upper left quarter as a mask of 2 x 2."""

    selection = Selection(most=5)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        answers = []
        for image in images:
            rows, columns = (image[0] > 0.4).nonzero().unbind(1)
            left, upper, right, lower = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            corners = image[0][[upper, upper, lower - 1, lower - 1], [left, right - 1, left, right - 1]] > 0.9
            answers.append(
                {
                    "boxes": torch.stack([left, upper, right, lower])[None].float(),
                    "scores": torch.tensor([0.5]),
                    "labels": torch.tensor([1]),
                    "masks": corners.float().reshape(1, 1, 2, 2),
                }
            )
        return answers


@pytest.mark.parametrize("tta", ["none", "flip", "flips"])
def test_objects_of_every_view_are_mapped_back(tta: str) -> None:
    images = [torch.zeros(3, 40, 60), torch.zeros(3, 30, 20)]
    images[0][:, 5:12, 20:50], images[1][:, 21:30, 0:4] = 0.5, 0.5
    images[0][:, 5:8, 20:30] = 1.0
    images[1][:, 28:30, 3:4] = 1.0
    boxes, masks = ([20, 5, 50, 12], [0, 21, 4, 30]), ([[1, 0], [0, 0]], [[0, 0], [0, 1]])
    for answer, box, mask in zip(MergedViews(Bright(), tta)(images), boxes, masks, strict=True):
        assert answer["boxes"].tolist() == [box]
        assert answer["scores"].tolist() == [0.5]
        assert answer["labels"].tolist() == [1]
        assert answer["masks"].tolist() == [[mask]]


def test_mirroring_twice_changes_nothing() -> None:
    masks = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    objects = found((1, 2, 30, 40, 0.9, 0), (0, 0, 5, 9, 0.5, 2), masks=masks)
    for axes in ((), (-1,), (-2,), (-2, -1)):
        once = mirrored(objects, (50, 60), axes)
        again: Any = mirrored(once, (50, 60), axes)
        assert np.array_equal(again.boxes, objects.boxes)
        assert np.array_equal(again.masks, masks)
        assert np.array_equal(once.boxes, objects.boxes) == (not axes)
    assert mirrored(objects, (50, 60), (-1,)).boxes[0].tolist() == [30, 2, 59, 40]
    assert mirrored(objects, (50, 60), (-2,)).boxes[0].tolist() == [1, 10, 30, 48]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.slow
def test_a_mirrored_image_has_the_mirrored_objects(framework: str) -> None:
    """With both views merged, which of them is given does not matter, whatever a detector finds in one."""
    detector = small_detector(framework)
    model: Any = detector.model
    if framework == "retinanet":
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.5)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -2.0)
    torch.manual_seed(1)
    image = torch.randn(3, 70, 101)
    network = detector.answering("flip").network
    with torch.inference_mode():
        (one,), (other,) = network([image]), network([image.flip(-1)])
        (alone,) = detector.network([image])
    assert len(one["scores"]) > 5
    assert len(alone["scores"]) != len(one["scores"]) or not torch.allclose(alone["scores"], one["scores"])
    assert torch.allclose(one["scores"], other["scores"], atol=1e-6)
    back = other["boxes"].clone()
    back[:, [0, 2]] = 101 - other["boxes"][:, [2, 0]]
    assert torch.allclose(one["boxes"], back, atol=1e-3)
    if "masks" in one:
        assert torch.allclose(one["masks"], other["masks"].flip(-1), atol=1e-5)


def test_the_models_that_have_an_option_are_listed() -> None:
    with pytest.raises(UserError, match="--tta is for classifiers, multi-label classifiers and detectors; this"):
        own_options(EvalOptions("run", tta="flip"), TASKS["segmentation"])
    with pytest.raises(UserError, match="--flip is for segmenters; this is a detector"):
        own_options(EvalOptions("run", flip=True), TASKS["detection"])
    assert own_options(EvalOptions("run", tta="flip"), TASKS["detection"])["tta"] == "flip"
