"""Progress while a command runs: a bar on a terminal, a line every half minute in a log.

rich is imported only when something is shown, so that other commands start faster.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


LOG_SECONDS = 30.0
"""Seconds between two lines of progress in a log."""

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps items and says in a few words what is done with them, to show how far it has got: `track`."""


@cache
def console() -> "Console":
    """The console for progress and remarks, on standard error; results go to standard output."""
    from rich.console import Console

    return Console(stderr=True)


class LogLines:
    """Lines of progress for output that is not a terminal, `LOG_SECONDS` apart, the first after as long."""

    def __init__(self) -> None:
        self.begun: tuple[float, int] | None = None
        self.last = 0.0

    def step(self, description: str, done: int, total: int | None, figures: str = "") -> None:
        """Print a line if it is time for one."""
        now = time.monotonic()
        if self.begun is None:
            self.begun, self.last = (now, done), now
            return
        if now - self.last < LOG_SECONDS:
            return
        self.last = now
        parts = [f"{description}: {done:,}" + (f" of {total:,}" if total else ""), figures]
        if total and done > self.begun[1]:
            seconds = (now - self.begun[0]) / (done - self.begun[1]) * (total - done)
            parts.append(f"{duration(seconds)} left")
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class Display:
    """A progress bar over a run's iterations, with the latest figures beside it.

    Args:
        enabled: False on every process except the first.
    """

    def __init__(self, enabled: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.enabled = enabled
        self.lines = None if console().is_terminal or not enabled else LogLines()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console(),
            disable=not enabled or not console().is_terminal,
            transient=True,
        )

    def __enter__(self) -> "Display":
        self.bar.start()
        self.task = self.bar.add_task("", total=None, figures="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a remark above the bar."""
        if self.enabled:
            self.bar.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def step(self, description: str, done: int, total: int, figures: str) -> None:
        """Advance the bar to `done` of `total`, or print a line in a log if it is time for one."""
        if self.lines is not None:
            self.lines.step(description, done, total, figures)
        self.bar.update(self.task, description=description, completed=done, total=total, figures=figures)


def untracked(items: Iterable[Any], what: str) -> Iterable[Any]:
    """The items, without showing anything: a `Track`."""
    return items


def track(items: Iterable[Any], description: str, enabled: bool = True) -> Iterator[Any]:
    """Iterate with a progress bar, or lines in a log; silent if not enabled, for a single item, and in all but the
    first of several processes."""
    total = len(items) if isinstance(items, Sized) else None
    if not enabled or total == 1 or os.environ.get("RANK", "0") != "0":
        yield from items
    elif sys.stderr.isatty():
        from rich.progress import Progress

        with Progress(console=console(), transient=True) as bar:
            yield from bar.track(items, total=total, description=description)
    else:
        lines = LogLines()
        for done, item in enumerate(items):
            lines.step(description, done, total)
            yield item
