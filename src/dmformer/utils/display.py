"""Progress on the terminal while a command runs; on a pipe, one line per epoch.

rich is imported only when something is shown, so that other commands start faster.
"""

import sys
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    """The console for progress and remarks, on standard error; results go to standard output."""
    from rich.console import Console

    return Console(stderr=True)


class Display:
    """A progress bar over a run's iterations, with the latest figures beside it.

    Args:
        enabled: False on every process except the first.
    """

    def __init__(self, enabled: bool = True) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.enabled = enabled
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
        """Advance the bar to `done` of `total`."""
        self.bar.update(self.task, description=description, completed=done, total=total, figures=figures)


def track(items: Iterable[Any], description: str, enabled: bool = True) -> Iterator[Any]:
    """Iterate with a progress bar on a terminal; silent elsewhere, if not enabled, and for a single item."""
    total = len(items) if isinstance(items, Sized) else None
    if not enabled or total == 1 or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import Progress

    with Progress(console=console(), transient=True) as bar:
        yield from bar.track(items, total=total, description=description)
