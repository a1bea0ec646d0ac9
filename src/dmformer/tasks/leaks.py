"""The same photo twice: within a split, in several classes, or in two splits; and in what a run was trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Protocol

from ..data.copies import MANY, Look, look_at, near_photos, same_photos
from ..data.pages import pages_note
from ..utils.display import Track, untracked
from ..utils.errors import UserError
from .folders import first_few

Group = list[tuple[str, int]]
"""Equal photos: the name of the split, and the position in it."""


class Photos(Protocol):
    """The photos of a split."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> IO[bytes]:
        """The file of photo i."""
        ...

    def filename(self, i: int) -> str:
        """Display name of photo i."""
        ...


@dataclass(frozen=True)
class Copies:
    """Photos that occur twice.

    Attributes:
        splits: The compared photos by the name of their split, to which the groups refer.
        looks: A look at each of them, by split; empty if they are too many to be compared.
        same: Groups with equal pixels.
        mixed: Those of them with several classes.
        near: Groups that look alike.
        notes: Remarks on them for the user.
    """

    splits: Mapping[str, Photos] = field(default_factory=dict)
    looks: Mapping[str, list[Look | None]] = field(default_factory=dict)
    same: list[Group] = field(default_factory=list)
    mixed: list[Group] = field(default_factory=list)
    near: list[Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> list[Group]:
        """The equal photos that are in two splits."""
        return [group for group in self.same if len(dict(group)) > 1]

    def together(self, split: str) -> list[list[int]]:
        """Positions in a split of photos that belong together."""
        groups = ([i for name, i in group if name == split] for group in (*self.same, *self.near))
        return [group for group in groups if len(group) > 1]


def find_copies(
    splits: Mapping[str, Photos],
    near: bool = False,
    target: Callable[[str, int], int] | None = None,
    of: str | None = None,
    track: Track = untracked,
) -> Copies:
    """Photos that occur twice in splits, given by name.

    Args:
        splits: Photos by the name of their split.
        near: Also find photos that look alike.
        target: The class of a photo, given by the name of its split and its number, if it has one.
        of: The split whose copies are looked for, in it and in the others; by default those of all.
        track: Shows how far it has got.
    """
    places = [(name, i) for name, split in splits.items() for i in range(len(split))]
    if len(places) > MANY:
        return Copies(splits, notes=[f"more than {MANY:,} photos: no copies among them were looked for"])

    def opened(i: int) -> IO[bytes]:
        name, position = places[i]
        return splits[name].open(position)

    wanted = None if of is None else {k for k, (name, _) in enumerate(places) if name == of}
    looked = look_at(len(places), opened, lambda items: track(items, "comparing the photos"))
    looks = {name: [look for (own, _), look in zip(places, looked, strict=True) if own == name] for name in splits}
    same = [[places[i] for i in group] for group in same_photos(len(places), opened, looked, wanted)]
    mixed = [group for group in same if target is not None and len({target(name, i) for name, i in group}) > 1]
    notes = [*_pages(splits, looks), *_notes(splits, same, mixed)]
    alike = find_near(splits, track) if near else []
    if near:
        notes.append(f"{_more(alike):,} photos look like another one{_shown(splits, alike)}")
    return Copies(splits, looks, same, mixed, alike, notes)


def find_near(splits: Mapping[str, Photos], track: Track = untracked) -> list[Group]:
    """Groups of photos that look alike. Every photo is decoded."""
    places = [(name, i) for name, split in splits.items() for i in range(len(split))]

    def opened(i: int) -> IO[bytes]:
        name, position = places[i]
        return splits[name].open(position)

    found = near_photos(len(places), opened, lambda items: track(items, "looking for photos that look alike"))
    return [[places[i] for i in group] for group in found]


def refuse_leaks(splits: Mapping[str, Photos], copies: Copies, allowed: bool) -> list[str]:
    """Remarks on photos that are in two splits.

    Raises:
        UserError: There are some, and they are not allowed.
    """
    leaks = copies.leaks
    if not leaks:
        return []
    between = sorted({" and ".join(dict.fromkeys(name for name, _ in group)) for group in leaks})
    told = f"{len(leaks):,} photo{' is' if len(leaks) == 1 else 's are'} both in {', '.join(between)}"
    told += _shown(splits, [_across(group) for group in leaks])
    if allowed:
        return [f"{told}: scores on these say nothing about new photos"]
    raise UserError(f"{told}. Remove them from one of the splits, or give --allow-leaks.")


def _across(group: Group) -> Group:
    """The first photo of a group, and one of another split."""
    return [group[0], next(place for place in group if place[0] != group[0][0])]


def seen_in_training(scored: Photos, train: Photos) -> int:
    """How many of the scored photos are also training photos, by their content."""
    leaks = find_copies({"scored": scored, "train": train}, of="scored").leaks
    return sum(name == "scored" for group in leaks for name, _ in group)


def seen_note(seen: int, scored: int) -> list[str]:
    """A remark for the user, if there are such photos."""
    if not seen:
        return []
    return [f"the run was trained on {seen:,} of these {scored:,} photos: scores on them prove nothing"]


def _notes(splits: Mapping[str, Photos], same: list[Group], mixed: list[Group]) -> list[str]:
    if not same:
        return []
    count = _more(same)
    notes = [f"{count:,} photo{' is a copy' if count == 1 else 's are copies'} of another one{_shown(splits, same)}"]
    if mixed:
        notes.append(
            f"{len(mixed):,} photo{' is' if len(mixed) == 1 else 's are'} in two classes{_shown(splits, mixed)}"
        )
    return notes


def _pages(splits: Mapping[str, Photos], looks: Mapping[str, list[Look | None]]) -> list[str]:
    """A remark on files of which only the first picture is read."""
    return pages_note(
        [
            (splits[name].filename(i), look.pages)
            for name, own in looks.items()
            for i, look in enumerate(own)
            if look is not None and look.pages > 1
        ]
    )


def _more(groups: list[Group]) -> int:
    """Number of photos beside the first of each group."""
    return sum(len(group) - 1 for group in groups)


def _shown(splits: Mapping[str, Photos], groups: list[Group]) -> str:
    """Some of the groups, in brackets."""

    def name(place: tuple[str, int]) -> str:
        split, i = place
        return f"{split}/{splits[split].filename(i)}" if len(splits) > 1 else splits[split].filename(i)

    pairs = [f"{name(group[0])} = {name(group[1])}" for group in groups[:3]]
    return f" ({first_few(pairs, 2)})" if pairs else ""
