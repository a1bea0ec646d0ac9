"""Run a trained model over a set of images, and score it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix

from .classifier import Classifier, open_classifier
from .data.box_transforms import eval_boxes_loader
from .data.boxes import BoxSet, check_evaluation_boxes, open_evaluation_boxes
from .data.loaders import Batch, ImageSet, eval_loader
from .data.mask_transforms import eval_pairs_loader
from .data.masks import IGNORE
from .data.pairs import check_evaluation_pairs, open_evaluation_pairs
from .data.readers import Split, open_evaluation
from .detections import Detections
from .detector import Detector, open_detector
from .errors import UserError
from .recipes import ClassificationRecipe
from .segmenter import Segmenter, open_segmenter
from .tasks.classification import Scores, score
from .tasks.detection import detect
from .tasks.detection_scores import DetectionMeter, DetectionScores
from .tasks.segmentation import likeliest, predict_probabilities
from .tasks.segmentation_scores import SegmentationScores, class_counts, score_masks


@dataclass(frozen=True)
class Predictions:
    """What a model says of a split: rows in the split's order, broken images left out.

    probabilities (N, K), targets (N) and positions in the split (N); positions of the images that could not be read.
    """

    probabilities: Tensor
    targets: Tensor
    positions: Tensor
    broken: list[int]


def evaluate(
    source: str | Classifier,
    data: str = "elpv",
    batch_size: int = 64,
    recipe: ClassificationRecipe | None = None,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
) -> Scores:
    """Score a trained classifier.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, or a classifier that is open.
        data: elpv (its held-out quarter), a folder or tar of class folders, or a set that timm knows.
        batch_size: Images at a time.
        recipe: Of its fields data_root, val_split, download, workers and max_broken count here.
        progress: Wraps the loader, to show how far it is.

    Raises:
        UserError: Nothing to read, other classes, or too many broken images.
    """
    recipe = replace(recipe or ClassificationRecipe(), data=data)
    classifier = open_classifier(source) if isinstance(source, str) else source
    split = open_evaluation(recipe, classifier.class_names)
    loader = eval_loader(split, classifier.transform(), classifier.at_least, batch_size, recipe.workers)
    device = classifier.on_best_device()
    predictions = predict_all(classifier.model, loader, device, progress=progress)
    check_broken(split, predictions.broken, recipe.max_broken)
    return score(predictions.probabilities, predictions.targets, classifier.class_names)


@torch.inference_mode()
def predict_all(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
) -> Predictions:
    """Run a model, in evaluation mode, over a loader of `eval_loader`; `gather` joins tensors of several processes."""
    training = model.training
    model.eval()
    parts = []
    for images, targets, positions in progress(loader):
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        probabilities = model(images).float().softmax(1)
        parts.append([gather(t.to(device)).cpu() for t in (probabilities, targets, positions)])
    model.train(training)
    if not parts:
        raise UserError("there is no image to evaluate on.")
    probabilities, targets, positions = (torch.cat(column) for column in zip(*parts, strict=True))
    broken = sorted({int(~p) for p in positions if p < 0})
    if isinstance(loader.dataset, ImageSet):  # an image that several processes read counts once
        keep = once_each(positions)
        keep = keep[positions[keep] >= 0]
        probabilities, targets, positions = probabilities[keep], targets[keep], positions[keep]
    return Predictions(probabilities, targets, positions, broken)


def once_each(positions: Tensor) -> Tensor:
    """Where each of the positions (N) stands first, in their order: several processes may have read an image."""
    order = positions.argsort(stable=True)
    ordered = positions[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def check_broken(split: Split, broken: list[int], max_broken: float) -> None:
    """Raise UserError with the list where more than a share of a split's images cannot be read."""
    if len(broken) > max_broken * len(split):
        listed = ", ".join(split.filename(i) for i in broken[:20]) + (", …" if len(broken) > 20 else "")
        raise UserError(
            f"{len(broken)} of {len(split)} images cannot be read, more than --max-broken {max_broken:g}: {listed}"
        )


@dataclass(frozen=True)
class PixelCounts:
    """Labelled pixels of a set of masks, counted.

    confusion (K, K) by truth and prediction; images (N, 3, K), of each image and class the pixels that are right, true
    and predicted; positions of the images in the set (N); loss, the cross entropy's sum over the pixels.
    """

    confusion: Tensor
    images: Tensor
    positions: list[int]
    loss: float


def count_pixels(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int,
    device: torch.device,
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> PixelCounts:
    """Predict the masks of a loader of `eval_pairs_loader`, one image at a time, and count right and wrong pixels.

    Args:
        model: A segmentation model; it is put in evaluation mode meanwhile.
        loader: Images (1, 3, H, W), masks (1, H', W') and positions.
        num_classes: K.
        device: Of the model.
        window, scales, flip: See `predict_probabilities`.
    """
    training = model.training
    model.eval()
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    images, positions, loss = [], [], 0.0
    for image, mask, position in loader:
        image = image.to(device, memory_format=torch.channels_last, non_blocking=True)
        found = predict_probabilities(model, image, window, scales=scales, flip=flip)
        mask = mask.to(device)
        labelled = mask != IGNORE
        ids, likelihood = likeliest(found, mask.shape[-2:], mask.where(labelled, 0))
        assert likelihood is not None
        arguments = {"num_classes": num_classes, "ignore_index": IGNORE, "validate_args": False}
        confusion = multiclass_confusion_matrix(ids, mask, **arguments).cpu()  # type: ignore[arg-type]
        loss -= float(likelihood.clamp(min=1e-12).log()[labelled].sum())
        total += confusion
        images.append(class_counts(confusion))
        positions.append(int(position))
    model.train(training)
    stacked = torch.stack(images) if images else torch.zeros(0, 3, num_classes, dtype=torch.int64)
    return PixelCounts(total, stacked, positions, loss)


@torch.inference_mode()
def find_objects(
    model: nn.Module,
    loader: Iterable[tuple[list[Tensor], Tensor]],
    boxes: BoxSet,
    device: torch.device,
    masks: bool,
) -> tuple[DetectionMeter, dict[int, Detections]]:
    """Look for the objects on the photos of a loader of `eval_boxes_loader`, and hold them against the true ones.

    Args:
        model: A detection model; it is put in evaluation mode meanwhile.
        loader: Of `boxes`, or of a process's share of it.
        boxes: What is on the photos.
        device: Of the model.
        masks: Whether masks are measured too.

    Returns:
        What was measured, and what was found on each photo, by its position, without masks.
    """
    training = model.training
    model.eval()
    meter = DetectionMeter(boxes.class_names, masks)
    found: dict[int, Detections] = {}
    for images, positions in loader:
        sizes = [(int(height), int(width)) for height, width in boxes.sizes[positions.numpy()]]
        batch = detect(model, [image.to(device, non_blocking=True) for image in images], sizes)
        for position, size, each in zip(positions.tolist(), sizes, batch, strict=True):
            meter.add(position, each, boxes.annotations[position], size)
            found[position] = replace(each, masks=None)
    model.train(training)
    return meter, found


def evaluate_boxes(
    source: str | Detector,
    data: str,
    images: str | None = None,
    workers: int | None = None,
    max_broken: float = 0.02,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
) -> DetectionScores:
    """Score a trained detector.

    Args:
        source: A run's best/ folder, or a detector that is open.
        data, images: As in training; of a folder with splits the test split counts, else the validation split.
        workers: Processes that read images.
        max_broken: Share of faulty objects and photos, which are left out, above which the figures are refused.
        progress: Wraps what is iterated over, to show how far it is with what.
        say: Takes a line on each fault, and notes.

    Raises:
        UserError: Nothing to read, other classes, too many faults.
    """
    detector = open_detector(source) if isinstance(source, str) else source
    names = detector.class_names
    boxes, faults, notes = open_evaluation_boxes(data, names, images)
    boxes, faults, more = check_evaluation_boxes(
        boxes, faults, max_broken, lambda items: progress(items, "checking the photos")
    )
    for line in (*(f"left out: {what} {why}" for what, why in faults), *notes, *more):
        say(line)
    device = detector.on_best_device()
    loader: Any = progress(eval_boxes_loader(boxes, detector.transform(), workers), "scoring")
    meter, _ = find_objects(detector.model, loader, boxes, device, detector.config.masks and boxes.has_masks)
    return meter.scores()


def evaluate_masks(
    source: str | Segmenter,
    data: str,
    masks: str | None = None,
    reduce_zero_label: bool | None = None,
    ignore_index: Sequence[int] | None = None,
    workers: int | None = None,
    max_broken: float = 0.0,
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
) -> SegmentationScores:
    """Score a trained segmenter.

    Args:
        source: A run's best/ folder, or a segmenter that is open.
        data, masks: As in training; of a folder with splits the test split counts, else the validation split.
        reduce_zero_label, ignore_index: How its masks store ids; by default as those that were trained on.
        workers: Processes that read images.
        max_broken: Share of faulty pairs, which are left out, above which the figures are refused.
        window: Side of the sliding window; by default the segmenter's own.
        scales, flip: Of multi-scale testing; see `predict_probabilities`.
        progress: Wraps what is iterated over, to show how far it is with what.
        say: Takes a line on each pair that is left out.

    Raises:
        UserError: Nothing to read, masks that do not fit the classes.
    """
    segmenter = open_segmenter(source) if isinstance(source, str) else source
    config = segmenter.config
    names = list(config.class_names)
    reduced = config.reduce_zero_label if reduce_zero_label is None else reduce_zero_label
    ignored = config.ignore_index if ignore_index is None else ignore_index
    opened = open_evaluation_pairs(data, masks, names, reduced, ignored)
    pairs, faults, hints = check_evaluation_pairs(opened, max_broken, lambda all_: progress(all_, "checking the masks"))
    for line in (*(f"left out: {name} {reason}" for name, reason in faults), *hints):
        say(line)
    loader: Any = eval_pairs_loader(pairs, segmenter.transform(), workers)
    device = segmenter.on_best_device()
    window = window or config.window
    loader = progress(loader, "scoring")
    counts = count_pixels(segmenter.model, loader, len(names), device, window, scales, flip)
    return score_masks(counts.confusion, counts.images, names)
