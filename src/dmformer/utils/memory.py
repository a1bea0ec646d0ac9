"""Memory of a command on a CPU: how much it holds and may still take, and giving back what it has freed."""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

SAMPLED = 0.005
"""Seconds between two looks at the memory."""


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: what the system has free, or less in a container with a limit (Linux).

    Args:
        group: Where the system shows the limit; files that it has cached do not count.
    """
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(cached["active_file"]) + int(cached["inactive_file"])
    except (OSError, ValueError, KeyError):  # another system, or "max": no limit
        return free
    return min(free, max(limit - used, 0))


def peak_memory(call: Callable[[], None]) -> int:
    """The most bytes that this process holds during a call."""
    process, done = psutil.Process(), threading.Event()
    peak = process.memory_info().rss

    def look() -> None:
        nonlocal peak
        while not done.wait(SAMPLED):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return peak


def memory_of_processes() -> int:
    """Bytes held by this process and its readers, pages that they share counted once (where the system tells).

    Other training processes that this one has started are not its readers: they count themselves.
    """
    total = 0
    for number in (os.getpid(), *(reader.pid for reader in multiprocessing.active_children())):
        try:
            memory = psutil.Process(number).memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except psutil.Error:
            continue
    return total


def return_freed_memory() -> None:
    """Give freed memory back to the system, which glibc keeps: readers forked afterwards would share it, and every
    page that this process writes again would then exist twice (1 GB a reader after an epoch at 160 px)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return
