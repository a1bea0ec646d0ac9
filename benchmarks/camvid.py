"""Semantic FPN from scratch on CamVid, with our backbones and a ResNet-18 under the same recipe.

python benchmarks/camvid.py DATA RUNS      # the folder with camvid/, and a folder for the runs; an hour or more

Finished runs in RUNS are not repeated. OMP_NUM_THREADS=1 leaves the second core free.
"""

import csv
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from record import RESULTS, record

from dmformer.tasks.segmentation.segmenter import open_segmenter

OURS = ("--model-args", "layer_scale=1.0")
RUNS = {
    "dmformer_t": ("--model", "dmformer_t", *OURS),
    "dmformer_n": ("--model", "dmformer_n", *OURS),
    "resnet18": ("--model", "resnet18", "--model-args"),
    "dmformer_t-unweighted": ("--model", "dmformer_t", *OURS, "--class-weights", "none"),
}
RECIPE = "camvid --iterations 1400 --validate-every 280 --precision bf16"


def main() -> None:
    if len(sys.argv) != 3 or not Path(sys.argv[1], "camvid").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA RUNS, the folder with camvid/ and a folder for the runs")
    data, runs = Path(sys.argv[1], "camvid"), Path(sys.argv[2])
    (RESULTS / "camvid.csv").unlink(missing_ok=True)
    rows = []
    for name, options in RUNS.items():
        chosen = ["train", *RECIPE.split(), *options]
        if not (runs / name / "scores.json").exists():
            place = ["--data", str(data), "--out", str(runs), "--name", name]
            subprocess.run([sys.executable, "-m", "dmformer", *chosen, *place, "--overwrite"], check=True)
        rows.append(figures(runs / name, name, shlex.join(["dmformer", *chosen, "--data", "camvid/"])))
    record("camvid", rows)


def figures(folder: Path, name: str, command: str) -> dict[str, object]:
    """Results of a finished run."""
    scores = json.loads((folder / "scores.json").read_text())
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    ious = {c["name"]: c["iou"] for c in scores["classes"]}
    return {
        "run": name,
        "parameters": f"{sum(p.numel() for p in open_segmenter(str(folder)).model.parameters()) / 1e6:.2f}",
        "test_images": scores["images"],
        **{f"miou_{k}" if k != "value" else "miou": f"{v:.4f}" for k, v in scores["miou"].items()},
        "macc": f"{scores['macc']:.4f}",
        "aacc": f"{scores['aacc']:.4f}",
        **{f"iou_{name}": f"{iou:.4f}" for name, iou in ious.items()},
        "minutes": f"{float(metrics[-1]['seconds']) / 60:.1f}",
        "images_per_second": f"{statistics.median(float(m['images_per_second']) for m in metrics):.1f}",
        "command": command,
    }


if __name__ == "__main__":
    main()
