"""`tasks.segmentation_scores`: against scikit-learn and against counts computed by hand."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from dmformer.tasks.segmentation.metrics import image_ious, score_masks

K = 6
NAMES = [f"class {k}" for k in range(K)]


def random_masks(seed, images=7, size=40):
    """Class 4 never occurs, class 5 is not even predicted; the last image has no label; a third is correct."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (images, size, size))
    chance = rng.integers(0, 5, truth.shape)
    prediction = np.where(rng.random(truth.shape) < 1 / 3, truth, chance)
    truth[rng.random(truth.shape) < 0.2] = 255
    truth[-1] = 255
    return truth, prediction


def counted(truth, prediction):
    """Masks (N, H, W) -> confusion and counts as `score_masks` takes them, by scikit-learn."""
    matrices = []
    for t, p in zip(truth, prediction, strict=True):
        labelled = t != 255
        empty = np.zeros((K, K), dtype=int)
        matrices.append(confusion_matrix(t[labelled], p[labelled], labels=range(K)) if labelled.any() else empty)
    each = torch.from_numpy(np.stack(matrices))
    return each.sum(0), torch.stack([each.diagonal(dim1=1, dim2=2), each.sum(2), each.sum(1)], dim=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scikit_learn(seed):
    truth, prediction = random_masks(seed)
    confusion, counts = counted(truth, prediction)
    scores = score_masks(confusion, counts, NAMES, resamples=10)
    labelled = truth != 255
    t, p = truth[labelled], prediction[labelled]
    assert scores.miou.value == pytest.approx(jaccard_score(t, p, labels=range(5), average="macro"), abs=1e-6)
    ious = jaccard_score(t, p, labels=range(5), average=None)
    assert [c.iou for c in scores.classes[:5]] == pytest.approx(ious.tolist(), abs=1e-6)
    recalls = [(p[t == k] == k).mean() for k in range(4)]
    assert [c.accuracy for c in scores.classes[:4]] == pytest.approx(recalls, abs=1e-6)
    assert scores.macc == pytest.approx(np.mean(recalls), abs=1e-6)
    assert scores.aacc == pytest.approx((t == p).mean(), abs=1e-6)
    assert [c.share for c in scores.classes] == pytest.approx([(t == k).mean() for k in range(K)], abs=1e-6)
    assert (scores.images, scores.pixels) == (7, labelled.sum())
    assert scores.confusion == confusion_matrix(t, p, labels=range(K)).tolist()


def test_absent_classes():
    scores = score_masks(*counted(*random_masks(0)), NAMES, resamples=0)
    assert (scores.classes[4].iou, scores.classes[4].accuracy, scores.classes[4].share) == (0.0, None, 0.0)
    assert (scores.classes[5].iou, scores.classes[5].accuracy, scores.classes[5].share) == (None, None, 0.0)
    assert (scores.miou.low, scores.miou.high) == (0.0, 1.0)
    assert json.loads(json.dumps(asdict(scores)))["classes"][5]["iou"] is None


def test_image_ious():
    truth, prediction = random_masks(3)
    ious = image_ious(counted(truth, prediction)[1])
    assert math.isnan(ious[-1])
    for t, p, iou in zip(truth[:-1], prediction[:-1], ious, strict=False):
        expected = jaccard_score(t[t != 255], p[t != 255], average="macro")
        assert float(iou) == pytest.approx(expected, abs=1e-6)


def test_sums_over_the_set():
    """A class with 1 pixel in one image and 99 in another: IoU 99 / 100 over the set, (0 + 1) / 2 over the images."""
    truth, prediction = np.zeros((2, 10, 10), dtype=int), np.zeros((2, 10, 10), dtype=int)
    truth[0, 0, 0] = 1
    truth[1], prediction[1] = 1, 1
    truth[1, 0, 0], prediction[1, 0, 0] = 0, 0
    scores = score_masks(*counted(truth, prediction), NAMES, resamples=0)
    assert scores.classes[1].iou == pytest.approx(0.99)
    assert scores.classes[0].iou == pytest.approx(100 / 101)


def test_interval():
    """It is the same each time, contains the value, is narrower with more images, and is a point if all are alike."""
    truth, prediction = random_masks(4, images=20)
    prediction[:10] = np.where(truth[:10] == 255, 0, truth[:10])
    few = score_masks(*counted(truth, prediction), NAMES)
    assert few == score_masks(*counted(truth, prediction), NAMES)
    many = score_masks(*counted(np.tile(truth, (9, 1, 1)), np.tile(prediction, (9, 1, 1))), NAMES).miou
    assert few.miou.low < few.miou.value < few.miou.high
    assert many.value == pytest.approx(few.miou.value)
    assert many.high - many.low < 0.5 * (few.miou.high - few.miou.low)
    alike = score_masks(*counted(truth[[15] * 5], prediction[[15] * 5]), NAMES).miou
    assert (alike.low, alike.high) == pytest.approx((alike.value, alike.value))


def test_interval_against_resampled_masks():
    """The bootstrap by its definition, with other random numbers."""
    truth, prediction = random_masks(5, images=12, size=6)
    _, counts = counted(truth, prediction)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(2000):
        drawn = counts[torch.from_numpy(rng.integers(0, 12, 12))].sum(0)
        union = drawn[1] + drawn[2] - drawn[0]
        values.append((drawn[0] / union)[union > 0].mean().item())
    interval = score_masks(*counted(truth, prediction), NAMES, resamples=2000).miou
    assert (interval.low, interval.high) == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=0.01)


def test_nothing_labelled():
    truth, prediction = random_masks(0)
    with pytest.raises(ValueError, match="no labelled pixel"):
        score_masks(*counted(truth[-1:], prediction[-1:]), NAMES)


def test_counts_must_fit():
    confusion, counts = counted(*random_masks(0))
    with pytest.raises(ValueError, match="do not add up"):
        score_masks(confusion, counts[1:], NAMES)
