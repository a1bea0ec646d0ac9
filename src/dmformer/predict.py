"""Classify photos with a trained classifier, or segment them with a trained segmenter."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from .classifier import Classifier, open_classifier
from .data.decode import SUFFIXES, BrokenImageError, decode
from .drawing import legend, overlay
from .errors import UserError
from .files import whole_file
from .fuse import fuse
from .segmenter import Segmenter, open_segmenter


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one photo, best first, with their probabilities; or why it could not be read."""

    name: str
    classes: list[tuple[str, float]]
    error: str | None = None


def predict(
    source: str | Classifier,
    photos: Sequence[str],
    top: int = 3,
    batch_size: int = 16,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[Prediction]:
    """Classify photos, one `Prediction` each, in order.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, or an opened `Classifier`.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        top: Classes to return.
        batch_size: Photos at a time.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, a source that is no classifier.
    """
    names = list_photos(photos)
    classifier = open_classifier(source) if isinstance(source, str) else source
    transform = classifier.transform()
    device = classifier.on_best_device()
    model = fuse(classifier.model)
    group: list[tuple[str, torch.Tensor | str]] = []
    for i, name in enumerate(progress(names), 1):
        try:
            group.append((name, transform(decode(_content(name), classifier.at_least))))
        except BrokenImageError as error:
            group.append((name, str(error)))
        if len(group) == batch_size or i == len(names):
            yield from _classify(group, model, device, classifier.class_names, top)
            group = []


@dataclass(frozen=True)
class MaskPrediction:
    """What was made of one photo: files written, and the classes' shares of its pixels, largest first; or why not."""

    name: str
    overlay: str = ""
    mask: str = ""
    shares: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict_masks(
    source: str | Segmenter,
    photos: Sequence[str],
    out: str = "predictions",
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    overwrite: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[MaskPrediction]:
    """Segment photos, one `MaskPrediction` each, in order.

    Writes into `out`, below it as in the folder that was given: STEM.overlay.png, the photo with the classes' colours
    over it; STEM.mask.png, ids of the classes from 0, of the photo's size; and legend.png.

    Args:
        source: A run's best/ folder, or an opened `Segmenter`.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        out: Made if it is not there.
        window: Side of the sliding window; by default the segmenter's own.
        scales, flip: Of multi-scale testing; see `predict_probabilities`.
        overwrite: Replace files that are there.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, no segmenter, a file in the way.
    """
    places = dict(_places(photos, Path(out)))
    legend_file = Path(out) / "legend.png"
    taken = [f for place in places.values() for f in _mask_files(place) if f.exists()]
    if legend_file.exists() and not any(Path(out).rglob("*.overlay.png")):
        taken.append(legend_file)  # somebody else's
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    segmenter = open_segmenter(source) if isinstance(source, str) else source
    names, palette = segmenter.config.class_names, segmenter.config.palette
    segmenter.on_best_device()
    segmenter = replace(segmenter, model=fuse(segmenter.model))
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        _save(legend(names, palette), legend_file)
        for name in progress(list(places)):
            try:
                image = decode(_content(name))
            except BrokenImageError as error:
                yield MaskPrediction(name, error=str(error))
                continue
            ids = segmenter.segment(image, window, scales, flip)
            overlay_file, mask_file = _mask_files(places[name])
            overlay_file.parent.mkdir(parents=True, exist_ok=True)
            _save(overlay(image, ids.numpy(), palette), overlay_file)
            _save(Image.fromarray(ids.numpy()), mask_file)
            counts = torch.bincount(ids.flatten(), minlength=len(names))
            order = [int(i) for i in counts.argsort(descending=True, stable=True) if counts[i]]
            shares = tuple((names[i], int(counts[i]) / ids.numel()) for i in order)
            yield MaskPrediction(name, str(overlay_file), str(mask_file), shares)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None


def _places(photos: Sequence[str], out: Path) -> Iterator[tuple[str, Path]]:
    """Each photo, and the path in `out` that its pictures' names begin with."""
    taken = set()
    for photo in photos:
        for name in list_photos([photo]):
            relative = Path(name).relative_to(photo) if Path(photo).is_dir() else Path(Path(name).name)
            place = out / ("stdin" if name == "-" else relative.with_suffix(""))
            if place in taken:  # a.jpg and a.png
                place = out / relative
            number = 2
            while place in taken:  # the same name from two folders
                place, number = out / relative.with_name(f"{relative.name}-{number}"), number + 1
            taken.add(place)
            yield name, place


def _mask_files(place: Path) -> tuple[Path, Path]:
    return place.with_name(f"{place.name}.overlay.png"), place.with_name(f"{place.name}.mask.png")


def _save(image: Image.Image, path: Path) -> None:
    with whole_file(path) as part:
        image.save(part, format="PNG")


def _content(name: str) -> io.BytesIO | str:
    return io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name


def list_photos(photos: Sequence[str]) -> list[str]:
    """Files and the images in folders, sorted within each folder; "-" stays.

    Raises:
        UserError: A path that does not exist, or a folder without images.
    """
    names = []
    for photo in photos:
        path = Path(photo)
        if photo != "-" and not path.exists():
            raise UserError(f"{photo} does not exist: give image files, folders, or - for standard input.")
        if photo != "-" and path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{photo} holds no images ({', '.join(sorted(SUFFIXES))}).")
            names += found
        else:
            names.append(photo)
    return names


@torch.inference_mode()
def _classify(group, model, device, class_names: list[str], top: int) -> Iterator[Prediction]:
    tensors = [t for _, t in group if isinstance(t, torch.Tensor)]
    rows: Iterator[torch.Tensor] = iter(())
    if tensors:
        batch = torch.stack(tensors).to(device, memory_format=torch.channels_last)
        rows = iter(model(batch).float().softmax(1).cpu())
    for name, tensor in group:
        if isinstance(tensor, str):
            yield Prediction(name, [], tensor)
            continue
        values, indices = next(rows).topk(min(top, len(class_names)))
        yield Prediction(name, [(class_names[i], float(v)) for v, i in zip(values, indices, strict=True)])
