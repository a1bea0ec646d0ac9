"""Whether every detector overfits 8 images: blood cells with boxes, and COCO images with boxes and masks.

python benchmarks/detection_overfit.py DATA RUNS [NAME ...]     # bccd/ and coco_tiny/, a folder for the runs; an hour

The images are the first ones with objects; for COCO, without small objects and crowds. Finished runs in RUNS are not
repeated. AP is measured on the training images.
"""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, record, rows

PHOTOS = 8
SMALL_AREA = 32**2
"""Area in pixels of the original image below which COCO calls an object small."""
COMMON = (
    "bccd --hflip 0 --no-photometric --tracker none --workers 0 --precision bf16 --ema none --schedule cosine "
    "--warmup-iterations 50"
)
SMALL = "--image-size 256 --sides 256 --max-side 512"
SMALLER = "--image-size 192 --sides 192 --max-side 384 --width none"
REGIONS = "--width none --queries 100 --samples 64 --batch-size 2"
FEWER = "--width none --queries 60 --samples 48 --batch-size 2"
RUNS = {  # the data set, and the options of the recipe
    "bccd-retinanet": f"{SMALL} --framework retinanet --epochs 200 --validate-every 100",
    "bccd-atss": f"{SMALL} --framework atss --epochs 160 --validate-every 80",
    "bccd-mask_rcnn": f"{SMALL} {REGIONS} --framework mask_rcnn --epochs 80 --validate-every 40",
    "bccd-cascade_rcnn": f"{SMALLER} --framework cascade_rcnn --queries 48 --samples 32 --batch-size 2 --epochs 80 "
    "--validate-every 80",
    "bccd-sparse_rcnn": f"{SMALLER} --framework sparse_rcnn --queries 40 --epochs 130 --validate-every 65 --lr 4e-4 "
    "--clip-grad 1 --batch-size 2",
    "bccd-dino": f"{SMALLER} --framework dino --queries 60 --epochs 160 --validate-every 80 --lr 4e-4 --clip-grad 0.1 "
    "--batch-size 2",
    "coco-mask_rcnn": f"{SMALL} {FEWER} --framework mask_rcnn --epochs 120 --validate-every 60",
    "coco-cascade_rcnn": f"{SMALL} {FEWER} --framework cascade_rcnn --epochs 100 --validate-every 100",
}


def main() -> None:
    if len(sys.argv) < 3 or not Path(sys.argv[1], "bccd").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA RUNS [NAME ...], the folder with bccd/ and coco_tiny/")
    data, runs = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    chosen = sys.argv[3:] or list(RUNS)
    sources = {
        "bccd": (data / "bccd" / "instances_train.json", data / "bccd" / "train"),
        "coco": (data / "coco_tiny" / "annotations" / "instances_train2017.json", data / "coco_tiny" / "train2017"),
    }
    for name in chosen:
        kind = name.partition("-")[0]
        photos = runs / f"{kind}8"
        if not photos.exists():
            subset(*sources[kind], photos, SMALL_AREA if kind == "coco" else 0)
        options = [*COMMON.split(), *RUNS[name].split()]
        if not (runs / name / "scores.json").exists():
            place = ["--data", str(photos), "--out", str(runs), "--name", name, "--overwrite"]
            subprocess.run([sys.executable, "-m", "dmformer", "train", *options, *place], check=True)
        note(figures(runs / name, name, shlex.join(["dmformer", "train", *options, "--data", f"{kind}8/"])))


def subset(file: Path, folder: Path, place: Path, least: int) -> None:
    """The first images whose objects all have at least this area, as both the training and the validation set."""
    content = json.loads(file.read_text())
    with_objects = {a["image_id"] for a in content["annotations"]}
    left_out = {a["image_id"] for a in content["annotations"] if least and (a["area"] < least or a["iscrowd"])}
    images = [image for image in content["images"] if image["id"] in with_objects - left_out][:PHOTOS]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids and min(a["bbox"][2:]) > 0]
    for split in ("train", "val"):
        (place / split).mkdir(parents=True)
        for image in images:
            (place / split / image["file_name"]).symlink_to(folder / image["file_name"])
        text = json.dumps({**content, "images": images, "annotations": annotations})
        (place / f"instances_{split}.json").write_text(text)


def figures(folder: Path, name: str, command: str) -> dict[str, object]:
    """Results of a finished run."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    with (folder / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    masks = scores["masks"] or {}
    return {
        "run": name,
        "photos": scores["images"],
        "objects": scores["objects"],
        "ap50": f"{scores['boxes']['ap50']:.4f}",
        "ap": f"{scores['boxes']['ap']:.4f}",
        "mask_ap50": f"{masks['ap50']:.4f}" if masks else "",
        "mask_ap": f"{masks['ap']:.4f}" if masks else "",
        "steps": round(float(last["iteration"])),
        "loss": f"{float(last['train_loss']):.3f}",
        "minutes": f"{float(last['seconds']) / 60:.1f}",
        "command": command,
    }


def note(row: dict[str, object]) -> None:
    """Add a row to the results, replacing an older row of the same run."""
    path = RESULTS / "detection_overfit.csv"
    kept = [r for r in rows("detection_overfit") if r["run"] != row["run"]] if path.exists() else []
    path.unlink(missing_ok=True)
    record("detection_overfit", [row])
    if kept:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, fieldnames=list(kept[0]), lineterminator="\n").writerows(kept)


if __name__ == "__main__":
    main()
