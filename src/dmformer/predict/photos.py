"""The images to predict on, and the paths of the output files."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..data.decode import PLAIN, Reading, decode
from ..data.finding import list_photos, no_remark
from ..data.pages import Pages
from ..utils.files import whole_file

LONGEST = 200
"""Maximum bytes of a name that is given to output: file systems take 255, with suffixes and while it is written."""


def places_in(out: Path, photos: Sequence[str], say: Callable[[str], None] = no_remark) -> Iterator[tuple[str, Path]]:
    """Each image, and the path in `out` that is the prefix of its output files; `say` takes remarks on folders."""
    taken = set()
    for photo in photos:
        for name in list_photos([photo], say):
            relative = Path(name).relative_to(photo) if Path(photo).is_dir() else Path(Path(name).name)
            place = out / ("stdin" if name == "-" else _shortened(relative, relative.stem))
            if place in taken:  # a.jpg and a.png
                place = out / _shortened(relative, relative.name)
            number = 2
            while place in taken:  # the same name from two folders
                place = out / _shortened(relative, relative.name, f"-{number}")
                number += 1
            taken.add(place)
            yield name, place


def _shortened(path: Path, name: str, ending: str = "") -> Path:
    """The path with this name, cut so that file systems accept it with a suffix."""
    encoded = os.fsencode(name)
    return path.with_name((name if len(encoded) <= LONGEST else encoded[:LONGEST].decode(errors="ignore")) + ending)


def suffixed(place: Path, what: str) -> Path:
    return place.with_name(f"{place.name}.{what}.png")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG file atomically."""
    with whole_file(path) as part:
        image.save(part, format="PNG")


Photo = str | Path | IO[bytes] | Image.Image | np.ndarray
"""A photo: its path, an open file, an image, or an array (H, W) or (H, W, 3 or 4)."""


def read(photo: Photo, at_least: int | None = None, reading: Reading = PLAIN) -> Image.Image:
    """Read a photo as 8-bit RGB, see `decode`; an open image, which belongs to the caller, keeps all its pixels."""
    source = str(photo) if isinstance(photo, Path) else photo
    return decode(source, None if isinstance(source, Image.Image) else at_least, reading)


def content_of(name: str, pages: Pages) -> io.BytesIO | str:
    """The argument of `decode` for a file, or for "-"; `pages` remembers it if it holds several pictures."""
    content = io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name
    pages.look("standard input" if name == "-" else name, content)
    return content
