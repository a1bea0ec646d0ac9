"""Find files under other names than annotations give them: other machines' paths, Unicode forms, cases, depths."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from urllib.parse import unquote, urlsplit

from ..data import finding

Parts = tuple[str, ...]
"""A path in parts, in the form in which parts are compared."""


def match_names(wanted: Sequence[str], known: Collection[str]) -> list[str | None]:
    """The known name that each wanted name stands for; None if there is none, or several fit equally well.

    All names are paths. A name stands for the same name, else for the known name that ends in as many of the same parts
    as possible, at least in the same last one. Parts are compared without regard to case, to how Unicode composes
    letters, and to how Windows or a URL writes them. A name below train/ stands for none below val/ or test/. A name in
    a folder that holds known files stands for none in a folder beside it: its file is missing.

    No known name is given to two wanted names: it goes to the one that is the same, else to none of them.
    """
    there = set(known)
    if all(name in there for name in wanted):
        return list(wanted)
    by_last: dict[str, list[tuple[Parts, str]]] = defaultdict(list)
    for name in there.difference(wanted):
        if parts := _parts(name):
            by_last[parts[-1]].append((parts, name))
    lost = {name: _parts(name) for name in wanted if name not in there}
    folders = {_parts(name)[:-1] for name in there}
    nearest = {}
    for parts in filter(None, {*lost.values()}):
        near = (each for each in by_last[parts[-1]] if parts[:-1] not in folders or _in_line(parts, each[0]))
        nearest[parts] = _nearest(parts, list(near))
    claims = Counter(nearest.values())
    found = {parts: name for parts, name in nearest.items() if claims[name] == 1}
    return [name if name in there else found.get(lost[name]) for name in wanted]


def renaming_note(what: str, wanted: Sequence[str], found: Sequence[str | None]) -> list[str]:
    """A note that counts the files, `what` in words, that `match_names` found under another name."""
    others = [(name, other) for name, other in zip(wanted, found, strict=True) if other not in (None, name)]
    if not others:
        return []
    return [f"{what} found under another name: {len(others)}, such as {others[0][0]} as {others[0][1]}"]


def split_of(name: str) -> str | None:
    """The split that a folder's name such as train2017 or valid stands for."""
    return finding.split_of(re.sub(r"20\d\d$", "", name))


def _parts(name: str) -> Parts:
    path = unquote(urlsplit(name).path) if "://" in name else name
    plain = unicodedata.normalize("NFC", path).replace("\\", "/").casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _in_line(a: Parts, b: Parts) -> bool:
    """Whether one of two paths is in the folder of the other one, or below it."""
    return all(left == right for left, right in zip(a[:-1], b[:-1], strict=False))


def _nearest(parts: Parts, candidates: Sequence[tuple[Parts, str]]) -> str | None:
    """The candidate with the longest tail in common; None if there is none, or a tie."""
    splits = _splits(parts)
    tails = [0 if splits and _splits(other) - splits else _common_tail(parts, other) for other, _ in candidates]
    best = max(tails, default=0)
    if not best:
        return None
    return candidates[tails.index(best)][1] if tails.count(best) == 1 else None


def _splits(parts: Parts) -> set[str]:
    """The splits that the folders of a path name."""
    return {split for part in parts[:-1] if (split := split_of(part))}


def _common_tail(a: Parts, b: Parts) -> int:
    length = 0
    for left, right in zip(reversed(a), reversed(b), strict=False):
        if left != right:
            break
        length += 1
    return length
