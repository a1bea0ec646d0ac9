"""Views: crops of images, drawn once and seen by both student and teacher."""

import hashlib
import io
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ....data.decode import BrokenImageError, decode
from ..datasets import Split

TRIES = 10
"""How often a crop is drawn until it lies inside the image, as in torchvision's RandomResizedCrop."""


@dataclass(frozen=True)
class View:
    """A crop of an image, and whether it is mirrored.

    Attributes:
        box: Left, upper, right and lower edge as fractions of the image's width and height.
        hflip, vflip: Mirrored left to right, and top to bottom.
    """

    box: tuple[float, float, float, float]
    hflip: bool = False
    vflip: bool = False

    def of(self, image: Image.Image, size: int, interpolation: str) -> Image.Image:
        """The view of an image, resized to (size, size) pixels."""
        left, upper, right, lower = self.box
        box = (left * image.width, upper * image.height, right * image.width, lower * image.height)
        resample = Image.Resampling[interpolation.upper()]
        view = image.resize((size, size), resample, box=_inside(box, image.size))
        if self.hflip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return view.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.vflip else view


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box without the parts that rounding put outside the image."""
    left, upper, right, lower = box
    return max(left, 0.0), max(upper, 0.0), min(right, float(size[0])), min(lower, float(size[1]))


@dataclass(frozen=True)
class Views:
    """How views are drawn: view `number` of image `index` is always the same, in any process and order.

    Attributes:
        scale: Area of the crop, as fractions of the image.
        ratio: Width over height of the crop.
        hflip, vflip: Probabilities of mirroring.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    vflip: float
    seed: int

    def draw(self, number: int, index: int, width: int, height: int) -> View:
        """View `number` of image `index`, which is `width` x `height` pixels (only their ratio matters)."""
        dice = random.Random(f"{self.seed} {number} {index}")
        left, upper, right, lower = (float(np.float32(edge)) for edge in self._box(dice, width / height))  # as cached
        return View((left, upper, right, lower), dice.random() < self.hflip, dice.random() < self.vflip)

    def _box(self, dice: random.Random, aspect: float) -> tuple[float, float, float, float]:
        low, high = (math.log(side) for side in self.ratio)
        for _ in range(TRIES):
            area, ratio = dice.uniform(*self.scale), math.exp(dice.uniform(low, high))
            across, down = math.sqrt(area * ratio / aspect), math.sqrt(area / ratio * aspect)
            if across <= 1 and down <= 1:
                left, upper = dice.uniform(0, 1 - across), dice.uniform(0, 1 - down)
                return left, upper, left + across, upper + down
        ratio = min(max(aspect, self.ratio[0]), self.ratio[1])  # the centre, as wide and high as the ratios allow
        across, down = min(ratio / aspect, 1.0), min(aspect / ratio, 1.0)
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


class Photos:
    """The images of several data sets in one sequence.

    Args:
        names: Names of the data sets; they distinguish images of the same name.
        whole: Include each set's whole reader, whichever of its images a part uses: an image's index then does not
            depend on how the set is split.
    """

    def __init__(self, splits: Sequence[Split], names: Sequence[str], whole: bool) -> None:
        parts = [np.arange(len(split)) if split.indices is None else split.indices for split in splits]
        self.readers = [split.reader for split in splits]
        self.readings = [split.reading for split in splits]
        self.names = list(names)
        self.inner = [
            np.arange(len(split.reader)) if whole else part for split, part in zip(splits, parts, strict=True)
        ]
        """For each set, the numbers of its images in their reader."""
        self.starts = np.cumsum([0, *map(len, self.inner)])
        self.indices = [
            start + (part if whole else np.arange(len(part))) for part, start in zip(parts, self.starts, strict=False)
        ]
        """For each split, its images' indices in the sequence."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """SET/NAME of an image."""
        reader, inner = self._place(index)
        return f"{self.names[reader]}/{self.readers[reader].filename(inner)}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names, in their order."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(self.name(i).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    def read(self, index: int, at_least: int | None = None) -> tuple[Image.Image, int]:
        """An image, decoded, and the CRC-32 of its file.

        Raises:
            BrokenImageError: It cannot be read, for whatever reason.
        """
        reader, inner = self._place(index)
        try:
            source: Any = self.readers[reader][inner][0]
            if isinstance(source, Image.Image):
                return decode(source, at_least, self.readings[reader]), zlib.crc32(source.tobytes())
            with source:
                content = source.read()
        except OSError as error:
            raise BrokenImageError(str(error)) from error
        return decode(io.BytesIO(content), at_least, self.readings[reader]), zlib.crc32(content)

    def _place(self, index: int) -> tuple[int, int]:
        reader = int(np.searchsorted(self.starts, index, side="right")) - 1
        return reader, int(self.inner[reader][index - self.starts[reader]])
