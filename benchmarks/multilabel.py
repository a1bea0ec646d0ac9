"""Several labels per photo: mosaics of one to four photos of clothing, labelled with the classes of their parts.

python benchmarks/multilabel.py DATA      # the folder with clothing/

The mosaics, with a table of their labels, are made in a temporary folder from the photos of each split. The row holds
the scores on the test mosaics of `dmformer train tag` from the weights in the package.
"""

import contextlib
import csv
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from record import record

from dmformer.cli import main as dmformer

MOSAICS = {"train": 800, "val": 200, "test": 300}
CELL = 64
"""Side of a part in pixels; a mosaic has 2 x 2."""
OPTIONS = "--image-size 96 --epochs 6 --crop-scale 0.7 1 --crop-pct 1 --warmup-epochs 0.5 --workers 0 --processes 1"


def make(clothing: Path, folder: Path) -> None:
    """Write mosaics and photos.csv; each mosaic has one to four parts, drawn at random with a fixed seed."""
    random = np.random.default_rng(0)
    rows = [["path", "labels", "split"]]
    for split, count in MOSAICS.items():
        photos = sorted(path for path in (clothing / split).rglob("*") if path.is_file())
        for i in range(count):
            mosaic, labels = Image.new("RGB", (2 * CELL, 2 * CELL), (128, 128, 128)), set()
            for cell in random.permutation(4)[: random.integers(1, 5)]:
                photo = photos[random.integers(len(photos))]
                with Image.open(photo) as image:
                    part = image.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC)
                mosaic.paste(part, (CELL * int(cell % 2), CELL * int(cell // 2)))
                labels.add(photo.parent.name)
            mosaic.save(folder / f"{split}-{i}.png")
            rows.append([f"{split}-{i}.png", ";".join(sorted(labels)), split])
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "clothing", "train").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA, the folder with clothing/")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(Path(sys.argv[1], "clothing"), folder)
        arguments = ["train", "tag", *OPTIONS.split(), "--tracker", "none"]
        with contextlib.redirect_stdout(io.StringIO()):
            dmformer([*arguments, "--data", str(folder / "photos.csv"), "--out", name, "--name", "run"])
        scores = json.loads((folder / "run" / "scores.json").read_text())
        epochs = list(csv.DictReader((folder / "run" / "metrics.csv").open()))
    row: dict[str, object] = {"data": "mosaics of clothing", "model": "dmformer_n", "train": MOSAICS["train"]}
    for key in ("map", "macro_f1", "micro_f1", "exact"):
        row |= {key: f"{scores[key]['value']:.4f}"}
        row |= {f"{key}_low": f"{scores[key]['low']:.4f}", f"{key}_high": f"{scores[key]['high']:.4f}"}
    row |= {"test": scores["count"], "epochs": len(epochs), "command": shlex.join(["dmformer", *arguments])}
    record("multilabel", [row])


if __name__ == "__main__":
    main()
