"""What a task shows of its data before training: photos, classes, and findings with examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image

from ..data.copies import Look
from ..data.decode import PLAIN, Reading, decode
from ..utils.visible import visible
from .folders import Fault
from .leaks import Copies, Photos

SHOWN, SIDE = 6, 200
"""Maximum pictures of a finding, and the longer side of a picture in pixels."""
NAMED = 20
"""Maximum cases of a finding that are named."""

Case = TypeVar("Case")


@dataclass(frozen=True)
class Example:
    """A case of a finding: its name, what is to be seen in a few words, and how to draw it at about `SIDE` pixels."""

    name: str
    told: str
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class Finding:
    """Something to look at: what it is, what it means, the number of cases, and the first of them."""

    title: str
    meaning: str
    count: int
    examples: Sequence[Example] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """What the page shows of a task's data.

    Attributes:
        layout: How the data is stored, in words.
        splits: The photos as they are trained on and scored, by what the split is called.
        class_names: K names; none if there are no labels.
        counted: What is counted, in the plural: "photos".
        counts: For each split, K numbers.
        fractions: For each class the fraction of the training pixels that it covers, if it is known.
        reading: How the photos are read.
        copies: Photos that occur twice.
        notes: Remarks for the user.
        faults: What was left out, and why.
        findings: What the labels show.
        decoded: Whether every photo has been read in full.
    """

    layout: str
    splits: Mapping[str, Photos]
    class_names: Sequence[str]
    counted: str
    counts: Mapping[str, Sequence[int]]
    fractions: Sequence[float] = ()
    reading: Reading = PLAIN
    copies: Copies = field(default_factory=Copies)
    notes: Sequence[str] = ()
    faults: Sequence[Fault] = ()
    findings: Sequence[Finding] = ()
    decoded: bool = False

    @property
    def looks(self) -> list[tuple[str, int, Look]]:
        """A look at each photo that can be opened, with its split and its number there."""
        found = self.copies.looks.items()
        return [(split, i, look) for split, looks in found for i, look in enumerate(looks) if look is not None]


def finding(title: str, meaning: str, cases: Sequence[Case], example: Callable[[Case], Example]) -> list[Finding]:
    """A finding with its first cases as examples; none if there is no case."""
    if not cases:
        return []
    examples = [example(case) for case in cases[:NAMED]]
    names = [f"{visible(each.name)}: {each.told}" if each.told else each.name for each in examples]
    return [Finding(title, meaning, len(cases), examples[:SHOWN], names)]


def thumbnail(photos: Photos, i: int, reading: Reading = PLAIN) -> Image.Image:
    """A small picture of a photo."""
    with photos.open(i) as file:
        image = decode(file, SIDE, reading)
    image.thumbnail((SIDE, SIDE))
    return image


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one."""
    both = Image.new("RGB", (left.width + right.width + 4, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both
