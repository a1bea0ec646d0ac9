"""Compare an exported file's outputs and speed with PyTorch's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..runtimes.sessions import to_onnxruntime, to_openvino
from ..utils.timing import interleave, summarise, turn

LIMIT = 1e-3
"""Maximum accepted difference of logits, relative to PyTorch's largest; for boxes, see `box_difference`."""

SWAPPED = 0.05
"""Fraction of a query model's candidates that may differ by more (a reconstruction); see `box_difference`."""

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
