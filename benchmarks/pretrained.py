"""What the package's weights give: training from them, from random weights, and a ResNet-18 from random weights.

python benchmarks/pretrained.py DATA RUNS [SET...]     # the folder with clothing/, camvid/ and bccd/; one for the runs

Sets: solar-cells, clothing, camvid, bccd; by default all, each with three seeds: many hours on two cores. Every run
uses the set's recipe and all cores, one after the other. Finished runs in RUNS are not repeated.
"""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, record

RECIPES = {
    "solar-cells": "elpv",
    "clothing": "classify --image-size 96 --epochs 10 --precision bf16 --data {data}/clothing",
    "camvid": "camvid --iterations 1400 --validate-every 280 --precision bf16 --data {data}/camvid",
    "bccd": "bccd --epochs 20 --precision bf16 --data {data}/bccd",
}
STARTS = {
    "pretrained": "",
    "random": "--pretrained none",
    "resnet18, random": "--pretrained none --model resnet18 --model-args",
}
SEEDS = (0, 1, 2)


def main() -> None:
    if len(sys.argv) < 3 or not Path(sys.argv[1], "clothing").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA RUNS [SET...], the folder with clothing/ and a folder for the runs")
    data, runs = sys.argv[1:3]
    for name in sys.argv[3:] or RECIPES:
        for seed in SEEDS:
            for start, options in STARTS.items():
                folder = Path(runs, f"{name}-{start.split(',')[0]}-{seed}")
                chosen = ["train", *RECIPES[name].split(), *options.split(), "--seed", str(seed)]
                if not (folder / "scores.json").exists():
                    given = [part.format(data=data) for part in chosen]
                    place = ["--out", runs, "--name", folder.name, "--overwrite"]
                    subprocess.run([sys.executable, "-m", "dmformer", *given, *place], check=True)
                command = shlex.join(["dmformer", *(part.replace("{data}/", "") for part in chosen)])
                write(figures(folder, name, start, seed, command))


def figures(folder: Path, name: str, start: str, seed: int, command: str) -> dict[str, Any]:
    """Results of a finished run, those of other tasks empty."""
    scores = json.loads((folder / "scores.json").read_text())
    with (folder / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))

    def value(*path: str) -> str:
        found = scores
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return "" if found is None else f"{found:.4f}"

    return {
        "data": name,
        "start": start,
        "seed": seed,
        "top1": value("top1", "value"),
        "balanced_accuracy": value("balanced_accuracy", "value"),
        "auroc": value("auroc"),
        "miou": value("miou", "value"),
        "ap50": value("boxes", "ap50"),
        "minutes_of_training": f"{float(epochs[-1]['seconds']) / 60:.1f}",
        "command": command,
    }


def write(row: dict[str, Any]) -> None:
    """Record a run, unless it is already in the results."""
    path = RESULTS / "pretrained.csv"
    if path.exists():
        with path.open(newline="") as file:
            if any(all(old[key] == str(value) for key, value in row.items()) for old in csv.DictReader(file)):
                return
    record("pretrained", [row])


if __name__ == "__main__":
    main()
