"""`dmformer export`: write a trained model for a runtime, and keep the file only if it agrees with PyTorch."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_model_data_config

from ..data.decode import BrokenImageError, Reading, decode
from ..data.finding import list_photos
from ..data.limits import Range
from ..models.create import own_size, random_model
from ..nn.fuse import fuse
from ..runtimes.card import SUFFIXES, Card
from ..runtimes.exported import normalised, open_exported
from ..tasks.classification.classifier import Classifier
from ..tasks.classification.layout import TABLES
from ..tasks.config import find_config
from ..tasks.opening import open_trained
from ..tasks.recipe import recipe_of
from ..tasks.recipes import read_recipe
from ..tasks.segmentation.datasets import MASK_FOLDERS
from ..tasks.table import TASKS
from ..tasks.task import OWN_TEST
from ..utils.errors import UserError, first_line
from ..utils.extras import needs
from . import PACKAGES
from .check import LIMIT, Agreement, Measure, Run, Speed, compare, in_numpy, open_file, speeds
from .formats import Graph, export_aoti, export_onnx, export_openvino, export_program, export_pt2, takes_one_size
from .kinds import Shape, as_scored, kind_of
from .quantise import quantise

Format = Literal["onnx", "openvino", "pt2", "aoti"]

CHECKED_PHOTOS, CALIBRATED_PHOTOS = 8, 64
"""Maximum number of images for the comparison, and for the calibration of an int8 file."""

GRAPH = "float32.onnx"
"""The file from which the others are converted."""
MASKS = {*MASK_FOLDERS, "gtFine", "SegmentationClass"}
"""Folders whose images are not photos."""


@dataclass(frozen=True)
class Written:
    """A file that `export` wrote.

    Attributes:
        path: Path of the file; OpenVINO's .bin is next to it.
        megabytes: Size on disk in units of 2^20 bytes.
        operators: Nodes of an ONNX graph, else None.
        fixed_size: Whether it accepts only one image size.
        speeds: Speed against the fused PyTorch model; empty if not requested.
        threads: Threads of both in the speed measurement.
        scores: For an int8 file, top-1 or mIoU of the float file and of the int8 file.
    """

    path: Path
    megabytes: float
    card: Card
    operators: int | None
    fixed_size: bool
    agreements: list[Agreement]
    speeds: list[Speed]
    threads: int
    scores: tuple[float, float] | None
    remarks: list[str]


def export(
    source: str,
    to: Format = "onnx",
    out: str | None = None,
    preprocessing: bool = False,
    fused: bool = True,
    dynamic_size: bool = True,
    photos: Sequence[str] = (),
    int8: str | Sequence[str] | None = None,
    data: str | None = None,
    max_loss: float = 0.01,
    speed: bool = True,
    overwrite: bool = False,
    tta: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    score: Callable[[Any], float] | None = None,
) -> Written:
    """Write a trained model for a runtime, and keep the file only if its outputs agree with PyTorch's.

    Args:
        source: A run's best/ folder or the run's folder, hf-hub:owner/name, or a model name, for random weights.
        to: ONNX, OpenVINO, PyTorch's exported program, or that program compiled for this machine.
        out: File to write, or a folder for it; by default a file with the run's name in the current folder.
        preprocessing: Put resizing, cropping and normalisation into the graph, whose input is then 8-bit images.
        dynamic_size: Leave height and width free as well as the batch, if the model allows it.
        photos: Files and folders of images for the comparison; by default from the run's own data, or noise.
        int8: Folder or files of images for the calibration of 8-bit weights and activations; for "onnx" and
            "openvino".
        data: Labelled images for measuring the loss of int8, in a format that `evaluate` accepts; by default those that
            the run held out.
        max_loss: Maximum loss of top-1 or mIoU by int8, from 0 to 1.
        tta: Test-time augmentation in the graph of a classifier, a key of `VIEWS`; auto is the classifier's own.
        score: Scores an exported file, in the form that `evaluate` takes, from 0 to 1, instead of `data`.

    Raises:
        UserError: The model cannot be exported, the file exists, the difference is above `LIMIT`, or the loss is above
            `max_loss`.
    """
    model = _open(source)
    if tta != "auto":
        model = model.answering(tta)
    kind = kind_of(model.task)
    kind.check(model, to, preprocessing, dynamic_size, int8 is not None)
    if int8 is not None and data is None and not _is_run(source, model.task):
        raise UserError(f"--int8 needs --data: {source} is no run, which could measure the loss on held-out photos.")
    card = kind.card(model, model.name.replace("/", "_").removeprefix("hf-hub:"), preprocessing)
    try:
        Card.from_metadata(card.to_metadata(), card.name)
    except UserError:
        told = "its classes, crop or normalisation are of an unknown kind"
        raise UserError(f"{card.name} cannot be exported: {told}.") from None
    path = _place(out, to, card.name)
    for target in (path, path.with_suffix(".bin")) if to == "openvino" else (path,):
        if target.exists() and (target.is_dir() or not overwrite):
            raise UserError(f"{target} exists already: give another --out, or --overwrite.")
    if not 0 <= max_loss <= 1:
        raise UserError(f"--max-loss is {max_loss:g}: it must be a fraction from 0 to 1, e.g. 0.01 for one point.")
    remarks = []
    if (files := list_photos(photos, say) if photos else own_photos(source)) is None:
        remarks.append("no photos were given or found through the run's recipe: compared on noise")
    for package in PACKAGES[to]:
        with needs("export", f"--to {to}"):
            import_module(package)
    pictures = _pictures(files, card.values)

    trained: Any = model.network.eval()
    network: Any = fuse(trained) if fused else trained
    trained, network = (kind.network(part).eval() for part in (trained, network))
    if preprocessing:
        trained, network = (Graph(kind.preprocessing(card), part).eval() for part in (trained, network))
    fixed = not dynamic_size or takes_one_size(network)
    if fixed and dynamic_size:
        remarks.append(f"{card.architecture} is built for one image size, and so is the file; the batch size is free")
    size, own_size = kind.traced_size(card, fixed), kind.own_size(card)
    if fixed:
        card = kind.fixed(card, size)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {path}: cannot write a file there.")
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        workshop, place = Path(folder), Path(folder) / "done" / path.name
        place.parent.mkdir()
        say(f"tracing {card.name} and writing {path.name}")
        _write(network, workshop, place, to, size, not fixed, card)
        say("comparing with PyTorch")
        compared_with = kind.reference(trained).eval()
        reference, measure = in_numpy(compared_with), kind.measure(card, compared_with)
        batches = _batches(pictures, card, kind.checked(card, size, fixed))
        exported, agreements = _compared(reference, place, to, threads, batches, measure, kind.instead)
        worst = max(agreements, key=lambda a: a.difference)
        if not worst.difference <= LIMIT:
            raise UserError(
                f"{to} does not agree with PyTorch: it differs by {worst.difference:.1e} of {kind.limit_of} at "
                f"{worst.height} x {worst.width} px, batch {worst.batch}; at most {LIMIT:g} is accepted. "
                "Nothing was written."
            )
        if preprocessing:
            kind.check_preprocessing(model, exported, pictures)
        scores = None
        if int8 is not None:
            card = replace(card, precision="int8")
            task, where, run = TASKS[card.task], data or OWN_TEST, {"run_of": source} if data is None else {}
            score = score or (lambda exported: task.figure(task.evaluate(exported, where, **run)))
            scores = _quantise(workshop, place, to, card, int8, score, where, threads, say)
            if not scores[0] - scores[1] <= max_loss:
                raise UserError(
                    f"int8 loses {100 * (scores[0] - scores[1]):.1f} points, from {scores[0]:.1%} to {scores[1]:.1%}; "
                    f"--max-loss allows {100 * max_loss:g}. Nothing was written."
                )
            exported, agreements = _compared(reference, place, to, threads, batches, measure, kind.instead)
        timed = []
        if speed:
            say("measuring the speed of both")
            timed_images = _batches(pictures, card, [(*(own_size or size), batch) for batch in kind.timed_batches])
            timed = speeds(in_numpy(network), exported, timed_images)
        parts = sorted(place.parent.iterdir())  # OpenVINO's .bin before its .xml
        megabytes = sum(part.stat().st_size for part in parts) / 2**20
        operators = None
        if to == "onnx":
            import onnx

            operators = len(onnx.load(place, load_external_data=False).graph.node)
        for part in parts:
            os.replace(part, path.parent / part.name)
    return Written(path, megabytes, card, operators, fixed, agreements, timed, threads, scores, remarks)


def _compared(
    reference: Run, place: Path, to: Format, threads: int, batches: Sequence[np.ndarray], measure: Measure, instead: str
) -> tuple[Run, list[Agreement]]:
    """A file in its runtime, and its difference from PyTorch on each batch."""
    try:
        exported = open_file(place, to, threads)
        return exported, compare(reference, exported, batches, measure)
    except Exception as error:  # each runtime and model raises its own errors
        raise UserError(
            f"the {to} file cannot be used at all sizes: {first_line(error)}. Nothing was written{instead}."
        ) from error


def _open(source: str) -> Any:
    if source.startswith("hf-hub:") or Path(source).is_dir():
        return open_trained(source)
    model: Any = random_model(source, own_size(source))
    names = [str(i) for i in range(model.num_classes)]
    return Classifier(model, names, resolve_model_data_config(model), source)


def _place(out: str | None, to: Format, name: str) -> Path:
    path, file = Path(out or "."), f"{name}{SUFFIXES[to][0]}"
    if path.is_dir():
        path = path / file
    if path.suffix != (suffix := Path(file).suffix):
        raise UserError(f"--out {out}: --to {to} writes a {suffix} file.")
    return path


def _is_run(source: str, task: str) -> bool:
    return Path(source).is_dir() and recipe_of(TASKS[task].recipe, find_config(source).parent) is not None


def own_photos(source: str) -> list[str] | None:
    """Images of the run's own data, named by its recipe, if they still exist."""
    if source.startswith("hf-hub:") or not Path(source).is_dir():
        return None
    best = find_config(source).parent
    for recipe in (best / "recipe.yaml", best.parent / "recipe.yaml"):
        with contextlib.suppress(
            UserError, OSError, TypeError, ValueError, RecursionError
        ):  # the data may be gone; noise is used then
            read = read_recipe(recipe)
            data = Path(TASKS[read.task].photos(read))
            if data.suffix in (".json", *TABLES):  # annotations beside the photos
                data = data.parent
            if data.is_file():  # an archive
                continue
            found = [f for f in list_photos([str(data)]) if not MASKS.intersection(Path(f).relative_to(data).parts)]
            if found:
                return found
    return None


def _pictures(files: list[str] | None, values: Range | None) -> list[Image.Image]:
    """Some of the images, evenly spread over the list; noise if there are none."""
    if files is None:
        noise = np.random.default_rng(0).integers(0, 256, (CHECKED_PHOTOS, 12, 16, 3), dtype=np.uint8)
        return [Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC) for small in noise]
    found = list(_read(spread(files, CHECKED_PHOTOS), values))
    if not found:
        raise UserError(f"none of the {len(files)} photos to compare on can be read, for example {files[0]}.")
    return found


def _read(files: Sequence[str], values: Range | None) -> Iterator[Image.Image]:
    """The readable images among the files."""
    for file in files:
        with contextlib.suppress(BrokenImageError):
            yield decode(file, reading=Reading(values))


def spread(files: Sequence[str], most: int) -> list[str]:
    """At most `most` files, evenly spread over the list."""
    return [files[i * len(files) // min(most, len(files))] for i in range(min(most, len(files)))]


def _batches(pictures: Sequence[Image.Image], card: Card, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """Batches of the images in each shape."""
    made = []
    for rows, columns, batch in shapes:
        some = [pictures[i % len(pictures)] for i in range(batch)]
        images = [picture.resize((columns, rows), Image.Resampling.BICUBIC) for picture in some]
        made.append(np.stack([np.asarray(im) if card.preprocessing else normalised(im, card) for im in images]))
    return made


def _write(
    network: Any, workshop: Path, place: Path, to: Format, size: tuple[int, int], dynamic_size: bool, card: Card
) -> None:
    """Write one file; intermediate files stay in `workshop`."""
    metadata = card.to_metadata()
    try:
        if to in ("onnx", "openvino"):
            graph = export_onnx(network, workshop / GRAPH, size, dynamic_size=dynamic_size, metadata=metadata)
            if to == "onnx" and any(workshop.glob("*.data")):
                raise RuntimeError("its weights exceed 1.5 GB, too large for one .onnx file; use openvino")
            _from_graph(graph, place, to, metadata)
        else:
            program = export_program(network, size, dynamic_size)
            (export_pt2 if to == "pt2" else export_aoti)(program, place, metadata)
    except RuntimeError as error:
        raise UserError(f"{card.architecture} cannot be exported to {to}: {error}") from error


def _from_graph(graph: Path, place: Path, to: Format, metadata: dict[str, str]) -> None:
    if to == "openvino":
        export_openvino(graph, place, metadata)
    else:
        shutil.copyfile(graph, place)


def _quantise(
    workshop: Path,
    place: Path,
    to: Format,
    card: Card,
    photos: str | Sequence[str],
    score: Callable[[Any], float],
    where: str,
    threads: int,
    say: Callable[[str], None],
) -> tuple[float, float]:
    """Replace the float file by an int8 one; return the scores of both."""
    before: Any = open_exported(str(workshop / GRAPH), threads)
    places = [photos] if isinstance(photos, str) else photos
    say(f"calibrating int8 on photos of {places[0]}{' and others' if len(places) > 1 else ''}")
    files = spread(list_photos(places, say), CALIBRATED_PHOTOS)
    metadata = card.to_metadata()
    batches = (before.calibration(picture) for picture in _read(files, card.values))
    small = quantise(workshop / GRAPH, workshop / "int8.onnx", batches, metadata)
    for part in place.parent.iterdir():
        part.unlink()
    _from_graph(small, place, to, metadata)
    after: Any = open_exported(str(place), threads)
    found = []
    for exported, what in ((before, "float32"), (after, "int8")):
        say(f"scoring {what} on {where}")
        found.append(score(as_scored(exported)))
    return found[0], found[1]
