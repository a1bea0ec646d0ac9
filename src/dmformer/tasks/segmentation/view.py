"""What the page on the data shows of images with masks."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ...data.decode import decode
from ...data.orientation import as_shown
from ...report.drawing import overlay
from ..folders import Fault
from ..view import SIDE, Example, Finding, View, finding
from .datasets import Pairs, PairSplits
from .masks import IGNORE

HARDLY, SPECK = 0.01, 10
"""A mask with a smaller fraction of labelled pixels is told, and a class with fewer pixels in a mask."""

Case = tuple[Pairs, int, str]
"""A pair of a set, by its number, and what is to be seen there."""


def view(data: tuple[PairSplits, Sequence[Fault]]) -> View:
    """See `View`."""
    splits, faults = data
    parts = {"train": splits.train, "val": splits.val, **({"test": splits.test} if splits.test else {})}
    K = range(len(splits.labels.class_names))
    pixels = {name: splits.pixels[name] for name in parts}
    learnt = [sum(each.get(k, 0) for each in pixels["train"]) for k in K]
    return View(
        layout=splits.layout,
        splits=parts,
        class_names=splits.labels.class_names,
        counted="masks",
        counts={name: [sum(k in each for each in masks) for k in K] for name, masks in pixels.items()},
        fractions=[count / max(sum(learnt), 1) for count in learnt],
        reading=splits.train.reading,
        copies=splits.copies,
        notes=splits.notes,
        faults=faults,
        findings=_findings(splits, parts),
        decoded=True,
    )


def _findings(splits: PairSplits, parts: dict[str, Pairs]) -> list[Finding]:
    names = splits.labels.class_names
    every = [(part, i, pixels) for name, part in parts.items() for i, pixels in enumerate(splits.pixels[name])]
    empty, hardly, whole, specks = ([] for _ in range(4))
    held: dict[int, list[Case]] = {}
    for part, i, pixels in every:
        labelled = {k: count for k, count in pixels.items() if k != IGNORE}
        total, known = sum(pixels.values()), sum(labelled.values())
        if not known:
            empty.append((part, i, "no labelled pixel"))
        elif known < HARDLY * total:
            hardly.append((part, i, f"{known:,} of {total:,} pixels"))
        elif len(labelled) == 1 and len(names) > 1:
            whole.append((part, i, f"only {names[next(iter(labelled))]}"))
        specks += [(part, i, f"{names[k]}: {count} px") for k, count in labelled.items() if count < SPECK]
        for k in labelled:
            held.setdefault(k, []).append((part, i, names[k]))
    once = [cases[0] for _, cases in sorted(held.items()) if len(cases) == 1]
    return [
        *_finding("Masks without a labelled pixel", "Nothing can be learnt from them.", empty),
        *_finding(f"Masks with less than {HARDLY:.0%} labelled", "Little can be learnt from them.", hardly),
        *_finding("Masks with a single class", "Right for a photo of nothing else, else unfinished.", whole),
        *_finding(
            f"Classes with fewer than {SPECK} pixels in a mask", "Often a slip, or a mask that was resized.", specks
        ),
        *_finding("Classes in one mask only", "They cannot be both learnt and scored.", once),
    ]


def _finding(title: str, meaning: str, cases: list[Case]) -> list[Finding]:
    return finding(title, meaning, cases, lambda case: Example(case[0].name(case[1]), case[2], _drawing(*case[:2])))


def _drawing(pairs: Pairs, i: int) -> Callable[[], Image.Image]:
    """Draws a photo under its mask, at a small size."""

    def draw() -> Image.Image:
        with pairs.open(i) as file:
            image = decode(file, reading=pairs.reading)
        ids = pairs.labels(as_shown(pairs.labels.stored(pairs.masks[i]), pairs.images[i], image.size))
        size = Image.new("L", image.size)
        size.thumbnail((SIDE, SIDE))
        small = np.asarray(Image.fromarray(ids).resize(size.size, Image.Resampling.NEAREST))
        return overlay(image.resize(size.size), small, pairs.labels.palette)

    return draw
