"""Choose the command to run, and end the process properly."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from ..utils.errors import UserError, unknown
from .analyse import analyse
from .bench import bench
from .check import check
from .checks import check_environment
from .choose import choose
from .convert import convert
from .embed import embed
from .evaluate import evaluate
from .explain import explain
from .export import export
from .models import models
from .predict import predict
from .search import search
from .serve import serve
from .shards import shards
from .soup import soup
from .train import train

HELP = """usage: dmformer COMMAND [OPTIONS]

Train, evaluate and use vision backbones with convolutional attention.

commands:
  train     train a classifier, a segmenter or a detector on photos; writes a run folder with a report
  check     look at data as training would, and write a page on it
  eval      score a trained model on a set of photos
  predict   classify photos, segment them, or find objects in them
  explain   show where a model finds its classes on photos
  embed     features of photos: files, nearest neighbours, a map, near-duplicates, likely wrong labels
  analyse   measure how models see: receptive fields, attention, gates, modulators, similarity
  export    write a trained model for ONNX Runtime, OpenVINO or PyTorch without Python, and check it
  serve     a web page and a JSON API for a trained model, on this machine
  soup      average the weights of several runs into one model
  shards    put labelled photos into tars, for training over a network
  convert   convert a published weights file of VAN, SMT, ViTAE or ViTAEv2 for dmformer and timm
  bench     measure the speed and memory of models, ours and timm's, in several forms
  search    find the best values of a few options of a recipe, by validation
  choose    find the best backbone for your photos on this machine, within limits, by measuring and training
  models    list the models

examples:
  dmformer train                                     solar cells, sound or defective: the demo, in minutes on a CPU
  dmformer train classify --data photos/             your photos, one folder per class
  dmformer train tag --data photos.csv               several labels per photo
  dmformer train segment --data images/ --masks masks/ --classes names.txt      your images with masks
  dmformer train detect --data photos/               your photos with boxes: YOLO, COCO, Pascal VOC, LabelMe
  dmformer check --data photos/                      before you train: classes, sizes, copies, suspicious labels
  dmformer eval runs/elpv-dmformer_n-1/best --data elpv
  dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
  dmformer explain runs/elpv-dmformer_n-1/best photo.jpg
  dmformer embed photos/ --page photos.html
  dmformer analyse gates runs/elpv-dmformer_n-1/best --data photos/
  dmformer export runs/elpv-dmformer_n-1/best --to onnx
  dmformer serve runs/elpv-dmformer_n-1/best
  dmformer shards photos/ shards/
  dmformer convert van_b0.pth van_b0/
  dmformer bench dmformer_s convnext_tiny --forms eager fused openvino
  dmformer search --data photos/ --over lr=1e-4..3e-3 image_size=96,160
  dmformer choose --data photos/ --latency 20ms --disk 20MB
  dmformer models 'van_*'

`dmformer COMMAND --help` shows the options of a command.
"""

COMMANDS = {
    "train": train,
    "check": check,
    "eval": evaluate,
    "predict": predict,
    "explain": explain,
    "embed": embed,
    "analyse": analyse,
    "export": export,
    "serve": serve,
    "soup": soup,
    "shards": shards,
    "convert": convert,
    "bench": bench,
    "search": search,
    "choose": choose,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, with 2 after a user's mistake, with 128 + n after signal n."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # bytes of file names that are not UTF-8 become question marks
        sys.stdout.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    try:
        if arguments[0] == "--version":
            from ..utils.version import __version__

            print(__version__)
        elif arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        else:
            check_environment()
            COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        _fail(str(error))
    except RuntimeError as error:
        if not (told := _reader_ended(str(error))):
            raise
        _fail(told)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has exited, as `| head` does
        sys.stderr.close()
        raise SystemExit(141) from None


def _reader_ended(error: str) -> str | None:
    """What to do if the error says that a process that reads images had too little memory; None for other errors."""
    reason = error.strip().splitlines()[-1].removeprefix("RuntimeError: ") if error else ""
    if "Bus error" in error or "shared memory" in error or "torch_" in reason:
        size = shutil.disk_usage("/dev/shm").total / 2**20 if os.path.isdir("/dev/shm") else 0
        remedy = f"/dev/shm, through which readers hand over images, holds {size:.3g} MB"
        return f"{reason} {remedy}: give a container --shm-size 8g or --ipc host, or read with --workers 0."
    if re.match(r"DataLoader worker \(pid.* is killed by signal", error):
        return f"{reason} If memory is short, give fewer --workers, or a smaller --batch-size."
    return None


def _fail(message: str) -> NoReturn:
    print(f"dmformer: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
