"""Inference on a CPU by parts of a batch, each computed by one thread.

Threads that share the work of one operation wait for each other at its end, hundreds of times a batch: beside other
work, which takes a core from one of them, all wait. Threads that each take images of their own wait once a batch.
Every part pays the calls of all operations anew, so each thread takes one part (benchmarks/cores.py).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


def over_cores(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """model(images) without gradients, for a model that treats every image by itself: (B, ...) -> (B, ...).

    On a CPU with several threads the batch is computed in parts, side by side; elsewhere, and for one image, as a
    whole. The result is the same up to rounding.
    """
    threads = torch.get_num_threads()
    if images.device.type != "cpu" or threads == 1 or len(images) < 2 or torch.is_grad_enabled():
        return model(images)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def part_of(part: Tensor) -> Tensor:  # gradients and autocast are settings of each thread
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return model(part)

    parts = images.chunk(min(len(images), threads))
    return torch.cat(list(_pool(threads).map(part_of, parts)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "over-cores", initializer=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes over what was set last, by any thread, when it first asks
