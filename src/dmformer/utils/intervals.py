"""Figures with their confidence intervals."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % confidence interval, all as fractions from 0 to 1."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int) -> Score:
    """Wilson's 95 % interval of a proportion."""
    z, p = 1.959964, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Score(p, max(centre - half, 0.0), min(centre + half, 1.0))
