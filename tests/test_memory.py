"""The memory of a command: shared pages once, freed pages given back."""

import multiprocessing
import os
import subprocess
import sys

import psutil
import pytest

from dmformer.utils.memory import memory_of_processes, return_freed_memory

MB = 2**20


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="needs Linux's figures")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12's, about threads and fork
def test_a_reader_that_shares_its_pages_adds_little() -> None:
    held = bytearray(os.urandom(64 * MB))
    before = memory_of_processes()
    assert before > 64 * MB
    fork = multiprocessing.get_context("fork")
    end = fork.Event()
    child = fork.Process(target=lambda: (end.wait(), len(held)))
    child.start()
    try:
        assert memory_of_processes() - before < 32 * MB
        assert psutil.Process(child.pid).memory_info().rss > 64 * MB
    finally:
        end.set()
        child.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_readers_count_but_not_other_commands() -> None:
    before = memory_of_processes()
    hold = f"held = bytearray({64 * MB}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert memory_of_processes() - before < 32 * MB
        other.communicate(b"\n")
    fork = multiprocessing.get_context("fork")
    held, end = fork.Event(), fork.Event()

    def read() -> None:
        data = os.urandom(64 * MB)
        held.set()
        end.wait()
        assert data

    reader = fork.Process(target=read)
    reader.start()
    try:
        held.wait()
        assert memory_of_processes() - before > 48 * MB
    finally:
        end.set()
        reader.join()


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    pieces = [bytes(100_000) for _ in range(1000)]  # below malloc's threshold for maps of their own
    keep = pieces[::100]
    before = psutil.Process().memory_info().rss
    del pieces
    return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 50 * MB
    assert len(keep) == 10
