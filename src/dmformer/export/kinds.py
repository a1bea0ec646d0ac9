"""How each kind of result is exported: the file's metadata, the example to trace, and how outputs are compared."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..data.decode import fitted_size
from ..nn.mean_answer import MeanAnswer
from ..runtimes.card import Boxes, Card
from ..runtimes.exported import MULTIPLE, Exported
from ..tasks.classification.classifier import Classifier
from ..tasks.detection.detector import Detector
from ..tasks.detection.frameworks.dense import DenseDetector
from ..tasks.detection.frameworks.regions import RegionDetector
from ..tasks.multilabel.classifier import MultiLabelClassifier
from ..tasks.segmentation.segmenter import Segmenter
from ..tasks.table import TASKS
from ..utils.errors import UserError
from ..utils.version import __version__
from .check import Measure, Run, box_difference, difference, in_numpy, object_difference
from .formats import Candidates, Unsuppressed
from .preprocessing import Preprocessing
from .scored import scored_classifier, scored_detector, scored_multilabel, scored_segmenter

Shape = tuple[int, int, int]
"""Height and width of images, and how many of them are a batch."""

BATCHES = (1, 3)
"""Batch sizes of the comparison."""

BOX_SIZE = (256, 320)
"""Height and width for tracing a detector; large enough that the maps of its last level exceed 1 x 1."""
PREPROCESSING_LIMIT = 0.05
"""Like `LIMIT`, for resizing in the graph compared with the run's own resizing."""


class Kind:
    """One kind of result; the base class holds what most kinds share.

    Attributes:
        apart: Unit of the differences, in words.
        limit_of: What the largest difference is relative to, in words.
        instead: What to try when a file cannot be used at every size.
        timed_batches: Batch sizes of the speed measurement.
        scored: Turns an exported file into what the task's `evaluate` scores.
    """

    apart = "by the largest logit"
    limit_of = "the largest logit"
    instead = "; --no-dynamic-size writes it for one size"
    timed_batches: Sequence[int] = (1, 8)
    scored: Callable[[Any], Any]

    def check(self, model: Any, to: str, preprocessing: bool, dynamic_size: bool, int8: bool) -> None:
        """Raise UserError for options that cannot be exported."""

    def card(self, model: Any, name: str, preprocessing: bool) -> Card:
        """The metadata of a model's file."""
        raise NotImplementedError

    def network(self, network: nn.Module) -> nn.Module:
        """The part of a trained model that is traced."""
        return network

    def reference(self, network: nn.Module) -> nn.Module:
        """What a file's outputs are compared with, from the part of a trained model that is traced."""
        return network

    def preprocessing(self, card: Card) -> Preprocessing:
        """The preprocessing built into the graph."""
        return Preprocessing(None, card.mean, card.std, card.crop_pct, card.crop_mode, card.interpolation)

    def fixed(self, card: Card, size: tuple[int, int]) -> Card:
        """The card of a file that accepts a single image size."""
        return card

    def traced_size(self, card: Card, fixed: bool) -> tuple[int, int]:
        """Height and width of the example; at least 64 for a model with free sizes, because `torch.export` would treat
        a 1 x 1 map as constant."""
        height, width = card.image_size or (card.resize or 256, card.resize or 256)
        return (height, width) if fixed else (max(height, 64), max(width, 64))

    def checked(self, card: Card, size: tuple[int, int], fixed: bool) -> list[Shape]:
        """Two batch sizes at each of three image sizes, the example's and two with other aspect ratios; only the
        example's if the size is fixed."""
        height, width = size
        others = [(max(round(0.75 * height), 32), width), (height, round(1.25 * width) + 1)]
        return [(*sides, batch) for sides in [size, *([] if fixed else others)] for batch in BATCHES]

    def own_size(self, card: Card) -> tuple[int, int] | None:
        """Height and width of a typical image, if they differ greatly from the example's."""
        return None

    def measure(self, card: Card, reference: nn.Module) -> Measure:
        """How to measure the difference between a file's outputs and those of its `reference`."""
        return difference

    def check_preprocessing(self, model: Any, exported: Run, pictures: Sequence[Image.Image]) -> None:
        """Raise UserError if the preprocessing in the graph differs from the model's."""


class Labels(Kind):
    """Class labels of photos."""

    scored = staticmethod(scored_classifier)

    def check(self, model: Classifier, to: str, preprocessing: bool, dynamic_size: bool, int8: bool) -> None:
        if preprocessing and not dynamic_size:
            raise UserError("--preprocessing accepts photos of any size: omit --no-dynamic-size.")

    def card(self, model: Classifier, name: str, preprocessing: bool) -> Card:
        config, network = model.data_config, model.model
        height, width = config["input_size"][-2:]
        mode = config.get("crop_mode") or "center"
        if mode not in ("center", "squash") or (mode == "center" and height != width):
            raise UserError(
                f"{name} crops photos by '{mode}' to {height} x {width} px, which exported files do not support."
            )
        return Card(
            name=name,
            task=model.task,
            architecture=str(getattr(network, "pretrained_cfg", {}).get("architecture", type(network).__name__)),
            class_names=list(model.class_names),
            mean=list(config["mean"]),
            std=list(config["std"]),
            image_size=[height, width],
            crop_pct=config["crop_pct"],
            crop_mode=mode,
            interpolation=config["interpolation"],
            preprocessing=preprocessing,
            version=__version__,
            values=model.values,
            tta=model.tta,
            members=len(network.models) if isinstance(network, MeanAnswer) else 1,
        )

    def preprocessing(self, card: Card) -> Preprocessing:
        return Preprocessing(card.image_size, card.mean, card.std, card.crop_pct, card.crop_mode, card.interpolation)

    def traced_size(self, card: Card, fixed: bool) -> tuple[int, int]:
        return (240, 320) if card.preprocessing else super().traced_size(card, fixed)

    def check_preprocessing(self, model: Classifier, exported: Run, pictures: Sequence[Image.Image]) -> None:
        """Compare the graph's resizing with the run's; steps of 1/255 pass, another crop or channel order does not."""
        for picture in pictures:
            expected = in_numpy(model.network)(model.prepare(picture)[None])
            apart = difference(expected, exported(np.asarray(picture)[None]))
            if not apart <= PREPROCESSING_LIMIT:
                raise UserError(
                    f"the preprocessing in the graph is not the run's: it differs by {apart:.1e} of the largest logit "
                    f"on a photo of {picture.height} x {picture.width} px; at most {PREPROCESSING_LIMIT:g} is "
                    "accepted. Nothing was written."
                )


class Tags(Labels):
    """Several labels of photos."""

    scored = staticmethod(scored_multilabel)

    def card(self, model: MultiLabelClassifier, name: str, preprocessing: bool) -> Card:
        return replace(super().card(model, name, preprocessing), thresholds=list(model.thresholds))


class Masks(Kind):
    """A class for every pixel."""

    scored = staticmethod(scored_segmenter)

    def card(self, model: Segmenter, name: str, preprocessing: bool) -> Card:
        config = model.config
        made_for = model.model.made_for
        if preprocessing and config.resize is not None:
            raise UserError(
                f"{name} resizes photos to {config.resize} px first, which cannot go into a segmenter's graph: omit "
                "--preprocessing."
            )
        return Card(
            name=name,
            task=model.task,
            architecture=f"{config.backbone}+{config.head}",
            class_names=list(config.class_names),
            mean=list(config.mean),
            std=list(config.std),
            image_size=None if made_for is None else list(made_for),
            resize=config.resize,
            window=config.window,
            palette=list(config.palette),
            reduce_zero_label=config.reduce_zero_label,
            ignore_index=list(config.ignore_index),
            preprocessing=preprocessing,
            version=__version__,
            values=config.value_range,
        )

    def fixed(self, card: Card, size: tuple[int, int]) -> Card:
        return replace(card, image_size=list(size))


class Objects(Kind):
    """Boxes and classes of objects."""

    apart = "of edges as shares of the image, and scores"
    limit_of = "an image's side or of a score of 1"
    instead = ""
    timed_batches = (1,)  # larger batches need too much memory
    scored = staticmethod(scored_detector)

    def check(self, model: Detector, to: str, preprocessing: bool, dynamic_size: bool, int8: bool) -> None:
        if isinstance(model.model, RegionDetector):
            _check_operators(model.model, model.config.framework, to)
        if model.tta != "none":
            told = "--tta merges a detector's objects outside the graph"
            raise UserError(f"{told}: leave it out here, and give it to `dmformer predict` and `eval`.")
        if preprocessing:
            raise UserError("--preprocessing is for classifiers and segmenters; this is a detector.")
        if int8:
            raise UserError("--int8 is for classifiers and segmenters; this is a detector.")
        if not dynamic_size:
            raise UserError("a detector's images vary in size: omit --no-dynamic-size.")

    def card(self, model: Detector, name: str, preprocessing: bool) -> Card:
        config, network = model.config, model.model
        assert isinstance(network, DenseDetector | RegionDetector)
        regions = isinstance(network, RegionDetector)
        boxes = Boxes(
            category_ids=list(config.category_ids),
            side=config.image_size,
            max_side=config.max_side,
            filled=network.queries is None,
            strides=list(network.strides),
            per_place=network.per_place,
            queries=network.queries,
            selection=network.selection,
            any_size=regions,
            mask_side=network.mask_side if regions else None,
        )
        return Card(
            name=name,
            task=model.task,
            architecture=f"{config.backbone}+{config.framework}",
            class_names=list(config.class_names),
            mean=list(config.mean),
            std=list(config.std),
            image_size=None,
            palette=list(model.palette),
            version=__version__,
            boxes=boxes,
            values=config.value_range,
            threshold=config.threshold,
        )

    def network(self, network: Any) -> nn.Module:
        return Candidates(network)

    def traced_size(self, card: Card, fixed: bool) -> tuple[int, int]:
        return BOX_SIZE

    def checked(self, card: Card, size: tuple[int, int], fixed: bool) -> list[Shape]:
        assert card.boxes is not None
        height, width = size
        own = (*self.own_size(card), 1)
        if card.boxes.any_size:  # few, because each takes seconds
            return [(height, width, 2), (height - 51, width + 13, 1), own]
        sizes = [(height, width), (height - 2 * MULTIPLE, width), (height, width + 3 * MULTIPLE)]
        return [*((*sides, batch) for sides in sizes for batch in BATCHES), own]

    def own_size(self, card: Card) -> tuple[int, int]:
        """Size of the input for an image of aspect ratio 3 : 4."""
        assert card.boxes is not None
        height, width = fitted_size(3, 4, card.boxes.side, card.boxes.max_side)
        if card.boxes.any_size:
            return height, width
        return height + -height % MULTIPLE, width + -width % MULTIPLE

    def reference(self, network: Any) -> nn.Module:
        detector = network.detector
        return Unsuppressed(detector) if isinstance(detector, RegionDetector) and detector.suppresses else network

    def measure(self, card: Card, reference: nn.Module) -> Measure:
        assert card.boxes is not None
        if isinstance(reference, Unsuppressed):
            classes, threshold = len(card.class_names), card.boxes.selection.threshold
            return lambda expected, answer: object_difference(expected, answer, classes, threshold)
        queries, selected = card.boxes.queries is not None, card.boxes.any_size
        return lambda expected, answer: box_difference(expected, answer, queries, selected)


def _check_operators(model: RegionDetector, framework: str, to: str) -> None:
    """Raise UserError for a PyTorch program that would lack an operator where it is used."""
    if model.suppresses and to in ("pt2", "aoti"):
        told = f"{framework} contains suppression, for which PyTorch's programs have no operator"
        raise UserError(f"{told}: export it --to onnx or openvino.")
    if to == "aoti":
        told = f"{framework} contains torchvision's RoIAlign, which PyTorch without Python does not have"
        raise UserError(f"{told}: export it --to onnx, openvino or pt2.")


KINDS: dict[str, Kind] = {"labels": Labels(), "tags": Tags(), "masks": Masks(), "boxes": Objects()}
"""Kinds by the `answer` of a `Task`."""


def kind_of(task: str) -> Kind:
    """The kind of result of a task, by the task's name; UserError if it cannot be exported."""
    answer = TASKS[task].answer
    if answer not in KINDS:
        raise UserError(f"a {TASKS[task].model} cannot be exported.")
    return KINDS[answer]


def as_scored(exported: Exported) -> Any:
    """An exported file in the form that its task's `evaluate` scores."""
    return kind_of(exported.task).scored(exported)
