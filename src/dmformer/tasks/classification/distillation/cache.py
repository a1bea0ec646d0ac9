"""A teacher's outputs for several views of every image, written once, so that epochs run without the teacher.

FOLDER/cache.json describes the images, views and teacher; FOLDER/answers.bin holds one row for each view of each image,
starting with the first views of all images. Rows are appended, so that an interrupted cache, or one that needs more
views, continues where it ends.

"A Fast Knowledge Distillation Framework for Visual Recognition", arXiv 2112.01528: the largest probabilities are kept,
and the remaining mass is spread evenly over the other classes.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....data.decode import BrokenImageError
from ....utils.errors import UserError
from ....utils.files import write_whole
from ...sampling import loader_options
from .teacher import Answers, Teacher
from .views import Photos, View, Views

FORMAT = 1
"""Version of the folder's format."""

BATCH = 32

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable, to show how far it has got; the string says what it is doing."""


class Cache:
    """A complete cache.

    Args:
        rows: (V, N) rows of `row_type`, of V views of N photos.
    """

    def __init__(self, rows: np.ndarray, photos: Photos) -> None:
        self.rows, self.photos = rows, photos

    @property
    def views(self) -> int:
        return len(self.rows)

    def view(self, number: int, index: int) -> View:
        """View `number` of image `index`."""
        row = self.rows[number, index]
        return View(tuple(row["box"].tolist()), bool(row["flips"][0]), bool(row["flips"][1]))

    def answers(self, number: int, index: int) -> dict[str, Tensor]:
        """The teacher's output for it: classes (k), their probabilities (k), and features (D) if those are kept."""
        row = self.rows[number, index]
        found = {"classes": row["classes"].astype(np.int64), "probabilities": row["probabilities"].astype(np.float32)}
        if "features" in self.rows.dtype.names:  # type: ignore[operator]
            found["features"] = row["features"].astype(np.float32)
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def check(self, index: int, crc: int) -> None:
        """Raise UserError if an image differs from the one the teacher saw."""
        if int(self.rows[0, index]["crc"]) != crc:
            raise UserError(
                f"{self.photos.name(index)} has changed since the teacher's cache was written: "
                "name another folder with --teacher-cache, or delete the old one."
            )


def row_type(classes: int, kept: int, features: int) -> np.dtype:
    """A view's row: CRC-32 of the image file, the view, the largest probabilities with their classes, features."""
    fields: list[Any] = [
        ("crc", "<u4"),
        ("box", "<f4", 4),
        ("flips", "u1", 2),
        ("classes", "<u2" if classes <= 2**16 else "<u4", kept),
        ("probabilities", "<f2", kept),
    ]
    return np.dtype([*fields, ("features", "<f2", features)] if features else fields)


def open_cache(
    folder: Path,
    photos: Photos,
    teacher: Teacher,
    views: Views,
    number: int,
    kept: int,
    features: bool,
    workers: int | None = None,
    answer: Callable[[Tensor], Answers] | None = None,
    progress: Progress = lambda items, what: items,
) -> Cache:
    """Open the cache in a folder, and write what is missing.

    Args:
        photos: All images that may be trained on.
        number: V, the number of views of each image.
        answer: Computes missing outputs instead of the teacher; by default the teacher does.

    Raises:
        UserError: A cache of other images or views or of another teacher; a folder that cannot be written.
    """
    kept = min(kept, len(teacher.class_names))
    kind = row_type(len(teacher.class_names), kept, (teacher.num_features or 0) if features else 0)
    wanted = _description(photos, teacher, views, kind)
    told, answers = folder / "cache.json", folder / "answers.bin"
    try:
        if told.is_file():
            _compare(folder, told.read_text(encoding="utf-8"), wanted)
        else:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"--teacher-cache {folder} holds something else: name a folder of its own.")
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(told, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
        size = answers.stat().st_size if answers.exists() else 0
        rows = size // kind.itemsize
        if rows < number * len(photos):
            with answers.open("r+b" if answers.exists() else "wb") as file:
                file.truncate(rows * kind.itemsize)  # an incomplete row
                file.seek(0, 2)
                views_left = _ViewsLeft(photos, views, teacher, int(rows), number * len(photos))
                loader = DataLoader(views_left, BATCH, **loader_options(workers, False))
                for batch in progress(loader, "asking the teacher"):
                    file.write(_rows(answer or teacher, batch, kind).tobytes())
    except OSError as error:
        raise UserError(
            f"--teacher-cache {folder} cannot be written: {error.strerror or error}; what is there is kept: "
            "free some space and start again, or name another folder."
        ) from None
    found = np.memmap(answers, kind, "r", shape=(number, len(photos)))
    return Cache(found, photos)


def _description(photos: Photos, teacher: Teacher, views: Views, kind: np.dtype) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "teacher": teacher.name,
        "teacher_size": teacher.image_size,
        "teacher_fingerprint": teacher.fingerprint,
        "classes": len(teacher.class_names),
        "photos": len(photos),
        "photo_names": photos.digest,
        "views": json.loads(json.dumps(asdict(views))),
        "row": [[name, str(kind[name].base), list(kind[name].shape)] for name in kind.names or ()],
    }


MEANT = {
    "format": "written by another version",
    "teacher": "of another teacher",
    "teacher_size": "of another --teacher-size",
    "teacher_fingerprint": "of a teacher with other weights",
    "classes": "of a teacher with other classes",
    "photos": "of another number of photos",
    "photo_names": "of other photos",
    "views": "of crops drawn otherwise (crop_scale, crop_ratio, hflip, vflip or seed)",
    "row": "of other answers (--teacher-classes or the loss on features)",
}
"""What a difference in an entry of the cache's description means."""


def _compare(folder: Path, text: str, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads(text)
        differing = [key for key in wanted if found.get(key) != wanted[key]]
    except (ValueError, AttributeError):
        raise UserError(f"{folder / 'cache.json'} is damaged: delete {folder}, or name another folder.") from None
    for key in ("format", "teacher", "photos", *wanted):
        if key in differing:
            raise UserError(
                f"--teacher-cache {folder} is {MEANT[key]}: {_short(found.get(key))} instead of {_short(wanted[key])}. "
                "Name another folder."
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rows(answer: Callable[[Tensor], Answers], batch: list[Tensor], kind: np.dtype) -> np.ndarray:
    images, crcs, boxes, flips = batch
    answers = answer(images)
    rows = np.zeros(len(images), kind)
    top = answers.probabilities.topk(kind["classes"].shape[0], dim=1)
    rows["crc"], rows["box"], rows["flips"] = crcs.numpy(), boxes.numpy(), flips.numpy()
    rows["classes"], rows["probabilities"] = top.indices.cpu().numpy(), top.values.cpu().numpy()
    if "features" in (kind.names or ()):
        assert answers.features is not None
        rows["features"] = answers.features.cpu().numpy()
    return rows


class _ViewsLeft(Dataset):
    """Rows `start` to `end` of a cache as the teacher sees them: image (3, S, S) uint8, CRC, box (4), flips (2)."""

    def __init__(self, photos: Photos, views: Views, teacher: Teacher, start: int, end: int) -> None:
        self.photos, self.views, self.start, self.end = photos, views, start, end
        self.size, self.interpolation = teacher.image_size, teacher.interpolation
        self.at_least = round(self.size / views.scale[0] ** 0.5)

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        number, index = divmod(self.start + i, len(self.photos))
        try:
            image, crc = self.photos.read(index, self.at_least)
        except BrokenImageError:  # the row stays unused: training cannot read the image either
            nothing = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return nothing, torch.tensor(0), torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.zeros(2, dtype=torch.uint8)
        view = self.views.draw(number, index, *image.size)
        pixels = teacher_pixels(view, image, self.size, self.interpolation)
        flips = torch.tensor([view.hflip, view.vflip], dtype=torch.uint8)
        return pixels, torch.tensor(crc), torch.tensor(view.box, dtype=torch.float32), flips


def teacher_pixels(view: View, image: Any, size: int, interpolation: str) -> Tensor:
    """(3, S, S) uint8, the view of an image at this teacher's size."""
    return torch.from_numpy(np.asarray(view.of(image, size, interpolation)).transpose(2, 0, 1).copy())
