"""A lock on a folder that one command at a time holds while it writes there."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from .errors import UserError
from .files import writing_to

LOCK = "run.lock"
"""The locked file. It stays in the folder: what counts is the lock, which ends with its process, even by a crash."""

if sys.platform == "win32":
    import msvcrt

    FAR = 2**30
    """Windows lets no other process read a locked byte, so this one is locked, behind the text."""

    def _flock(descriptor: int, hold: bool) -> None:
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK if hold else msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _flock(descriptor: int, hold: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if hold else fcntl.LOCK_UN)


_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _release_in_child() -> None:
    """Let go of the locks in a process that was forked, which would keep them if it outlived its parent."""
    for descriptor in _held:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, also against other machines on a shared file system.

    Raises:
        UserError: Another command holds it, or the folder cannot be written.
    """
    with writing_to(folder, "free some space and try again"):
        file = (folder / LOCK).open("a+", encoding="utf-8")
    with file:
        if not _acquire(file) or not (folder / LOCK).exists():  # or its last holder has removed the folder
            raise UserError(f"{folder} is in use by a running command ({_told(file)}): wait for it, or stop it first.")
        _held.add(file.fileno())
        try:
            with writing_to(folder, "free some space and try again"):
                file.truncate(0)
                file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
                file.flush()
            yield
        finally:
            _held.discard(file.fileno())
            _release(file)


def holder(folder: Path) -> str | None:
    """The host and process that hold the lock of a folder, or None if it is free."""
    try:
        file = (folder / LOCK).open("r+", encoding="utf-8")
    except OSError:
        return None
    with file:
        if not _acquire(file):
            return _told(file)
        _release(file)
        return None


def _acquire(file: TextIO) -> bool:
    """Lock an open file; False if another process holds its lock."""
    for _ in range(3):  # another command may be looking for a moment, as `holder` does
        try:
            _flock(file.fileno(), True)
            return True
        except (BlockingIOError, PermissionError):
            time.sleep(0.1)
        except OSError as error:
            print(
                f"note: {file.name} cannot be locked ({error.strerror}): see that no other command writes there.",
                file=sys.stderr,
            )
            return True
    return False


def _release(file: TextIO) -> None:
    with suppress(OSError):  # a file system without locks
        _flock(file.fileno(), False)


def _told(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "not known which"
