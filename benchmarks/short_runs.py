"""Short training runs of many models under equal conditions: each row is one `dmformer train` with plain arguments.

Rows are appended to results/NAME.csv as runs end, and existing runs are not repeated, so an interrupted script can be
continued. These runs compare accuracy; `training_speed.py` measures speed, on an idle machine.
"""

import contextlib
import csv
import io
import json
import os
import shlex
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from record import RESULTS, record, rows

from dmformer.cli import main as dmformer

RECIPE = (
    "scratch --image-size 64 --epochs 4 --batch-size 32 --lr 1e-3 --lr-batch 32 --warmup-epochs 0.5 --crop-scale 0.5 1 "
    "--color-jitter 0 --ema 0.98 --val-share 0.05 --workers 0 --tracker none"
)
"""The recipe of every row: `dmformer train RECIPE --data FOLDER --model NAME --model-args ... --seed N`."""


@contextlib.contextmanager
def data_folder(data: Path) -> Iterator[Path]:
    """A temporary working folder with clothing/ and tiny20/: the first 20 classes of tiny_imagenet, 64 px.

    tiny20 has 100 training images and 20 validation images per class.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clothing").symlink_to((data / "clothing").resolve())
        for split, archive in (("train", "train_20k.tar"), ("test", "val_4k.tar")):
            with tarfile.open(data / "tiny_imagenet" / archive) as tar:
                members = [m for m in tar.getmembers() if m.isfile()]
                classes = sorted({Path(m.name).parent.name for m in members})[:20]
                for member in members:
                    path = Path(member.name)
                    if path.parent.name in classes:
                        place = folder / "tiny20" / split / path.parent.name
                        place.mkdir(parents=True, exist_ok=True)
                        (place / path.name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run(name: str, row: str, data: str, model: str, model_args: Sequence[str], seed: int) -> None:
    """Train and evaluate once, and append the result to results/NAME.csv, unless it is there."""
    if any((r["row"], r["data"], r["model"], r["seed"]) == (row, data, model, str(seed)) for r in recorded(name)):
        return
    # Always pass the model's arguments, because the recipe's own are for DMFormer.
    arguments = ["train", *RECIPE.split(), "--data", data, "--model", model, "--seed", str(seed)]
    arguments += ["--model-args", *model_args, "--allow-leaks"]  # one photo of tiny20 is in both parts
    with contextlib.redirect_stdout(io.StringIO()):
        dmformer([*arguments, "--overwrite", "--out", "runs", "--name", name])
    scores = json.loads(Path("runs", name, "scores.json").read_text())
    with Path("runs", name, "metrics.csv").open() as file:
        loss = list(csv.DictReader(file))[-1]["train_loss"]
    record(
        name,
        [
            {
                "row": row,
                "data": data,
                "model": model,
                "seed": seed,
                "top1": f"{scores['top1']['value']:.4f}",
                "top1_low": f"{scores['top1']['low']:.4f}",
                "top1_high": f"{scores['top1']['high']:.4f}",
                "images": scores["count"],
                "train_loss": loss,
                "command": shlex.join(["dmformer", *arguments]),
            }
        ],
    )


def recorded(name: str) -> list[dict[str, str]]:
    """The runs in results/NAME.csv; empty before the first."""
    return rows(name) if (RESULTS / f"{name}.csv").exists() else []


def spread(name: str, row: str, data: str, model: str) -> tuple[float, float, int]:
    """Mean and sample standard deviation of top-1 in % over the seeds, and the number of seeds."""
    found = [100 * float(r["top1"]) for r in recorded(name) if (r["row"], r["data"], r["model"]) == (row, data, model)]
    return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0, len(found)


def data_argument() -> Path:
    """The data folder from the command line."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "tiny_imagenet").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA, the folder with clothing/ and tiny_imagenet/")
    return Path(sys.argv[1]).resolve()
