"""Whether an exported file answers as PyTorch does, and how fast each is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..bench import interleave, summarise, turn
from ..classifier import Classifier
from ..segmenter import Segmenter, SegmenterConfig
from .exported import Exported, ExportedClassifier, ExportedSegmenter
from .runtimes import to_onnxruntime, to_openvino

LIMIT = 1e-3
"""Largest difference of the logits that is accepted, by the largest of PyTorch's."""

Run = Callable[[np.ndarray], np.ndarray]
"""A batch of images -> logits."""


@dataclass(frozen=True)
class Agreement:
    """The largest difference of the logits of one batch, by the largest of PyTorch's; sides in pixels."""

    height: int
    width: int
    batch: int
    difference: float


@dataclass(frozen=True)
class Speed:
    """Images a second at one batch size, medians of rounds in turn; ratio, the median of the rounds' ratios."""

    batch: int
    pytorch: float
    exported: float
    ratio: float


def open_file(path: Path, to: str, threads: int) -> Run:
    """A file of a format of `dmformer export` in its runtime."""
    if to == "onnx":
        return to_onnxruntime(path, threads).run
    if to == "openvino":
        return to_openvino(path, threads).run
    program = torch.export.load(path).module() if to == "pt2" else torch._inductor.aoti_load_package(str(path))
    return in_numpy(program)


def in_numpy(model: Callable[[Tensor], Tensor]) -> Run:
    """A model of PyTorch as a function of arrays."""

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return run


def compare(reference: Run, exported: Run, batches: Sequence[np.ndarray]) -> list[Agreement]:
    """How far two answers to each batch are apart; images (B, 3, H, W) or photos (B, H, W, 3)."""
    found = []
    for images in batches:
        height, width = images.shape[1:3] if images.shape[-1] == 3 else images.shape[2:4]
        found.append(Agreement(height, width, len(images), difference(reference(images), exported(images))))
    return found


def difference(expected: np.ndarray, answer: np.ndarray) -> float:
    """The largest of two answers' differences, by the largest that is expected; of what is no answer, infinity."""
    if answer.shape != expected.shape or not np.isfinite(answer).all():
        return float("inf")
    largest = float(np.abs(answer - expected).max())
    return largest / float(np.abs(expected).max()) if largest else 0.0


def speeds(
    reference: Run,
    exported: Run,
    batches: Sequence[np.ndarray],
    rounds: int = 5,
    seconds: float = 0.3,
) -> list[Speed]:
    """Both in turn on each batch, so that what else the machine does falls on both."""
    pairs = [(run, images) for images in batches for run in (reference, exported)]
    turns = [lambda run=run, images=images: turn(lambda: run(images), seconds) for run, images in pairs]
    times, found = interleave(turns, rounds, lambda *_: None), []
    for i, images in enumerate(batches):
        theirs, ours = times[2 * i], times[2 * i + 1]
        row = summarise(len(images), ours, theirs)
        pytorch = summarise(len(images), theirs, None)["images_per_second"]
        found.append(Speed(len(images), pytorch, row["images_per_second"], row["ratio"]))
    return found


class SessionModel(nn.Module):
    """An exported file in the place of a model of PyTorch: what the file takes, as a tensor, -> logits.

    A segmenter's file that normalises by itself is given its images (B, 3, H, W) as the photos that they were.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported, card = exported, exported.card
        self.turned_back = card.preprocessing and card.task == "segmentation"
        self.mean, self.std = torch.tensor(card.mean).view(3, 1, 1), torch.tensor(card.std).view(3, 1, 1)
        size = card.image_size if card.task == "segmentation" else None
        self.made_for = None if size is None else (size[0], size[1])

    def forward(self, images: Tensor) -> Tensor:
        x = images.cpu()
        if self.turned_back:
            x = ((x * self.std + self.mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        logits = self.exported.logits(np.ascontiguousarray(x.numpy()))
        return torch.from_numpy(np.array(logits)).to(images.device)


class FileClassifier(Classifier):
    """An `ExportedClassifier` for `evaluate`; one whose file resizes photos is scored one at a time."""

    def transform(self) -> Callable[[Image.Image], Tensor]:
        model: Any = self.model
        return lambda image: torch.from_numpy(np.array(model.exported.prepare(image)))


def as_scored(exported: ExportedClassifier | ExportedSegmenter) -> FileClassifier | Segmenter:
    """An exported file as what `evaluate` and `evaluate_masks` score."""
    card, model = exported.card, SessionModel(exported)
    if isinstance(exported, ExportedClassifier):
        assert card.image_size is not None
        data_config = {"input_size": (3, *card.image_size), "crop_pct": card.crop_pct}
        return FileClassifier(model, card.class_names, data_config, card.name, exported.form)
    backbone, _, head = card.architecture.partition("+")
    config = SegmenterConfig(
        backbone=backbone,
        backbone_args={},
        head=head,
        width=None,
        dropout=0.0,
        class_names=tuple(card.class_names),
        palette=tuple(exported.palette),
        mean=(card.mean[0], card.mean[1], card.mean[2]),
        std=(card.std[0], card.std[1], card.std[2]),
        resize=card.resize,
        window=card.window,
        reduce_zero_label=card.reduce_zero_label,
        ignore_index=tuple(card.ignore_index or ()),
    )
    network: Any = model
    return Segmenter(network, config, card.name, exported.form)
