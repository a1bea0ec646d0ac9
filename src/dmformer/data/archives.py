"""Files in a folder, a tar or a zip, by name: one way to list and to open them."""

import atexit
import bz2
import contextlib
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from ..utils.errors import UserError, first_line
from .finding import walk

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""Suffixes of archives that are read like folders."""


ZIP, ZSTANDARD = b"PK\x03\x04", b"\x28\xb5\x2f\xfd"
"""How files begin."""
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
"""What reading a damaged archive raises, beside OSError."""
LARGEST = 2**30
"""Maximum size of a file in a zip in bytes: a few kilobytes can unpack to any size."""


class Files(Protocol):
    """Files by their names, which are paths with "/" below `path`."""

    path: Path

    def names(self) -> list[str]: ...

    def open(self, name: str) -> IO[bytes]: ...


class FolderFiles:
    """The files below a folder; linked folders are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return list(walk(self.path))

    def open(self, name: str) -> IO[bytes]:
        return open(self.path / name, "rb")


class TarFiles:
    """The files in a tar; tars inside it count as folders, links as the files that they name.

    A compressed tar is first uncompressed into a temporary file, because photos are read in any order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plain = plain_tar(path)
        with tarfile.open(self._plain, "r:") as tar:
            self._places = dict(_tar_places(tar))

    def names(self) -> list[str]:
        return list(self._places)

    def open(self, name: str) -> IO[bytes]:
        start, size = self._places[name]
        with open(self._plain, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


class ZipFiles:
    """The files in a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        with zipfile.ZipFile(path) as archive:
            self._members = {_zip_name(member): member for member in archive.infolist() if not member.is_dir()}
        if any(member.flag_bits & 1 for member in self._members.values()):
            raise UserError(f"{path} is encrypted: unpack it, and give the folder.")

    def names(self) -> list[str]:
        return list(self._members)

    def open(self, name: str) -> IO[bytes]:
        member = self._members[name]
        if member.file_size > LARGEST:
            raise OSError(f"uncompressed, it has {member.file_size / 1e9:.1f} GB")
        try:
            return io.BytesIO(self._archive().read(member))
        except (*DAMAGED, NotImplementedError) as error:
            raise OSError(first_line(error)) from None

    def _archive(self) -> zipfile.ZipFile:
        """The zip, opened once in each process: processes that share an open file move each other's position."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __del__(self) -> None:
        if getattr(self, "_opened", None):
            self._archive().close()


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive that can be read."""
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def open_files(path: Path) -> Files:
    """The files of a folder or of an archive.

    Raises:
        UserError: The archive is damaged.
    """
    if path.is_dir():
        return FolderFiles(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start == ZSTANDARD:
        raise UserError(f"{path} is compressed with Zstandard: unpack it, and give the folder.")
    kind = ZipFiles if path.name.lower().endswith(".zip") or start == ZIP else TarFiles
    try:
        return kind(path)
    except (*DAMAGED, OSError) as error:
        name = "zip" if kind is ZipFiles else "tar"
        raise UserError(
            f"{path} cannot be read as a {name}, it may be damaged or incomplete: {first_line(error)}."
        ) from None


def plain_tar(path: Path) -> Path:
    """A tar itself, or its uncompressed copy in a temporary folder that is removed at the end of the process."""
    with open(path, "rb") as file:
        opener = _decompressor(file.read(6))
    return path if opener is None else _uncompressed(path, path.stat().st_mtime_ns, opener)


@cache
def _uncompressed(path: Path, modified: int, opener: Any) -> Path:
    """The copy is kept for as long as the file, last modified at that time, stays the same."""
    folder = tempfile.mkdtemp(prefix="dmformer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    plain = Path(folder) / "photos.tar"
    with opener(path, "rb") as packed, open(plain, "wb") as file:
        shutil.copyfileobj(packed, file, 2**20)
    return plain


def _decompressor(start: bytes) -> Any:
    """What opens a file that starts with these bytes; None if it is not compressed."""
    packed = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    return next((opener for magic, opener in packed.items() if start.startswith(magic)), None)


def _tar_places(tar: tarfile.TarFile, above: str = "", offset: int = 0) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names of the files in a tar and in the tars inside it, with their position and size in the outermost one."""
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    for member in tar:
        name = _clean(member.name)
        if member.isfile() and name.lower().endswith(".tar"):
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                yield from _tar_places(inner, f"{above}{name[:-4]}/", offset + member.offset_data)
        elif member.isreg():
            places[name] = offset + member.offset_data, member.size
        elif member.islnk():
            links[name] = _clean(member.linkname)
        elif member.issym():
            links[name] = _clean(os.path.normpath(PurePosixPath(name).parent / member.linkname))
    for name, target in links.items():
        if target in places:
            places[name] = places[target]
    for name, place in places.items():
        yield above + name, place


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name; some programs write UTF-8 without saying so, or Windows' separators."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return _clean(name)


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").lstrip("/")
