"""The memory of a command: shared pages once, freed pages given back."""

import os

import psutil
import pytest

from dmformer.utils.memory import memory_of_processes, return_freed_memory

MB = 2**20


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="needs Linux's figures")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12's, about threads and fork
def test_a_reader_that_shares_its_pages_adds_little() -> None:
    held = bytearray(os.urandom(64 * MB))
    before = memory_of_processes()
    assert before > 64 * MB
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(len(held) % 2)
    try:
        assert memory_of_processes() - before < 32 * MB
        assert psutil.Process(child).memory_info().rss > 64 * MB
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    pieces = [bytes(100_000) for _ in range(1000)]  # below malloc's threshold for maps of their own
    keep = pieces[::100]
    before = psutil.Process().memory_info().rss
    del pieces
    return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 50 * MB
    assert len(keep) == 10
