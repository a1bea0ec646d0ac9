"""Score a trained multi-label classifier."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.decode import Reading
from ...data.finding import no_remark
from ...data.pages import several_pages
from ...utils.errors import UserError
from ..classification.datasets import Split, check_same_classes
from ..classification.evaluate import check_broken, predict_all
from ..classification.folds import Kind, conclude
from ..classification.loaders import eval_loader
from ..config import TrainedFolder, read_folder
from ..leaks import seen_note
from ..recipe import recipe_of
from ..results import refuse_trained, reported_split
from ..task import Summary
from .classifier import MultiLabelClassifier, open_multilabel
from .datasets import LabelSplits, open_label_splits, open_labelled, trained_photos
from .metrics import MultiLabelScores, best_thresholds, measures, score
from .recipes import MultiLabelRecipe


def evaluate(
    source: str | TrainedFolder | MultiLabelClassifier,
    data: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    max_broken: float = MultiLabelRecipe.max_broken,
    progress: Callable[[Iterable], Iterable] = iter,
    say: Callable[[str], None] = no_remark,
    device: str = "auto",
    max_pixels: int | None = None,
    run_of: str | None = None,
    tta: str = "auto",
) -> MultiLabelScores:
    """Score a trained multi-label classifier at its own thresholds.

    Args:
        source: A run's best/ folder, or an open classifier.
        data: A table, a folder or an archive, as for training; by default the photos that the run held out.
        batch_size: Images per batch, for a classifier with images of one size.
        progress: Wraps the loader, to show how far it has got.
        say: Takes a remark on the data.
        device: Where to compute, see `find_device`.
        max_pixels: Images of more pixels are not read; by default as in training.
        run_of: The source whose run held the photos out, for a classifier that is open.
        tta: Test-time augmentation, a key of `VIEWS`; auto is the classifier's own.

    Raises:
        UserError: Nothing to read, other classes, no labels, too many broken images, or no data for a source that is
            not a run.
    """
    classifier = open_multilabel(source) if isinstance(source, str | TrainedFolder) else source
    classifier = classifier.answering(tta)
    origin = run_of or source
    is_run = isinstance(origin, str | TrainedFolder)
    run = recipe_of(MultiLabelRecipe, read_folder(origin).folder) if is_run else None
    if data is not None:
        split, labels = _opened(replace(run or MultiLabelRecipe(), data=data), classifier, run, say)
    elif run is None:
        raise UserError("there is no run whose test photos could be scored: name the photos with --data.")
    else:
        split, labels = _own_test(run, classifier, say)
    split = replace(split, reading=Reading(classifier.values, max_pixels or (run or MultiLabelRecipe()).max_pixels))
    batch_size = batch_size if classifier.one_size else 1
    loader = eval_loader(split, classifier.transform(), classifier.at_least, batch_size, workers)
    place = classifier.on_device(device)
    found = predict_all(classifier.network, loader, place, progress=progress, as_probabilities=torch.sigmoid)
    check_broken(split, found.broken, max_broken)
    labels = torch.from_numpy(labels)[found.targets]
    if not labels.any():
        raise UserError(f"none of the {len(split)} photos has a label: there is nothing to score.")
    return score(found.probabilities, labels, classifier.class_names, classifier.thresholds)


def conclude_folds(recipe: MultiLabelRecipe, splits: LabelSplits, run: Path, facts: Mapping[str, str]) -> Summary:
    """`folds.conclude` for several labels per photo; the ensemble's thresholds are the best on all photos."""
    labels = torch.from_numpy(splits.labels)

    def scored(probabilities: Tensor, targets: Tensor, classifier: Any, intervals: bool) -> MultiLabelScores:
        resamples = 200 if intervals else 0
        return score(probabilities, labels[targets], classifier.class_names, classifier.thresholds, resamples)

    def names(row: int) -> str:
        return ";".join(splits.class_names[k] for k in labels[row].nonzero()[:, 0].tolist())

    def thresholds(probabilities: Tensor, targets: Tensor) -> dict[str, Any]:
        return {"thresholds": list(best_thresholds(probabilities, labels[targets]))}

    return conclude(recipe, splits, run, facts, Kind(open_multilabel, scored, measures, names, thresholds))


def _opened(
    recipe: MultiLabelRecipe,
    classifier: MultiLabelClassifier,
    run: MultiLabelRecipe | None,
    say: Callable[[str], None],
) -> tuple[Split, np.ndarray]:
    split, labels, notes = open_labelled(recipe, classifier.class_names)
    seen = trained_photos(split, run) if run is not None else 0
    notes += several_pages(len(split), split.filename, split.open)
    for note in [*notes, *seen_note(seen, len(split))]:
        say(note)
    return split, labels


def _own_test(
    run: MultiLabelRecipe, classifier: MultiLabelClassifier, say: Callable[[str], None]
) -> tuple[Split, np.ndarray]:
    """The images that the run held out: for testing, or for validation if it has no others."""
    try:
        splits = open_label_splits(run, compare=False)
        check_same_classes(splits, classifier.class_names, run.data)
    except UserError as error:
        raise UserError(f"the photos of the run cannot be opened again; name others with --data. {error}") from None
    split, name = reported_split(splits)
    refuse_trained(run, name)
    say(f"scoring the {name} photos of the run, from {run.data}")
    return split, splits.labels
