"""Measures of scores, defined once for the command and the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.intervals import Score


@dataclass(frozen=True)
class Measure:
    """One measure of a model's scores.

    Attributes:
        name: Its name in the command's output; empty for the report only.
        title, meaning: Its title and explanation in the report.
        figure: A fraction from 0 to 1, with its interval if it has one, or text; None if it does not apply.
    """

    name: str
    title: str
    figure: Score | float | str | None
    meaning: str


def lines_of(measures: Sequence[Measure]) -> list[tuple[str, Score | float | str | None]]:
    """Measures in the form that `figure_lines` takes."""
    return [(m.name, m.figure) for m in measures if m.name]
