"""Measure what models look at and how they compute, on photos: a CSV, a plot and a caption that says how to read it."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.decode import BrokenImageError, decode, list_photos
from ..tasks.folders import SPLITS
from ..utils.errors import UserError, unknown
from ..utils.files import write_whole
from . import plots, results
from .attention_distance import attentions
from .gates import gated_blocks
from .hooks import deepest_blocks
from .modulators import sam_blocks
from .names import check_files, files
from .results import Case, Found, Progress
from .similarity import LEAST
from .subject import Subject, open_subject


@dataclass(frozen=True)
class Analysis:
    """What came of a measure.

    Attributes:
        header, rows: Of the CSV.
        short_header, short: Of a table for people; cells are text.
        caption: How to read the plot, in words.
        files: What was written.
        left_out: Photos that could not be read, with the reason.
    """

    header: list[str]
    rows: list[list[Any]]
    short_header: list[str]
    short: list[list[str]]
    caption: str
    files: list[Path]
    left_out: list[tuple[str, str]]

    def as_csv(self) -> str:
        """The rows as they are in the file; numbers with six figures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        cells = ([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in self.rows)
        writer.writerows([self.header, *cells])
        return text.getvalue()


@dataclass(frozen=True)
class Measure:
    """A measure: what a model must have for it, whether one has it, and the work on all of them."""

    needs: str
    has: Callable[[Subject], bool]
    run: Callable[[Sequence[Case]], Found]
    most_models: int = len(plots.COLOURS)


def analyse(
    measure: str,
    sources: Sequence[str],
    data: str,
    out: str = "analysis",
    images: int = 32,
    image_size: int | None = None,
    blocks: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress = lambda items, what: items,
) -> Analysis:
    """Measure models on photos; writes OUT/MEASURE.csv, OUT/MEASURE.png and, of two measures, OUT/MEASURE-maps.png.

    Args:
        measure: A key of `MEASURES`.
        sources: What `open_subject` opens, one or more; for "cka" one or two.
        data: Folder of photos, searched to the bottom; class folders where there are some.
        out: Folder, made if it is not there.
        images: How many photos: as many of each class as possible, evenly spread over its names; always the same.
        image_size: Side in pixels of the images of models made by name, and of the middle that is cut out of a
            segmenter's photos; by default the models' own, and as much as all photos have.
        blocks: For "modulators": names or labels of blocks, e.g. "3.7"; by default the last with SAM of each stage.
        overwrite: Replace files that are there.
        progress: Wraps what there is to do, with a word for it.

    Raises:
        UserError: An unknown measure, a model that lacks it or cannot be opened, no photos, a file in the way.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    what = MEASURES[measure]
    if not 1 <= len(sources) <= what.most_models:
        raise UserError(f"{measure} takes 1 to {what.most_models} models, not {len(sources)}.")
    if blocks and measure != "modulators":
        raise UserError("--blocks is for modulators.")
    if images < 1:
        raise UserError("--images must be 1 or more.")
    if measure == "cka" and images < LEAST:
        raise UserError(f"cka needs {LEAST} images or more, not {images}.")
    place = Path(out)
    check_files(measure, place, overwrite)
    photos = find_photos(Path(data), images)
    subjects = [open_subject(source, image_size) for source in sources]
    for subject in subjects:
        if not what.has(subject):
            others = ", ".join(name for name, other in MEASURES.items() if other.has(subject))
            raise UserError(f"{subject.name} has no {what.needs}; it has: {others}.")
    if image_size is not None and all(s.trained and s.task == "classification" for s in subjects):
        raise UserError("--image-size is for models made by name and for segmenters; a trained classifier has its own.")
    tensors, labels, left_out = _read(photos, subjects, progress)
    if measure == "cka" and len(labels) < LEAST:
        raise UserError(f"{data}: cka needs {LEAST} images or more, and {len(labels)} can be read.")
    class_names = sorted({*labels} - {""})
    classes = torch.tensor([class_names.index(label) for label in labels]) if len(class_names) > 1 else None
    names = [subject.name for subject in subjects]
    cases = []
    for source, subject, own in zip(sources, subjects, tensors, strict=True):
        name = source if names.count(subject.name) > 1 else subject.name
        cases.append(Case(name, subject, _one_size(subject, own, image_size), classes, class_names, blocks, progress))
    found = what.run(cases)
    caption = f"{found.caption} {_about(cases, Path(data))}"
    written = files(measure, place)
    result = Analysis(
        found.header, found.rows, found.short_header, found.short, caption, list(written.values()), left_out
    )
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_whole(written["csv"], result.as_csv())
        plots.save(found.plot, caption, written["plot"])
        if found.maps is not None:
            plots.save(found.maps, f"{found.maps_caption} {_about(cases, Path(data))}", written["maps"])
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    return result


def find_photos(folder: Path, count: int) -> list[tuple[Path, str]]:
    """A sample of the photos of a folder, searched to the bottom, each with its class, or "" where there are none.

    The class is the first folder below that is not that of a split (train, val, test); there are classes only if every
    photo lies in such a folder. Of each class as many are taken as possible, evenly spread over the sorted names.

    Raises:
        UserError: No folder, or no images in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one of photos.")
    found = sorted(map(Path, list_photos([str(folder)])))
    splits = {name for names in SPLITS.values() for name in names}
    by_class: dict[str, list[Path]] = {}
    for path in found:
        inside = [part for part in path.relative_to(folder).parts[:-1] if part not in splits]
        by_class.setdefault(inside[0] if inside else "", []).append(path)
    if "" in by_class:
        by_class = {"": found}
    chosen, left = [], min(count, len(found))
    for i, (name, paths) in enumerate(sorted(by_class.items(), key=lambda item: (len(item[1]), item[0]))):
        take = min(len(paths), left // (len(by_class) - i))
        left -= take
        chosen += [(paths[(2 * j + 1) * len(paths) // (2 * take)], name) for j in range(take)]
    return sorted(chosen, key=lambda pair: (pair[1], pair[0]))


def _read(
    photos: Sequence[tuple[Path, str]], subjects: Sequence[Subject], progress: Progress
) -> tuple[list[list[Tensor]], list[str], list[tuple[str, str]]]:
    """The photos as each model receives them, their classes, and the files that cannot be read with the reason."""
    tensors: list[list[Tensor]] = [[] for _ in subjects]
    labels, left_out = [], []
    for path, name in progress(photos, "reading"):
        try:
            picture = decode(str(path))
        except BrokenImageError as error:
            left_out.append((str(path), str(error)))
            continue
        labels.append(name)
        for own, subject in zip(tensors, subjects, strict=True):
            own.append(subject.prepare(picture))
    if not labels:
        raise UserError(f"none of {len(photos)} images can be read: {left_out[0][0]}: {left_out[0][1]}")
    return tensors, labels, left_out


def _one_size(subject: Subject, images: Sequence[Tensor], image_size: int | None) -> Tensor:
    """Images in one tensor (n, 3, H, W): of a segmenter's the middle, as large as all of them and its strides allow."""
    height, width = min(x.shape[1] for x in images), min(x.shape[2] for x in images)
    if subject.task == "segmentation":
        most = subject.image_size or ((image_size, image_size) if image_size else (height, width))
        height, width = min(height, most[0]) // 32 * 32, min(width, most[1]) // 32 * 32
        if min(height, width) < 32 or (subject.image_size and (height, width) != subject.image_size):
            raise UserError(f"the photos are too small for {subject.name}: the smallest leaves {height} x {width} px.")
    corners = [((x.shape[1] - height) // 2, (x.shape[2] - width) // 2) for x in images]
    return torch.stack(
        [x[:, top : top + height, left : left + width] for x, (top, left) in zip(images, corners, strict=True)]
    )


def _about(cases: Sequence[Case], data: Path) -> str:
    """What was measured on what, and a warning of random weights."""
    sizes = dict.fromkeys(f"{case.images.shape[2]} x {case.images.shape[3]}" for case in cases)
    count, folder = len(cases[0].images), "/".join(data.resolve().parts[-2:])
    text = f"{count} photo{'' if count == 1 else 's'} of {folder}, {' and '.join(sizes)} px."
    random = [case.name for case in cases if not case.subject.trained]
    return f"{text} Random weights, nothing learned: {', '.join(random)}." if random else text


MEASURES: dict[str, Measure] = {
    "attention-distance": Measure(
        "attention of SMT, ViTAE or ViTAEv2", lambda s: bool(attentions(s)), results.attention_distance_of
    ),
    "receptive-field": Measure("maps", lambda s: bool(s.stages), results.receptive_field_of),
    "relative-receptive-field": Measure(
        "stage of several blocks", lambda s: len(deepest_blocks(s)) > 1, results.relative_receptive_field_of
    ),
    "gates": Measure("channel gates of DMFormer", lambda s: bool(gated_blocks(s)), results.gates_of),
    "modulators": Measure("scale-aware modulation of SMT", lambda s: bool(sam_blocks(s)), results.modulators_of),
    "cka": Measure("blocks", lambda s: bool(s.stages), results.cka_of, most_models=2),
}
"""What can be measured, by name; `names.MEASURES` says in a line what each is."""
