"""Files that hold several pictures, of which the first is read: animations, and TIFFs of several pages."""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import IO

from .decode import open_image, pages_of

MOST = 1000
"""Pages of an upload that are counted, because a small file can hold any number."""
NAMED = 3
"""Files that are named."""


class Pages:
    """The files with several pictures among those that a command reads."""

    def __init__(self) -> None:
        self._several: list[tuple[str, int]] = []

    def look(self, name: str, content: IO[bytes] | str) -> None:
        """Remember a file, given by its path or as an open file, if it holds several pictures."""
        try:
            if isinstance(content, str):
                with open(content, "rb") as file:
                    count = pages_of(open_image(file))
            else:
                count = pages_of(open_image(content))
                content.seek(0)
        except Exception:  # a damaged file is told when it is read
            return
        if count > 1:
            self._several.append((name, count))

    def notes(self) -> list[str]:
        """A remark for the user; none if every file holds one picture."""
        return pages_note(self._several)


def several_pages(count: int, name: Callable[[int], str], opened: Callable[[int], IO[bytes]]) -> list[str]:
    """A remark on those of some files, named and opened by their number, that hold several pictures."""
    pages = Pages()
    for i in range(count):
        with contextlib.suppress(OSError), opened(i) as file:
            pages.look(name(i), file)
    return pages.notes()


def pages_note(several: Sequence[tuple[str, int]]) -> list[str]:
    """A remark on files with several pictures, given by name with their number."""
    if not several:
        return []
    named = ", ".join(f"{name}: {count}" for name, count in several[:NAMED])
    more = ", …" if len(several) > NAMED else ""
    return [f"files with several frames or pages, of which the first is read: {len(several):,} ({named}{more})"]


def pages_in(content: bytes) -> int:
    """Number of pictures in the content of a file that can be read; `MOST` pages of a TIFF at most."""
    return pages_of(open_image(io.BytesIO(content)), MOST)
