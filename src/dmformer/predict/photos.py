"""Which photos are meant, and where what is made of them goes."""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..data.decode import list_photos
from ..utils.files import whole_file


def places_in(out: Path, photos: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Each photo, and the path in `out` that its pictures' names begin with."""
    taken = set()
    for photo in photos:
        for name in list_photos([photo]):
            relative = Path(name).relative_to(photo) if Path(photo).is_dir() else Path(Path(name).name)
            place = out / ("stdin" if name == "-" else relative.with_suffix(""))
            if place in taken:  # a.jpg and a.png
                place = out / relative
            number = 2
            while place in taken:  # the same name from two folders
                place, number = out / relative.with_name(f"{relative.name}-{number}"), number + 1
            taken.add(place)
            yield name, place


def suffixed(place: Path, what: str) -> Path:
    return place.with_name(f"{place.name}.{what}.png")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with whole_file(path) as part:
        image.save(part, format="PNG")


def content_of(name: str) -> io.BytesIO | str:
    """What `decode` takes for a file, or for "-"."""
    return io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name
