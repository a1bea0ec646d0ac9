"""What a run comes to: how far it is, and, when it is done, its scores and its report."""

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from PIL import Image

from . import __version__
from .classifier import open_classifier
from .data.loaders import ImageSet, eval_loader
from .data.readers import Splits
from .evaluate import check_broken, predict_all
from .files import write_whole
from .recipes import Recipe
from .report import Report, write_report
from .tasks.classification import Scores, score


@dataclass
class Progress:
    """How far a run is; saved with its state."""

    epoch: int = 0
    step: int = 0
    """Steps done of the epoch."""
    loss: float = 0.0
    right: float = 0.0
    """Sums over the steps done of the epoch."""
    best: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def conclude(folder: Path, splits: Splits, progress: Progress, recipe: Recipe, command: str) -> tuple[Scores, str]:
    """Score best/ on the test split, or on validation where there is none, and write report.html and scores.json.

    Returns:
        The scores and the split's name.
    """
    split, name = (splits.test, "test") if splits.test else (splits.val, "validation")
    classifier = open_classifier(str(folder / "best"))
    device = classifier.on_best_device()
    loader = eval_loader(split, classifier.transform(), classifier.at_least, recipe.batch_size, recipe.workers)
    found = predict_all(classifier.model, loader, device)
    check_broken(split, found.broken, recipe.max_broken)
    scores = score(found.probabilities, found.targets, splits.class_names)
    positions = found.positions.tolist()
    images = loader.dataset

    def picture(i: int) -> Image.Image:
        if not isinstance(images, ImageSet):
            raise ValueError("a stream's images cannot be shown again")
        return images.picture(positions[i])

    broken = []
    for part, positions_broken in ((splits.train, progress.broken), (split, found.broken)):
        reader = ImageSet(part, classifier.transform(), classifier.at_least, training=False, seed=0)
        broken += [(part.filename(i), reader.reason(i)) for i in positions_broken]
    write_whole(folder / "scores.json", json.dumps(scores.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_report(
        folder / "report.html",
        Report(
            title=f"{recipe.model} on {Path(recipe.data).name}",
            scores=scores,
            split=name,
            class_names=splits.class_names,
            history=progress.history,
            probabilities=found.probabilities,
            targets=found.targets,
            image_names=[split.filename(i) for i in positions],
            load_image=picture,
            broken=broken,
            recipe=recipe.to_yaml(),
            facts=_facts(recipe, splits, progress, device, command),
        ),
    )
    return scores, name


def _facts(recipe: Recipe, splits: Splits, progress: Progress, device: torch.device, command: str) -> dict[str, str]:
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    minutes, seconds = divmod(round(progress.seconds), 60)
    test = f", {len(splits.test)} test" if splits.test else ""
    return {
        "command": command or "dmformer.train.train(recipe)",
        "images": f"{len(splits.train)} training, {len(splits.val)} validation{test}",
        "duration": f"{minutes} min {seconds} s of training",
        "machine": f"{machine}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"dmformer {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"timm {timm.__version__}, Python {platform.python_version()}",
        "seed": str(recipe.seed),
    }
