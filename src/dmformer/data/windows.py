"""Where sliding windows begin."""


def starts(length: int, window: int, step: int) -> list[int]:
    """First pixels of the windows along a side of `length`, `step` apart, the last of them ending with the side."""
    return [*range(0, length - window, step), length - window] if length > window else [0]


def default_step(window: int) -> int:
    """Two thirds of a window."""
    return max(window * 2 // 3, 1)
