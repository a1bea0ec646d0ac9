"""What every annotation reader returns, and image sizes."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from ....data.decode import BrokenImageError, Reading, check_size, decode, open_image
from ....data.limits import MAX_PIXELS
from ....data.orientation import SIDEWAYS, UPRIGHT
from ....utils.errors import first_line
from ....utils.machine import available_cores
from ...folders import Fault, Progress, relative_name

Outline = list[np.ndarray] | dict[str, Any]
"""Polygons of an object (x, y, x, y, ...), or COCO's run lengths {"size": [H, W], "counts": ...}, compressed or not."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""

LARGEST_TEXT = 10_000_000
"""Maximum bytes of one image's annotations, far more than thousands of objects take."""


class FaultyError(ValueError):
    """Why an object or an image is left out, worded to follow its name."""


class Row(NamedTuple):
    """An object: `image` and `label` are indices into the lists of its part, `area` is NaN if the file gives none."""

    image: int
    box: Box
    label: int
    crowd: bool
    area: float
    id: int
    outline: Outline | None


@dataclass
class Part:
    """The content of one split, as stored.

    Attributes:
        root: Folder at which display names start.
        names: Class names; `Row.label` is an index into them.
        ids: The classes' own numbers; None if they have none.
        images, image_ids, sizes: File, number and (height, width) of each image.
        rows: Objects.
        faults: Objects and images that could not be read.
        notes: What users should know about it.
        mended: Names of what was changed rather than left out, by what was done.
        unsized: Those of the images whose size the annotations do not state.
        where: What to name if none of it can be used.
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
    mended: dict[str, list[str]] = field(default_factory=dict)
    unsized: set[Path] = field(default_factory=set)

    def mend(self, what: str, name: str) -> None:
        """Record that something faulty was kept in a changed form."""
        self.mended.setdefault(what, []).append(name)

    def mended_notes(self) -> list[str]:
        """A note for each kind of change."""
        return [f"{what} in {self.where}: {len(names)}, such as {names[0]}" for what, names in self.mended.items()]

    def add(self, photo: Path, size: tuple[int, int], number: int | None = None, stated: bool = True) -> int:
        """Add an image, by default numbered from 1, whose size the annotations state or not; returns its index."""
        if not stated:
            self.unsized.add(photo)
        self.images.append(photo)
        self.sizes.append(size)
        self.image_ids.append(len(self.images) if number is None else number)
        return len(self.images) - 1

    def object_name(self, image: int, number: object) -> str:
        """Display name of an object."""
        return f"{relative_name(self.images[image], self.root)}, object {number}"


def photo_sizes(
    paths: Sequence[Path],
    progress: Progress = iter,
    decoded: Collection[Path] = (),
    max_pixels: int = MAX_PIXELS,
    ways: dict[Path, int] | None = None,
) -> list[tuple[int, int] | str]:
    """(height, width) of images as people see them, from the files' headers; for an unreadable image, the reason.

    Images in `decoded` are read in full, so that damage after the header is found too. Images of more than `max_pixels`
    are not read. `ways` is filled with the orientation of those that EXIF turns or mirrors.
    """
    reading, found = Reading(max_pixels=max_pixels), {} if ways is None else ways

    def size_of(path: Path) -> tuple[int, int] | str:
        size = _photo_size(path, reading, found)
        return _decoded_size(path, reading) if path in decoded and not isinstance(size, str) else size

    with ThreadPoolExecutor(min(available_cores(), 16)) as pool:
        futures = [pool.submit(size_of, path) for path in paths]
        try:
            return [future.result() for future in progress(futures)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _photo_size(path: Path, reading: Reading, ways: dict[Path, int]) -> tuple[int, int] | str:
    try:
        with open(path, "rb") as file, open_image(file) as image:
            check_size(image, reading.max_pixels)
            width, height = image.size
            # Pillow would decode a whole PNG to look for EXIF after its pixels.
            way = image.getexif().get(0x0112) if image.format != "PNG" or "exif" in image.info else None
            turned = way in SIDEWAYS and image.format != "TIFF"  # whose sides Pillow swaps itself
            if way in SIDEWAYS or way in UPRIGHT:
                ways[path] = int(way)
    except UnidentifiedImageError:
        return "cannot be read: it is no image of a known kind"
    except Exception as error:  # decoders raise anything on damaged input
        return f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return (width, height) if turned else (height, width)


def _decoded_size(path: Path, reading: Reading) -> tuple[int, int] | str:
    try:
        with open(path, "rb") as file:
            image = decode(file, reading=reading)
    except (OSError, BrokenImageError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
    return image.height, image.width


def measured(part: Part, photos: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Images with their sizes; unreadable ones become faults of the part."""
    for photo, size in zip(photos, photo_sizes(photos), strict=True):
        if isinstance(size, str):
            part.faults.append((relative_name(photo, part.root), size))
        else:
            yield photo, size


def other_size(size: Sequence[int], stated: Sequence[int]) -> str:
    """The fault of an image whose (height, width) differs from its annotations."""
    told = f"{size[1]}x{size[0]}, not {stated[1]}x{stated[0]}"
    exchanged = tuple(size) == tuple(stated)[::-1]
    hint = " (width and height are exchanged, there or by the file's EXIF)" if exchanged else ""
    return f"has another size than its annotations say: {told}{hint}"


def numbers(values: Sequence[Any], what: str) -> list[float]:
    """Convert stored values to numbers; FaultyError if one is not a number."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise FaultyError(f"has a value that is no number in its {what}: {str(values)[:80]}") from None
