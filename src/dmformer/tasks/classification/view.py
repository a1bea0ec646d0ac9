"""What the page on the data shows of labelled photos."""

import numpy as np

from ..view import Example, Finding, View, finding, thumbnail
from .datasets import Split, Splits

FEW = 10
"""A class with fewer training photos is told."""


def view(splits: Splits) -> View | None:
    """See `View`; None for data sets of other packages."""
    parts = {"train": splits.train, "val": splits.val, **({"test": splits.test} if splits.test else {})}
    if splits.train.indices is None or not hasattr(splits.train.reader, "open"):
        return None
    K = len(splits.class_names)
    return View(
        layout=splits.layout,
        splits=parts,
        class_names=splits.class_names,
        counted="photos",
        counts={name: np.bincount(_targets(part), minlength=K).tolist() for name, part in parts.items()},
        reading=splits.train.reading,
        copies=splits.copies,
        notes=splits.notes,
        findings=_rare(splits),
    )


def _targets(split: Split) -> np.ndarray:
    assert split.targets is not None
    return split.targets


def _rare(splits: Splits) -> list[Finding]:
    train, targets = splits.train, _targets(splits.train)
    counts = np.bincount(targets, minlength=len(splits.class_names))
    rare = [k for k in np.argsort(counts, kind="stable").tolist() if 0 < counts[k] < FEW]

    def example(k: int) -> Example:
        i = int(np.flatnonzero(targets == k)[0])
        told = f"{counts[k]} training photo{'' if counts[k] == 1 else 's'}"
        return Example(splits.class_names[k], told, lambda: thumbnail(train, i, train.reading))

    meaning = "A model learns little from so few, and scores on them are uncertain."
    return finding(f"Classes with fewer than {FEW} training photos", meaning, rare, example)
