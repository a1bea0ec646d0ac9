"""Measure on images what models look at and how they compute: a CSV, a plot and a caption that explains it."""

import contextlib
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.decode import BrokenImageError, Reading, decode
from ..data.finding import list_photos, no_remark
from ..data.limits import MAX_PIXELS
from ..data.pages import Pages
from ..tasks.classification.layout import read_layout
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
    """Results of a measure.

    Attributes:
        short_header, short: Contents of a short table for people; cells are text.
        left_out: Unreadable images, with the reason.
    """

    header: list[str]
    rows: list[list[Any]]
    short_header: list[str]
    short: list[list[str]]
    caption: str
    files: list[Path]
    left_out: list[tuple[str, str]]

    def as_csv(self) -> str:
        """The contents of the CSV file; numbers with six digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        cells = ([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in self.rows)
        writer.writerows([self.header, *cells])
        return text.getvalue()


@dataclass(frozen=True)
class Measure:
    """A measure: what a model needs for it, a test for that, and the computation on all models."""

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
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = no_remark,
) -> Analysis:
    """Measure models on images; writes OUT/MEASURE.csv, OUT/MEASURE.png and, for some measures, OUT/MEASURE-maps.png.

    Args:
        sources: One or more sources for `open_subject`; one or two for "cka".
        data: Folder of images, searched recursively, possibly with class folders.
        images: Number of images, balanced over the classes, evenly spread over the file names; deterministic.
        image_size: Image side in pixels for models created by name, and of the centre crop for segmenters and
            detectors; by default the model's own size, or the largest crop that all images allow.
        blocks: For "modulators": names or labels of blocks, e.g. "3.7"; by default each stage's last block with SAM.
        progress: Wraps an iterable with a description, to show progress.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of the folder, and on files of several pages.

    Raises:
        UserError: The measure is unknown, a model does not support it or cannot be opened, there are no images, or a
            file exists.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    what = MEASURES[measure]
    if not 1 <= len(sources) <= what.most_models:
        raise UserError(f"{measure} accepts 1 to {what.most_models} models, not {len(sources)}.")
    if blocks and measure != "modulators":
        raise UserError("--blocks is only for modulators.")
    if images < 1:
        raise UserError("--images must be 1 or more.")
    if measure == "cka" and images < LEAST:
        raise UserError(f"cka needs at least {LEAST} images, not {images}.")
    place = Path(out)
    check_files(measure, place, overwrite)
    photos = find_photos(Path(data), images, say)
    subjects = [open_subject(source, image_size) for source in sources]
    for subject in subjects:
        if not what.has(subject):
            others = ", ".join(name for name, other in MEASURES.items() if other.has(subject))
            raise UserError(f"{subject.name} has no {what.needs}; it has: {others}.")
    if image_size is not None and all(s.trained and not s.of_any_size for s in subjects):
        raise UserError(
            "--image-size is for models created by name, segmenters and detectors; trained classifiers have their own."
        )
    tensors, labels, left_out = _read(photos, subjects, progress, max_pixels, say)
    if measure == "cka" and len(labels) < LEAST:
        raise UserError(f"{data}: cka needs at least {LEAST} images, but only {len(labels)} can be read.")
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


def find_photos(folder: Path, count: int, say: Callable[[str], None] = no_remark) -> list[tuple[Path, str]]:
    """A sample of the images in a folder, searched recursively, each with its class, or "" without classes.

    Classes are found as in training, in all splits together, if every image has one. The sample is balanced over the
    classes, and evenly spread over the sorted names. `say` takes remarks on what was left out.

    Raises:
        UserError: The folder does not exist or contains no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a folder of photos.")
    found = sorted(map(Path, list_photos([str(folder)], say)))
    by_class: dict[str, list[Path]] = {}
    with contextlib.suppress(UserError):  # photos that are not in class folders
        for part in read_layout(str(folder)).parts.values():
            for name, label in zip(part.names, part.classes, strict=True):
                by_class.setdefault(label, []).append(folder / name)
    if sum(map(len, by_class.values())) < len(found):
        by_class = {"": found}
    by_class = {label: sorted(paths) for label, paths in by_class.items()}
    chosen, left = [], min(count, len(found))
    for i, (name, paths) in enumerate(sorted(by_class.items(), key=lambda item: (len(item[1]), item[0]))):
        take = min(len(paths), left // (len(by_class) - i))
        left -= take
        chosen += [(paths[(2 * j + 1) * len(paths) // (2 * take)], name) for j in range(take)]
    return sorted(chosen, key=lambda pair: (pair[1], pair[0]))


def _read(
    photos: Sequence[tuple[Path, str]],
    subjects: Sequence[Subject],
    progress: Progress,
    max_pixels: int,
    say: Callable[[str], None],
) -> tuple[list[list[Tensor]], list[str], list[tuple[str, str]]]:
    """The images as prepared for each model, their classes, and the unreadable files with the reason."""
    tensors: list[list[Tensor]] = [[] for _ in subjects]
    labels, left_out, pages = [], [], Pages()
    for path, name in progress(photos, "reading"):
        pages.look(str(path), str(path))
        try:
            pictures = {s.values: decode(str(path), reading=Reading(s.values, max_pixels)) for s in subjects}
        except BrokenImageError as error:
            left_out.append((str(path), str(error)))
            continue
        labels.append(name)
        for own, subject in zip(tensors, subjects, strict=True):
            own.append(subject.prepare(pictures[subject.values]))
    for note in pages.notes():
        say(note)
    if not labels:
        raise UserError(f"none of {len(photos)} images can be read: {left_out[0][0]}: {left_out[0][1]}")
    return tensors, labels, left_out


def _one_size(subject: Subject, images: Sequence[Tensor], image_size: int | None) -> Tensor:
    """Images in one tensor (n, 3, H, W); for a segmenter or detector, the largest centre crop that images and strides
    allow."""
    height, width = min(x.shape[1] for x in images), min(x.shape[2] for x in images)
    if subject.of_any_size:
        most = subject.image_size or ((image_size, image_size) if image_size else (height, width))
        height, width = min(height, most[0]) // 32 * 32, min(width, most[1]) // 32 * 32
        if min(height, width) < 32 or (subject.image_size and (height, width) != subject.image_size):
            raise UserError(f"the photos are too small for {subject.name}: the smallest allows {height} x {width} px.")
    corners = [((x.shape[1] - height) // 2, (x.shape[2] - width) // 2) for x in images]
    return torch.stack(
        [x[:, top : top + height, left : left + width] for x, (top, left) in zip(images, corners, strict=True)]
    )


def _about(cases: Sequence[Case], data: Path) -> str:
    """A description of the data, with a warning if weights are random."""
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
    "components": Measure("maps", lambda s: bool(s.stages), results.components_of),
}
"""The measures by name; `names.MEASURES` describes each in a line."""
