"""dmformer predict: classify photos, segment them, or find objects in them."""

import json
from dataclasses import dataclass
from typing import Literal

from ..data.limits import MAX_PIXELS
from ..tasks.config import TrainedFolder
from ..utils.errors import UserError
from ..utils.files import check_path
from .checks import check_runs_on, check_source, open_source, own_options
from .parsing import parse
from .printing import print_rows, remark


@dataclass(frozen=True)
class PredictOptions:
    """Classify photos with a trained classifier, segment them with a segmenter, or find objects with a detector.

    A segmenter writes STEM.overlay.png and STEM.mask.png (class ids, from 0) for each photo, and legend.png. A detector
    writes STEM.detections.png, with boxes, masks and names, and detections.json in COCO's format. For video, pass a
    folder of frames.

    The first photo waits for torch and timm to be imported: seconds, about 10 on a slow machine. A file written by
    `dmformer export` needs neither and gives a result in about a second.

    examples:
      dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
      dmformer predict runs/elpv-dmformer_n-1/best folder/ --format csv > classes.csv
      curl -s $URL | dmformer predict runs/elpv-dmformer_n-1/best - --format json
      dmformer predict runs/camvid-1/best frames/ --out segmented/
      dmformer predict runs/bccd-1/best folder/ --threshold 0.5
      dmformer predict model.onnx photo.jpg
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    photos: tuple[str, ...]
    """Image files, folders (searched recursively), or - for an image on standard input."""
    top: int = 3
    """Number of classes to show; for detectors, number of most confident objects in the table."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""
    batch_size: int = 16
    """Classifiers: photos per batch."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto: a GPU if there is one."""
    threads: int | None = None
    """Threads that compute on a CPU; by default one per core. With 1, other programs slow it down less."""
    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of a photo; larger ones are not read."""
    out: str | None = None
    """Segmenters, detectors: output folder for the pictures; by default predictions/."""
    window: int | None = None
    """Segmenters: side of the sliding window in pixels; by default as in training."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: scale factors of the photo size; the predictions are averaged."""
    flip: bool = False
    """Segmenters: also average with the mirrored photos."""
    overwrite: bool = False
    """Segmenters, detectors: replace existing pictures."""
    threshold: float = 0.3
    """Detectors: minimum score of an object, from 0 to 1."""


def predict(arguments: list[str]) -> None:
    options = parse(PredictOptions, arguments, "predict")
    if min(options.top, options.batch_size, options.max_pixels) < 1:
        raise UserError("--top, --batch-size and --max-pixels must be 1 or more.")
    if not options.photos:
        raise UserError("name the photos: image files, folders, or - for standard input.")
    check_source(options.source, exported=True)
    for photo in options.photos:
        if photo != "-":
            check_path(photo)
    check_runs_on(options.device, options.source)
    task, found = open_source(options.source, options.threads)
    own = own_options(options, task)

    from ..predict import ANSWERS, open_predictor
    from ..utils.display import track

    answer = ANSWERS[task.answer]
    predictions = answer.predict(
        open_predictor(found, device=options.device) if isinstance(found, str | TrainedFolder) else found,
        options.photos,
        top=options.top,
        max_pixels=options.max_pixels,
        progress=lambda names: track(names, answer.doing),
        say=remark,
        **own,
    )
    if options.format == "json":
        told = [{"name": p.name, **({"error": p.error} if p.error else answer.told(p))} for p in predictions]
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    rows = [answer.row(p, options.top) for p in predictions]
    print_rows(answer.header(options.top), rows, options.format, answer.whole)
