"""--batch-size auto: the largest power of two that fits, by trying on a GPU, by the growth of the memory on a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dmformer.tasks.recipes import read_recipe
from dmformer.train.batch_size import largest_foretold, largest_tried
from dmformer.train.loop import train
from dmformer.utils.errors import UserError
from dmformer.utils.memory import available_memory, peak_memory

MB = 2**20


def test_a_gpu_tries_until_the_memory_is_too_small():
    tried = []

    def step(size):
        tried.append(size)
        if size > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert largest_tried(step, 1000) == 32
    assert tried == [2, 4, 8, 16, 32, 64]
    assert largest_tried(step, 20) == 16
    assert largest_tried(step, 1) == 2

    def broken(size):
        raise RuntimeError("CUDA out of memory." if size else "")

    with pytest.raises(UserError, match="not even two images fit"):
        largest_tried(broken, 1000)

    def other(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_tried(other, 1000)


def test_a_cpu_foretells_from_the_growth():
    tried = []

    def peak(images):
        tried.append(images)
        return (500 + 10 * images) * MB

    # 16 images need 80 MB more than 8, which is visible; 0.7 of 400 + 3600 MB are 2800 MB, of which 230 images fit
    assert largest_foretold(peak, 400 * MB, 3600 * MB, 10_000) == 128
    assert tried == [2, 4, 8, 16]
    assert largest_foretold(peak, 400 * MB, 3600 * MB, 100) == 64
    assert largest_foretold(peak, 400 * MB, 400 * MB, 10_000) == 4
    with pytest.raises(UserError, match="not even two images fit"):
        largest_foretold(peak, 400 * MB, 300 * MB, 10_000)
    assert largest_foretold(lambda images: 500 * MB, 400 * MB, 3600 * MB, 1000) == 512  # no growth to be seen
    assert largest_foretold(peak, 400 * MB, 3600 * MB, 0) == 2


def test_memory_that_is_free_is_less_in_a_container(tmp_path):
    system = available_memory(tmp_path)
    assert system > MB
    for name, text in (
        ("memory.max", f"{100 * MB}\n"),
        ("memory.current", f"{70 * MB}\n"),
        ("memory.stat", f"anon 5\nactive_file {10 * MB}\ninactive_file {15 * MB}\n"),
    ):
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == 55 * MB
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 55 * MB


def test_the_peak_of_a_call_is_seen_after_it():
    def call():
        for _ in range(20):
            np.ones(64 * MB, np.uint8)

    idle = peak_memory(lambda: None)
    assert 40 * MB < peak_memory(call) - idle < 200 * MB


@pytest.mark.slow
def test_a_run_with_the_size_that_fits_equals_one_with_that_number(recipe, monkeypatch, capfd):
    """The steps that are tried leave no trace, and the number is saved."""
    monkeypatch.setattr("dmformer.train.loop.FEWEST_STEPS", 3)
    monkeypatch.setattr("dmformer.train.loop.largest_foretold", lambda peak, held, free, most: peak(4) and most // 2)
    auto = train(replace(recipe, batch_size=32), largest_batch=True)
    assert (
        "--batch-size auto: 4 images per step, the largest power of two that fits into memory" in capfd.readouterr().err
    )
    assert read_recipe(auto.folder / "recipe.yaml").batch_size == 4
    plain = train(replace(recipe, name="plain", batch_size=4))
    a, b = (load_file(run.folder / "last" / "model.safetensors") for run in (auto, plain))
    assert all(torch.equal(a[name], b[name]) for name in a)
