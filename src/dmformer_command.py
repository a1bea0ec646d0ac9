"""Front door of the `dmformer` command.

Importing `dmformer` registers its models with timm, which takes seconds. The command answers help and mistakes in the
arguments before that: the package skips the registration while this module is loaded, and does it when it is needed.
"""

import contextlib
import ctypes
import os


def main() -> None:
    """Run the command with the arguments of the process."""
    keep_memory()
    from dmformer.cli import main

    main()


def keep_memory() -> None:
    """Have the C library keep freed memory, and PyTorch ask for large pages: Linux with glibc.

    Else every large tensor comes page by page from the kernel, anew at each step, which takes a tenth of a training
    step on a CPU and more. What the environment says goes first.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # another C library, or none to be had
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: below this, freed memory is used again
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much of it may lie idle
