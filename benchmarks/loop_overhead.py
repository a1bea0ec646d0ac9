"""Overhead of the training loop over a bare forward, backward and step: interleaved in one process.

    python benchmarks/loop_overhead.py

The loop side is everything that `Trainer` does for a step once the batch is read; the bare side runs the same batch
in plain PyTorch with the same optimiser. metrics.csv (wait_share) has the cost of waiting for images.
Ratios are computed per pair of rounds, so that drift of the machine cancels.
"""

import statistics
import tempfile
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from record import record

from dmformer.tasks.recipes import RECIPES
from dmformer.train.loop import Trainer

STEPS, ROUNDS = 10, 9


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        recipe = replace(RECIPES["elpv"](), out=out, name="loop", ema=None, clip_grad=None, tracker="none", workers=0)
        trainer = Trainer(recipe)
        inputs, targets, _ = next(iter(trainer.loader))
        model, optimizer = trainer.bare, trainer.optimizer.optimizer
        smoothing = recipe.label_smoothing

        def loop() -> None:
            for _ in range(STEPS):
                trainer._step(inputs, targets, 0)

        def bare() -> None:
            for _ in range(STEPS):
                batch = inputs.contiguous(memory_format=torch.channels_last)
                F.cross_entropy(model(batch), targets, label_smoothing=smoothing).backward()
                optimizer.step()
                optimizer.zero_grad()

        model.train()
        loop()
        bare()
        ratios, bare_times = [], []
        for i in range(ROUNDS):
            first, second = (loop, bare) if i % 2 else (bare, loop)
            times = {}
            for run in (first, second):
                clock = time.perf_counter()
                run()
                times[run] = time.perf_counter() - clock
            ratios.append(times[loop] / times[bare])
            bare_times.append(times[bare] / STEPS)
    record(
        "loop_overhead",
        [
            {
                "model": recipe.model,
                "image_size": recipe.image_size,
                "batch": recipe.batch_size,
                "bare_ms_per_step": f"{1000 * statistics.median(bare_times):.1f}",
                "ratio_median": f"{statistics.median(ratios):.4f}",
                "ratio_min": f"{min(ratios):.4f}",
                "ratio_max": f"{max(ratios):.4f}",
                "rounds": ROUNDS,
            }
        ],
    )


if __name__ == "__main__":
    main()
