"""Train on two processes of a CPU with whole copies of the model, and with `--shard`: memory, speed, the same scores.

    python benchmarks/sharded.py
    python benchmarks/sharded.py --model dmformer_l --size 96

results/sharded.csv has, for each, the memory of both processes together and their photos per second (medians of the
epochs), and the largest difference of the validation losses from those of the whole copies.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from performance_tables import table
from record import record, replace_tables
from record import rows as recorded
from two_hosts import draw

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def shown() -> str:
    """The results as a table."""
    header = ["model", "divided", "GB of two processes", "photos/s", "difference of the validation losses"]
    names = ("model", "divided", "gb", "speed", "difference")
    return table(header, [[row[name] for name in names] for row in recorded("sharded")])


def columns(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines] for name in ("memory_gb", "images_per_second", "val_loss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dmformer_s")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    arguments = f"train scratch --data photos --model {options.model} --image-size {options.size} --batch-size 8 "
    arguments += f"--epochs {options.epochs} --ema 0.9 --lr 1e-4 --lr-batch 16 --workers 0 --tracker none"
    losses, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        os.chdir(folder)
        for more in ("no-shard", "shard"):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            command += ["-m", "dmformer", *arguments.split(), f"--{more}", "--name", more]
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=environment)
            values = columns(Path("runs", more))
            losses.append(values["val_loss"])
            found.append(
                {
                    "model": options.model,
                    "divided": "yes" if more == "shard" else "no",
                    "gb": f"{statistics.median(values['memory_gb']):.2f}",
                    "speed": f"{statistics.median(values['images_per_second']):.1f}",
                    "difference": f"{np.abs(np.subtract(losses[-1], losses[0])).max():.1e}",
                }
            )
            print(found[-1], flush=True)
    if options.record:
        record("sharded", found)
        replace_tables(PAGE, {"sharded": shown()})


if __name__ == "__main__":
    main()
