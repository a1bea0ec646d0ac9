"""One model shared by many requests: it takes images, runs them in shared batches within limits, returns results."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..data.detections import THRESHOLD, Detections
from ..data.pages import pages_in
from ..predict.predictor import BoxPredictor, ClassPredictor, LabelPredictor, MaskPredictor
from ..report.drawing import heat
from ..tasks.table import TASKS
from ..utils.errors import UserError, unknown
from ..utils.machine import available_cores
from .activation import Activation
from .answers import ClassShare, Object, Result
from .batcher import Batcher, BatchError
from .limits import RETRY, Limits, Refused
from .metrics import Metrics
from .pictures import boxed, data_uri, masked, reduced, resized_boxes, resized_ids
from .uploads import Upload, open_image

T = TypeVar("T")

TOP = 5
"""Default number of classes in a result."""

DECODERS = 4
"""Maximum number of threads that decode and prepare images; limited by the number of cores."""

GREY = Upload("grey", b"P5 64 64 255\n" + bytes([128]) * 64 * 64)
"""A small grey image in a trivial format, for warming up."""


@dataclass(frozen=True)
class Options:
    """Options of a request: number of classes, overlay (of one class), mask, minimum score of objects."""

    top: int = TOP
    overlay: bool = False
    overlay_class: str | None = None
    mask: bool = False
    threshold: float = THRESHOLD

    @property
    def any_overlay(self) -> bool:
        return self.overlay or self.overlay_class is not None


@dataclass
class Times:
    """Seconds spent on each step of an image; the rest of the total is waiting time."""

    prepare: float = 0.0
    model: float = 0.0
    overlay: float = 0.0
    total: float = 0.0
    begin: float = field(default_factory=time.perf_counter)

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - begin)

    @property
    def queue(self) -> float:
        return max(0.0, self.total - self.prepare - self.model - self.overlay)


@dataclass(frozen=True)
class Answered:
    """Result for one image; `status` is the HTTP status if the request has no other image."""

    result: Result
    times: Times
    status: int = 200


class Service(ABC):
    """A model, its queue, and a few threads that prepare images for it.

    Args:
        overlay_refusal: Why overlays are not available, as a sentence; None if they are.
        ahead: Maximum number of decoded images, including those in the model; the rest wait undecoded.

    Attributes:
        makes_masks: Whether a response can include a mask.
    """

    makes_masks = False

    def __init__(
        self,
        predictor: ClassPredictor | MaskPredictor | BoxPredictor,
        limits: Limits,
        metrics: Metrics,
        overlay_refusal: str | None,
        ahead: int,
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.metrics = metrics
        self.overlay_refusal = overlay_refusal
        self.class_ids: dict[str, int] = {}
        for i, name in enumerate(predictor.class_names):
            self.class_ids.setdefault(name, i)
        self._batchers: list[Batcher] = []
        self._ahead = asyncio.Semaphore(ahead)
        self._pool = ThreadPoolExecutor(min(DECODERS, available_cores()), "prepare")
        self._in_hand = 0

    def check(self, options: Options) -> None:
        """Refuse options that no image can satisfy: a mask without a segmenter, an overlay that is not available, or an
        unknown class.
        """
        if options.mask and not self.makes_masks:
            told = f"{self.predictor.name} is a {TASKS[self.predictor.task].model}, which has no masks."
            raise Refused(400, "no_mask", told)
        if options.any_overlay and self.overlay_refusal is not None:
            raise Refused(400, "no_overlay", self.overlay_refusal)
        if options.overlay_class is not None and options.overlay_class not in self.class_ids:
            told = str(unknown("class", options.overlay_class[:200], self.class_ids))
            raise Refused(422, "unknown_class", told[0].upper() + told[1:])

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a running request; refuse it if too many are running."""
        if self._in_hand >= self.limits.requests:
            raise Refused(503, "busy", "The server is overloaded: try again in a moment.", RETRY)
        self._in_hand += 1
        self.metrics.in_hand.set(self._in_hand)
        try:
            yield
        finally:
            self._in_hand -= 1
            self.metrics.in_hand.set(self._in_hand)

    async def answer(self, upload: Upload, options: Options) -> Answered:
        """The model's result for one image, or the reason for a refusal."""
        times = Times()
        try:
            result = await self._answer(upload, options, times)
        except Refused as refused:
            self.metrics.rejected.labels(refused.reason).inc()
            trouble = Result(name=upload.name, error=refused.sentence, reason=refused.reason)
            return Answered(trouble, times, refused.status)
        if (pages := await self._in_pool(pages_in, upload.content)) > 1:
            result.pages = pages
        times.total = time.perf_counter() - times.begin
        self.metrics.images.inc()
        return Answered(result, times)

    @abstractmethod
    async def _answer(self, upload: Upload, options: Options, times: Times) -> Result: ...

    @abstractmethod
    def warm_up(self) -> None:
        """Run a grey image, so that the first request does not wait for one-time initialisation."""

    @property
    def is_alive(self) -> bool:
        return all(batcher.is_alive for batcher in self._batchers)

    def close(self) -> None:
        """Finish running work and end all threads."""
        for batcher in self._batchers:
            batcher.close()
        self._pool.shutdown()

    def _batcher(self, work: Callable[[list[Any]], Any], size: int, wait: float, what: str) -> Batcher[Any, Any]:
        batcher = Batcher(work, size, wait, lambda n, seconds: self.metrics.batch(what, n, seconds), what)
        self.metrics.queue.labels(what).set_function(lambda: batcher.waiting)
        self._batchers.append(batcher)
        return batcher

    def _open(self, upload: Upload, times: Times) -> tuple[Image.Image, tuple[int, int]]:
        """The image, reduced for a segmenter or a detector, and its original size (width, height)."""
        with times.spent_on("prepare"):
            image = open_image(upload, self.limits, values=self.predictor.values)
            return reduced(image, self.limits.work_pixels), image.size

    async def _in_pool(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def _in_batch(self, batcher: Batcher[Any, Any], item: Any, times: Times, what: str) -> Any:
        try:
            done = await asyncio.wrap_future(batcher.submit(item))
        except UserError as error:  # the model says which input it cannot process
            raise Refused(422, "unfit_image", str(error)) from None
        except BatchError as error:
            raise Refused(500, "model_failed", str(error)) from None
        setattr(times, what, getattr(times, what) + done.worked)
        return done.value


class ClassService(Service):
    """A classifier's service.

    Args:
        activation: Computes the overlay, unless overlays are refused.
        wait: Maximum seconds that a batch waits for more images.
    """

    def __init__(
        self,
        predictor: ClassPredictor,
        limits: Limits,
        metrics: Metrics,
        overlay_refusal: str | None,
        activation: Activation | None,
        batch: int = 8,
        wait: float = 0.005,
    ) -> None:
        super().__init__(predictor, limits, metrics, overlay_refusal, ahead=2 * batch)
        self.model = predictor
        self.activation = activation
        self._classes = self._batcher(predictor.probabilities, batch, wait, "classes")
        self._overlays = None if activation is None else self._batcher(activation, batch, wait, "overlays")

    async def _answer(self, upload: Upload, options: Options, times: Times) -> Result:
        async with self._ahead:
            prepared, looked_at = await self._in_pool(self._prepare, upload, options, times)
            row = await self._in_batch(self._classes, prepared, times, "model")
        order = [int(i) for i in np.argsort(-row, kind="stable")]
        names = self.predictor.class_names
        result = Result(name=upload.name, classes=self._described(row, order, options.top))
        if self._overlays is None or looked_at is None:
            return result
        chosen = order[0] if options.overlay_class is None else self.class_ids[options.overlay_class]
        activation = await self._in_batch(self._overlays, (looked_at, chosen), times, "overlay")
        picture = await self._in_pool(self._draw, looked_at, activation, times)
        return result.model_copy(update={"overlay": picture, "overlay_class": names[chosen]})

    def _described(self, row: np.ndarray, order: list[int], top: int) -> list[ClassShare]:
        """The classes to return; `order` holds all of them, the most likely first."""
        return [ClassShare(name=self.predictor.class_names[i], probability=float(row[i])) for i in order[:top]]

    def _prepare(self, upload: Upload, options: Options, times: Times) -> tuple[np.ndarray, Any]:
        with times.spent_on("prepare"):
            image = open_image(upload, self.limits, self.model.at_least, self.model.values)
            if self.activation is None or not options.any_overlay:
                return self.model.prepare(image), None
            return self.model.prepare(image), self.activation.prepare(image)

    def _draw(self, looked_at: Any, activation: np.ndarray, times: Times) -> str:
        assert self.activation is not None
        with times.spent_on("overlay"):
            return data_uri(heat(self.activation.seen(looked_at), activation))

    def warm_up(self) -> None:
        image, looked_at = self._prepare(GREY, Options(overlay=True), Times())
        self.model.probabilities([image])
        if self.activation is not None:
            self._draw(looked_at, self.activation([(looked_at, 0)])[0], Times())


class LabelService(ClassService):
    """A multi-label classifier's service: the most likely classes, and all that apply."""

    model: LabelPredictor

    def _described(self, row: np.ndarray, order: list[int], top: int) -> list[ClassShare]:
        names, thresholds = self.model.class_names, self.model.thresholds
        return [
            ClassShare(name=names[i], probability=float(row[i]), threshold=thresholds[i], applies=applies)
            for place, i in enumerate(order)
            if (applies := bool(row[i] >= thresholds[i])) or place < top
        ]


class MaskService(Service):
    """A segmenter's service, one image at a time."""

    makes_masks = True

    def __init__(
        self, predictor: MaskPredictor, limits: Limits, metrics: Metrics, overlay_refusal: str | None = None
    ) -> None:
        super().__init__(predictor, limits, metrics, overlay_refusal, ahead=2)
        self.model = predictor
        self._masks = self._batcher(lambda images: [predictor.segment(image) for image in images], 1, 0.0, "masks")

    async def _answer(self, upload: Upload, options: Options, times: Times) -> Result:
        async with self._ahead:
            image, size = await self._in_pool(self._open, upload, times)
            ids = await self._in_batch(self._masks, image, times, "model")
            return await self._in_pool(self._describe, upload.name, image, ids, size, options, times)

    def _describe(
        self,
        name: str,
        image: Image.Image,
        ids: np.ndarray,
        size: tuple[int, int],
        options: Options,
        times: Times,
    ) -> Result:
        with times.spent_on("overlay"):
            names, palette = self.model.class_names, self.model.palette
            counts = np.bincount(ids.ravel(), minlength=len(names))
            order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
            shares = [
                ClassShare(name=names[i], share=float(counts[i] / ids.size), colour=as_hex(palette[i])) for i in order
            ]
            result = Result(name=name, shares=shares, overlay_class=options.overlay_class)
            if image.size != size:
                result.reduced_to = image.size
            if options.mask:
                result.mask = data_uri(Image.fromarray(resized_ids(ids, size)))
            if options.any_overlay:
                only = None if options.overlay_class is None else self.class_ids[options.overlay_class]
                result.overlay = data_uri(masked(image, ids, names, palette, only))
            return result

    def warm_up(self) -> None:
        self.model.segment(self._open(GREY, Times())[0])


class BoxService(Service):
    """A detector's service, one image at a time."""

    def __init__(
        self, predictor: BoxPredictor, limits: Limits, metrics: Metrics, overlay_refusal: str | None = None
    ) -> None:
        super().__init__(predictor, limits, metrics, overlay_refusal, ahead=2)
        self.model = predictor
        self.palette = list(predictor.palette)  # slow to compute for many classes
        self._objects = self._batcher(lambda images: [predictor.detect(image) for image in images], 1, 0.0, "objects")

    async def _answer(self, upload: Upload, options: Options, times: Times) -> Result:
        async with self._ahead:
            image, size = await self._in_pool(self._open, upload, times)
            found = await self._in_batch(self._objects, image, times, "model")
            return await self._in_pool(self._describe, upload.name, image, found, size, options, times)

    def _describe(
        self,
        name: str,
        image: Image.Image,
        found: Detections,
        size: tuple[int, int],
        options: Options,
        times: Times,
    ) -> Result:
        with times.spent_on("overlay"):
            names, found = self.model.class_names, found.above(options.threshold)
            boxes = resized_boxes(found.boxes, image.size, size).astype(float).round(2).tolist()
            labels: list[int] = found.labels.tolist()
            objects = [
                Object(name=names[label], score=score, box=box, colour=as_hex(self.palette[label]))
                for label, score, box in zip(labels, found.scores.tolist(), boxes, strict=True)
            ]
            result = Result(name=name, objects=objects, overlay_class=options.overlay_class)
            if image.size != size:
                result.reduced_to = image.size
            if options.any_overlay:
                only = None if options.overlay_class is None else self.class_ids[options.overlay_class]
                result.overlay = data_uri(boxed(image, found, names, self.palette, only))
            return result

    def warm_up(self) -> None:
        self.model.detect(self._open(GREY, Times())[0])


def as_hex(colour: tuple[int, int, int]) -> str:
    """Red, green and blue as a CSS colour."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
