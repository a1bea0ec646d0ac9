"""Kill a training run at random moments and resume it, again and again: nothing is lost, and the weights are the same.

    python benchmarks/kills.py --kills 50

A small model is trained once undisturbed. Then the same run is started, ended by SIGKILL (as by a power cut) or SIGTERM
(as by a batch system) after a random time, and resumed, until it finishes; further such runs follow until there were
enough kills. Every run must finish with the weights of the undisturbed one, bit for bit. results/kills.csv has a row
for each kill: the signal, when it came, how far the run had got, what the kill met, and whether the final weights of
its run were equal. A kill met training if the run had saved a further state since it was last started.

Each start is a fork of one process that has imported everything, so that most kills meet a run that trains or saves.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from performance_tables import table
from PIL import Image
from record import record, replace_tables
from record import rows as recorded
from safetensors.torch import load_file

from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.progress import Progress
from dmformer.train.loop import Stopped, train

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def tiny_run(folder: Path) -> ClassificationRecipe:
    """A recipe of a few seconds, with everything that a resumed run must restore, on photos drawn into the folder."""
    generator = np.random.default_rng(0)
    for name, colour in {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 210)}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(16):
            photo = np.array(colour) + generator.normal(0, 30, (40, 48, 3))
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / "photos" / name / f"{i}.png")
    return ClassificationRecipe(
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        data=str(folder / "photos"),
        image_size=32,
        epochs=3,
        batch_size=8,
        save_every=1,
        lr=2e-3,
        lr_batch=8,
        drop_path_rate=0.1,
        mixup=0.2,
        ema=0.9,
        workers=0,
        tracker="none",
        out=str(folder / "runs"),
    )


def started(recipe: ClassificationRecipe, log: Path) -> int:
    """Train in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException), log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            train(recipe)
            code = 0
        except Stopped:
            code = 3
    os._exit(code)


def interrupted(
    recipe: ClassificationRecipe, longest: float, kills: int, chance: random.Random, log: Path
) -> list[dict[str, object]]:
    """Train to the end in spite of at most `kills` kills; returns a row for each."""
    last, rows, before = Path(recipe.out) / str(recipe.name) / "last", [], (0, 0)
    while True:
        resume = last.exists() or last.with_name("last.old").exists()
        child = started(replace(recipe, resume=resume), log)
        code = None
        if len(rows) < kills:
            number, after = chance.choice(SIGNALS), chance.uniform(0, longest)
            if (code := _code_within(child, after)) is None:
                os.kill(child, number)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                found = Progress.read(last) if last.exists() else Progress()
                state = found.epoch, found.step
                met = "training" if state > before else "end" if found.epoch == recipe.epochs else "start"
                reached = {"epoch": found.epoch, "iteration": found.step, "met": met, "exit code": code}
                rows.append({"signal": number.name, "after s": f"{after:.2f}", **reached})
                before = state
        if code is None:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return rows
        if code not in (3, -signal.SIGKILL, -signal.SIGTERM):
            raise SystemExit(f"a run ended with exit code {code}:\n{log.read_text()[-3000:]}")


def _code_within(child: int, seconds: float) -> int | None:
    """The exit code of a process if it ends within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.005)
    return None


def weights(recipe: ClassificationRecipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.out) / str(recipe.name) / "last" / "model.safetensors")


def kill_runs(folder: Path, kills: int, seed: int) -> Iterator[list[dict[str, object]]]:
    """Kill runs until there were enough kills; yields a row for each kill, run by run."""
    recipe, log, chance = tiny_run(folder), folder / "log.txt", random.Random(seed)
    undisturbed = replace(recipe, name="whole")
    began = time.time()
    interrupted(undisturbed, 0, 0, chance, log)
    whole = weights(undisturbed)
    trained = (Path(undisturbed.out) / "whole" / "last").stat().st_mtime - began
    longest = 1.2 * trained  # some kills come after the training, while the report is written
    print(f"an undisturbed run trains for {trained:.1f} s")
    number = 0
    while kills > 0:
        number += 1
        run = replace(recipe, name=f"run-{number}")
        rows = interrupted(run, longest, min(kills, 8), chance, log)
        kills -= len(rows)
        end = weights(run)
        equal = all(torch.equal(whole[name], end[name]) for name in whole)
        print(f"run {number}: {len(rows)} kills, final weights {'equal' if equal else 'NOT equal'}")
        yield [{"run": number, **row, "equal": equal} for row in rows]


def shown() -> str:
    """The results as a table."""
    found = recorded("kills")
    lines = []
    for name in (number.name for number in SIGNALS):
        own = [r for r in found if r["signal"] == name]
        unequal = sum(r["equal"] != "True" for r in own)
        met = [str(sum(r["met"] == part for r in own)) for part in ("start", "training", "end")]
        lines.append([name, str(len(own)), *met, str(unequal)])
    return table(["signal", "kills", "at the start", "in training", "at the end", "final weights differ"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        for own in kill_runs(Path(name), options.kills, options.seed):
            rows += own
            if options.record and own:
                record("kills", own)
                replace_tables(PAGE, {"kills": shown()})
    unequal = sum(not row["equal"] for row in rows)
    print(f"{len(rows)} kills, {unequal} in runs whose final weights differ")
    raise SystemExit(unequal > 0)


if __name__ == "__main__":
    main()
