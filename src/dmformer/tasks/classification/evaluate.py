"""Run a trained classifier over a set of images, and score it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.decode import Reading
from ...data.finding import no_remark
from ...data.pages import several_pages
from ...nn.over_cores import over_cores
from ...utils.errors import UserError
from .. import folders
from ..config import TrainedFolder, read_folder
from ..leaks import seen_note
from ..recipe import recipe_of
from ..results import refuse_trained
from ..sampling import once_each
from .classifier import Classifier, open_classifier
from .datasets import Split, open_evaluation, open_own_test, trained_photos
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
    data: str | None = None,
    batch_size: int = 64,
    recipe: ClassificationRecipe | None = None,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
    say: Callable[[str], None] = no_remark,
    max_pixels: int | None = None,
    run_of: str | None = None,
    tta: str = "auto",
) -> Scores:
    """Score a trained classifier.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, or an open classifier.
        data: elpv (its held-out quarter), a folder or archive of class folders, a table of paths and labels, or a data
            set that timm knows; by default the images that the run itself held out for testing.
        batch_size: Images per batch, for a classifier with images of one size.
        recipe: Only its fields data_root, val_split, download, workers, max_broken and device are used here.
        progress: Wraps the loader, to show how far it has got.
        say: Takes a remark on the data.
        max_pixels: Images of more pixels are not read; by default as in training.
        run_of: The source whose run held the images out, for a classifier that is open.
        tta: Test-time augmentation, a key of `VIEWS`; auto is the classifier's own.

    Raises:
        UserError: Nothing to read, other classes, too many broken images, or no data for a source that is not a run.
    """
    classifier = open_classifier(source) if isinstance(source, str | TrainedFolder) else source
    classifier = classifier.answering(tta)
    run = _recipe_of(run_of or source)
    recipe = recipe or ClassificationRecipe()
    recipe = replace(recipe, max_pixels=max_pixels or (run or recipe).max_pixels)
    if data is not None:
        split = _opened(replace(recipe, data=data), classifier, run, say)
    elif run is None:
        raise UserError("there is no run whose test photos could be scored: name the photos with --data.")
    else:
        try:
            split, name = open_own_test(run, classifier.class_names)
        except UserError as error:
            raise UserError(f"the photos of the run cannot be opened again; name others with --data. {error}") from None
        refuse_trained(run, name)
        say(f"scoring the {name} photos of the run, from {run.data}")
    split = replace(split, reading=Reading(classifier.values, recipe.max_pixels))
    batch_size = batch_size if classifier.one_size else 1
    loader = eval_loader(split, classifier.transform(), classifier.at_least, batch_size, recipe.workers)
    device = classifier.on_device(recipe.device)
    predictions = predict_all(classifier.network, loader, device, progress=progress)
    check_broken(split, predictions.broken, recipe.max_broken)
    return score(predictions.probabilities, predictions.targets, classifier.class_names)


def _opened(
    recipe: ClassificationRecipe, classifier: Classifier, run: ClassificationRecipe | None, say: Callable[[str], None]
) -> Split:
    """The images that a recipe names, with remarks on them."""
    split, notes = open_evaluation(recipe, classifier.class_names)
    if split.has_names:
        notes += several_pages(len(split), split.filename, split.open)
    for note in notes:
        say(note)
    for note in seen_note(trained_photos(split, run) or 0, len(split)) if run is not None else ():
        say(note)
    return split


def _recipe_of(source: str | TrainedFolder | Classifier) -> ClassificationRecipe | None:
    """The recipe of the run that a classifier comes from, if there is one."""
    if not isinstance(source, str | TrainedFolder) or str(source).startswith("hf-hub:"):
        return None
    return recipe_of(ClassificationRecipe, read_folder(source).folder)


@torch.inference_mode()
def predict_all(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    progress: Callable[[DataLoader], Iterable[Batch]] = iter,
    as_probabilities: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(1),
) -> Predictions:
    """Run a model, in evaluation mode, on an `eval_loader`; `gather` joins tensors of several processes."""
    training = model.training
    model.eval()
    parts = []
    for images, targets, positions in progress(loader):
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        probabilities = as_probabilities(over_cores(model, images).float())
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
