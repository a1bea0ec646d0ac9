"""What every reader of annotations of objects answers with, and the sizes of photos."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ....data.decode import BrokenImageError, decode
from ....utils.errors import first_line
from ....utils.machine import available_cores
from ...folders import Fault, Progress, relative_name

Outline = list[np.ndarray] | dict[str, Any]
"""Polygons of an object (x, y, x, y, ...), or COCO's run lengths {"size": [H, W], "counts": ...}, compressed or not."""


LARGEST_TEXT = 10_000_000
"""Bytes of the annotations of one photo, far more than thousands of objects take."""


class FaultyError(ValueError):
    """Why an object or a photo is left out, as what follows its name."""


class Row(NamedTuple):
    """An object: `image` and `label` are places in lists of its part, `area` NaN where the file gives none."""

    image: int
    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    id: int
    outline: Outline | None


@dataclass
class Part:
    """What one split holds, as it is stored.

    Attributes:
        root: Folder that names for people begin at.
        names: Of the classes; `Row.label` counts them.
        ids: The classes' own numbers; None where they have none.
        images, image_ids, sizes: Of each photo its file, number and (height, width).
        rows: Objects.
        faults: Of objects and photos that could not be read.
        notes: What people should know of it.
        where: What is named when the whole cannot be used.
    """

    root: Path
    names: tuple[str, ...]
    ids: tuple[int, ...] | None
    where: str
    images: list[Path] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, photo: Path, size: tuple[int, int], number: int | None = None) -> int:
        """Add a photo, by default numbered from 1; its place."""
        self.images.append(photo)
        self.sizes.append(size)
        self.image_ids.append(len(self.images) if number is None else number)
        return len(self.images) - 1

    def object_name(self, image: int, number: object) -> str:
        """Name of an object for people."""
        return f"{relative_name(self.images[image], self.root)}, object {number}"


def photo_sizes(
    paths: Sequence[Path], progress: Progress = iter, decoded: Collection[Path] = ()
) -> list[tuple[int, int] | str]:
    """(height, width) of photos as people see them, from the files' headers; of an unreadable one the reason.

    Those of `decoded` are read whole, so that what is damaged behind its header is found too.
    """
    with ThreadPoolExecutor(min(available_cores(), 16)) as pool:
        futures = [pool.submit(_decoded_size if path in decoded else _photo_size, path) for path in paths]
        try:
            return [future.result() for future in progress(futures)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _photo_size(path: Path) -> tuple[int, int] | str:
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow swaps a TIFF's sides itself, and would decode a whole PNG to look for EXIF after its pixels.
            stated = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = stated and image.getexif().get(0x0112) in (5, 6, 7, 8)
    except UnidentifiedImageError:
        return "cannot be read: it is no image of a known kind"
    except Exception as error:  # decoders raise whatever they like on damaged input
        return f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return (width, height) if turned else (height, width)


def _decoded_size(path: Path) -> tuple[int, int] | str:
    try:
        with open(path, "rb") as file:
            image = decode(file)
    except (OSError, BrokenImageError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return image.height, image.width


def measured(part: Part, photos: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Photos with their sizes; those that cannot be read become faults of the part."""
    for photo, size in zip(photos, photo_sizes(photos), strict=True):
        if isinstance(size, str):
            part.faults.append((relative_name(photo, part.root), size))
        else:
            yield photo, size


def other_size(size: Sequence[int], stated: Sequence[int]) -> str:
    """What is wrong with a photo of another (height, width) than its annotations say."""
    told = f"{size[1]}x{size[0]}, not {stated[1]}x{stated[0]}"
    exchanged = tuple(size) == tuple(stated)[::-1]
    hint = " (width and height are exchanged, there or by the file's EXIF)" if exchanged else ""
    return f"has another size than its annotations say: {told}{hint}"


def numbers(values: Sequence[Any], what: str) -> list[float]:
    """What is stored as numbers; FaultyError where something is none."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise FaultyError(f"has something that is no number in its {what}: {str(values)[:80]}") from None
