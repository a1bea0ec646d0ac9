"""Run a trained segmenter over a set of images, and score it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ...data.decode import Reading
from ...data.limits import MAX_PIXELS
from ...data.pages import several_pages
from ...utils.errors import UserError
from ..config import TrainedFolder, read_folder
from ..folders import first_few
from ..leaks import seen_in_training, seen_note
from ..recipe import recipe_of
from ..task import OWN_TEST
from .checks import check_evaluation_pairs
from .datasets import Pairs, open_evaluation_pairs, open_pairs
from .loaders import eval_pairs_loader
from .masks import IGNORE
from .metrics import SegmentationScores, class_counts, score_masks
from .model import likeliest, predict_probabilities
from .recipes import SegmentationRecipe
from .segmenter import Segmenter, open_segmenter


@dataclass(frozen=True)
class PixelCounts:
    """Pixel counts over the labelled pixels of a set of masks.

    confusion (K, K) by true and predicted class; images (N, 3, K), for each image and class the number of correct, true
    and predicted pixels; positions of the images in the set (N); loss, the cross entropy summed over the pixels.
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
    """Predict the masks of an `eval_pairs_loader`, one image at a time, and count correct and wrong pixels.

    Args:
        model: A segmentation model; it is in evaluation mode during the call.
        loader: Images (1, 3, H, W), masks (1, H', W') and positions.
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


def evaluate_masks(
    source: str | TrainedFolder | Segmenter,
    data: str = OWN_TEST,
    masks: str | None = None,
    reduce_zero_label: bool | None = None,
    ignore_index: Sequence[int] | None = None,
    colours: Sequence[str] | None = None,
    workers: int | None = None,
    max_broken: float = 0.0,
    max_pixels: int | None = None,
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
    say: Callable[[str], None] = lambda remark: None,
    device: str = "auto",
    run_of: str | None = None,
) -> SegmentationScores:
    """Score a trained segmenter.

    Args:
        source: A run's best/ folder, or an open segmenter.
        data, masks: As in training; if a folder has splits, its test split, else its validation split. By default the
            images that the run itself held out.
        reduce_zero_label, ignore_index, colours: How its masks store ids; by default as the training masks.
        max_broken: Maximum fraction of faulty pairs, which are left out; above it, no scores are returned.
        max_pixels: Images of more pixels are not read; by default as in training.
        window: Side of the sliding window; by default the segmenter's own.
        scales, flip: For multi-scale testing; see `predict_probabilities`.
        progress: Wraps an iterable, to show how far it has got.
        say: Takes a line about each pair that is left out.
        device: Name of the device, see `find_device`.
        run_of: The source whose run held the images out, for a segmenter that is open.

    Raises:
        UserError: Nothing to read, masks that do not match the classes, or no data for a source that is not a run.
    """
    segmenter = open_segmenter(source) if isinstance(source, str | TrainedFolder) else source
    config = segmenter.config
    names = list(config.class_names)
    origin = run_of or source
    is_folder = isinstance(origin, str | TrainedFolder)
    run = recipe_of(SegmentationRecipe, read_folder(origin).folder) if is_folder else None
    if data == OWN_TEST:
        opened = _own_test(run, config.class_names)
    else:
        given = SegmentationRecipe(
            data=data,
            masks=masks,
            classes=config.class_names,
            reduce_zero_label=config.reduce_zero_label if reduce_zero_label is None else reduce_zero_label,
            ignore_index=tuple(config.ignore_index if ignore_index is None else ignore_index),
            colours=tuple(colours or ()),
        )
        opened = open_evaluation_pairs(given, config.colours)
        notes = [*opened.notes, *several_pages(len(opened), opened.name, opened.open)]
        opened = replace(opened, notes=(*notes, *(_seen(opened, run) if run else ())))
    most = max_pixels or (run.max_pixels if run else MAX_PIXELS)
    opened = replace(opened, reading=Reading(segmenter.values, most))
    pairs, faults, hints = check_evaluation_pairs(opened, max_broken, lambda all_: progress(all_, "checking the masks"))
    for line in (*(f"left out: {name} {reason}" for name, reason in faults), *hints):
        say(line)
    loader: Any = eval_pairs_loader(pairs, segmenter.transform(), workers)
    where = segmenter.on_device(device)
    window = window or config.window
    loader = progress(loader, "scoring")
    counts = count_pixels(segmenter.model, loader, len(names), where, window, scales, flip)
    return score_masks(counts.confusion, counts.images, names)


def _own_test(run: SegmentationRecipe | None, names: tuple[str, ...]) -> Pairs:
    """The images that a run held out."""
    if run is None:
        raise UserError("there is no run whose test images could be scored: give the images with --data.")
    splits = open_pairs(replace(run, allow_leaks=True))
    if splits.labels.class_names != names:
        told = first_few(splits.labels.class_names, 8)
        raise UserError(f"{run.data} has changed since the run: it has the classes {told}.")
    split = "test" if splits.test else "validation"
    note = f"scoring the {split} images of the run, from {run.data}"
    return replace(splits.test or splits.val, notes=(note, *splits.notes))


def _seen(pairs: Pairs, run: SegmentationRecipe) -> list[str]:
    """A note if the run was trained on some of the pairs."""
    try:
        train = open_pairs(replace(run, allow_leaks=True), compare=False).train
    except UserError:  # the data has been moved or changed
        return []
    return seen_note(seen_in_training(pairs, train), len(pairs))
