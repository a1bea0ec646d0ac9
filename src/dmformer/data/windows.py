"""Positions of sliding windows."""


def starts(length: int, window: int, step: int) -> list[int]:
    """Start positions of windows along a side of `length`, `step` apart; the last window ends at the side's end."""
    return [*range(0, length - window, step), length - window] if length > window else [0]


def default_step(window: int) -> int:
    """Two thirds of a window."""
    return max(window * 2 // 3, 1)
