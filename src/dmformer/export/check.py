"""Compare an exported file's outputs and speed with PyTorch's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.detections import ious
from ..runtimes.sessions import to_onnxruntime, to_openvino
from ..utils.timing import interleave, summarise, turn

LIMIT = 1e-3
"""Maximum accepted difference of logits, relative to PyTorch's largest; for boxes, see `box_difference`."""

SWAPPED = 0.05
"""Fraction of a query model's candidates that may differ by more (a reconstruction); see `box_difference`."""

UNPAIRED = 0.1
"""Maximum fraction of objects that only one of PyTorch and a file has (a reconstruction); see `object_difference`. A
Mask R-CNN after 80 iterations, with many almost equal boxes, has up to 0.047."""

ROUNDS, SECONDS = 5, 0.3
"""Rounds of the speed measurement, and the minimum length of a turn."""

Run = Callable[[np.ndarray], np.ndarray]
"""A batch of images -> logits, or candidates."""

Measure = Callable[[np.ndarray, np.ndarray], float]
"""(expected output, actual output) -> difference."""


@dataclass(frozen=True)
class Agreement:
    """Largest difference of one batch: logits relative to PyTorch's largest, or boxes; image sides in pixels."""

    height: int
    width: int
    batch: int
    difference: float


@dataclass(frozen=True)
class Speed:
    """Images per second at one batch size, medians over interleaved rounds; the ratio is the median over rounds."""

    batch: int
    pytorch: float
    exported: float
    ratio: float


def open_file(path: Path, to: str, threads: int) -> Run:
    """Open a file from `dmformer export` in its runtime."""
    if to == "onnx":
        return to_onnxruntime(path, threads).run
    if to == "openvino":
        return to_openvino(path, threads).run
    program = torch.export.load(path).module() if to == "pt2" else torch._inductor.aoti_load_package(str(path))
    return in_numpy(program)


def in_numpy(model: Callable[[Tensor], Tensor]) -> Run:
    """A PyTorch model as a function of NumPy arrays."""

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return run


def compare(
    reference: Run, exported: Run, batches: Sequence[np.ndarray], measure: Measure | None = None
) -> list[Agreement]:
    """The difference of two outputs for each batch; preprocessed images (B, 3, H, W) or raw images (B, H, W, 3)."""
    found = []
    for images in batches:
        height, width = images.shape[1:3] if images.shape[-1] == 3 else images.shape[2:4]
        apart = (measure or difference)(reference(images), exported(images))
        found.append(Agreement(height, width, len(images), apart))
    return found


def difference(expected: np.ndarray, answer: np.ndarray) -> float:
    """Largest difference of two outputs, relative to the largest expected value; infinity for invalid outputs."""
    if answer.shape != expected.shape or not np.isfinite(answer).all():
        return float("inf")
    largest = float(np.abs(answer - expected).max())
    return largest / float(np.abs(expected).max()) if largest else 0.0


def box_difference(expected: np.ndarray, answer: np.ndarray, queries: bool, selected: bool = False) -> float:
    """The largest difference of candidates (B, N, 4 + K): edges as fractions of the image, clipped to it, and scores;
    infinity for invalid outputs.

    A model with queries sorts its locations by score. A rounding error may swap two almost equal scores, which then
    start from each other's query. Therefore a fraction of the candidates may differ. A model whose candidates are the
    objects that it selected may leave one out, and all that follow move up: each is compared with the nearest one.
    """
    if answer.shape != expected.shape or not np.isfinite(answer).all():
        return float("inf")
    expected, answer = expected.clip(0, 1), answer.clip(0, 1)
    if selected:
        pairs = [pair for one, other in zip(expected, answer, strict=True) for pair in ((one, other), (other, one))]
        rows = np.stack([_to_nearest(one, other) for one, other in pairs])
    else:
        rows = np.abs(answer - expected).max(-1)
    return float(np.quantile(rows, 1 - SWAPPED if queries else 1.0))


def object_difference(expected: np.ndarray, answer: np.ndarray, classes: int, threshold: float) -> float:
    """The largest difference of objects that were selected within the graph; infinity for invalid outputs.

    A rounding error changes which of several almost equal boxes suppresses the others, and so which object is left of
    them, by more than any limit. Therefore each object of the file is compared with the nearest of all that PyTorch has
    before suppression; its mask, with that of the same object among PyTorch's own, if it is there. One object in twenty
    may differ by more. And the objects of both must be the same up to such choices: `unpaired`, or it is infinity.

    Args:
        expected: (B, N + M, 4 + K + mask values): PyTorch's N candidates, then all objects before suppression, filled
            up with zeros.
        answer: (B, N, 4 + K + mask values).
        classes: K.
        threshold: Minimum score of an object.
    """
    if (len(answer), *answer.shape[2:]) != (len(expected), *expected.shape[2:]) or not np.isfinite(answer).all():
        return float("inf")
    columns, differences, pairs = 4 + classes, [], []
    for every, found in zip(expected, answer, strict=True):
        full = min(len(_real(rows, columns)) for rows in (every, found)) >= len(found)
        own, found = _real(every[: len(found)], columns), _real(found, columns)
        lowest = min(own[-1, 4:columns].max(), found[-1, 4:columns].max()) if full else threshold
        differences += [_unlike(row, every, own, columns) for row in found]
        pairs.append(unpaired(own, found, columns, float(lowest)))
    alone, of = np.sum(pairs, axis=0)
    if alone > UNPAIRED * of:
        return float("inf")
    return float(np.quantile(differences, 1 - SWAPPED)) if differences else 0.0


def unpaired(own: np.ndarray, found: np.ndarray, columns: int, lowest: float) -> tuple[int, int]:
    """How many of the objects (n, C) and (m, C) in one image have no partner, and how many there are: n + m.

    Partners are of the same class and overlap by an IoU of 0.5, each with one. Objects whose score is at most `LIMIT`
    above `lowest` need none.
    """
    each = [ious(row[:4], found[:, :4]) * _same_class(row, found, columns) for row in own]
    overlaps = np.stack(each) if each else None
    left = [{*range(len(own))}, {*range(len(found))}]
    while overlaps is not None and overlaps.size and overlaps.max() >= 0.5:
        i, k = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[i], overlaps[:, k] = 0, 0
        left[0].remove(int(i))
        left[1].remove(int(k))
    alone = [rows[i, 4:columns].max() for rows, these in zip((own, found), left, strict=True) for i in these]
    return sum(score > lowest + LIMIT for score in alone), len(own) + len(found)


def _real(rows: np.ndarray, columns: int) -> np.ndarray:
    """The candidates (n, C) that are objects, with a score above 0."""
    return rows[rows[:, 4:columns].max(1) > 0]


def _unlike(row: np.ndarray, every: np.ndarray, own: np.ndarray, columns: int) -> float:
    """How far an object (C) is from the nearest of all (m, C), and its mask from that of its like in `own`."""
    apart = float(np.abs(every[:, :columns] - row[:columns]).max(1).min())
    from_own = np.abs(own[:, :columns] - row[:columns]).max(1)
    if from_own.min(initial=1.0) > LIMIT:
        return apart
    return max(apart, float(np.abs(own[from_own.argmin(), columns:] - row[columns:]).max(initial=0.0)))


def _same_class(row: np.ndarray, others: np.ndarray, columns: int) -> np.ndarray:
    """Which of the objects (n, C) have the class of one (C): (n)."""
    return others[:, 4:columns].argmax(1) == row[4:columns].argmax()


def _to_nearest(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each row (n, C) its difference from the nearest of the others (n, C): (n)."""
    return np.array([np.abs(others - row).max(-1).min() for row in rows])


def speeds(reference: Run, exported: Run, batches: Sequence[np.ndarray]) -> list[Speed]:
    """Time both alternately on each batch, so that other load on the machine affects both."""
    pairs = [(run, images) for images in batches for run in (reference, exported)]
    turns = [lambda run=run, images=images: turn(lambda: run(images), SECONDS) for run, images in pairs]
    times, found = interleave(turns, ROUNDS, lambda *_: None), []
    for i, images in enumerate(batches):
        theirs, ours = times[2 * i], times[2 * i + 1]
        row = summarise(len(images), ours, theirs)
        pytorch = summarise(len(images), theirs, None)["images_per_second"]
        found.append(Speed(len(images), pytorch, row["images_per_second"], row["ratio"]))
    return found
