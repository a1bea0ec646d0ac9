"""What commands that work in a folder for hours, and go on with --resume, do alike."""

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import UserError
from ..utils.lock import LOCK


def prepare_folder(out: Path, state: str, what: str, overwrite: bool) -> None:
    """Raise UserError if something is in the way; delete an earlier piece of work, `what`, with `overwrite`.

    Args:
        state: The file by which such work is recognised.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder.")
    if not out.is_dir() or all(path.name == LOCK for path in out.iterdir()):
        return
    if not (out / state).is_file():
        raise UserError(f"--out {out} holds other files: give a new folder.")
    if not overwrite:
        raise UserError(f"{out} holds a {what} already: go on with --resume, give another --out, or --overwrite.")
    shutil.rmtree(out / "trials", ignore_errors=True)
    (out / state).unlink()


@contextmanager
def resumable(command: str, out: str) -> Iterator[None]:
    """After SIGTERM or Ctrl-C, say how the command goes on, and exit."""
    from ..train.loop import Stopped

    try:
        yield
    except (Stopped, KeyboardInterrupt) as stopped:
        again = shlex.join(["dmformer", command, "--resume", "--out", out])
        print(f"dmformer: stopped, everything is saved; go on with: {again}", file=sys.stderr)
        raise SystemExit(128 + getattr(stopped, "number", signal.SIGINT)) from None
