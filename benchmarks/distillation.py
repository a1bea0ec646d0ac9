"""The gain from a teacher in training on a few thousand images: the same recipe with and without EfficientNet-Lite0.

python benchmarks/distillation.py DATA RUNS      # the folder with clothing/, and a folder for the runs

Finished runs in RUNS are not repeated. The teacher's predictions for four crops of each image are cached once.
"""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

from record import RESULTS, record

TEACHER = "--teacher efficientnet-lite0 --teacher-size 160"
FEATURES = "--feature-loss cosine --feature-weight"
STARTS = {
    "random": (
        "scratch --epochs 10 --image-size 96 --precision bf16",
        {
            "labels": "",
            "labels-and-teacher": f"{TEACHER} {FEATURES} 0.5 --teacher-weight 0.1",
            "labels-and-heavy-teacher": f"{TEACHER} {FEATURES} 4",
        },
    ),
    "pretrained": (
        "classify --epochs 5 --image-size 96",
        {
            "labels": "",
            "labels-and-teacher": f"{TEACHER} --teacher-weight 0.1",
            "labels-and-heavy-teacher": TEACHER,
        },
    ),
}
"""For each start, the recipe and the options of the trainings that are compared."""
SEEDS = (0, 1, 2)


def main() -> None:
    if len(sys.argv) != 3 or not Path(sys.argv[1], "clothing").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA RUNS, the folder with clothing/ and a folder for the runs")
    data, runs = Path(sys.argv[1], "clothing"), Path(sys.argv[2])
    (RESULTS / "distillation.csv").unlink(missing_ok=True)
    trainings = [
        (start, recipe, name, options) for start, (recipe, each) in STARTS.items() for name, options in each.items()
    ]
    for seed in SEEDS:
        for start, recipe, name, options in trainings:
            folder = runs / f"{start}-{name}-{seed}"
            chosen = ["train", *recipe.split(), *options.split(), "--seed", str(seed)]
            if not (folder / "scores.json").exists():
                place = ["--data", str(data), "--out", str(runs), "--name", folder.name]
                cache = ["--teacher-cache", str(runs / f"cache-{start}-{seed}")] if options else []
                command = [sys.executable, "-m", "dmformer", *chosen, *place, *cache, "--overwrite"]
                subprocess.run(command, check=True)
            told = shlex.join(["dmformer", *chosen, "--data", "clothing/"])
            record("distillation", [figures(folder, start, name, seed, told)])


def figures(folder: Path, start: str, name: str, seed: int, command: str) -> dict[str, object]:
    """Results of a finished run."""
    scores = json.loads((folder / "scores.json").read_text())
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    return {
        "start": start,
        "learns_from": name,
        "seed": seed,
        "test_images": scores["count"],
        **{f"top1_{k}" if k != "value" else "top1": f"{v:.4f}" for k, v in scores["top1"].items()},
        "balanced_accuracy": f"{scores['balanced_accuracy']['value']:.4f}",
        "minutes_of_training": f"{float(metrics[-1]['seconds']) / 60:.1f}",
        "command": command,
    }


if __name__ == "__main__":
    main()
