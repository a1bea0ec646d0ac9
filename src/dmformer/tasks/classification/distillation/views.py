"""Views: crops of photos, drawn once and seen by student and teacher alike."""

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
"""Times that a crop is drawn until it lies inside the photo, as in torchvision's RandomResizedCrop."""


@dataclass(frozen=True)
class View:
    """A crop of a photo and whether it is mirrored.

    Attributes:
        box: Left, upper, right and lower edge as fractions of the photo's width and height.
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
    """A box without what rounding put outside the image."""
    left, upper, right, lower = box
    return max(left, 0.0), max(upper, 0.0), min(right, float(size[0])), min(lower, float(size[1]))


@dataclass(frozen=True)
class Views:
    """How views are drawn: view `number` of photo `index` is the same whenever and wherever it is drawn.

    Attributes:
        scale: Area of the crop, as fractions of the photo.
        ratio: Width over height of the crop.
        hflip, vflip: Probabilities of mirroring.
        seed: Of the draws.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    vflip: float
    seed: int

    def draw(self, number: int, index: int, width: int, height: int) -> View:
        """View `number` of photo `index`, which is `width` x `height` pixels (their ratio alone matters)."""
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
        ratio = min(max(aspect, self.ratio[0]), self.ratio[1])  # the middle, as wide and high as the ratios allow
        across, down = min(ratio / aspect, 1.0), min(aspect / ratio, 1.0)
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


class Photos:
    """The photos of several sets in one row.

    Args:
        splits: Parts of the sets.
        names: What the sets are called; they distinguish photos of the same name.
        whole: Take each set's reader whole, whichever of its photos a part takes: a photo's place in the row then does
            not depend on how the set is split.
    """

    def __init__(self, splits: Sequence[Split], names: Sequence[str], whole: bool) -> None:
        parts = [np.arange(len(split)) if split.indices is None else split.indices for split in splits]
        self.readers = [split.reader for split in splits]
        self.names = list(names)
        self.inner = [
            np.arange(len(split.reader)) if whole else part for split, part in zip(splits, parts, strict=True)
        ]
        """Of each set, the numbers of its photos in their reader."""
        self.starts = np.cumsum([0, *map(len, self.inner)])
        self.indices = [
            start + (part if whole else np.arange(len(part))) for part, start in zip(parts, self.starts, strict=False)
        ]
        """Of each split, its photos' places in the row."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """SET/NAME of a photo."""
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
        """A photo, decoded, and the CRC-32 of its file.

        Raises:
            BrokenImageError: For whatever keeps it from being read.
        """
        reader, inner = self._place(index)
        try:
            source: Any = self.readers[reader][inner][0]
            if isinstance(source, Image.Image):
                return decode(source, at_least), zlib.crc32(source.tobytes())
            with source:
                content = source.read()
        except OSError as error:
            raise BrokenImageError(str(error)) from error
        return decode(io.BytesIO(content), at_least), zlib.crc32(content)

    def _place(self, index: int) -> tuple[int, int]:
        reader = int(np.searchsorted(self.starts, index, side="right")) - 1
        return reader, int(self.inner[reader][index - self.starts[reader]])
