"""Run a trained detector over a set of images, and score it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...data.decode import Reading
from ...data.detections import Detections
from ...data.limits import MAX_PIXELS
from ...data.pages import several_pages
from ...utils.errors import UserError
from ..config import TrainedFolder, read_folder
from ..folders import Fault, first_few
from ..leaks import seen_in_training, seen_note
from ..recipe import recipe_of
from .datasets import BoxSet, check_evaluation_boxes, open_evaluation_boxes, open_run
from .detector import Detector, open_detector
from .loaders import eval_boxes_loader
from .metrics import DetectionMeter, DetectionScores
from .model import detect
from .recipes import DetectionRecipe


@torch.inference_mode()
def find_objects(
    model: nn.Module, loader: Iterable[tuple[list[Tensor], Tensor]], boxes: BoxSet, device: torch.device, masks: bool
) -> tuple[DetectionMeter, dict[int, Detections]]:
    """Detect the objects in the images of an `eval_boxes_loader`, and compare them with the true ones.

    Args:
        model: A detection model; it is in evaluation mode during the call.
        loader: A loader of `boxes`, or of one process's part of it.

    Returns:
        The measurements, and the detections for each image, by position, without masks.
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
    source: str | TrainedFolder | Detector,
    data: str | None = None,
    images: str | None = None,
    workers: int | None = None,
    max_broken: float = 0.02,
    max_pixels: int | None = None,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
    device: str = "auto",
    tta: str = "auto",
) -> DetectionScores:
    """Score a trained detector.

    Args:
        source: A run's best/ folder, or an open detector.
        data, images: As in training; if a folder has splits, its test split, else its validation split. By default the
            photos that the run itself held out.
        max_broken: Maximum fraction of faulty objects and images, which are left out; above it, no scores are returned.
        max_pixels: Images of more pixels are not read; by default as in training.
        progress: Wraps an iterable, to show how far it has got.
        say: Takes a line about each fault, and notes.
        device: Name of the device, see `find_device`.
        tta: Test-time augmentation, a key of `VIEWS`; auto is the detector's own.

    Raises:
        UserError: Nothing to read, other classes, too many faults, or no data for a source that is not a run.
    """
    detector = open_detector(source) if isinstance(source, str | TrainedFolder) else source
    detector = detector.answering(tta)
    names = detector.class_names
    max_bare = max_broken if detector.config.masks else 0.0
    run = recipe_of(DetectionRecipe, read_folder(source).folder) if isinstance(source, str | TrainedFolder) else None
    if data is None:
        boxes, faults, notes = _own_test(run, names)
    else:
        boxes, faults, notes = open_evaluation_boxes(data, names, images, max_bare)
        notes += several_pages(len(boxes), boxes.name, boxes.open)
        notes += _seen(boxes, run) if run else []
    most = max_pixels or (run.max_pixels if run else MAX_PIXELS)
    boxes = replace(boxes, reading=Reading(detector.values, most))
    boxes, faults, more = check_evaluation_boxes(
        boxes, faults, max_broken, lambda items: progress(items, "checking the photos")
    )
    for line in (*(f"left out: {what} {why}" for what, why in faults), *notes, *more):
        say(line)
    where = detector.on_device(device)
    loader: Any = progress(eval_boxes_loader(boxes, detector.transform(), workers), "scoring")
    meter, _ = find_objects(detector.network, loader, boxes, where, detector.config.masks and boxes.has_masks)
    return meter.scores()


def _own_test(run: DetectionRecipe | None, names: tuple[str, ...]) -> tuple[BoxSet, list[Fault], list[str]]:
    """The images that a run held out, what was left out, and notes."""
    if run is None:
        raise UserError("there is no run whose test photos could be scored: give the photos with --data.")
    splits = open_run(run, any_leaks=True)
    if splits.class_names != names:
        raise UserError(f"{run.data} has changed since the run: it has the classes {first_few(splits.class_names, 8)}.")
    split = "test" if splits.test else "validation"
    note = f"scoring the {split} photos of the run, from {run.data}"
    return splits.test or splits.val, splits.faults, [note, *splits.notes]


def _seen(boxes: BoxSet, run: DetectionRecipe) -> list[str]:
    """A note if the run was trained on some of these images."""
    try:
        train = open_run(run, any_leaks=True, compare=False).train
    except UserError:  # the data has been moved or changed
        return []
    return seen_note(seen_in_training(boxes, train), len(boxes))
