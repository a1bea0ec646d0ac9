"""dmformer eval: score a trained model."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtimes.card import is_exported
from ..utils.errors import UserError
from .checks import check_source, check_writable, open_source, own_options
from .parsing import parse
from .printing import give_scores


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
    task, found = open_source(options.source, options.threads)
    own = own_options(options, task)
    data = options.data or task.default_data
    if data is None:
        raise UserError("name the photos to score on: --data FOLDER.")
    task.check_data(data)

    from ..utils.display import track

    scores = task.evaluate(
        _scored(found) if is_exported(options.source) else found,
        data,
        workers=options.workers,
        max_broken=options.max_broken,
        progress=track,
        say=lambda line: print(line, file=sys.stderr),
        **own,
    )
    give_scores(scores, task.summary(scores, data), options.json)


def _scored(exported: Any) -> Any:
    """An exported model as what is scored; imported here, for it needs PyTorch."""
    from ..export.kinds import as_scored

    return as_scored(exported)
