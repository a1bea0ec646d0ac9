"""Detection scores against pycocotools on synthetic images, on one process and on two, and hand-computed cases."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from accelerate import PartialState
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dmformer.data.detections import Detections
from dmformer.tasks.detection.datasets import Annotations
from dmformer.tasks.detection.metrics import IOUS, DetectionMeter, Mistake, match, overlaps, reasons

pytest.importorskip("faster_coco_eval")
SIZE = (150, 200)
NAMES = ["cat", "dog", "猫", "never found", "never there", "not at all"]


def make_truth(boxes, labels, crowd=None, areas=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, bool)
    areas = sizes.prod(1).astype(float) if areas is None else np.array(areas, float)
    return Annotations(boxes, np.array(labels, np.int64), crowd, areas, np.arange(len(boxes)))


def outlined(truth, shapes):
    """With the outlines of shapes (n, H, W)."""
    return replace(truth, outlines=tuple(mask.encode(np.asfortranarray(shape.astype(np.uint8))) for shape in shapes))


def make_found(boxes, labels, scores):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))


def ellipses(boxes):
    """(n, H, W): an ellipse in each box."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]][:, None] + 0.5
    left, upper, right, lower = (edge[:, None, None] for edge in boxes.T)
    across = ((x - (left + right) / 2) / (right - left)) ** 2
    return across + ((y - (upper + lower) / 2) / (lower - upper)) ** 2 < 0.25


def random_boxes(generator, n):
    """From 3 to 180 pixels wide, inside the image or a little beyond it."""
    sizes = np.exp(generator.uniform(np.log(3), np.log(180), (n, 2)))
    upper = generator.uniform(-5, 1, (n, 2)) + generator.uniform(0, 1, (n, 2)) * np.array(SIZE[::-1]) * 0.7
    return np.concatenate([upper, upper + sizes], axis=1).astype(np.float32)


def made(seed, masks=False, images=24):
    """Images with few or no objects, crowds, areas unlike the boxes', equal scores, and one with 130 of one class."""
    generator = np.random.default_rng(seed)
    data = []
    for i in range(images):
        n = int(generator.integers(0, 9)) if i % 6 else 0
        boxes = random_boxes(generator, n)
        truth = make_truth(boxes, generator.integers(0, 4, n), generator.random(n) < 0.15)
        truth.areas[:] *= generator.uniform(0.3, 1, n)
        near = np.repeat(np.arange(n), generator.integers(0, 4, n))
        more = 130 if i == 7 else int(generator.integers(0, 4)) if i % 5 else 0
        shift = generator.normal(0, 0.06, (len(near), 4)) * np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        placed = np.concatenate([boxes[near] + shift, random_boxes(generator, more)])
        placed[:, 2:] = np.maximum(placed[:, 2:], placed[:, :2] + 2)
        guessed = np.where(generator.random(len(near)) < 0.9, truth.labels[near], generator.integers(0, 5, len(near)))
        others = np.full(more, 1) if i == 7 else generator.integers(0, 5, more)
        labels = np.concatenate([guessed, others])
        labels[labels == 3] = 4
        scores = np.sort(generator.integers(1, 60, len(labels)) / 60)[::-1]
        found = make_found(placed, labels, scores)
        if masks:
            truth = outlined(truth, ellipses(truth.boxes))
            found = replace(found, masks=ellipses(found.boxes))
        data.append((found, truth))
    return data


def metered(data, masks=False):
    meter = DetectionMeter(NAMES, masks)
    for position, (found, truth) in enumerate(data):
        meter.add(position, found, truth, SIZE)
    return meter


def by_pycocotools(data, kind):
    """COCO's own evaluation: its twelve figures, and precision and recall by (IoU, recall, class, area, maximum)."""

    def record(i, box, label):
        left, upper, right, lower = box.astype(float).tolist()
        return {
            "image_id": i,
            "category_id": int(label) + 1,
            "bbox": [left, upper, right - left, lower - upper],
        }

    annotations, results = [], []
    for i, (found, truth) in enumerate(data):
        for k in range(len(truth.labels)):
            told = {"id": len(annotations) + 1, "area": float(truth.areas[k]), "iscrowd": int(truth.crowd[k])}
            annotations.append(record(i, truth.boxes[k], truth.labels[k]) | told)
            if kind == "segm":
                annotations[-1]["segmentation"] = truth.outlines[k]
        for k in range(len(found)):
            results.append(record(i, found.boxes[k], found.labels[k]) | {"score": float(found.scores[k])})
            if kind == "segm":
                del results[-1]["bbox"]
                results[-1]["segmentation"] = mask.encode(np.asfortranarray(found.masks[k].astype(np.uint8)))
    with contextlib.redirect_stdout(io.StringIO()):
        truths = COCO()
        truths.dataset = {
            "info": {},
            "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(data))],
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        }
        truths.createIndex()
        evaluation = COCOeval(truths, truths.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"], evaluation.eval["recall"]


def figures(ap):
    """As COCO reports them, with -1 for none."""
    values = [ap.ap, ap.ap50, ap.ap75, ap.small, ap.medium, ap.large, ap.ar1, ap.ar10, ap.ar100]
    return [-1 if value is None else value for value in values]


def close(value):
    return pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools(seed, masks):
    data = made(seed, masks)
    meter = metered(data, masks)
    scores, ap = meter.scores(resamples=20), meter.ap(resamples=20)
    stats, precision, recall = by_pycocotools(data, "bbox")
    assert figures(scores.boxes) == close(stats[:9].tolist())
    assert scores.ap50_interval.value == close(stats[1])
    assert (ap.value, ap.low < ap.value < ap.high) == (close(stats[0]), True)
    assert [c.objects for c in scores.classes] == [
        sum(int(((t.labels == k) & ~t.crowd).sum()) for _, t in data) for k in range(len(NAMES))
    ]
    assert scores.objects == sum(c.objects for c in scores.classes) > 50
    for k, c in enumerate(scores.classes[:4]):
        assert (c.name, c.ap) == (NAMES[k], close(precision[:, :, k, 0, 2].mean()))
        assert (c.ap50, c.ar100) == (close(precision[0, :, k, 0, 2].mean()), close(recall[:, k, 0, 2].mean()))
        assert scores.curves.classes[k] == close(precision[0, :, k, 0, 2].tolist())
    assert scores.curves.iou50 == close(precision[0, :, :4, 0, 2].mean(1).tolist())
    assert scores.curves.iou75 == close(precision[5, :, :4, 0, 2].mean(1).tolist())
    assert (scores.classes[3].ap, scores.classes[4].ap, scores.classes[5].ap) == (0, None, None)
    assert scores.curves.classes[4:] == [None, None]
    if masks:
        stats, precision, _ = by_pycocotools(data, "segm")
        assert figures(scores.masks) == close(stats[:9].tolist())
        assert [c.mask_ap for c in scores.classes[:4]] == close(precision[:, :, :4, 0, 2].mean((0, 1)).tolist())
    else:
        assert scores.masks is None
        assert {c.mask_ap for c in scores.classes} == {None}
    json.dumps(scores.to_dict())


def test_recall_of_exactly_a_threshold():
    """3 of 5 found, then a false positive: precision is 1 up to a recall of 0.6, which is 61 of the 101 points."""
    boxes = [[20 * k, 0, 20 * k + 10, 10] for k in range(6)]
    truth = make_truth(boxes[:5], [0] * 5)
    found = make_found([*boxes[:3], boxes[5]], [0] * 4, [0.9, 0.8, 0.7, 0.6])
    scores = metered([(found, truth)]).scores()
    assert scores.boxes.ap == scores.boxes.ap50 == close(61 / 101)
    assert scores.curves.iou50 == [1.0] * 61 + [0.0] * 40
    assert (scores.boxes.ar1, scores.boxes.ar10) == (close(0.2), close(0.6))
    assert scores.ap50_interval.low == scores.ap50_interval.high == close(61 / 101)


def test_best_threshold():
    """No other whole percentage has a higher F1; of those with the same one it is the middle; 0.5 if nothing is
    right."""
    data = made(1)

    def f1(threshold):
        right = wrong = 0
        for found, truth in data:
            place, ignored = match(found.above(threshold), truth)
            right, wrong = right + (place[~ignored] >= 0).sum(), wrong + (place[~ignored] < 0).sum()
        return 2 * right / (right + wrong + sum((~truth.crowd).sum() for _, truth in data))

    values = [f1(k / 100) for k in range(1, 100)]
    best = [k for k in range(1, 100) if values[k - 1] == max(values)]
    assert metered(data).best_threshold() == best[len(best) // 2] / 100
    truth = make_truth([[0, 0, 10, 10]], [0])
    assert metered([(make_found([], [], []), truth)]).best_threshold() == 0.5
    assert metered([(make_found([[50, 50, 60, 60]], [0], [0.9]), truth)]).best_threshold() == 0.5


def test_order_and_repetition_of_images_do_not_count():
    data = made(2)
    meter = DetectionMeter(NAMES, False)
    for position in [*reversed(range(len(data))), 3, 4]:
        meter.add(position, *data[position], SIZE)
    assert meter.scores().to_dict() == metered(data).scores().to_dict()


@pytest.mark.slow
def test_interval_is_that_of_copied_images():
    """A resample weights the images; datasets with repeated images, scored from scratch, give the same AP50."""
    data = made(3, images=6)
    times = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), 40).astype(float)
    values = []
    for each in times:
        copies = [image for image, n in zip(data, each, strict=True) for _ in range(int(n))]
        values.append(metered(copies).scores(resamples=0).boxes.ap50)
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975])
    interval = metered(data).scores(resamples=40).ap50_interval
    assert (interval.value - interval.low, interval.high - interval.value) == (
        close(median - low),
        close(high - median),
    )
    assert 0.01 < interval.low < interval.high < 1


@pytest.mark.parametrize("masks", [False, True])
def test_without_objects_or_detections(masks):
    nothing = make_found([], [], []), make_truth([], [])
    crowd = make_found([[0, 0, 9, 9]], [0], [0.9]), make_truth([[0, 0, 9, 9]], [0], [True])
    missed = make_found([], [], []), make_truth([[0, 0, 9, 9]], [0])
    if masks:
        crowd = replace(crowd[0], masks=ellipses(crowd[0].boxes)), outlined(crowd[1], ellipses(crowd[1].boxes))
        missed = missed[0], outlined(missed[1], ellipses(missed[1].boxes))
    scores = metered([nothing, crowd], masks).scores()
    assert (scores.images, scores.objects) == (2, 0)
    assert metered([nothing, crowd], masks).ap().value == 0
    assert scores.boxes.ap is scores.ap50_interval is scores.classes[0].ap is None
    assert (scores.masks is not None) == masks
    scores = metered([nothing, missed], masks).scores()
    assert (scores.objects, scores.boxes.ap, scores.boxes.large, scores.classes[0].ap) == (1, 0, None, 0)
    assert scores.ap50_interval.value == 0
    with pytest.raises(ValueError, match="no image"):
        metered([], masks).scores()


def test_masks_that_are_missing():
    meter = DetectionMeter(NAMES, masks=True)
    with pytest.raises(ValueError, match="no masks"):
        meter.add(0, make_found([[0, 0, 9, 9]], [0], [0.5]), make_truth([], []), SIZE)


def scored_in_parts() -> list[dict]:
    """The scores on this process: of images that differ in number and overlap, then of all or none."""
    rank, data, results = PartialState(cpu=True).process_index, made(5, masks=True), []
    for part in ([range(0, 20), range(14, 24)], [range(0), range(24)]):
        meter = DetectionMeter(NAMES, True)
        for position in part[rank]:
            meter.add(position, *data[position], SIZE)
        results.append(meter.gathered().scores(resamples=10).to_dict())
    return results


@pytest.mark.slow
def test_two_processes(two_processes):
    """Processes have different numbers of images, some on both, none on one; each gets the scores of all images."""
    expected = metered(made(5, masks=True), masks=True).scores(resamples=10).to_dict()
    assert two_processes(scored_in_parts) == [[expected, expected]] * 2


def test_gathered_on_one_process():
    data = made(4, images=3)
    assert metered(data).gathered().scores().to_dict() == metered(data).scores().to_dict()


def test_overlaps():
    """For a crowd it is the fraction of the detection that lies inside."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 5, 9]], np.float32)
    truths = np.array([[5, 0, 15, 10], [5, 0, 15, 10]], np.float32)
    expected = [[50 / 150, 50 / 100], [0, 0], [0, 0]]
    assert overlaps(boxes, truths, np.array([False, True])) == pytest.approx(np.array(expected))


def test_match():
    """Two cats side by side, a dog at the position of the first, and a crowd of cats."""
    truth = make_truth(
        [[0, 0, 10, 10], [4, 0, 14, 10], [0, 0, 10, 10], [40, 0, 100, 60]], [0, 0, 1, 0], [False, False, False, True]
    )
    found = make_found(
        [
            [3, 0, 13, 10],  # closer to the second cat, though it also overlaps the first by 70 of 130
            [5, 0, 15, 10],  # only the second cat is close enough, and it is taken
            [2, 0, 12, 10],  # takes the first
            [50, 10, 60, 20],  # in the crowd, which may match any number
            [60, 10, 70, 20],
            [50, 10, 60, 20],  # a dog: not the class of the crowd
            [0, 0, 10, 10],
        ],
        [0, 0, 0, 0, 0, 1, 1],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
    )
    matched, ignored = match(found, truth)
    assert matched.tolist() == [1, -1, 0, 3, 3, -1, 2]
    assert ignored.tolist() == [False, False, False, True, True, False, False]
    matched, _ = match(found, truth, iou=0.9)
    assert matched.tolist() == [-1, -1, -1, 3, 3, -1, 2]


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_match_by_the_rule_written_out(iou):
    """The loop of pycocotools' `evaluateImg`, one class after the other."""
    for found, truth in made(6):
        matched, ignored = match(found, truth, iou)
        expected, left = np.full(len(found), -1), np.zeros(len(found), bool)
        overlap = overlaps(found.boxes, truth.boxes, truth.crowd)
        taken = set()
        for d in range(len(found)):
            best, place = iou, -1
            for g in np.argsort(truth.crowd, kind="stable"):
                if truth.labels[g] != found.labels[d] or (g in taken and not truth.crowd[g]):
                    continue
                if place > -1 and not truth.crowd[place] and truth.crowd[g]:
                    break
                if overlap[d, g] >= best:
                    best, place = overlap[d, g], g
            if place > -1:
                expected[d], left[d] = place, truth.crowd[place]
                taken.add(place)
        assert matched.tolist() == expected.tolist()
        assert ignored.tolist() == left.tolist()
    assert iou in IOUS


def test_reasons():
    truth = make_truth([[0, 0, 10, 10], [30, 0, 40, 10], [60, 0, 90, 30]], [0, 1, 0], [False, False, True])
    found = make_found(
        [
            [0, 0, 10, 10],  # correct
            [0, 0, 10, 9],  # the same object
            [30, 0, 40, 10],  # a dog
            [0, 0, 10, 3],  # 3 of 10 rows
            [30, 0, 40, 3],  # of a dog
            [50, 0, 60, 10],
            [60, 0, 90, 3],  # in the crowd
            [30, 0, 41, 0.9],  # 9 of 101 pixels
        ],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
    )
    matched, _ = match(found, truth)
    assert reasons(found, truth, matched) == [
        None,
        Mistake.DUPLICATE,
        Mistake.WRONG_CLASS,
        Mistake.BADLY_PLACED,
        Mistake.NEITHER,
        Mistake.NOTHING,
        None,
        Mistake.NOTHING,
    ]
    assert str(Mistake.WRONG_CLASS) == "right place, wrong class"
    nothing = make_truth([], [])
    assert set(reasons(found, nothing, match(found, nothing)[0])) == {Mistake.NOTHING}
