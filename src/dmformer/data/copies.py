"""Find photos that occur twice: the same pixels, or nearly the same."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..utils.machine import available_cores
from .decode import BrokenImageError, decode, open_image, pages_of
from .values import is_deep

Progress = Callable[[Iterable], Iterable]

Opened = Callable[[int], IO[bytes]]
"""Opens the file of a photo by its number."""

MANY = 100_000
"""Sets of more photos are not compared: it would take minutes to open every file."""
DECODED = 400_000_000
"""Pixels that are decoded at most to compare photos of the same size; of more, those whose files end alike."""
ROUGH = 4
"""How many times faster a JPEG is decoded at an eighth of its size."""
END = 4096
"""Bytes at the end of a file: compressed pixels, which do not change when the description at its start does."""
NEAR_BITS, SIDE = 12, 16
"""Maximum number of different bits of near-duplicates, of SIDE * SIDE."""
POPCOUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)
"""Number of set bits of each byte."""
NEAR_GREY = 10
"""Maximum mean difference of the grey values of near-duplicates, 0 to 255."""
FLAT = 24
"""Photos whose grey values differ less than this are all alike to a perceptual hash."""


class Look(NamedTuple):
    """What a photo's file tells without decoding it: width and height in pixels, as stored; its format and mode in
    Pillow's words, whether it has more than 8 bits, and how many pictures it holds; the length of the file in bytes and
    a hash of its end."""

    width: int
    height: int
    format: str | None
    mode: str
    deep: bool
    pages: int
    length: int
    end: bytes

    @property
    def sides(self) -> tuple[int, int]:
        """The shorter side and the longer one."""
        return min(self.width, self.height), max(self.width, self.height)

    @property
    def pixels(self) -> int:
        return self.width * self.height


def look_at(count: int, opened: Opened, progress: Progress = iter) -> list[Look | None]:
    """A look at each of the photos that `opened` opens by their number; None for those that cannot be read.

    `progress` wraps a sequence of as many items, to show how far it has got.
    """
    return [_look(i, opened) for i in progress(range(count))]


def same_photos(
    count: int, opened: Opened, looked: Sequence[Look | None] | None = None, wanted: Container[int] | None = None
) -> list[list[int]]:
    """Groups of photos with the same pixels, each group and all groups in order of their numbers.

    Only photos of the same size in pixels are compared. Equal files are found by a hash of their bytes. Others are
    decoded, JPEGs among themselves at an eighth of their size first, as long as there is no more than `DECODED` to
    decode; of more, only those whose files end with the same bytes are decoded, which finds copies with another
    description but not copies in another format.

    Args:
        count: Number of photos.
        opened: Opens the file of a photo by its number. Files that cannot be read are ignored.
        looked: What `look_at` has found, if it was called before.
        wanted: Numbers of photos, if only their copies are looked for.
    """
    looks = {i: look for i, look in enumerate(looked or look_at(count, opened)) if look is not None}
    groups = _Groups()
    firsts: list[list[int]] = []  # photos of the same size whose files differ
    for alike in _by_key(list(looks), lambda i: looks[i].sides):
        if wanted is not None and not any(i in wanted for i in alike):
            continue
        files = _by_key(alike, lambda i: (looks[i].length, looks[i].end), lambda i: _bytes_hash(i, opened))
        groups.join(files)
        if len(files) > 1:
            firsts.append([file[0] for file in files])
    roughly = [all(looks[i].format == "JPEG" for i in alike) for alike in firsts]
    cost = sum(len(a) * looks[a[0]].pixels // (ROUGH if r else 1) for a, r in zip(firsts, roughly, strict=True))
    if cost > DECODED:
        candidates = [same for alike in firsts for same in _by_key(alike, lambda i: looks[i].end)]
    else:
        jpegs = [i for alike, rough in zip(firsts, roughly, strict=True) if rough for i in alike]
        rough_hashes = _hashed(jpegs, lambda i: _rough_hash(i, opened))
        candidates = [same for alike in firsts for same in _by_key(alike, rough_hashes.get)]
    candidates = [alike for alike in candidates if len(alike) > 1]
    hashes = _hashed([i for alike in candidates for i in alike], lambda i: _pixels_hash(i, opened))
    for alike in candidates:
        groups.join(_by_key([i for i in alike if hashes[i] is not None], hashes.get))
    return groups.listed()


def _hashed(numbers: Sequence[int], hashed: Callable[[int], bytes | None]) -> dict[int, bytes | None]:
    """Hashes by number, computed on all cores."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(numbers, pool.map(hashed, numbers), strict=True))


def near_photos(count: int, opened: Opened, progress: Progress = iter) -> list[list[int]]:
    """Groups of photos that look alike: resized, compressed again, or a frame later.

    Compared at 17 x 16 pixels in grey: whether each pixel is brighter than its left neighbour (a difference hash of 256
    bits, of which `NEAR_BITS` may differ), and the grey values themselves. Every photo is decoded.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        futures = [pool.submit(_small_grey, i, opened) for i in range(count)]
        found = [future.result() for future in progress(futures)]
    numbers = np.array([i for i, each in enumerate(found) if each is not None])
    groups = _Groups()
    if len(numbers):
        greys = np.stack([each for each in found if each is not None]).astype(np.int16)
        hashes = np.packbits((greys[:, :, 1:] > greys[:, :, :-1]).reshape(len(greys), -1), axis=1)
        for row in range(len(hashes) - 1):
            later = row + 1 + np.flatnonzero(POPCOUNT[hashes[row + 1 :] ^ hashes[row]].sum(1) <= NEAR_BITS)
            near = later[np.abs(greys[later] - greys[row]).mean((1, 2)) <= NEAR_GREY]
            groups.join([numbers[[row, *near]].tolist()])
    return groups.listed()


def pixels_hash(image: Image.Image) -> bytes:
    """Hash of an image's size and pixels, upright; the same for all lossless formats."""
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("I", "F", "RGBA") and not image.mode.startswith("I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return _hash(f"{image.mode} {image.size}".encode() + image.tobytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


class _Groups:
    """Numbers joined into groups."""

    def __init__(self) -> None:
        self._of: dict[int, list[int]] = {}

    def join(self, lists: Iterable[Sequence[int]]) -> None:
        for numbers in lists:
            merged = sorted({other for i in numbers for other in self._of.get(i, [i])})
            for i in merged if len(merged) > 1 else ():
                self._of[i] = merged

    def listed(self) -> list[list[int]]:
        return [group for i, group in sorted(self._of.items()) if group[0] == i]


def _by_key(numbers: Sequence[int], *keys: Callable[[int], Hashable]) -> list[list[int]]:
    """Numbers in groups with equal keys; a later, slower key is computed only where the earlier ones are equal."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i in numbers:
        groups[keys[0](i)].append(i)
    if len(keys) == 1:
        return list(groups.values())
    return [part for group in groups.values() for part in (_by_key(group, *keys[1:]) if len(group) > 1 else [group])]


def _look(i: int, opened: Opened) -> Look | None:
    try:
        with opened(i) as file:
            image = open_image(file)
            deep, pages, (width, height) = is_deep(image), pages_of(image), image.size
            length = file.seek(0, 2)
            file.seek(max(length - END, 0))
            return Look(width, height, image.format, image.mode, deep, pages, length, _hash(file.read()))
    except Exception:  # it is told when it is read
        return None


def _bytes_hash(i: int, opened: Opened) -> bytes | None:
    try:
        with opened(i) as file:
            return _hash(file.read())
    except OSError:
        return None


def _rough_hash(i: int, opened: Opened) -> bytes | None:
    """Hash of a JPEG at an eighth of its size, in grey."""
    try:
        with opened(i) as file:
            image: Any = open_image(file)
            image.draft("L", (image.width // 8, image.height // 8))
            return _hash(image.tobytes())
    except Exception:  # it is told when it is read
        return None


def _pixels_hash(i: int, opened: Opened) -> bytes | None:
    try:
        with opened(i) as file:
            return pixels_hash(open_image(file))
    except Exception:  # it is told when it is read
        return None


def _small_grey(i: int, opened: Opened) -> np.ndarray | None:
    """A photo in grey at (16, 17) pixels, uint8; None if it is damaged or flat."""
    try:
        with opened(i) as file:
            small = decode(file, at_least=4 * SIDE).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except (BrokenImageError, OSError):
        return None
    grey = np.asarray(small)
    return grey if int(grey.max()) - int(grey.min()) >= FLAT else None
