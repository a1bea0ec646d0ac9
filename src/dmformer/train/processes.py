"""Training on a CPU with several processes of this machine, which the command itself starts.

Each process takes an equal part of a step's images and of the threads. A process with one thread waits for the others
once per step. Several threads in one process wait for each other after every small operation: that costs a third of
two cores and, with other work on the machine, most of them (docs/performance.md).

Not for programs that import dmformer: there, whoever starts the program starts the processes, as torchrun does.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import torch

from ..tasks.recipe import Recipe
from ..utils.device import find_device
from ..utils.errors import UserError
from .loop import LOST

IMAGES_PER_PROCESS = 16
"""By default, minimum images of a step per process: BatchNorm's statistics are taken over them."""

PATIENCE = 10
"""Seconds that the other processes have to exit by themselves after the first has exited."""


def number_of_processes(recipe: Recipe) -> int | None:
    """How many processes `dmformer train` should use; None under torchrun and the like, which started them already."""
    if recipe.processes is not None:
        return recipe.processes
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return None
    if recipe.resume or find_device(recipe.device).type != "cpu":
        return 1
    most = min(recipe.threads or torch.get_num_threads(), recipe.batch_size // IMAGES_PER_PROCESS)
    return next((n for n in range(most, 1, -1) if recipe.batch_size % (2 * n) == 0), 1)  # mixup takes images in pairs


@contextmanager
def together(recipe: Recipe, arguments: Sequence[str]) -> Iterator[int | None]:
    """Inside, be the first of the recipe's processes of `dmformer train ARGUMENTS`; starts and ends the others.

    Yields:
        The number of threads of all processes together; None if there is only this one.

    Raises:
        UserError: Another process has failed; carries that process's message.
    """
    number = recipe.processes or 1
    if number == 1 or "RANK" in os.environ:
        yield None
        return
    before_threads = torch.get_num_threads()
    all_threads = recipe.threads or before_threads
    threads = max(1, all_threads // number)
    shared = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(threads),
    }
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", "dmformer", "train", *arguments, "--processes", str(number)]
    before, patience = dict(os.environ), 1
    with ExitStack() as files:
        others: list[tuple[subprocess.Popen, IO[bytes]]] = []
        try:
            for rank in range(1, number):
                said = files.enter_context(tempfile.TemporaryFile())
                environment = {**before, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # A session of its own: Ctrl-C reaches only the first process, and the others agree with it after the
                # step.
                options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True, "env": environment}
                others.append((subprocess.Popen(command, stdout=said, stderr=said, **options), said))
            os.environ.update(shared, RANK="0", LOCAL_RANK="0")
            torch.set_num_threads(threads)
            yield all_threads
            patience = PATIENCE
        except RuntimeError as error:  # also raised by a connection whose other end has exited
            _end(others, PATIENCE)
            if reason := _reason(others):
                raise UserError(reason) from error
            raise
        finally:
            os.environ.clear()
            os.environ.update(before)
            torch.set_num_threads(before_threads)
            _end(others, patience)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(others: Sequence[tuple[subprocess.Popen, IO[bytes]]], patience: int) -> None:
    """End the processes that have not exited by themselves after `patience` seconds."""
    for process, _ in others:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(others: Sequence[tuple[subprocess.Popen, IO[bytes]]]) -> str:
    """The last message of a process that failed by itself, not because another one did."""
    for process, said in others:
        if process.returncode > 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            if lines and LOST not in lines[-1]:
                return lines[-1].removeprefix("dmformer: ")
    return ""
