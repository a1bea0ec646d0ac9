"""Files and folders that are written whole or not at all, and how a failure to write is told."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` only if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def replace_folder(new: Path, path: Path) -> None:
    """Put the finished folder `new` in the place of `path`; at every moment one of them, or the old one, is there."""
    old = path.with_name(f"{path.name}.old")
    recover_folder(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> bool:
    """Whether `path` is there, after bringing back the old one if a replacement was cut short."""
    old = path.with_name(f"{path.name}.old")
    if not path.exists() and old.exists():
        old.rename(path)
    return path.exists()


@contextmanager
def writing_to(folder: Path, remedy: str = "free some space and go on with --resume") -> Iterator[None]:
    """Tell a failure to write as a mistake that can be mended; what was saved before is still whole."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # torch and safetensors have their own errors for a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be written: {reason}; {remedy}.") from error
