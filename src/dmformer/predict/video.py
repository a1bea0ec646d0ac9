"""Predict on the frames of videos, which are read one at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.decode import BrokenImageError
from ..data.detections import coco_results
from ..data.limits import MAX_PIXELS
from ..data.video import Every, VideoReader
from ..utils.errors import UserError, first_line
from ..utils.extras import needs
from ..utils.files import whole_file
from .answers import Answer, Rows
from .boxes import BoxPrediction
from .classes import Prediction, classify
from .masks import MaskPrediction, fractions
from .photos import places_in
from .tags import TagPrediction, applying


@dataclass(frozen=True)
class Timed:
    """What is predicted on a frame, and its time in seconds; None if the video could not be read any further."""

    prediction: Any
    seconds: float | None

    @property
    def name(self) -> str:
        return self.prediction.name

    @property
    def error(self) -> str | None:
        return self.prediction.error


def with_times(answer: Answer) -> Answer:
    """How predictions on frames are listed: as those on photos, with the time in seconds after the name."""

    def timed(way: Rows) -> Rows:
        def rows(found: Timed, top: int) -> list[list[Any]]:
            seconds = "" if found.seconds is None else f"{found.seconds:.3f}"
            return [[row[0], seconds, *row[1:]] for row in way.of(found.prediction, top)]

        return Rows(lambda top: ["video", "seconds", *way.header(top)[1:]], rows)

    def told(found: Timed) -> dict[str, Any]:
        return {"seconds": found.seconds, **answer.told(found.prediction)}

    ways = {"table": timed(answer.table), "narrow": timed(answer.narrow), "csv": timed(answer.csv)}
    return replace(answer, **ways, told=told)


def predict_videos(
    model: Any,
    answer: str,
    videos: Sequence[str],
    every: Every,
    top: int = 3,
    max_pixels: int = MAX_PIXELS,
    out: str | None = None,
    overwrite: bool = False,
    batch_size: int = 16,
    threshold: float | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **segmenting: Any,
) -> Iterator[Timed]:
    """Predict on frames of videos; yield one `Timed` per frame, in order. At most `batch_size` frames are in memory.

    A video that cannot be read, or not to its end, yields one more with the error.

    Args:
        model: An open predictor.
        answer: What its task predicts; see `Task`.
        every: Which frames.
        threshold: As in `Model.predict`.
        out: Segmenters, detectors: folder for NAME.annotated.mp4, the frames with what was found; by default none.
        segmenting: Options of `segment`.

    Raises:
        UserError: The extra `video` is missing, or a file exists.
    """
    with needs("video", "reading videos"):
        import av  # noqa: F401
    places = {} if out is None else dict(places_in(Path(out), videos))
    places = {name: place.with_name(f"{place.name}.annotated.mp4") for name, place in places.items()}
    if not overwrite and (taken := [place for place in places.values() if place.exists()]):
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    for name in videos:
        reader, place = VideoReader(name, every, max_pixels), places.get(name)
        images = progress(reader.images())
        if answer in ("labels", "tags"):
            yield from _classes(model, answer, reader, images, top, batch_size, threshold)
            continue
        drawn_on = "" if place is None else str(place)
        with ExitStack() as files:
            write = None
            for image in images:
                if answer == "masks":
                    found, draw = _masks(model, name, image, drawn_on, segmenting)
                else:
                    found, draw = _boxes(model, name, image, drawn_on, threshold)
                if place is not None:
                    write = write or files.enter_context(_written(place, reader.rate))
                    write(draw())
                yield Timed(found, reader.times.popleft())
        if reader.error:
            kind = MaskPrediction if answer == "masks" else BoxPrediction
            yield Timed(kind(name, error=reader.error), None)


def _classes(
    model: Any,
    answer: str,
    reader: VideoReader,
    images: Iterable[Image.Image],
    top: int,
    batch_size: int,
    threshold: float | None,
) -> Iterator[Timed]:
    kind = Prediction if answer == "labels" else TagPrediction
    for found in classify(model, images, batch_size, reader.max_pixels):
        assert not isinstance(found, BrokenImageError)  # frames are whole, and their size is checked
        kept = found[:top] if answer == "labels" else applying(found, model, threshold)
        yield Timed(kind(reader.name, kept), reader.times.popleft())
    if reader.error:
        yield Timed(kind(reader.name, [], reader.error), None)


def _masks(
    model: Any, name: str, image: Image.Image, out: str, options: dict[str, Any]
) -> tuple[MaskPrediction, Callable[[], Image.Image]]:
    from ..report.drawing import named_overlay

    ids = model.segment(image, **options)
    found = MaskPrediction(name, out, "", tuple(fractions(ids, model.class_names)))
    return found, lambda: named_overlay(image, ids, model.class_names, model.palette)


def _boxes(
    model: Any, name: str, image: Image.Image, out: str, threshold: float | None
) -> tuple[BoxPrediction, Callable[[], Image.Image]]:
    from ..report.drawing import draw_detections

    found = model.detect(image, model.threshold if threshold is None else threshold)
    names = list(model.class_names)
    rows = zip(coco_results(found, 0, list(model.category_ids)), found.labels.tolist(), strict=True)
    objects = tuple(
        {key: value for key, value in row.items() if key != "image_id"} | {"class": names[k]} for row, k in rows
    )
    return BoxPrediction(name, out, objects, image.size), lambda: draw_detections(image, found, names, model.palette)


@contextmanager
def _written(path: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """A function that adds an image to a video file, which is there once it is whole. Sides are rounded to even ones.

    Raises:
        UserError: The file cannot be written.
    """
    import av

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream: Any = container.add_stream(codec, rate=rate.limit_denominator(1000))
            stream.pix_fmt, stream.width = "yuv420p", 0

            def add(image: Image.Image) -> None:
                if not stream.width:
                    stream.width, stream.height = (max(side // 2 * 2, 2) for side in image.size)
                frame = av.VideoFrame.from_image(image).reformat(stream.width, stream.height, "yuv420p")
                container.mux(stream.encode(frame))

            yield add
            container.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or first_line(error)}.") from None
