"""dmformer eval: score a trained model."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..runtimes.card import is_exported
from ..utils.errors import UserError
from ..utils.views import ViewsOrAuto
from .checks import check_runs_on, check_source, check_writable, open_source, own_options
from .parsing import parse
from .printing import give_scores


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model.

    A classifier gets top-1, top-5, balanced accuracy, macro F1 and AUROC; a multi-label classifier mAP, macro and micro
    F1, and scores per class; a segmenter mIoU, mean and pixel accuracy, and scores per class; a detector COCO's AP of
    boxes and masks, and scores per class. All with 95 % intervals.

    examples:
      dmformer eval runs/elpv-dmformer_n-1/best
      dmformer eval runs/photos-1/best --data photos/test --json scores.json
      dmformer eval runs/photos-1/best --tta flip
      dmformer eval runs/camvid-1/best --data camvid/ --scales 0.75 1 1.25 --flip
      dmformer eval runs/bccd-1/best --data bccd/
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    data: str | None = None
    """elpv (its held-out quarter), a folder or archive of class folders, a table of paths and labels,
    or a data set that timm knows, e.g. torch/cifar10. For a segmenter or a detector, a folder as in training.
    If the data has splits, the test split is scored, or else the val split.
    By default the test photos that the run held out."""
    data_root: str | None = None
    """Where a named data set is stored or cached."""
    split: str = "validation"
    """Split of a named data set."""
    batch_size: int = 64
    """Images per batch."""
    workers: int | None = None
    """Processes that read images; by default one per core, at most 8."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto: a GPU if there is one."""
    threads: int | None = None
    """Threads that compute on a CPU; by default one per core. With 1, other programs slow it down less."""
    max_broken: float = 0.05
    """Maximum fraction of unreadable images; above it, no scores are reported."""
    max_pixels: int | None = None
    """Maximum number of pixels of a photo; larger ones count as unreadable. By default as in training."""
    tta: ViewsOrAuto = "auto"
    """Classifiers and detectors: test-time augmentation. flip averages the probabilities of each photo and its mirror
    image, or merges the objects found in both; flips uses 4 views, with both upside down. It takes 2 or 4 times as
    long. auto: as in the run's own scores."""
    masks: str | None = None
    """Segmenters: folder of the id masks, if --data is a folder of images."""
    reduce_zero_label: bool | None = None
    """Segmenters: id 0 in the masks means unlabelled and class k is stored as k + 1 (ADE20K);
    by default as in the training masks."""
    ignore_index: tuple[int, ...] | None = None
    """Segmenters: ids in the masks that mean unlabelled; by default as in the training masks."""
    colours: tuple[str, ...] | None = None
    """Segmenters: colours of the classes in the masks as RRGGBB, or one file with them; by default as in training.
    ids takes the indices of palette masks as ids."""
    window: int | None = None
    """Segmenters: side of the sliding window in pixels; by default as in training."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: scale factors of the image size; the predictions are averaged."""
    flip: bool = False
    """Segmenters: also average with the mirrored images."""
    images: str | None = None
    """Detectors: folder of the photos, if --data is a COCO JSON file; by default they are found beside it."""
    json: str | None = None
    """Also write the scores to this file as JSON; - prints them instead of the table."""


def evaluate(arguments: list[str]) -> None:
    options = parse(EvalOptions, arguments, "eval")
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UserError(f"--max-pixels is {options.max_pixels}: it must be 1 or more.")
    check_source(options.source, exported=True)
    if options.json not in (None, "-"):
        check_writable("--json", Path(options.json), overwrite=True)
    check_runs_on(options.device, options.source)
    task, found = open_source(options.source, options.threads)
    own = own_options(options, task)
    data = options.data or task.default_data
    if data is None:
        raise UserError("name the photos to score on: --data FOLDER.")
    task.check_data(data)

    from ..utils.display import track

    if is_exported(options.source):
        from ..export.kinds import as_scored

        found = as_scored(found.answering(own.pop("tta", "auto")))
    scores = task.evaluate(
        found,
        data,
        workers=options.workers,
        max_broken=options.max_broken,
        max_pixels=options.max_pixels,
        progress=track,
        say=lambda line: print(line, file=sys.stderr),
        device="cpu" if is_exported(options.source) else options.device,
        **own,
    )
    give_scores(scores, task.summary(scores, data), options.json)
