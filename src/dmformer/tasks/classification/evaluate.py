"""Run a trained classifier over a set of images, and score it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...nn.over_cores import over_cores
from ...utils.errors import UserError
from .. import folders
from ..config import TrainedFolder
from ..sampling import once_each
from .classifier import Classifier, open_classifier
from .datasets import Split, open_evaluation
from .loaders import Batch, ImageSet, eval_loader
from .metrics import Scores, score
from .recipes import ClassificationRecipe


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for a split: rows in the split's order, without broken images.

    probabilities (N, K), targets (N) and positions in the split (N); positions of the images that could not be read.
    """

    probabilities: Tensor
    targets: Tensor
    positions: Tensor
    broken: list[int]


def evaluate(
    source: str | TrainedFolder | Classifier,
    data: str = "elpv",
    batch_size: int = 64,
    recipe: ClassificationRecipe | None = None,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
) -> Scores:
    """Score a trained classifier.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, or an open classifier.
        data: elpv (its held-out quarter), a folder or tar of class folders, or a data set that timm knows.
        batch_size: Images per batch, for a classifier with images of one size.
        recipe: Only its fields data_root, val_split, download, workers and max_broken are used here.
        progress: Wraps the loader, to show how far it has got.

    Raises:
        UserError: Nothing to read, other classes, or too many broken images.
    """
    recipe = replace(recipe or ClassificationRecipe(), data=data)
    classifier = open_classifier(source) if isinstance(source, str | TrainedFolder) else source
    split = open_evaluation(recipe, classifier.class_names)
    batch_size = batch_size if classifier.one_size else 1
    loader = eval_loader(split, classifier.transform(), classifier.at_least, batch_size, recipe.workers)
    device = classifier.on_best_device()
    predictions = predict_all(classifier.model, loader, device, progress=progress)
    check_broken(split, predictions.broken, recipe.max_broken)
    return score(predictions.probabilities, predictions.targets, classifier.class_names)


@torch.inference_mode()
def predict_all(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
) -> Predictions:
    """Run a model, in evaluation mode, on an `eval_loader`; `gather` joins tensors of several processes."""
    training = model.training
    model.eval()
    parts = []
    for images, targets, positions in progress(loader):
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        probabilities = over_cores(model, images).float().softmax(1)
        parts.append([gather(t.to(device)).cpu() for t in (probabilities, targets, positions)])
    model.train(training)
    if not parts:
        raise UserError("there is no image to evaluate on.")
    probabilities, targets, positions = (torch.cat(column) for column in zip(*parts, strict=True))
    broken = sorted({int(~p) for p in positions if p < 0})
    if isinstance(loader.dataset, ImageSet):  # an image that several processes read counts once
        keep = once_each(positions)
        keep = keep[positions[keep] >= 0]
        probabilities, targets, positions = probabilities[keep], targets[keep], positions[keep]
    return Predictions(probabilities, targets, positions, broken)


def check_broken(split: Split, broken: list[int], max_broken: float) -> None:
    """Raise UserError with the list if too large a fraction of a split's images is unreadable."""
    folders.check_broken("images", broken, len(split), split.filename, max_broken)
