"""dmformer eval: score a trained model."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tasks.classification.recipes import ClassificationRecipe
from ..tasks.config import task_of
from ..utils.errors import UserError
from .checks import (
    BOX_OPTIONS,
    MASK_OPTIONS,
    check_data,
    check_path,
    check_source,
    check_testing,
    check_writable,
    opened_if_exported,
    refuse_options,
)
from .parsing import parse
from .printing import give_scores

CLASS_OPTIONS = ("split", "data_root", "batch_size")
"""Options that only classifiers have."""


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model.

    A classifier: top-1, top-5, balanced accuracy, macro F1 and AUROC; a segmenter: mIoU, mean and pixel accuracy, and
    each class; a detector: AP of boxes and masks as COCO has them, and each class. With 95 % intervals.

    examples:
      dmformer eval runs/elpv-dmformer_n-1/best
      dmformer eval runs/photos-1/best --data photos/test --json scores.json
      dmformer eval runs/camvid-1/best --data camvid/ --scales 0.75 1 1.25 --flip
      dmformer eval runs/bccd-1/best --data bccd/
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    data: str | None = None
    """elpv (its held-out quarter, what a classifier is scored on by default), a folder or .tar of class folders, or a
    set that timm knows, e.g. torch/cifar10. For a segmenter or a detector a folder as in training.
    Of a folder or .tar with splits the test split counts, else the val split."""
    data_root: str | None = None
    """Where a named set lies or is cached."""
    split: str = "validation"
    """Split of a named set."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that read images; by default as many as there are cores, at most 8."""
    threads: int | None = None
    """Threads that compute on a CPU; by default as many as there are cores. 1 keeps its speed beside other work."""
    max_broken: float = 0.05
    """Share of unreadable images above which the figures are refused."""
    masks: str | None = None
    """Segmenters: folder of the id masks, where --data is a folder of images."""
    reduce_zero_label: bool | None = None
    """Segmenters: id 0 in the masks is unlabelled and class k is stored as k + 1 (ADE20K); by default as in the masks
    that were trained on."""
    ignore_index: tuple[int, ...] | None = None
    """Segmenters: ids in the masks that mean unlabelled; likewise."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the images' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the images mirrored."""
    images: str | None = None
    """Detectors: folder of the photos, where --data is a COCO JSON; by default the file's own."""
    json: str | None = None
    """Also write the scores to this file as JSON; - prints them instead of the table."""


def evaluate(arguments: list[str]) -> None:
    options = parse(EvalOptions, arguments, "eval")
    check_source(options.source, exported=True)
    if options.json not in (None, "-"):
        check_writable("--json", Path(options.json), overwrite=True)
    model = opened_if_exported(options.source, options.threads)
    task = model.task if model else task_of(options.source)
    if task == "segmentation":
        _eval_masks(options, model)
        return
    if task == "detection":
        _eval_boxes(options, model)
        return
    refuse_options(options, EvalOptions, MASK_OPTIONS, "segmenters; this is a classifier")
    refuse_options(options, EvalOptions, BOX_OPTIONS, "detectors; this is a classifier")
    check_data(options.data or "elpv")

    from ..tasks.classification.evaluate import evaluate
    from ..utils.display import track

    recipe = ClassificationRecipe(
        data_root=options.data_root, val_split=options.split, workers=options.workers, max_broken=options.max_broken
    )
    recipe.check()
    data = options.data or "elpv"
    batch_size = 1 if model is not None and model.card.preprocessing else options.batch_size
    scores = evaluate(_scored(options.source, model), data, batch_size, recipe, lambda loader: track(loader, "scoring"))
    give_scores(scores, data, options.json)


def _eval_masks(options: EvalOptions, model: Any) -> None:
    refuse_options(options, EvalOptions, CLASS_OPTIONS, "classifiers; this is a segmenter")
    refuse_options(options, EvalOptions, BOX_OPTIONS, "detectors; this is a segmenter")
    data = _checked_data(options.data, options.masks)
    check_testing(options.window, options.scales)

    from ..tasks.segmentation.evaluate import evaluate_masks
    from ..utils.display import track

    scores = evaluate_masks(
        _scored(options.source, model),
        data,
        options.masks,
        options.reduce_zero_label,
        options.ignore_index,
        options.workers,
        options.max_broken,
        options.window,
        options.scales,
        options.flip,
        track,
        lambda line: print(line, file=sys.stderr),
    )
    give_scores(scores, data, options.json)


def _eval_boxes(options: EvalOptions, model: Any) -> None:
    refuse_options(options, EvalOptions, CLASS_OPTIONS, "classifiers; this is a detector")
    refuse_options(options, EvalOptions, MASK_OPTIONS, "segmenters; this is a detector")
    data = _checked_data(options.data, options.images)

    from ..tasks.detection.evaluate import evaluate_boxes
    from ..utils.display import track

    scores = evaluate_boxes(
        _scored(options.source, model),
        data,
        options.images,
        options.workers,
        options.max_broken,
        track,
        lambda line: print(line, file=sys.stderr),
    )
    give_scores(scores, data, options.json)


def _checked_data(data: str | None, beside: str | None) -> str:
    """The folder or file that is scored on; UserError where it, or the folder that goes with it, is not there."""
    if data is None:
        raise UserError("name the photos to score on: --data FOLDER.")
    for place in (data, beside):
        if place is not None:
            check_path(place)
    return data


def _scored(source: str, model: Any) -> Any:
    """What is scored: an exported model, else what the source names."""
    if model is None:
        return source
    from ..export.check import as_scored

    return as_scored(model)
