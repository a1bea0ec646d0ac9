"""What the page on the data shows of photos with annotated objects."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from ...data.decode import decode
from ...data.palette import default_palette
from ...report.drawing import cropped, draw_objects, moved
from ..view import SIDE, Example, Finding, View, finding, thumbnail
from .datasets import SMALL, BoxSet, BoxSplits, counts_of

COVERS, TWIN, LONG, HOLLOW = 0.95, 0.9, 20.0, 0.05
"""Objects are told that cover a larger fraction of their photo; two that overlap more (IoU); those whose one side is
more times the other; and those whose outline fills a smaller fraction of their box."""

Case = tuple[BoxSet, int, list[int], str]
"""Objects of a photo of a set, by their numbers, and what is to be seen there."""


def view(splits: BoxSplits) -> View:
    """See `View`."""
    parts = {"train": splits.train, "val": splits.val, **({"test": splits.test} if splits.test else {})}
    return View(
        layout=splits.layout,
        splits=parts,
        class_names=splits.class_names,
        counted="objects",
        counts={name: counts_of(part).tolist() for name, part in parts.items()},
        reading=splits.train.reading,
        copies=splits.copies,
        notes=splits.notes,
        faults=splits.faults,
        findings=_findings(parts),
    )


def _findings(parts: dict[str, BoxSet]) -> list[Finding]:
    thin, whole, long, hollow, doubled, disputed = ([] for _ in range(6))
    held: dict[int, list[Case]] = {}
    bare: list[tuple[BoxSet, int]] = []
    for part in parts.values():
        for i, objects in enumerate(part.annotations):
            if not len(objects):
                bare.append((part, i))
                continue
            sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
            height, width = part.sizes[i].tolist()
            areas, names = sides.prod(1), [part.class_names[label] for label in objects.labels]
            ratios = sides.max(1) / sides.min(1).clip(1e-6)
            told = [f"{name}, {w:.4g} x {h:.4g} px" for name, (w, h) in zip(names, sides.tolist(), strict=True)]
            thin += [(part, i, [k], told[k]) for k in np.flatnonzero(sides.min(1) < SMALL)]
            whole += [(part, i, [k], told[k]) for k in np.flatnonzero(areas >= COVERS * height * width)]
            long += [(part, i, [k], told[k]) for k in np.flatnonzero((ratios > LONG) & (sides.min(1) >= SMALL))]
            if objects.outlines is not None:
                empty = (objects.areas < HOLLOW * areas) & ~objects.crowd
                hollow += [(part, i, [k], told[k]) for k in np.flatnonzero(empty)]
            for a, b in _twins(objects.boxes, objects.crowd):
                same = objects.labels[a] == objects.labels[b]
                pair = (part, i, [a, b], names[a] if same else f"{names[a]} and {names[b]}")
                (doubled if same else disputed).append(pair)
            for label in set(objects.labels.tolist()):
                first = np.flatnonzero(objects.labels == label).tolist()
                held.setdefault(label, []).append((part, i, first, part.class_names[label]))
    once = [cases[0] for _, cases in sorted(held.items()) if len(cases) == 1]
    return [
        *_finding(f"Objects less than {SMALL} pixels wide or high", "Too small to be found; often a slip.", thin),
        *_finding(f"Objects that cover {COVERS:.0%} of their photo or more", "Often a slip.", whole),
        *_finding(f"Objects more than {LONG:.0f} times as long as wide", "Often a slip; anchors fit them badly.", long),
        *_finding(f"Outlines that fill less than {HOLLOW:.0%} of their box", "Often a stray point.", hollow),
        *_finding("Two boxes of one class around the same thing", "It counts twice.", doubled),
        *_finding("Two classes for the same thing", "At most one can be found with certainty.", disputed),
        *_finding("Classes in one photo only", "They cannot be both learnt and scored.", once),
        *finding(
            "Photos without objects",
            "Right if nothing is there; else every find in them counts as wrong.",
            bare,
            lambda case: Example(case[0].name(case[1]), "", lambda: thumbnail(*case, case[0].reading)),
        ),
    ]


def _twins(boxes: np.ndarray, crowd: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of objects whose boxes are nearly the same."""
    order = np.flatnonzero(~crowd)
    order = order[np.argsort(boxes[order, 0], kind="stable")]  # nearly equal boxes begin nearly at the same column
    pairs = []
    for row, a in enumerate(order.tolist()):
        width, height = (boxes[a, 2:] - boxes[a, :2]).tolist()
        for b in order[row + 1 :].tolist():
            if boxes[b, 0] - boxes[a, 0] > (1 - TWIN) * width:
                break
            corner = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
            inside = float(corner.clip(0).prod())
            both = width * height + float((boxes[b, 2:] - boxes[b, :2]).prod()) - inside
            if inside >= TWIN * both:
                pairs.append((min(a, b), max(a, b)))
    return pairs


def _finding(title: str, meaning: str, cases: list[Case]) -> list[Finding]:
    return finding(title, meaning, cases, lambda case: Example(case[0].name(case[1]), case[3], _drawing(*case[:3])))


def _drawing(part: BoxSet, i: int, chosen: list[int]) -> Callable[[], Image.Image]:
    """Draws objects of a photo with what is around the first of them."""

    def draw() -> Image.Image:
        with part.open(i) as file:
            image = decode(file, reading=part.reading)
        objects = part.annotations[i]
        crop, window, scale = cropped(image, objects.boxes[chosen[0]], SIDE)
        boxes = moved(objects.boxes[chosen], window, scale)
        return draw_objects(
            crop, boxes, objects.labels[chosen], part.class_names, default_palette(len(part.class_names))
        )

    return draw
