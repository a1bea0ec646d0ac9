"""The largest batch size that fits into memory, for --batch-size auto. Pure functions of how a step is tried."""

from collections.abc import Callable

from accelerate.utils.memory import should_reduce_batch_size

from ..utils.errors import UserError

SMALLEST = 2
"""Images: BatchNorm needs two values, and mixup takes pairs."""
FEWEST_STEPS = 8
"""Minimum steps per epoch: with fewer weight updates, a model learns little in an epoch (a reconstruction)."""
VISIBLE = 64 * 2**20
"""Growth of the memory in bytes, from one size to the next, from which larger sizes can be foretold."""
USED = 0.7
"""Fraction of the memory that a step may use: the rest is for the processes that read images, and for validation."""


def largest_tried(step: Callable[[int], object], most: int) -> int:
    """The largest power of two up to `most` whose step does not run out of memory: on a GPU.

    Args:
        step: Runs a step with so many images, and raises PyTorch's error if the memory is too small.

    Raises:
        UserError: Two images do not fit.
    """
    size = SMALLEST
    while True:
        try:
            step(size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if size == SMALLEST:
                raise _too_large() from None
            return size // 2
        if 2 * size > most:
            return size
        size *= 2


def largest_foretold(peak: Callable[[int], float], held: float, free: float, most: int) -> int:
    """The largest power of two up to `most` whose step fits into memory by the growth of smaller ones: on a CPU.

    Running out of memory there would end the process or stop the machine. Sizes are doubled until the memory grows
    visibly; from there it is taken to grow in proportion.

    Args:
        peak: Maps a number of images to the bytes held at the peak of a step.
        held, free: Bytes held before, and bytes that can still be taken.

    Raises:
        UserError: Two images do not fit.
    """
    limit, size, before = USED * (held + free), SMALLEST, peak(SMALLEST)
    now = before
    while 2 * size <= most and now - before < VISIBLE:
        size *= 2
        before, now = now, peak(size)
    per_image = max(now - before, 0.0) / (size / 2)
    without_images = now - per_image * size
    if without_images + per_image * SMALLEST > limit:
        raise _too_large()
    fitting = SMALLEST
    while 2 * fitting <= most and without_images + per_image * 2 * fitting <= limit:
        fitting *= 2
    return fitting


def _too_large() -> UserError:
    return UserError(
        "--batch-size auto: not even two images fit into memory; give a smaller --image-size or --model, or "
        "--grad-checkpointing."
    )
