"""Which image a training step sees: it depends only on the seed, the epoch and the image.

The number of worker processes, training processes and interruptions makes no difference.
"""

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..data.decode import BrokenImageError
from ..utils.machine import available_cores

Read = TypeVar("Read")


def once_each(positions: Tensor) -> Tensor:
    """Where each of the positions (N) occurs first, in their order: several processes may have read the same image."""
    order = positions.argsort(stable=True)
    ordered = positions[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


class ShareSampler(Sampler[list[tuple[int, int]]]):
    """Batches of one image in order; process `rank` of `world` takes images rank, rank + world, and so on."""

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.positions = range(rank, length, world)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for position in self.positions:
            yield [(0, position)]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): step k of an epoch has the same images for any number of processes.

    Args:
        length: Number of images in the split.
        batch_size: Images per step and process.
        rank, world: Index of this process, and number of processes.
        seed: Shuffles, together with the epoch; None keeps the order and the last, shorter batch (for evaluation).
        steps: Length of an epoch when training by iterations: epochs then run through an endless series of shuffled
            passes, and the `epoch` of a position is its pass. None is one pass, without an incomplete last batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.length, self.rank, self.world, self.seed, self.steps = length, rank, world, seed, steps
        whole_batches = seed is None or steps is not None
        self.batch_size = batch_size if whole_batches else max(min(batch_size, length // world), 1)
        self._orders: dict[int, np.ndarray] = {}
        self.epoch = 0
        self.start = 0  # first step of the next epoch, to continue after a stop within an epoch

    def __len__(self) -> int:
        if self.steps is not None:
            return self.steps
        whole, rest = divmod(self.length, self.batch_size * self.world)
        return whole + (self.seed is None and rest > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, self.start = self.start, 0
        step = self.batch_size * self.world
        if self.steps is not None:
            for k in range(self.epoch * self.steps + start, (self.epoch + 1) * self.steps):
                first = k * step + self.rank * self.batch_size
                places = (divmod(i, self.length) for i in range(first, first + self.batch_size))
                yield [(number, int(self._order(number)[place])) for number, place in places]
            return
        order = np.arange(self.length) if self.seed is None else self._order(self.epoch)
        for k in range(start, len(self)):
            batch = order[k * step : (k + 1) * step]
            batch = np.concatenate([batch, order[: -len(batch) % self.world]])  # every process gets the same number
            share = len(batch) // self.world
            yield [(self.epoch, int(i)) for i in batch[self.rank * share : (self.rank + 1) * share]]

    def _order(self, number: int) -> np.ndarray:
        """The images of a pass, shuffled."""
        assert self.seed is not None
        if number not in self._orders:  # a batch may extend into the next pass
            self._orders = {number: np.random.default_rng((self.seed, number)).permutation(self.length)} | {
                k: v for k, v in self._orders.items() if k == number - 1
            }
        return self._orders[number]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, all random numbers depend on the key; outside, the random state is unchanged."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also queues a call, with its stack, for the GPU
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def loader_options(workers: int | None, pin_memory: bool) -> dict[str, Any]:
    """Options for a `DataLoader` with this many reader processes; by default one per core, at most 8."""
    workers = min(available_cores(), 8) if workers is None else workers
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        "generator": torch.Generator(),  # so that starting a loader draws nothing from the global generator
        "worker_init_fn": _obey_only_the_main_process,
    }


def _obey_only_the_main_process(_: int) -> None:
    """Ignore the signals by which a terminal, systemd or Slurm asks all processes of a command to stop.

    The main process needs its readers until it has saved. It ends them by SIGTERM, which is obeyed if it comes from it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere SIGTERM ends a reader whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        main_process = multiprocessing.parent_process()
        assert main_process is not None
        threading.Thread(target=_end_with, args=(main_process.pid,), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with(main_process: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)


def next_readable(read: Callable[[int], Read], position: int, count: int, what: str) -> Read:
    """What `read` returns for the first readable of the `count` images after a broken one; `what` is their name in the
    singular.

    Raises:
        BrokenImageError: None can be read.
    """
    for step in range(1, count):
        with suppress(BrokenImageError):
            return read((position + step) % count)
    raise BrokenImageError(f"no {what} of the set can be read")
