"""Classify photos with a trained classifier."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .classifier import Classifier, open_classifier
from .data.decode import SUFFIXES, BrokenImageError, decode
from .errors import UserError
from .fuse import fuse


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
            content = io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name
            group.append((name, transform(decode(content, classifier.at_least))))
        except BrokenImageError as error:
            group.append((name, str(error)))
        if len(group) == batch_size or i == len(names):
            yield from _classify(group, model, device, classifier.class_names, top)
            group = []


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
