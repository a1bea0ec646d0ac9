"""Scores of detections: COCO's average precision with its confidence interval, and what kinds of mistakes there are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ...data.detections import Detections
from ...utils.extras import needs
from ...utils.intervals import Score
from ..measures import Measure

if TYPE_CHECKING:
    from torchmetrics.detection import MeanAveragePrecision

    from .datasets import Annotations

IOUS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()
"""COCO's; torchmetrics' own are rounded to float32, by which a recall of exactly 0.6 is missed."""
IOU50, IOU75 = 0, 5
"""Their places in `IOUS`."""
MOST = [1, 10, 100]
"""Detections of a class in an image that count, for each of COCO's three recalls; 100 for the precisions."""
APART = 0.1
"""Overlap below which a detection has nothing to do with an object (TIDE, section 2.2)."""

THRESHOLDS = np.arange(1, 100) / 100
"""Minimum scores to choose from."""

_CHUNK = 1 << 22
"""Most numbers of one part of the bootstrap: 32 MB."""


@dataclass(frozen=True)
class AP:
    """COCO's figures, as shares from 0 to 1; None where there is no object that they are about."""

    ap: float | None
    """Average precision: mean of the classes and of IoU 0.5, 0.55, ..., 0.95."""
    ap50: float | None
    """At IoU 0.5 alone."""
    ap75: float | None
    small: float | None
    """AP of objects whose area is at most 32 x 32 pixels."""
    medium: float | None
    """Between them."""
    large: float | None
    """At least 96 x 96 pixels."""
    ar1: float | None
    """Average recall with the surest detection of a class in an image, mean as of `ap`."""
    ar10: float | None
    ar100: float | None


@dataclass(frozen=True)
class ClassAP:
    """Scores of the boxes of one class, and of its masks; None where there is no object of it."""

    name: str
    ap: float | None
    ap50: float | None
    ar100: float | None
    objects: int
    """Crowds are not counted."""
    mask_ap: float | None
    """None too where masks are not scored."""


@dataclass(frozen=True)
class Curves:
    """Precision of the boxes at the recalls 0, 0.01, ..., 1: the highest at this recall or any above it."""

    iou50: list[float]
    """Mean of the classes; empty where there is no object at all."""
    iou75: list[float]
    classes: list[list[float] | None]
    """Of each class at IoU 0.5; None where there is no object of it."""


@dataclass(frozen=True)
class DetectionScores:
    """What `DetectionMeter.scores` returns; shares from 0 to 1."""

    images: int
    objects: int
    """Crowds are not counted."""
    boxes: AP
    masks: AP | None
    ap50_interval: Score | None
    """AP50 of the boxes; None where there is no object at all."""
    classes: list[ClassAP]
    curves: Curves

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries, for JSON."""
        return asdict(self)


def measures(scores: DetectionScores) -> list[Measure]:
    """The measures of the report; the command prints those of boxes and masks in a table of its own."""
    boxes, masks = scores.boxes, scores.masks
    return [
        Measure("", "AP", boxes.ap, "average precision, mean of IoU 0.5 to 0.95 and of classes"),
        Measure("", "AP50", scores.ap50_interval, "where an overlap (IoU) of 0.5 is enough"),
        Measure("", "AP75", boxes.ap75, "where an overlap of 0.75 is asked for"),
        Measure("", "AR100", boxes.ar100, "objects found among 100 detections, mean as of AP"),
        Measure("", "Mask AP", masks and masks.ap, "overlap of the masks and not of the boxes"),
    ]


class DetectionMeter:
    """Scores what is found in images, each of which is told once: torchmetrics' mean average precision.

    Crowds in the truth are regions in which detections count neither as right nor as wrong, and the truth's areas, not
    its boxes, tell small objects from large ones, as COCO has it.

    Raises:
        UserError: Without the extra "det".
    """

    def __init__(self, class_names: Sequence[str], masks: bool) -> None:
        self.class_names, self.masks = class_names, masks
        self._metric = _metric(masks)
        self._images: dict[int, dict[str, Any]] = {}
        """By position the image's part of the metric's lists, in which masks are run lengths."""

    def add(self, position: int, found: Detections, truth: "Annotations", size: tuple[int, int]) -> None:
        """Add the image of this position in its set; a position that is there already changes nothing.

        Args:
            found: With masks where masks are scored.

        Raises:
            ValueError: Without the masks that are to be scored.
        """
        if position in self._images:
            return
        prediction = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        target = {"boxes": truth.boxes, "labels": truth.labels, "area": truth.areas, "iscrowd": truth.crowd.astype(int)}
        if self.masks:
            if found.masks is None and len(found):
                raise ValueError("The detections have no masks to score.")
            prediction["masks"] = np.zeros((0, *size), bool) if found.masks is None else found.masks
            target["masks"] = truth.masks(*size)
        self._metric.update([_tensors(prediction)], [_tensors(target)])
        self._images[position] = {
            name: lst[0] for name in self._metric._defaults if (lst := getattr(self._metric, name))
        }
        self._metric.reset()

    def gathered(self) -> Self:
        """The images of all processes; every process gets them all, and all must ask."""
        together = type(self)(self.class_names, self.masks)
        for images in gather_object([self._images]):  # torchmetrics' own way waits forever for unequal numbers
            together._images.update(images)
        return together

    def scores(self, resamples: int = 200) -> DetectionScores:
        """Score all images that were added.

        Args:
            resamples: Of the bootstrap over images (seeded); 0 for none, when the interval is as wide as can be.

        Raises:
            ValueError: If there is no image.
        """
        if not self._images:
            raise ValueError("There is no image to score.")
        images = [self._images[position] for position in sorted(self._images)]
        counts = np.stack([_objects(image, len(self.class_names)) for image in images])
        if not counts.any():
            return self._nothing(len(images))
        metric = _metric(self.masks)
        metric.update([], [])  # it warns of a metric without any
        for image in images:
            for name, value in image.items():
                getattr(metric, name).append(value)
        result = metric.compute()
        prefix = "bbox_" if self.masks else ""
        boxes = _ap(result, prefix)
        assert boxes.ap50 is not None
        present = {label: k for k, label in enumerate(result["classes"].reshape(-1).tolist())}
        # (IoU, recall, class, area, most) and (IoU, class, area, most) -> of any area and the most detections
        precision, recall = result[f"{prefix}precision"][..., 0, -1], result[f"{prefix}recall"][..., 0, -1]
        of_masks = result["segm_precision"][..., 0, -1] if self.masks else None
        classes, curves = [], []
        for label, name in enumerate(self.class_names):
            objects = int(counts[:, label].sum())
            if objects == 0:
                classes.append(ClassAP(name, None, None, None, 0, None))
                curves.append(None)
                continue
            k = present[label]
            classes.append(
                ClassAP(
                    name,
                    ap=float(precision[:, :, k].mean()),
                    ap50=float(precision[IOU50, :, k].mean()),
                    ar100=float(recall[:, k].mean()),
                    objects=objects,
                    mask_ap=None if of_masks is None else float(of_masks[:, :, k].mean()),
                )
            )
            curves.append(precision[IOU50, :, k].tolist())
        there = [present[label] for label in np.flatnonzero(counts.any(0)).tolist()]
        mean = precision[:, :, there].mean(2)
        return DetectionScores(
            images=len(images),
            objects=int(counts.sum()),
            boxes=boxes,
            masks=_ap(result, "segm_") if self.masks else None,
            ap50_interval=_interval(images, counts, resamples) if resamples else Score(boxes.ap50, 0.0, 1.0),
            classes=classes,
            curves=Curves(mean[IOU50].tolist(), mean[IOU75].tolist(), curves),
        )

    def best_threshold(self) -> float:
        """The minimum score with the highest F1 of all classes together at IoU 0.5, from 0.01 to 0.99.

        Of several such scores it is the middle one: 0.5 if nothing is right.
        """
        scores, right, objects = [], [], 0
        for image in self._images.values():
            matched, ignored = _matched_in(image)
            scores.append(image["detection_scores"].numpy()[~ignored])
            right.append((matched >= 0)[~ignored])
            objects += int((image["groundtruth_crowds"] == 0).sum())
        all_, hits = (np.sort(part) for part in (np.concatenate(scores), np.concatenate(scores)[np.concatenate(right)]))
        found, found_right = (len(part) - np.searchsorted(part, THRESHOLDS.astype(part.dtype)) for part in (all_, hits))
        f1 = 2 * found_right / np.maximum(found + objects, 1)
        best = np.flatnonzero(f1 == f1.max())
        return float(THRESHOLDS[best[len(best) // 2]])

    def ap(self, resamples: int = 200) -> Score:
        """AP of the boxes, with its 95 % interval; 0 if there is no object."""
        images = [self._images[position] for position in sorted(self._images)]
        counts = np.stack([_objects(image, len(self.class_names)) for image in images])
        return _interval(images, counts, resamples, IOUS) if counts.any() else Score(0.0, 0.0, 1.0)

    def _nothing(self, images: int) -> DetectionScores:
        """Of images without objects."""
        none = AP(None, None, None, None, None, None, None, None, None)
        return DetectionScores(
            images=images,
            objects=0,
            boxes=none,
            masks=none if self.masks else None,
            ap50_interval=None,
            classes=[ClassAP(name, None, None, None, 0, None) for name in self.class_names],
            curves=Curves([], [], [None] * len(self.class_names)),
        )


def _metric(masks: bool) -> "MeanAveragePrecision":
    with needs("det", "Scoring detections"):
        import faster_coco_eval as faster_coco_eval
        from torchmetrics.detection import MeanAveragePrecision
    metric = MeanAveragePrecision(
        iou_type=("bbox", "segm") if masks else "bbox",
        iou_thresholds=IOUS,
        rec_thresholds=RECALLS,
        max_detection_thresholds=MOST,
        extended_summary=True,  # has the precisions of every class too, which its class_metrics works out anew
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    return metric


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _ap(result: dict[str, Tensor], prefix: str) -> AP:
    """torchmetrics' figures, among which -1 stands for no object."""
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100"]
    values = [float(result[prefix + name]) for name in names]
    return AP(*(None if value < 0 else value for value in values))


def _objects(image: dict[str, Any], K: int) -> np.ndarray:
    """(K): the image's objects of each class, without crowds."""
    return np.bincount(image["groundtruth_labels"][image["groundtruth_crowds"] == 0].numpy(), minlength=K)


def match(found: Detections, truth: "Annotations", iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which object each detection is, by COCO's rule.

    Class by class, the surest detection first, each takes the object that it overlaps most, if by `iou` or more, of
    those that none has taken. Failing that, it falls to a crowd which has that share of it within, and is ignored.

    Returns:
        (n), int64: the place of the object in the truth, -1 where there is none.
        (n), bool: whether the detection is ignored; its object is the crowd then.
    """
    overlap = overlaps(found.boxes, truth.boxes, truth.crowd)
    return _matched(overlap, found.scores, found.labels, truth.labels, truth.crowd, iou)


def _matched(
    overlap: np.ndarray, scores: np.ndarray, labels: np.ndarray, truths: np.ndarray, crowd: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """`match` for overlaps (n, m), classes (n) of detections and (m) of the truth."""
    close = np.where(labels[:, None] == truths, overlap, -1.0)
    near = close >= iou
    matched = np.full(len(scores), -1)
    taken = np.zeros(len(truths), bool)
    for d in np.argsort(-scores, kind="stable"):
        if not near[d].any():
            continue
        allowed = near[d] & ~taken & ~crowd
        if not allowed.any():
            allowed = near[d] & crowd
        if allowed.any():
            best = np.where(allowed, close[d], -1.0)
            matched[d] = len(best) - 1 - best[::-1].argmax()  # of equal ones COCO has the last
            taken[matched[d]] = True
    return matched, (matched >= 0) & np.append(crowd, False)[matched]


def overlaps(boxes: np.ndarray, truths: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) and (m, 4) -> (n, m), float64: intersection over union; with a crowd, over the detection's area."""
    one, other = boxes[:, None].astype(np.float64), truths[None].astype(np.float64)
    upper, lower = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    common = np.clip(lower - upper, 0, None).prod(-1)
    own, others = (box[..., 2:] - box[..., :2] for box in (one, other))
    area = own.prod(-1)
    whole = np.where(crowd, area, area + others.prod(-1) - common)
    return common / np.maximum(whole, np.finfo(float).tiny)


class Mistake(StrEnum):
    """Why a detection is wrong (TIDE, section 2.2), in words."""

    DUPLICATE = "object found already"
    WRONG_CLASS = "right place, wrong class"
    BADLY_PLACED = "badly placed"
    NEITHER = "badly placed, wrong class"
    NOTHING = "nothing there"


def reasons(found: Detections, truth: "Annotations", matched: np.ndarray) -> list[Mistake | None]:
    """Why each detection is wrong; None for those that `match` gave an object or a crowd.

    Where several apply, the first in the order of `Mistake` (a reconstruction: TIDE has badly placed first).

    Args:
        matched: (n), the first answer of `match` with its default IoU.
    """
    overlap = np.where(truth.crowd, 0.0, overlaps(found.boxes, truth.boxes, truth.crowd))
    same = found.labels[:, None] == truth.labels
    own, others = (np.where(which, overlap, 0.0).max(1, initial=0.0) for which in (same, ~same))
    told: list[Mistake | None] = []
    for place, o, other in zip(matched.tolist(), own.tolist(), others.tolist(), strict=True):
        if place >= 0:
            told.append(None)
        elif o >= IOUS[IOU50]:
            told.append(Mistake.DUPLICATE)
        elif other >= IOUS[IOU50]:
            told.append(Mistake.WRONG_CLASS)
        elif o >= APART:
            told.append(Mistake.BADLY_PLACED)
        elif other >= APART:
            told.append(Mistake.NEITHER)
        else:
            told.append(Mistake.NOTHING)
    return told


def _interval(
    images: list[dict[str, Any]], counts: np.ndarray, resamples: int, ious: Sequence[float] = (IOUS[IOU50],)
) -> Score:
    """AP of the boxes, mean over these IoUs, with its 95 % interval over images drawn anew with replacement.

    An image that is drawn twice makes precision rise in clumps, and AP takes the highest: most resamples have more than
    the set. The interval is that of their values, moved so that their median is the set's (a reconstruction).
    """
    N, K = counts.shape
    parts = [_by_class(images, K, iou) for iou in ious]
    most = max(len(image) for classes in parts for image, _ in classes)
    generator = np.random.default_rng(0)

    def ap(times: np.ndarray) -> np.ndarray:
        return np.mean([_aps(times, classes, counts) for classes in parts], axis=0)

    (value,) = ap(np.ones((1, N)))
    values = []
    for chunk in np.array_split(np.arange(resamples), -(-resamples * max(N, most) // _CHUNK)):
        times = generator.multinomial(N, np.full(N, 1 / N), len(chunk))
        values.append(ap(times.astype(float)))
    # A resample of images without objects has no score.
    low, median, high = np.nanquantile(np.concatenate(values), [0.025, 0.5, 0.975])
    return Score(float(value), float(max(value + low - median, 0.0)), float(min(value + high - median, 1.0)))


def _by_class(images: list[dict[str, Any]], K: int, iou: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class its detections that count, the surest first: (n) images they are in, (n) whether they are right."""
    parts = []
    for i, image in enumerate(images):
        scores, labels = image["detection_scores"].numpy(), image["detection_labels"].numpy()
        matched, ignored = _matched_in(image, iou)
        order = np.lexsort((-scores, labels))
        first = np.searchsorted(labels[order], labels[order])
        order = order[np.arange(len(order)) - first < MOST[-1]]
        kept = order[~ignored[order]]
        parts.append((np.full(len(kept), i), labels[kept], scores[kept], matched[kept] >= 0))
    image, label, score, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-score, kind="stable")
    image, label, right = image[order], label[order], right[order]
    return [(image[label == k], right[label == k]) for k in range(K)]


def _matched_in(image: dict[str, Any], iou: float = IOUS[IOU50]) -> tuple[np.ndarray, np.ndarray]:
    """`match` for an image's part of the metric's lists."""
    scores, labels = image["detection_scores"].numpy(), image["detection_labels"].numpy()
    crowd, truths = image["groundtruth_crowds"].numpy().astype(bool), image["groundtruth_labels"].numpy()
    overlap = overlaps(_corners(image["detection_box"]), _corners(image["groundtruth_box"]), crowd)
    return _matched(overlap, scores, labels, truths, crowd, iou)


def _corners(boxes: Tensor) -> np.ndarray:
    """Boxes as torchmetrics keeps them (left, upper, width, height) -> left, upper, right, lower edge."""
    array = boxes.numpy().astype(np.float64)
    return np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)


def _aps(times: np.ndarray, classes: list[tuple[np.ndarray, np.ndarray]], counts: np.ndarray) -> np.ndarray:
    """AP (R) at one IoU if each image is in the set as often as `times` (R, N) says; nan without any object.

    An image that is there w times is like one whose detections weigh w: between two equal right detections the
    precision only rises, so that the highest from there on is that after the last.
    """
    total, present = np.zeros(len(times)), np.zeros(len(times))
    for (image, right), count in zip(classes, counts.T, strict=True):
        objects = times @ count
        weight = times[:, image]
        hits, all_ = (weight * right).cumsum(1), weight.cumsum(1)
        precision = hits / (all_ + np.spacing(1))
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(highest, ((0, 0), (0, 1)))  # recalls that are never reached have precision 0
        for r in np.flatnonzero(objects):
            total[r] += padded[r, np.searchsorted(hits[r] / objects[r], RECALLS)].mean()
            present[r] += 1
    return np.divide(total, present, out=np.full(len(times), np.nan), where=present > 0)
