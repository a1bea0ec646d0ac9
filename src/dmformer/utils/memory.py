"""Memory of a command on a CPU: how much it holds, and giving back what it has freed."""

import ctypes

import psutil


def memory_of_processes() -> int:
    """Bytes held by this process and its readers, pages that they share counted once (where the system tells)."""
    process = psutil.Process()
    total = 0
    for p in (process, *process.children()):
        try:
            memory = p.memory_full_info()
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
