"""Class activation maps of trained models on images: pictures and an HTML page, with a sanity check."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ..data.decode import BrokenImageError, Reading, decode
from ..data.finding import no_remark
from ..data.limits import MAX_PIXELS, Range
from ..data.pages import Pages
from ..predict.photos import content_of, places_in, save_png
from ..report.drawing import heat
from ..utils.device import find_device
from ..utils.errors import UserError, unknown, untrained
from .boxes import regions
from .cam import cell_size, class_activation, layer_name, predicted_masks
from .randomisation import ALIKE, cascade, randomised, rank_correlation
from .report import (
    ExplanationReport,
    ModelFacts,
    Panel,
    View,
    enlarged,
    for_page,
    side_by_side,
    whereabouts,
    write_explanation,
)
from .subject import Subject, open_subject

SAMPLES = 3
"""Number of images that set the randomised model's BatchNorm statistics, and whose maps the cascade follows."""
SHOWN = 40
"""Maximum number of images on the page."""
COARSE = 4
"""Maximum side of a map, in values, that a remark calls coarse."""
FINER = "for a finer map, name an earlier stage, `--layer 3 --method layer-cam`"
LARGEST = 2**20
"""Maximum number of pixels of an image for a segmenter; larger images are reduced."""
LONGEST_STEM, LONGEST_NAME = 100, 60
"""Maximum bytes of an image, model or class name within a file name, which may have 255."""


@dataclass(frozen=True)
class Explanation:
    """Where a model finds a class in an image; or why the image could not be read.

    Attributes:
        score: Probability of the class; for a segmenter, the fraction of pixels predicted as the class; for a detector,
            the score of the object.
        correlation: Rank correlation of the map with the randomised model's; None if not requested, or if one of the
            maps is constant.
    """

    photo: str
    model: str = ""
    label: str = ""
    score: float = 0.0
    file: str = ""
    correlation: float | None = None
    note: str = ""
    error: str | None = None


@dataclass(frozen=True)
class _Maps:
    """A model's result for an image x (3, H, W): N classes, their scores and maps (N, H, W).

    For a segmenter also the pixels predicted as each class, (N, H, W), and whether there are any; for a detector the
    pixels of each object's box, and whether it was detected.
    """

    x: Tensor
    classes: list[int]
    scores: list[float]
    maps: Tensor
    masks: Tensor | None = None
    called: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _Model:
    """A model to explain.

    Attributes:
        cell: Height and width in pixels of one value of its map.
        grid: Height and width in values of its map of the first image.
        followed: Results for the first images, which the cascade follows.
    """

    subject: Subject
    layer: str
    cell: tuple[int, int]
    grid: tuple[int, int]
    wanted: list[int] | None
    control: Subject | None
    followed: list[_Maps] = field(default_factory=list)


def explain(
    sources: Sequence[str],
    photos: Sequence[str],
    out: str = "explanation",
    classes: Sequence[str] | None = None,
    top: int = 3,
    method: str = "auto",
    layer: int | str | None = None,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = no_remark,
    device: str = "auto",
) -> list[Explanation]:
    """Show where models find classes in images: one `Explanation` per image, model and class, in this order.

    Writes into `out`, with the subfolders of the input: STEM.MODEL.CLASS.png for each map, with the image as the model
    sees it, the image under its map, and a colour scale; and index.html, a page with all maps.

    Args:
        sources: One or more models: a run's best/ folder or the run's folder, or hf-hub:owner/name.
        photos: Files, folders (searched recursively) or "-" for an image on standard input.
        classes: Names of classes, which every model must have; by default the `top` classes of each image.
        top: Number of most likely classes per image; for segmenters, of the largest ones; for detectors, of the most
            confident objects.
        method, layer: See `class_activation`; "auto" is layer-cam if there is a detector, of which the others do not
            show one box, else grad-cam.
        check: Compare each map with the randomised model's; see `randomised`.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of a folder, and on files of several pages.
        device: Name of the device, see `find_device`.

    Raises:
        UserError: A path does not exist, a folder contains no images, no image can be read, a model is not trained, a
            class, layer or method does not exist, or a file exists.
    """
    places, page = dict(places_in(Path(out), photos, say)), Path(out) / "index.html"
    if page.exists() and not overwrite:
        raise UserError(f"{page} exists already: give another --out, or --overwrite.")
    subjects = _open(sources, find_device(device))
    if method == "auto":
        method = "layer-cam" if any(subject.of_boxes for subject in subjects) else "grad-cam"
    ranges, pages = {subject.values for subject in subjects}, Pages()

    def opened(name: str) -> _Shown | str:
        return _read(name, ranges, max_pixels, pages)

    read = _first_images(list(places), opened)
    samples = [images for images in read.values() if not isinstance(images, str)]
    models = [_model(s, [images[s.values] for images in samples], classes, layer, check) for s in subjects]
    for model in models:
        if min(model.grid) <= COARSE:
            say(f"a map of {model.subject.name} has only {model.grid[0]} x {model.grid[1]} values: {FINER}")
    if not overwrite:
        _refuse_existing(list(places.values()), [model.subject.name for model in models])
    found: list[Explanation] = []
    shown: list[tuple[str, list[View]]] = []
    taken: set[str] = set()
    try:
        for name in progress(list(places)):
            images = read.pop(name) if name in read else opened(name)
            if isinstance(images, str):
                found.append(Explanation(name, error=images))
                continue
            views = []
            for model in models:
                maps = _find(model, images[model.subject.values], top, method)
                controls = None if model.control is None else _activation(model.control, maps, method, model.layer)
                view, rows = _write_pictures(name, model.subject, maps, controls, places[name], method, taken)
                views.append(view)
                found += rows
                if check and len(model.followed) < SAMPLES:
                    model.followed.append(_first_only(maps))
            shown = [*shown, (name, views)][:SHOWN]
        rows = [e for e in found if e.error is None]
        write_explanation(
            page,
            ExplanationReport(
                method,
                [_facts(model, found, method) for model in models],
                shown,
                len({e.photo for e in rows}) - len(shown),
                [(e.photo, e.model, e.label, e.correlation) for e in rows],
                [(e.photo, e.error) for e in found if e.error is not None],
            ),
        )
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    for note in pages.notes():
        say(note)
    return found


def verdict(found: Sequence[Explanation], model: str) -> str:
    """The result of the sanity check for a model, in a sentence.

    The signs are dropped: the mean of a map that stays and one that is inverted would be that of maps that change.
    """
    values = [abs(e.correlation) for e in found if e.model == model and e.correlation is not None]
    if not values:
        return "All maps are constant, so there is nothing to check."
    alike = sum(value >= ALIKE for value in values)
    maps = f"{len(values)} map{'s' if len(values) > 1 else ''}"
    figure = f"rank correlation without its sign: median {median(values):.2f}, maximum {max(values):.2f}, {maps}"
    if median(values) >= ALIKE:
        return f"The maps hardly change with random weights ({figure}): they say little about what was learnt."
    if alike:
        change = "hardly changes" if alike == 1 else "hardly change"
        return f"{alike} of {maps} {change} with random weights ({figure}): see the figure of each."
    return f"The maps change with random weights ({figure}): they depend on the weights, not only on the photo."


def _open(sources: Sequence[str], device: torch.device) -> list[Subject]:
    """The models on a device, each with a unique name."""
    subjects: list[Subject] = []
    for source in sources:
        subject = open_subject(source)
        if not subject.trained:
            raise untrained(source)
        names, number = {s.name for s in subjects}, 2
        name = subject.name
        while name in names:
            name, number = f"{subject.name}-{number}", number + 1
        subjects.append(replace(subject, name=name, model=subject.model.to(device)))
    return subjects


def _model(
    subject: Subject, samples: list[Image.Image], classes: Sequence[str] | None, layer: int | str | None, check: bool
) -> _Model:
    wanted = None if classes is None else [_class(subject, name) for name in dict.fromkeys(classes)]
    seen, name = [_seen(subject, image) for image in samples], layer_name(subject, layer)
    cell = cell_size(subject, seen[0], name)
    grid = (-(-seen[0].shape[-2] // cell[0]), -(-seen[0].shape[-1] // cell[1]))
    return _Model(subject, name, cell, grid, wanted, randomised(subject, seen) if check else None)


def _class(subject: Subject, name: str) -> int:
    if name not in subject.class_names:
        raise unknown(f"class of {subject.name}", name, subject.class_names)
    return subject.class_names.index(name)


_Shown = dict[Range | None, Image.Image]
"""An image as models see it, by the values that they show as black and white."""


def _first_images(names: list[str], opened: Callable[[str], _Shown | str]) -> dict[str, _Shown | str]:
    """The first images, up to `SAMPLES` readable ones; for unreadable ones, the reason."""
    read: dict[str, _Shown | str] = {}
    for name in names:
        read[name] = opened(name)
        if sum(not isinstance(images, str) for images in read.values()) == SAMPLES:
            break
    if all(isinstance(images, str) for images in read.values()):
        which = f"{names[0]} cannot be read" if len(names) == 1 else f"none of {len(names)} photos can be read"
        raise UserError(f"{which}: {read[names[0]]}")
    return read


def _read(name: str, ranges: Iterable[Range | None], max_pixels: int, pages: Pages) -> _Shown | str:
    """An image with each of the ranges of values, or why it cannot be read."""
    content, images = content_of(name, pages), {}
    try:
        for values in ranges:
            if isinstance(content, io.BytesIO):
                content.seek(0)
            images[values] = decode(content, reading=Reading(values, max_pixels))
    except BrokenImageError as error:
        return str(error)
    return images


def _seen(subject: Subject, image: Image.Image) -> Tensor:
    """The model's input (3, H, W), on its device; for segmenters, limited to `LARGEST` pixels, or a centre crop of a
    fixed size."""
    x = subject.prepare(image).to(next(subject.model.parameters()).device)
    height, width = x.shape[-2:]
    if subject.of_pixels and subject.image_size is not None:
        return center_crop(x, [min(height, subject.image_size[0]), min(width, subject.image_size[1])])
    if subject.of_pixels and height * width > LARGEST:
        scale = (LARGEST / (height * width)) ** 0.5
        size = (max(int(height * scale), 1), max(int(width * scale), 1))
        return F.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return x


@torch.no_grad()
def _find(model: _Model, image: Image.Image, top: int, method: str) -> _Maps:
    subject = model.subject
    x = _seen(subject, image)
    if subject.of_boxes:
        maps = _boxes(subject, x, model.wanted, top)
        return replace(maps, maps=_activation(subject, maps, method, model.layer))
    logits = subject.model(x[None])
    if subject.of_pixels:
        areas = logits[0].argmax(0).flatten().bincount(minlength=len(subject.class_names))
        largest = [k for k in areas.argsort(descending=True, stable=True)[:top].tolist() if areas[k]]
        classes = model.wanted or largest
        masks, called = predicted_masks(logits.expand(len(classes), -1, -1, -1).cpu(), classes)
        shares = areas / areas.sum()
        maps = _Maps(x, classes, shares[classes].tolist(), torch.empty(0), masks, tuple(called))
    else:
        shares = logits[0].sigmoid() if subject.several else logits[0].softmax(0)
        classes = model.wanted or shares.argsort(descending=True, stable=True)[:top].tolist()
        maps = _Maps(x, classes, shares[classes].tolist(), torch.empty(0))
    return replace(maps, maps=_activation(subject, maps, method, model.layer))


def _boxes(subject: Subject, x: Tensor, wanted: list[int] | None, top: int) -> _Maps:
    """The most confident objects, or for each wanted class its most confident object or candidate."""
    model: Any = subject.model
    parts = [model.selected(x)] if wanted is None else [model.best(x, k) for k in wanted]
    most = top if wanted is None else len(wanted)
    boxes, scores, labels = (
        torch.cat([part[name] for part in parts])[:most].cpu() for name in ("boxes", "scores", "labels")
    )
    called = tuple((scores >= subject.threshold).tolist())
    return _Maps(x, labels.tolist(), scores.tolist(), torch.empty(0), regions(boxes, *x.shape[-2:]), called)


def _activation(subject: Subject, found: _Maps, method: str, layer: str) -> Tensor:
    """Maps (N, H, W); for segmenters and detectors one at a time, to limit memory on large images."""
    if not found.classes:
        return torch.empty(0, *found.x.shape[-2:])
    if found.masks is None:
        x = found.x.expand(len(found.classes), -1, -1, -1)
        return class_activation(subject, x, found.classes, method, layer)
    return torch.cat(
        [
            class_activation(subject, found.x[None], [k], method, layer, mask[None])
            for k, mask in zip(found.classes, found.masks, strict=True)
        ]
    )


def _first_only(found: _Maps) -> _Maps:
    masks = None if found.masks is None else found.masks[:1]
    return replace(found, classes=found.classes[:1], scores=found.scores[:1], maps=found.maps[:1], masks=masks)


def _write_pictures(
    name: str, subject: Subject, found: _Maps, controls: Tensor | None, place: Path, method: str, taken: set[str]
) -> tuple[View, list[Explanation]]:
    """Write the pictures of an image; return their descriptions for the page and for the caller."""
    seen = enlarged(subject.picture(found.x))
    panels, rows, control = [], [], None
    place.parent.mkdir(parents=True, exist_ok=True)
    for i, k in enumerate(found.classes):
        label, values = subject.class_names[k], found.maps[i]
        called = found.masks is not None and found.called[i]
        outlined = found.masks is not None and (called or subject.of_boxes)
        over = _over(seen, values, found.masks[i] if found.masks is not None and outlined else None)
        file = _file(place, subject.name, label, taken)
        save_png(side_by_side(seen, over, method), file)
        note = ""
        if found.masks is not None and not called:
            note = "no pixel is predicted as this class: the map is for all pixels"
            if subject.of_boxes:
                note = f"below a score of {100 * subject.threshold:.0f} %: not detected"
        if not values.any():
            note = "nothing supports this class at this layer"
        correlation = None if controls is None else rank_correlation(values, controls[i])
        panels.append(Panel(label, found.scores[i], for_page(over), whereabouts(values.numpy()), note, correlation))
        rows.append(Explanation(name, subject.name, label, found.scores[i], str(file), correlation, note))
        if controls is not None and i == 0:
            control = for_page(_over(seen, controls[i]))
    return View(subject.name, subject.of_pixels, subject.of_boxes, for_page(seen), panels, control), rows


def _over(seen: Image.Image, values: Tensor, mask: Tensor | None = None) -> Image.Image:
    smooth = enlarged(Image.fromarray(values.numpy()), Image.Resampling.BILINEAR)
    outline = None if mask is None else np.asarray(enlarged(Image.fromarray(mask.byte().numpy()))).astype(bool)
    return heat(seen, np.asarray(smooth).clip(0, 1), outline)


def _facts(model: _Model, found: list[Explanation], method: str) -> ModelFacts:
    told = "" if model.control is None else verdict(found, model.subject.name)
    finer = FINER if min(model.grid) <= COARSE else ""
    return ModelFacts(model.subject.name, model.layer, model.cell, model.grid, finer, told, _followed(model, method))


def _followed(model: _Model, method: str) -> list[tuple[str, float | None]]:
    """Mean rank correlation with the trained model's maps as the model is progressively randomised."""
    points: list[tuple[str, float | None]] = []
    if not model.followed:
        return points
    for part, subject in cascade(model.subject, [maps.x for maps in model.followed]):
        values = [
            rank_correlation(maps.maps, _activation(subject, maps, method, model.layer)) for maps in model.followed
        ]
        known = [value for value in values if value is not None]
        points.append((part, sum(known) / len(known) if known else None))
    return points


def _refuse_existing(places: list[Path], names: list[str]) -> None:
    for place in places:
        there = os.listdir(place.parent) if place.parent.is_dir() else []
        starts = tuple(f"{_stem(place)}.{_safe(name)}." for name in names)
        for file in sorted(there):
            if file.startswith(starts) and file.endswith(".png"):
                raise UserError(f"{place.parent / file} exists already: give another --out, or --overwrite.")


def _file(place: Path, model: str, label: str, taken: set[str]) -> Path:
    """STEM.MODEL.CLASS.png with safe characters; numbered if the name is taken, ignoring case."""
    name, number = f"{_stem(place)}.{_safe(model)}.{_safe(label)}", 2
    file = place.with_name(f"{name}.png")
    while str(file).casefold() in taken:
        file, number = place.with_name(f"{name}-{number}.png"), number + 1
    taken.add(str(file).casefold())
    return file


def _stem(place: Path) -> str:
    return place.name if len(os.fsencode(place.name)) <= LONGEST_STEM else _safe(place.name, LONGEST_STEM)


def _safe(text: str, longest: int = LONGEST_NAME) -> str:
    """The text with everything but letters, digits, - and _ replaced by -; at most `longest` bytes."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in text)
    return kept.encode()[:longest].decode(errors="ignore") or "-"
