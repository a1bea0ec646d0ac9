"""Shards: photos in tars of WebDataset's layout, with an index by which each is read alone, from a disk or over HTTP.

    _info.json           splits and their tars, as timm's reader expects them; beside them the names of the classes
    _index.csv           where each photo is: split, shard, name, class, offset, size
    train-00000.tar      KEY.jpg KEY.cls KEY.jpg KEY.cls …

A stream of shards cannot give every process the same number of photos without repeating some and missing others, and
cannot go on in the middle of an epoch. Photos that are read by themselves can do both.
"""

import csv
import io
import json
import tarfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..utils.errors import UserError, first_line

INFO, INDEX = "_info.json", "_index.csv"
COLUMNS = ("split", "shard", "name", "class", "offset", "size")
KNOWN = ("jpg", "png", "webp")
"""Suffixes that timm's reader of shards looks for."""
TRIES = 3
"""How often a photo is asked for over HTTP."""
TIMEOUT = 30
"""Seconds to wait for an answer over HTTP."""


@dataclass
class ShardSplit:
    """The photos of a split, in the order in which they were found before they were put into shards.

    Attributes:
        names: Names of the photos before they were put into shards.
        targets: Class of each, as a number.
        places: Shard, offset and size of each.
    """

    names: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    places: list[tuple[str, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Shards:
    """A set of shards: its place (a folder or a URL), its splits, and what its writer kept with them."""

    place: str
    splits: dict[str, ShardSplit]
    class_names: list[str]
    values: tuple[float, float] | None


class ShardFiles:
    """The photos of a split as files by name (see `Files`)."""

    def __init__(self, place: str, split: ShardSplit) -> None:
        self.place, self.path = place, Path(place)
        self._places = dict(zip(split.names, split.places, strict=True))

    def names(self) -> list[str]:
        return list(self._places)

    def open(self, name: str) -> IO[bytes]:
        shard, offset, size = self._places[name]
        data = _read(_join(self.place, shard), offset, size)
        if len(data) < size:
            raise OSError(f"{shard} ends before this photo")
        return io.BytesIO(data)


def holds_shards(place: str) -> bool:
    """Whether a folder holds shards."""
    return (Path(place) / INFO).is_file()


# ---- writing


@dataclass(frozen=True)
class Source:
    """Photos of a split to put into shards: their names, classes as numbers, and what opens one by its position."""

    names: list[str]
    targets: list[int]
    open: Any


def write_shards(
    folder: Path,
    splits: Mapping[str, Source],
    class_names: Sequence[str],
    values: tuple[float, float] | None = None,
    shard_bytes: int = 256 * 2**20,
    seed: int = 0,
    progress: Any = lambda items, what: items,
) -> tuple[dict[str, int], list[str]]:
    """Write photos, unchanged, as shards into an empty folder.

    The order within a split is shuffled, so that programs that read shards one after the other see mixed classes.

    Args:
        folder: Where to write.
        splits: The photos by the name of their split.
        class_names: Names of the classes, by their numbers.
        values: The range of photos of more than 8 bits.
        shard_bytes: Size after which a shard is closed.
        seed: Shuffles.
        progress: Wraps the photos of a split, to show how far it has got.

    Returns:
        The number of photos written by split; and remarks for the user on what was left out.
    """
    info: dict[str, Any] = {"class_names": list(class_names), "values": values, "splits": {}}
    notes, rows, others = [], [], set()
    for split, source in splits.items():
        order = np.random.default_rng(seed).permutation(len(source.names)).tolist()
        keys = _keys(source.names)
        places: dict[int, tuple[str, int, int]] = {}
        unreadable = []
        lengths: dict[str, int] = {}
        with _Writer(folder, split, shard_bytes) as writer:
            for i in progress(order, f"writing {split}"):
                name: str = source.names[i]
                try:
                    with source.open(i) as file:
                        data = file.read()
                except OSError as error:
                    unreadable.append(f"{name}: {first_line(error)}")
                    continue
                suffix = _suffix(name)
                others |= {suffix} - set(KNOWN)
                places[i] = writer.add(keys[i], suffix, data, source.targets[i])
                lengths[places[i][0]] = lengths.get(places[i][0], 0) + 1
        if unreadable:
            notes.append(f"{split}: {len(unreadable):,} photos cannot be read and are left out ({unreadable[0]})")
        rows += [(split, places[i][0], source.names[i], source.targets[i], *places[i][1:]) for i in sorted(places)]
        info["splits"][split] = {
            "name": split,
            "num_samples": len(places),
            "filenames": list(lengths),
            "shard_lengths": list(lengths.values()),
        }
    if others:
        notes.append(
            f"photos keep their format; other programs may not look for .{', .'.join(sorted(others))} in shards"
        )
    with (folder / INDEX).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    (folder / INFO).write_text(json.dumps(info, indent=1, ensure_ascii=False), "utf-8")
    return {split: part["num_samples"] for split, part in info["splits"].items()}, notes


class _Writer:
    """Writes the shards of a split, one after the other."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self.number, self.stack = -1, ExitStack()
        self.tar: tarfile.TarFile | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, key: str, suffix: str, data: bytes, target: int) -> tuple[str, int, int]:
        """Add a photo and its class; returns the shard, the offset and the size of the photo."""
        if self.tar is None or self.tar.offset >= self.shard_bytes:
            self.stack.close()
            self.number += 1
            tar = tarfile.open(self.folder / self._name(), "w")  # noqa: SIM115 (closed with the stack)
            self.tar = self.stack.enter_context(tar)
        offset = _append(self.tar, f"{key}.{suffix}", data)
        _append(self.tar, f"{key}.cls", str(target).encode())
        return self._name(), offset, len(data)

    def _name(self) -> str:
        return f"{self.split}-{self.number:05}.tar"


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member to a tar; returns the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - len(data) - -len(data) % tarfile.BLOCKSIZE


def _suffix(name: str) -> str:
    suffix = name.rpartition(".")[2].lower()
    return "jpg" if suffix in ("jpeg", "jpe", "jfif") else suffix


def _keys(names: Iterable[str]) -> list[str]:
    """A different key for each photo: its path up to the first dot of its name, which is where WebDataset ends it."""
    keys, seen = [], set()
    for number, name in enumerate(names):
        folder, slash, last = name.rpartition("/")
        key = f"{folder}{slash}{last.rpartition('.')[0].replace('.', '_')}"
        if key in seen:
            key += f"_{number}"
        seen.add(key)
        keys.append(key)
    return keys


# ---- reading


def read_shards(place: str) -> Shards | None:
    """The shards in a folder or at a URL; None if another program wrote them, without an index.

    Raises:
        UserError: There are none, or the index is damaged.
    """
    try:
        info = json.loads(_read(_join(place, INFO)))
        if "class_names" not in info:
            return None
        splits = {split: ShardSplit() for split in info["splits"]}
        lines = io.StringIO(_read(_join(place, INDEX)).decode("utf-8", "surrogateescape"), newline="")
        for row in csv.DictReader(lines):
            split = splits[row["split"]]
            if "/" in row["shard"] or "\\" in row["shard"]:
                raise ValueError(f"{row['shard']} is not in this folder")
            split.names.append(row["name"])
            split.targets.append(int(row["class"]))
            split.places.append((row["shard"], int(row["offset"]), int(row["size"])))
        values = tuple(info["values"]) if info["values"] else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} holds no shards that can be read ({INFO}, {INDEX}): {first_line(error)}.") from None
    if wrong := [name for name, part in splits.items() if len(part) != info["splits"][name]["num_samples"]]:
        raise UserError(f"{_join(place, INDEX)} is cut off: it lacks photos of {wrong[0]}. Copy it again.")
    return Shards(place, splits, info["class_names"], values)


def without_broken(place: str, name: str, split: ShardSplit, max_broken: float) -> tuple[ShardSplit, list[str]]:
    """A split without the photos of shards that are missing or too short, and remarks on these shards.

    Raises:
        UserError: They hold more than a fraction of the photos, or a server cannot send single photos.
    """
    if _is_url(place) and split.places:
        with suppress(OSError):  # a broken shard, which is found below
            shard, offset, _ = split.places[0]
            _read(_join(place, shard), offset, 1)
    needed: dict[str, int] = {}
    for shard, offset, size in split.places:
        needed[shard] = max(needed.get(shard, 0), offset + size)
    with ThreadPoolExecutor(8) as pool:
        sizes = dict(zip(needed, pool.map(lambda shard: _size(_join(place, shard)), needed), strict=True))
    broken = {
        shard: "missing" if (found := sizes[shard]) is None else f"{found:,} bytes long instead of {least:,} or more"
        for shard, least in sorted(needed.items())
        if (sizes[shard] or -1) < least
    }
    if not broken:
        return split, []
    kept = [i for i, (shard, _, _) in enumerate(split.places) if shard not in broken]
    listed = "; ".join(f"{shard} is {reason}" for shard, reason in list(broken.items())[:5])
    listed += f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
    lost = len(split) - len(kept)
    told = f"{lost:,} of {len(split):,} photos of {name} are in broken shards ({listed})"
    if lost > max_broken * len(split):
        raise UserError(f"{told}, more than --max-broken {max_broken:g}: copy these shards again.")
    left = ShardSplit([split.names[i] for i in kept], [split.targets[i] for i in kept], [split.places[i] for i in kept])
    return left, [f"{told}: left out"]


def _join(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}"


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _size(place: str) -> int | None:
    """The size of a file or of what a URL names, in bytes; None if there is none."""
    try:
        if not _is_url(place):
            return Path(place).stat().st_size
        with urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=TIMEOUT) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError):
        return None


def _read(place: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file or of what a URL names: `size` of them from `offset`, or all."""
    if not _is_url(place):
        with open(place, "rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)
    wanted = {} if size is None else {"Range": f"bytes={offset}-{offset + size - 1}"}
    request = urllib.request.Request(place, headers=wanted)
    for tries in _tries():
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if wanted and answer.status != 206:
                    raise UserError(
                        f"the server of {place} sends whole files when a range of bytes is asked for: use another "
                        "server, such as nginx, or copy the shards to a disk."
                    )
                return answer.read()
        except (OSError, HTTPException) as error:
            if tries == TRIES or getattr(error, "code", 500) < 500:
                raise OSError(f"{place}: {first_line(error)}") from error
    raise AssertionError


def _tries() -> Iterator[int]:
    """Numbers from 1 to `TRIES`, with a pause before each but the first."""
    for number in range(1, TRIES + 1):
        time.sleep(number - 1)
        yield number
