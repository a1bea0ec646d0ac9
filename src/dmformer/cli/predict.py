"""dmformer predict: classify photos, segment them, or find objects in them."""

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.limits import MAX_PIXELS
from ..tasks.config import TrainedFolder
from ..utils.errors import UserError
from ..utils.files import check_path
from ..utils.views import ViewsOrAuto
from .checks import check_runs_on, check_source, open_source, own_options
from .parsing import parse
from .printing import fits_terminal, print_rows, remark

if TYPE_CHECKING:
    from ..data.video import Every
    from ..predict import Answer

SLOW_START = 3.0
"""Seconds until the first answer from which on an exported file is worth a remark."""


@dataclass(frozen=True)
class PredictOptions:
    """Classify photos with a trained classifier, segment them with a segmenter, or find objects with a detector.

    A multi-label classifier gives all labels whose probability is at least their threshold, separated by semicolons.
    A segmenter writes STEM.overlay.png and STEM.mask.png (class ids, from 0) for each photo, and legend.png. A detector
    writes STEM.detections.png, with boxes, masks and names, and detections.json in COCO's format.

    Of a video, a frame in --every 0.5s has a row with its time; no pictures are written. With --out, a segmenter or a
    detector also writes STEM.annotated.mp4 there, of these frames. Videos need the extra 'video'.

    In a pipe, and in a terminal that is too narrow for the table, each class has a row of its own. CSV has a row for
    each photo, or for each object with its edges in pixels. The exit code is 1 if no photo can be read.

    The first photo waits for torch and timm to be imported: seconds, about 10 on a slow machine. A file written by
    `dmformer export` needs neither and gives a result in about a second.

    examples:
      dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
      dmformer predict runs/elpv-dmformer_n-1/best folder/ --format csv > classes.csv
      curl -s $URL | dmformer predict runs/elpv-dmformer_n-1/best - --format json
      dmformer predict runs/camvid-1/best frames/ --out segmented/
      dmformer predict runs/bccd-1/best folder/ --threshold 0.5
      dmformer predict runs/bccd-1/best folder/ --threshold 0.5 --labels-as yolo
      dmformer predict runs/bccd-1/best clip.mp4 --every 0.2s --out annotated/
      dmformer predict model.onnx photo.jpg
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    photos: tuple[str, ...]
    """Image files, folders (searched recursively), or - for an image on standard input; or video files."""
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
    tta: ViewsOrAuto = "auto"
    """Classifiers and detectors: test-time augmentation. flip averages the probabilities of each photo and its mirror
    image, or merges the objects found in both; flips uses 4 views, with both upside down. It takes 2 or 4 times as
    long. auto: as in the run's own scores."""
    out: str | None = None
    """Segmenters, detectors: output folder for the pictures, by default predictions/; or for annotated videos, by
    default none."""
    every: str = "0.5s"
    """Videos: which frames to predict on: one in so many seconds (0.5s), or every Nth (10)."""
    window: int | None = None
    """Segmenters: side of the sliding window in pixels; by default as in training."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: scale factors of the photo size; the predictions are averaged."""
    flip: bool = False
    """Segmenters: also average with the mirrored photos."""
    overwrite: bool = False
    """Segmenters, detectors: replace existing pictures."""
    threshold: float | None = None
    """Detectors: minimum score of an object, from 0 to 1; by default the one with the best F1 on the validation photos.
    Multi-label classifiers: minimum probability of every label; by default each class has its own, chosen in
    training."""
    labels_as: Literal["none", "coco", "voc", "yolo", "labelme", "masks", "csv"] = "none"
    """Also write the predictions as labels, to correct them in an annotation tool and to train on them.
    Classifiers, also of several labels: csv. Segmenters: masks. Detectors: coco, voc, yolo, labelme, csv."""
    labels_out: str = "labels"
    """Folder for these labels, with the subfolders of the photos."""


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
    videos, every = _videos(options)
    task, found = open_source(options.source, options.threads)
    own = own_options(options, task)
    tta = own.pop("tta", "auto")

    from ..predict import ANSWERS, open_predictor
    from ..predict.labels import check_labels, write_labels
    from ..predict.video import predict_videos, with_times
    from ..utils.display import track

    answer, count = ANSWERS[task.answer], Count("frame" if videos else "photo")
    if options.labels_as != "none":
        check_labels(options.labels_as, task.answer, Path(options.labels_out))
    model: Any
    if isinstance(found, str | TrainedFolder):
        model = open_predictor(found, device=options.device, tta=tta)
    else:
        model = found.answering(tta)
    own |= {"top": options.top, "max_pixels": options.max_pixels, "progress": lambda it: track(it, answer.doing)}
    if videos:
        predictions = count.each(predict_videos(model, task.answer, videos, every, **own))
        answer = with_times(answer)
    else:
        predictions = count.each(answer.predict(model, options.photos, say=remark, **own))
    if options.labels_as != "none":
        kept = list(predictions)
        write_labels(options.labels_as, task.answer, kept, list(model.class_names), Path(options.labels_out))
        predictions = iter(kept)
    _print(answer, predictions, options)
    count.tell()
    if isinstance(found, TrainedFolder) and task.exports(found.stated):
        count.tell_of_export(options.source)


def _videos(options: PredictOptions) -> tuple[list[str], "Every"]:
    """The videos, if these and no photos are given, and which of their frames are asked for."""
    from ..data.video import is_video, read_every

    videos = [name for name in options.photos if is_video(name)]
    if videos and len(videos) < len(options.photos):
        raise UserError("give photos or videos, not both at once.")
    if not videos and options.every != PredictOptions.every:
        raise UserError("--every is for videos; these are photos.")
    if videos and options.labels_as != "none":
        raise UserError("--labels-as is for photos: write the frames as images first.")
    return videos, read_every(options.every)


def _print(answer: "Answer", predictions: Iterator[Any], options: PredictOptions) -> None:
    if options.format == "json":
        told = [{"name": p.name, **({"error": p.error} if p.error else answer.told(p))} for p in predictions]
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    if options.format == "csv":
        rows = (row for p in predictions for row in answer.csv.of(p, options.top))
        print_rows(answer.csv.header(options.top), rows, "csv")
        return
    found = list(predictions)
    for way in (answer.table, answer.narrow):
        header, table = way.header(options.top), [row for p in found for row in way.of(p, options.top)]
        if way is answer.narrow or fits_terminal(header, table):
            print_rows(header, table, "table")
            return


class Count:
    """What became of the photos or the frames, and the time that it took from here."""

    def __init__(self, what: str = "photo") -> None:
        self.what = what
        self.began = time.perf_counter()
        self.first = 0.0
        """Seconds until the first answer."""
        self.read = 0
        self.left_out: Counter[str] = Counter()
        """Photos that could not be read, by the reason."""

    def each(self, predictions: Iterator[Any]) -> Iterator[Any]:
        for prediction in predictions:
            self.first = self.first or time.perf_counter() - self.began
            if prediction.error:
                self.left_out[prediction.error] += 1
            else:
                self.read += 1
            yield prediction

    def tell(self) -> None:
        """Say how many photos were read and why others were not; exit with 1 if none was."""
        from ..data.finding import listed

        unread = self.left_out.total()
        if unread and not self.read:
            what = "photo" if self.what == "photo" else "video"
            which = f"the {what}" if unread == 1 else f"none of the {unread:,} {what}s"
            cannot = "cannot" if unread == 1 else "can"
            print(f"dmformer: {which} {cannot} be read: {listed(self.left_out)}.", file=sys.stderr)
            raise SystemExit(1)
        if self.read + unread > 1:
            left_out = f"; {unread:,} could not be read: {listed(self.left_out)}" if unread else ""
            what = f"{self.what}s" if self.read != 1 else self.what
            remark(f"{self.read:,} {what} in {time.perf_counter() - self.began:.1f} s{left_out}")

    def tell_of_export(self, source: str) -> None:
        """Say how the first answer comes sooner, if most of the time went into waiting for it."""
        total = time.perf_counter() - self.began
        if self.first > max(SLOW_START, total / 2):
            remark(
                f"{self.first:.0f} of {total:.0f} s went into starting PyTorch; "
                f"a file from `dmformer export {shlex.quote(source)}` starts in about a second"
            )
