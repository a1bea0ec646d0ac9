"""The pooled features of photos: which photos, computing, writing and reading them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.archives import FolderFiles, is_archive
from ..data.decode import Reading, decode
from ..data.finding import list_photos, no_remark, require_heif
from ..data.pages import several_pages
from ..tasks.classification.classifier import Classifier
from ..tasks.classification.datasets import PhotoReader, Split
from ..tasks.classification.layout import Labelled, read_layout
from ..tasks.classification.loaders import ImageSet, eval_loader
from ..tasks.folders import first_few
from ..tasks.opening import open_trained
from ..tasks.pretraining.probing import pooled_features
from ..tasks.tables import TABLES
from ..utils.errors import UserError, first_line
from ..utils.extras import needs
from ..utils.files import whole_file

SAVED = (".npz", ".parquet")
"""Suffixes of files with features."""


@dataclass(frozen=True)
class Embedded:
    """Photos with their features.

    Attributes:
        names: N paths.
        values: (N, D), float32.
        labels: N classes, or none if the photos have none.
        model: Where the model that computed them is.
        broken: Photos that could not be read, with the reason.
    """

    names: list[str]
    values: np.ndarray
    labels: list[str]
    model: str
    picture: Callable[[int], Image.Image]
    broken: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def class_names(self) -> list[str]:
        return sorted(set(self.labels))

    @property
    def targets(self) -> torch.Tensor:
        """(N) numbers of the classes."""
        number = {name: k for k, name in enumerate(self.class_names)}
        return torch.tensor([number[name] for name in self.labels])


def open_model(source: str) -> Classifier:
    """The model that computes features: a classifier of one or several labels; UserError for other models."""
    model = open_trained(source)
    if not isinstance(model, Classifier):
        raise UserError(f"{source} is a model for {model.task}: features come from a classifier or its pretraining.")
    return model


def embed(
    places: Sequence[str],
    model: Classifier,
    source: str,
    batch_size: int,
    workers: int | None,
    max_pixels: int,
    device: str = "auto",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    say: Callable[[str], None] = no_remark,
) -> Embedded:
    """Compute the features of photos.

    Args:
        places: Image files and folders; or a single folder of class folders, archive or table, whose labels are kept.
        model: See `open_model`.
        source: Where the model is.
        max_pixels: Images of more pixels are not read.
        device: Where to compute, see `find_device`.
        progress: Wraps the loader, to show how far it has got.
        say: Takes remarks on what was left out, and on files of several pages.

    Raises:
        UserError: Nothing there, or no photo can be read.
    """
    files, names, labels, shown = _photos(places, say)
    require_heif(names)
    reader = PhotoReader(files, names, [0] * len(names))
    split = Split(reader, np.arange(len(names)), None, Reading(model.values, max_pixels))
    loader = eval_loader(split, model.transform(), model.at_least, batch_size, workers)
    found = pooled_features(model.single, loader, model.on_device(device), progress)
    images = loader.dataset
    assert isinstance(images, ImageSet)
    good = found.positions.tolist()
    broken = [(shown[i], images.reason(i)) for i in sorted(set(range(len(names))) - set(good))]
    if not good:
        raise UserError(f"none of the {len(names)} photos can be read, for example {broken[0][0]}: {broken[0][1]}")
    for note in several_pages(len(names), lambda i: shown[i], lambda i: files.open(names[i])):
        say(note)
    return Embedded(
        [shown[i] for i in good],
        found.values.numpy().astype(np.float32),
        [labels[i] for i in good] if labels else [],
        source,
        lambda i: images.picture(good[i]),
        broken,
    )


def _photos(places: Sequence[str], say: Callable[[str], None]) -> tuple[Any, list[str], list[str], list[str]]:
    """Files, names in them, labels if there are any, and the paths that users see."""
    parts = _labelled(places[0], say) if len(places) == 1 else []
    if not parts:
        names = list_photos(places, say)
        return FolderFiles(Path()), names, [], names
    names = [name for part in parts for name in part.names]
    labels = [label for part in parts for label in part.classes]
    return parts[0].files, names, labels, [str(parts[0].files.path / name) for name in names]


def _labelled(place: str, say: Callable[[str], None]) -> list[Labelled]:
    """The photos of a place by split, if they have two or more classes."""
    path = Path(place)
    must = path.is_file() and (is_archive(path) or path.name.lower().endswith(TABLES))
    if not must and not path.is_dir():
        return []
    try:
        layout = read_layout(place)
    except UserError:
        if must:
            raise
        return []  # photos without labels
    parts = list(layout.parts.values())
    if len({name for part in parts for name in part.class_names}) < 2 and not must:
        return []
    for note in layout.notes:
        say(note)
    if path.is_dir():
        say(f"the folders are taken as labels: {first_few(sorted({n for part in parts for n in part.class_names}), 8)}")
    return parts


def write(path: Path, embedded: Embedded) -> None:
    """Write the paths, labels and features to an .npz or a .parquet file, whole or not at all."""
    labels = embedded.labels or [""] * len(embedded)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"paths": embedded.names, "labels": labels, "model": embedded.model}
        with whole_file(path) as part, part.open("wb") as file:
            np.savez(file, features=embedded.values, **arrays)
        return
    with needs("embed", "writing Parquet"):
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    flat = pa.array(embedded.values.ravel())
    columns = {"path": embedded.names, "label": labels}
    features = pa.FixedSizeListArray.from_arrays(flat, embedded.values.shape[1])
    table = pa.table({**columns, "features": features}).replace_schema_metadata({"model": embedded.model})
    with whole_file(path) as part:
        pq.write_table(table, part)


def read(path: Path) -> Embedded:
    """Read what `write` wrote; the photos are opened where their paths lead.

    Raises:
        UserError: It is another file.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as found:
                names, labels = found["paths"].tolist(), found["labels"].tolist()
                values, model = found["features"], str(found["model"])
        else:
            with needs("embed", "reading Parquet"):
                import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
            table = pq.read_table(path)
            names, labels = (table.column(name).to_pylist() for name in ("path", "label"))
            flat = table.column("features").combine_chunks().flatten().to_numpy()
            values, model = flat.reshape(len(names), -1), table.schema.metadata[b"model"].decode()
        if values.ndim != 2 or not len(values) == len(names) == len(labels):
            raise ValueError("its columns differ in length")
    except UserError:
        raise
    except Exception as error:  # each reader has its own
        raise UserError(f"{path} holds no features written by `dmformer embed`: {first_line(error)}.") from None
    return Embedded(
        names, values.astype(np.float32), labels if any(labels) else [], model, lambda i: decode(names[i]), []
    )
