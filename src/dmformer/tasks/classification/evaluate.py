"""Run a trained classifier over a set of images, and score it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.decode import Reading
from ...data.finding import no_remark
from ...data.pages import several_pages
from ...nn.over_cores import over_cores
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from .. import folders
from ..config import TrainedFolder, read_folder
from ..folders import first_few
from ..leaks import seen_note
from ..recipe import AnyRecipe, recipe_of
from ..results import refuse_trained, reported_split
from ..sampling import once_each
from ..task import OWN_TEST
from .classifier import Classifier, open_classifier
from .datasets import Split, Splits, open_evaluation, open_splits, trained_photos
from .image_recipe import ClassifierRecipe
from .loaders import Batch, ImageSet, eval_loader
from .metrics import Scores, score
from .recipes import ClassificationRecipe

AnySplits = TypeVar("AnySplits", bound=Splits)


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
    data: str = OWN_TEST,
    split: str = ClassificationRecipe.val_split,
    data_root: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    max_broken: float = ClassificationRecipe.max_broken,
    max_pixels: int | None = None,
    progress: Track = untracked,
    say: Callable[[str], None] = no_remark,
    device: str = "auto",
    run_of: str | None = None,
    tta: str = "auto",
) -> Scores:
    """Score a trained classifier.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, or an open classifier.
        data: elpv (its held-out quarter), a folder or archive of class folders, a table of paths and labels, or a data
            set that timm knows; by default the images that the run itself held out for testing.
        split, data_root: Of a data set that timm knows.
        batch_size: Images per batch, for a classifier with images of one size.
        max_broken: Maximum fraction of images that cannot be read.
        say: Takes a remark on the data.
        max_pixels: Images of more pixels are not read; by default as in training.
        device: Where to compute, see `find_device`.
        run_of: The source whose run held the images out, for a classifier that is open.
        tta: Test-time augmentation, a key of `VIEWS`; auto is the classifier's own.

    Raises:
        UserError: Nothing to read, other classes, too many broken images, or no data for a source that is not a run.
    """
    classifier = open_classifier(source) if isinstance(source, str | TrainedFolder) else source
    classifier = classifier.answering(tta)
    run = recipe_of_run(ClassificationRecipe, run_of or source)
    recipe = ClassificationRecipe(
        data=data,
        data_root=data_root,
        val_split=split,
        batch_size=batch_size,
        workers=workers,
        max_broken=max_broken,
        max_pixels=max_pixels or (run or ClassificationRecipe).max_pixels,
        device=device,
    )
    recipe.check()
    if data == OWN_TEST:
        part, _ = own_test(run, classifier.class_names, lambda run: open_splits(run, compare=False), say)
    else:
        part, notes = open_evaluation(recipe, classifier.class_names)
        if part.has_names:
            notes += several_pages(len(part), part.filename, part.open)
        seen = trained_photos(part, run) or 0 if run is not None else 0
        for note in [*notes, *seen_note(seen, len(part))]:
            say(note)
    part = replace(part, reading=Reading(classifier.values, recipe.max_pixels))
    found = predict_split(classifier, part, recipe, progress)
    return score(found.probabilities, found.targets, classifier.class_names)


def recipe_of_run(kind: type[AnyRecipe], source: str | TrainedFolder | Classifier) -> AnyRecipe | None:
    """The recipe of the run that a classifier comes from, if there is one."""
    if not isinstance(source, str | TrainedFolder) or str(source).startswith("hf-hub:"):
        return None
    return recipe_of(kind, read_folder(source).folder)


def own_test(
    run: AnyRecipe | None,
    class_names: list[str],
    open_data: Callable[[AnyRecipe], AnySplits],
    say: Callable[[str], None],
) -> tuple[Split, AnySplits]:
    """The images that a run held out, for testing or else for validation, and all of its data.

    Raises:
        UserError: There is no run, its data is not there any more or has other classes, or no image was held out.
    """
    if run is None:
        raise UserError("there is no run whose test photos could be scored: name the photos with --data.")
    try:
        splits = open_data(run)
        if splits.class_names != class_names:
            told = first_few(splits.class_names, 8)
            raise UserError(f"{run.data} has changed since the run: it has the classes {told}.")
    except UserError as error:
        raise UserError(f"the photos of the run cannot be opened again; name others with --data. {error}") from None
    split, name = reported_split(splits)
    refuse_trained(run, name)
    say(f"scoring the {name} photos of the run, from {run.data}")
    return split, splits


def predict_split(
    classifier: Classifier,
    split: Split,
    recipe: ClassifierRecipe,
    progress: Track = untracked,
) -> Predictions:
    """Run a trained classifier, with one or several labels per photo, on a split.

    Args:
        recipe: Only its fields batch_size, workers, max_broken and device are used.

    Raises:
        UserError: There is no image, or too many are broken.
    """
    device, batch_size = classifier.on_device(recipe.device), recipe.batch_size if classifier.one_size else 1
    loader = eval_loader(split, classifier.transform(), classifier.at_least, batch_size, recipe.workers)
    found = predict_all(
        classifier.network,
        loader,
        device,
        progress=lambda batches: progress(batches, "scoring"),
        as_probabilities=classifier.as_probabilities,
    )
    check_broken(split, found.broken, recipe.max_broken)
    return found


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
