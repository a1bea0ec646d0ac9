"""Atomic writing of files and folders, reading of text, and reporting of errors on the way."""

import codecs
import difflib
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` to write to; it replaces `path` only on success."""
    part = path.with_name(f".{path.name[:50]}.{zlib.crc32(os.fsencode(path.name)):x}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; bytes of file names that are not UTF-8 become question marks."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")


def read_text(path: Path) -> str:
    """The text of a file that the user made, with "\n" at the ends of lines: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UserError: It cannot be read, or is in another encoding, which nothing in the file tells.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not encoded as UTF-8 (line {line}): save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{path} is no text, or not encoded as UTF-8: it holds zero bytes.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def replace_folder(new: Path, path: Path) -> None:
    """Replace `path` by the finished folder `new`; at every moment the old or the new folder exists."""
    old = path.with_name(f"{path.name}.old")
    recover_folder(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` to write to; it replaces `path` only on success.

    Raises:
        UserError: It cannot be written, as on a full disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing_to(path, "free some space, or choose another folder"):
            part.mkdir(parents=True)
            yield part
            replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def recover_folder(path: Path) -> bool:
    """Whether `path` exists, after restoring the old folder if a replacement was interrupted."""
    old = path.with_name(f"{path.name}.old")
    if not path.exists() and old.exists():
        old.rename(path)
    return path.exists()


@contextmanager
def writing_to(folder: Path, remedy: str = "free some space and continue with --resume") -> Iterator[None]:
    """Report a write error as a UserError that says how to fix it; earlier files stay intact."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # torch and safetensors raise their own errors for a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be written: {reason}; {remedy}.") from error


def check_path(path: str) -> None:
    """Raise UserError, with the nearest name, for a file or a folder that is not there."""
    if not Path(path).exists():
        near = difflib.get_close_matches(
            Path(path).name, [p.name for p in Path(path).parent.glob("*")] if Path(path).parent.is_dir() else [], n=1
        )
        hint = f"; did you mean {Path(path).parent / near[0]}?" if near else "."
        raise UserError(f"{path} does not exist{hint}")
