"""What a run finds in its data before it trains, and the page that shows it.

A task's `view` describes what its `open_data` has opened and checked; nothing is checked by other rules here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.copies import Look
from ..data.decode import BrokenImageError, Reading, decode
from ..data.values import told
from ..utils.display import Track
from ..utils.errors import UserError
from ..utils.machine import available_cores
from .folders import Fault, check_broken, first_faults, first_few
from .leaks import Copies, Group, Photos, find_near
from .recipe import Recipe
from .results import Summary
from .view import Example, Finding, View, finding, side_by_side, thumbnail

if TYPE_CHECKING:
    from .task import Task

ROWS = 200
"""Maximum classes in a table."""
NEAR = 20_000
"""Of more photos, those that look alike are not looked for: it would take minutes."""
MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey, with transparency",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour, with transparency",
    "CMYK": "CMYK",
    "F": "grey, floating point",
    "I": "grey, 32 bits",
}
"""Pillow's modes in words."""


@dataclass(frozen=True)
class Check:
    """The result of checking data.

    Attributes:
        data: What was checked.
        view: What was found; None if the data could not be opened at all.
        refused: Why training would refuse it.
        near: Groups of photos in the view's splits that look alike; None if they were not looked for.
        broken: Photos that cannot be read, beside the view's faults.
    """

    data: str
    view: View | None
    refused: str | None = None
    near: list[Group] | None = None
    broken: Sequence[Fault] = ()


def examine(task: "Task", recipe: Recipe, track: Track) -> Check:
    """Open data as training would, and read every photo.

    Data that training refuses for the number of its faults or for a photo in two splits is opened all the same, so that
    they can be shown.
    """
    data, refused = str(recipe.data), None
    try:
        opened = task.open_data(recipe, track)
    except UserError as error:
        refused = str(error)
        try:
            opened = task.open_data(replace(recipe, max_broken=1.0, allow_leaks=True), track)
        except UserError:
            return Check(data, None, refused)
    view = task.view(opened)
    if view is None:
        raise UserError(f"{data} is read by another package: only photos in folders, archives and tables are checked.")
    broken: list[Fault] = []
    if not view.decoded:
        for split, photos in view.splits.items():
            faults = unreadable(photos, view.reading, recipe.image_size, track, f"reading the {split} photos")
            broken += [(photos.filename(i), reason) for i, reason in faults.items()]
            try:
                check_broken(f"{split} photos", list(faults), len(photos), photos.filename, recipe.max_broken)
            except UserError as error:
                refused = refused or str(error)
    few = sum(map(len, view.splits.values())) <= NEAR
    return Check(data, view, refused, find_near(view.splits, track) if few else None, broken)


def unreadable(photos: Photos, reading: Reading, at_least: int, track: Track, what: str) -> dict[int, str]:
    """Why photos cannot be read, by their number; every photo is decoded."""

    def reason(i: int) -> str | None:
        try:
            with photos.open(i) as file:
                decode(file, at_least, reading)
        except (OSError, BrokenImageError) as error:
            told = str(getattr(error, "strerror", None) or error)
            return f"cannot be read: {'it is no image of a known kind' if 'cannot identify' in told else told}"
        return None

    with ThreadPoolExecutor(available_cores()) as pool:
        futures = [pool.submit(reason, i) for i in range(len(photos))]
        found = [future.result() for future in track(futures, what)]
    return {i: why for i, why in enumerate(found) if why is not None}


# ---- findings of every task


def _twins(splits: Mapping[str, Photos], group: Group, reading: Reading) -> Example:
    """The first photo of a group beside another one, of another split if there is one."""
    first = group[0]
    other = next((place for place in group if place[0] != first[0]), group[1])

    def name(place: tuple[str, int]) -> str:
        file = splits[place[0]].filename(place[1])
        return f"{place[0]}/{file}" if len(splits) > 1 else file

    def draw() -> Image.Image:
        return side_by_side(*(thumbnail(splits[split], i, reading) for split, i in (first, other)))

    return Example(f"{name(first)} = {name(other)}", f"{len(group)} photos" if len(group) > 2 else "", draw)


def copies_found(check: Check) -> list[Finding]:
    """Photos that occur twice, and photos that look alike."""
    view = check.view
    assert view is not None
    copies, reading = view.copies, view.reading
    rest = [group for group in copies.same if group not in copies.leaks and group not in copies.mixed]
    equal = {
        ("The same photo in two splits", "Scores on these photos say nothing about new photos."): copies.leaks,
        ("The same photo in two classes", "One of the labels is wrong, or both are."): copies.mixed,
        ("The same photo twice", "Training sees them twice; a random split keeps them together."): rest,
    }
    found = []
    for (title, meaning), groups in equal.items():
        found += finding(title, meaning, groups, lambda group: _twins(copies.splits, group, reading))
    near = check.near if check.near is not None else copies.near
    splits = view.splits if check.near is not None else copies.splits
    alike = [group for group in near if not _same(group, splits, copies)]
    across = [group for group in alike if len(dict(group)) > 1]
    within = [group for group in alike if len(dict(group)) == 1]
    alike_too = {
        (
            "Photos of two splits that look alike",
            "Frames of one film or resized copies: they make scores too good. A random split keeps them together with "
            "--near-duplicates.",
        ): across,
        ("Photos of one split that look alike", "Frames of one film or resized copies: they teach little."): within,
    }
    for (title, meaning), groups in alike_too.items():
        found += finding(title, meaning, groups, lambda group: _twins(splits, group, reading))
    return found


def _same(group: Group, splits: Mapping[str, Photos], copies: Copies) -> bool:
    """Whether all photos of a group are equal, and so told already."""
    names = {splits[split].filename(i) for split, i in group}
    return any(names <= {copies.splits[split].filename(i) for split, i in each} for each in copies.same)


def extremes_found(view: View) -> list[Example]:
    """The smallest photo, the largest one and the longest one."""
    looks = view.looks
    if not looks:
        return []

    def example(what: str, place: tuple[str, int, Look]) -> Example:
        split, i, look = place
        photos = view.copies.splits[split]
        told = f"{what}: {look.width} x {look.height}"
        return Example(photos.filename(i), told, lambda: thumbnail(photos, i, view.reading))

    by_size = sorted(looks, key=lambda place: place[2].pixels)
    longest = max(looks, key=lambda place: place[2].sides[1] / place[2].sides[0])
    return [example("smallest", by_size[0]), example("largest", by_size[-1]), example("longest", longest)]


# ---- words


def size_words(view: View) -> str:
    """The sizes of the photos in a line; empty if they were not looked at."""
    looks = [look for _, _, look in view.looks]
    if not looks:
        return ""
    looks.sort(key=lambda look: look.pixels)
    sizes = [f"{look.width} x {look.height}" for look in (looks[0], looks[len(looks) // 2], looks[-1])]
    if sizes[0] == sizes[2]:
        return f"all {sizes[0]} pixels"
    return f"from {sizes[0]} to {sizes[2]} pixels, half of them up to {sizes[1]}"


def _sides(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Powers of two, and the number of photos up to so many pixels wide and high, and more than half as many."""
    powers = Counter(max(math.ceil(math.log2(look.pixels) / 2), 0) for look in looks if look.pixels)
    return [(2**power, powers[power]) for power in range(min(powers, default=0), max(powers, default=-1) + 1)]


def value_words(view: View) -> str:
    """The range of values in a line."""
    if view.reading.values is not None:
        return told(view.reading.values)
    deep = sum(look.deep for _, _, look in view.looks)
    return "8 bits" if not deep else f"{deep:,} photos of more than 8 bits, each read with its own range"


def left_out(check: Check) -> list[Fault]:
    assert check.view is not None
    return [*check.view.faults, *check.broken]


def summary(check: Check) -> Summary:
    """What the command prints."""
    view = check.view
    if view is None:
        return Summary([f"{check.data} cannot be opened"])
    lines = [f"layout: {view.layout}"]
    lines += [f"{split}: {len(photos):,} photos" for split, photos in view.splits.items()]
    lines += [f"sizes: {words}" for words in [size_words(view)] if words]
    lines += [f"values: {value_words(view)}"]
    for each in (*copies_found(check), *view.findings):
        lines.append(f"{each.title[0].lower()}{each.title[1:]}: {each.count:,} ({first_few(each.names, 2)})")
    if check.near is None and view.splits:
        lines.append(f"more than {NEAR:,} photos: those that look alike were not looked for")
    if faults := left_out(check):
        lines.append(f"left out: {len(faults):,} ({first_faults(faults, 2)})")
    if not view.class_names:
        return Summary(lines)
    rows = [[name, *map(str, numbers)] for name, *numbers in _class_rows(view)]
    lines.append(f"classes: {len(view.class_names):,}; {view.counted} of each:")
    return Summary(lines, ["class", *view.counts], rows)


def _class_rows(view: View) -> list[tuple[Any, ...]]:
    """Name and counts of each class; if they are many, of those with the fewest in training."""
    rows = list(zip(view.class_names, *view.counts.values(), strict=True))
    return rows if len(rows) <= ROWS else sorted(rows, key=lambda row: row[1])[:ROWS]


# ---- the page


def write_check(path: Path, check: Check, used: bool = False) -> None:
    """Write the page; `used` if a run trains on the data."""
    from ..report.page import safe_jpeg, write_page

    view = check.view
    values: dict[str, Any] = {"title": f"Data check of {Path(check.data).name or check.data}", "check": check}
    if view is None:
        write_page(path, "tasks/check.html", values | {"view": None, "used": False})
        return

    def cards(examples: Iterable[Example]) -> list[tuple[Example, Any]]:
        return [(each, safe_jpeg(each.draw, f"{each.name} {each.told}".strip())) for each in examples]

    looks = [look for _, _, look in view.looks]
    fractions = dict(zip(view.class_names, view.fractions, strict=True)) if view.fractions else {}
    rows = [(name, numbers, fractions.get(name)) for name, *numbers in _class_rows(view)]
    values |= {
        "view": view,
        "used": used,
        "photos_of": {split: len(photos) for split, photos in view.splits.items()},
        "rows": rows,
        "sizes": size_words(view),
        "sides": _sides(looks),
        "extremes": cards(extremes_found(view)),
        "kinds": Counter((look.format or "", MODES.get(look.mode, look.mode)) for look in looks).most_common(),
        "values": value_words(view),
        "copies": [(each, cards(each.examples)) for each in copies_found(check)],
        "near_limit": NEAR,
        "labels": [(each, cards(each.examples)) for each in view.findings],
        "left_out": left_out(check),
    }
    write_page(path, "tasks/check.html", values)
