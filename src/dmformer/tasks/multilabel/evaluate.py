"""Score a trained multi-label classifier."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.decode import Reading
from ...data.finding import no_remark
from ...data.pages import several_pages
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from ..classification.evaluate import own_test, predict_split, recipe_of_run
from ..classification.folds import conclude
from ..classification.kind import Kind
from ..config import TrainedFolder
from ..leaks import seen_note
from ..results import Summary
from ..task import OWN_TEST
from .classifier import MultiLabelClassifier, open_multilabel
from .datasets import LabelSplits, open_label_splits, open_labelled, trained_photos
from .metrics import MultiLabelScores, best_thresholds, measures, score
from .recipes import MultiLabelRecipe
from .report import write_report


def evaluate(
    source: str | TrainedFolder | MultiLabelClassifier,
    data: str = OWN_TEST,
    batch_size: int = 64,
    workers: int | None = None,
    max_broken: float = MultiLabelRecipe.max_broken,
    max_pixels: int | None = None,
    progress: Track = untracked,
    say: Callable[[str], None] = no_remark,
    device: str = "auto",
    run_of: str | None = None,
    tta: str = "auto",
) -> MultiLabelScores:
    """Score a trained multi-label classifier at its own thresholds.

    Args:
        source: A run's best/ folder, or an open classifier.
        data: A table, a folder or an archive, as for training; by default the photos that the run held out.
        batch_size: Images per batch, for a classifier with images of one size.
        max_broken: Maximum fraction of images that cannot be read.
        say: Takes a remark on the data.
        max_pixels: Images of more pixels are not read; by default as in training.
        device: Where to compute, see `find_device`.
        run_of: The source whose run held the photos out, for a classifier that is open.
        tta: Test-time augmentation, a key of `VIEWS`; auto is the classifier's own.

    Raises:
        UserError: Nothing to read, other classes, no labels, too many broken images, or no data for a source that is
            not a run.
    """
    classifier = open_multilabel(source) if isinstance(source, str | TrainedFolder) else source
    classifier = classifier.answering(tta)
    run = recipe_of_run(MultiLabelRecipe, run_of or source)
    most = max_pixels or (run or MultiLabelRecipe).max_pixels
    recipe = MultiLabelRecipe(
        data=data, batch_size=batch_size, workers=workers, max_broken=max_broken, max_pixels=most, device=device
    )
    recipe.check()
    if data == OWN_TEST:
        known = classifier.class_names
        split, splits = own_test(run, known, lambda run: open_label_splits(run, compare=False), say)
        rows = splits.labels
    else:
        split, rows, notes = open_labelled(replace(run or recipe, data=data), classifier.class_names)
        notes += several_pages(len(split), split.filename, split.open)
        seen = trained_photos(split, run) if run is not None else 0
        for note in [*notes, *seen_note(seen, len(split))]:
            say(note)
    split = replace(split, reading=Reading(classifier.values, most))
    found = predict_split(classifier, split, recipe, progress)
    labels = torch.from_numpy(rows)[found.targets]
    if not labels.any():
        raise UserError(f"none of the {len(split)} photos has a label: there is nothing to score.")
    return score(found.probabilities, labels, classifier.class_names, classifier.thresholds)


def several_labels(splits: LabelSplits) -> Kind:
    """Several labels per photo, of this data; the ensemble's thresholds are the best on all photos."""
    labels = torch.from_numpy(splits.labels)

    def scored(probabilities: Tensor, targets: Tensor, classifier: Any, intervals: bool) -> MultiLabelScores:
        resamples = 200 if intervals else 0
        return score(probabilities, labels[targets], classifier.class_names, classifier.thresholds, resamples)

    def names(row: int) -> str:
        return ";".join(splits.class_names[k] for k in labels[row].nonzero()[:, 0].tolist())

    def thresholds(probabilities: Tensor, targets: Tensor) -> dict[str, Any]:
        return {"thresholds": list(best_thresholds(probabilities, labels[targets]))}

    return Kind(open_multilabel, scored, measures, names, labels.__getitem__, write_report, thresholds)


def conclude_folds(recipe: MultiLabelRecipe, splits: LabelSplits, run: Path, facts: Mapping[str, str]) -> Summary:
    """`folds.conclude` for several labels per photo."""
    return conclude(recipe, splits, run, facts, several_labels(splits))
