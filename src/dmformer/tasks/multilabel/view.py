"""What the page on the data shows of photos with several labels."""

import numpy as np

from ..classification.datasets import Split
from ..view import View
from .datasets import LabelSplits


def view(splits: LabelSplits) -> View:
    """See `View`."""
    parts = {"train": splits.train, "val": splits.val, **({"test": splits.test} if splits.test else {})}
    return View(
        layout=splits.layout,
        splits=parts,
        class_names=splits.class_names,
        counted="photos",
        counts={name: splits.labels[_rows(part)].sum(0).astype(int).tolist() for name, part in parts.items()},
        reading=splits.train.reading,
        copies=splits.copies,
        notes=splits.notes,
    )


def _rows(split: Split) -> np.ndarray:
    """The rows of the labels that belong to the photos of a split."""
    assert split.targets is not None
    return split.targets
