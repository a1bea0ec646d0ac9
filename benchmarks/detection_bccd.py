"""Blood cell detection from scratch in under half an hour on two cores, ours and a ResNet-18 with the same recipe.

python benchmarks/detection_bccd.py DATA RUNS      # the folder with bccd/, and a folder for the runs; an hour

Runs are sequential and use all cores. Finished runs in RUNS are not repeated.
"""

import csv
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, record

from dmformer.tasks.detection.detector import open_detector

RUNS = {
    "dmformer_n": ("--model", "dmformer_n"),
    "resnet18": ("--model", "resnet18", "--model-args"),
}
RECIPE = "bccd --precision bf16"


def main() -> None:
    if len(sys.argv) != 3 or not Path(sys.argv[1], "bccd").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA RUNS, the folder with bccd/ and a folder for the runs")
    data, runs = Path(sys.argv[1], "bccd"), Path(sys.argv[2])
    for name, options in RUNS.items():
        if not (runs / name / "scores.json").exists():
            place = ["--data", str(data), "--out", str(runs), "--name", name, "--workers", "0", "--overwrite"]
            command = [sys.executable, "-m", "dmformer", "train", *RECIPE.split(), *options, *place]
            subprocess.run(command, check=True)
    (RESULTS / "detection_bccd.csv").unlink(missing_ok=True)
    record("detection_bccd", [figures(runs / name, name, options) for name, options in RUNS.items()])


def figures(folder: Path, name: str, options: tuple[str, ...]) -> dict[str, object]:
    """Results of a finished run."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    interval, model = scores["ap50_interval"], open_detector(str(folder)).model
    return {
        "run": name,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        "test_photos": scores["images"],
        "objects": scores["objects"],
        "ap50": f"{scores['boxes']['ap50']:.5f}",
        "ap50_low": f"{interval['low']:.5f}",
        "ap50_high": f"{interval['high']:.5f}",
        "ap": f"{scores['boxes']['ap']:.5f}",
        **{f"ap50_{c['name']}": f"{c['ap50']:.5f}" for c in scores["classes"]},
        "minutes": f"{float(metrics[-1]['seconds']) / 60:.1f}",
        "images_per_second": f"{statistics.median(float(m['images_per_second']) for m in metrics):.1f}",
        "command": shlex.join(["dmformer", "train", *RECIPE.split(), *options, "--data", "bccd/"]),
    }


if __name__ == "__main__":
    main()
