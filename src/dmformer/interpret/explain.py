"""Where on photos trained models find what speaks for a class: pictures and a page, with a check of their worth."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ..data.decode import BrokenImageError, decode
from ..predict.photos import content_of, places_in, save_png
from ..report.drawing import heat
from ..utils.errors import UserError, unknown, untrained
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
"""Of the first photos, whose statistics a model with weights drawn anew gets, and whose maps the cascade follows."""
SHOWN = 40
"""Most photos on the page."""
LARGEST = 2**20
"""Pixels that a segmenter sees of a photo at the most: larger ones are shrunk."""
LONGEST_STEM, LONGEST_NAME = 100, 60
"""Bytes of a photo's, and of a model's or a class's, name in the name of a file, of 255 that there may be."""


@dataclass(frozen=True)
class Explanation:
    """Where a model finds a class on a photo; or why the photo could not be read.

    Attributes:
        photo: As it was given.
        model: What the subject is called.
        label: The class's name.
        score: Its probability; of a segmenter the share of the pixels that it calls so.
        file: The picture that was written.
        correlation: Rank correlation of the map with that of the model with weights drawn anew; None where it was not
            asked for, or where one of them is the same everywhere.
        note: What is special about the map.
        error: Why there is none.
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
    """What a model finds on a photo x (3, H, W): N classes, their scores and maps (N, H, W).

    A segmenter has also the pixels that it takes for each class, (N, H, W), and whether there are any.
    """

    x: Tensor
    classes: list[int]
    scores: list[float]
    maps: Tensor
    masks: Tensor | None = None
    called: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _Model:
    """A model that is explained.

    Attributes:
        subject: The model.
        layer: The name of the module.
        cell: Height and width in pixels of a value of its map.
        wanted: The classes that were asked for.
        control: The model with weights drawn anew.
        followed: What the cascade follows, of the first photos.
    """

    subject: Subject
    layer: str
    cell: tuple[int, int]
    wanted: list[int] | None
    control: Subject | None
    followed: list[_Maps] = field(default_factory=list)


def explain(
    sources: Sequence[str],
    photos: Sequence[str],
    out: str = "explanation",
    classes: Sequence[str] | None = None,
    top: int = 3,
    method: str = "grad-cam",
    layer: int | str | None = None,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[Explanation]:
    """Show where models find classes on photos: one `Explanation` a photo, model and class, in this order.

    Writes into `out`, below it as in the folder that was given: STEM.MODEL.CLASS.png for each map, which shows the
    photo as the model sees it, the same under its map, and what the colours mean; and index.html, a page of them.

    Args:
        sources: Of one or more models: a run's best/ folder or the run's folder, or hf-hub:owner/name.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        out: Made if it is not there.
        classes: Names of classes, which every model must have; by default each photo's own `top`.
        top: Likeliest classes of a photo; of segmenters the largest ones.
        method, layer: See `class_activation`.
        check: Compare each map with that of the model with weights drawn anew; see `randomised`.
        overwrite: Replace files that are there.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, no photo that can be read, no trained model, a
            class, layer or method that does not exist, a file in the way.
    """
    places, page = dict(places_in(Path(out), photos)), Path(out) / "index.html"
    if page.exists() and not overwrite:
        raise UserError(f"{page} exists already: give another --out, or --overwrite.")
    read = _first_images(list(places))
    samples = [image for image in read.values() if isinstance(image, Image.Image)]
    models = [_model(subject, samples, classes, layer, check) for subject in _open(sources)]
    if not overwrite:
        _refuse_existing(list(places.values()), [model.subject.name for model in models])
    found: list[Explanation] = []
    shown: list[tuple[str, list[View]]] = []
    taken: set[str] = set()
    try:
        for name in progress(list(places)):
            image = read.pop(name) if name in read else _image(name)
            if isinstance(image, str):
                found.append(Explanation(name, error=image))
                continue
            views = []
            for model in models:
                maps = _find(model, image, top, method)
                controls = None if model.control is None else _activation(model.control, maps, method, model.layer)
                view, rows = _tell(name, model.subject, maps, controls, places[name], method, taken)
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
    return found


def verdict(found: Sequence[Explanation], model: str) -> str:
    """What the check says of a model, in a sentence."""
    values = [e.correlation for e in found if e.model == model and e.correlation is not None]
    if not values:
        return "No map has anything on it that could be checked."
    mean = sum(values) / len(values)
    figure = f"mean rank correlation {mean:.2f}, {len(values)} map{'s' if len(values) > 1 else ''}"
    if mean >= ALIKE:
        return f"The maps stay much as they are with weights drawn anew ({figure}): they say little of what was learnt."
    return f"The maps change with weights drawn anew ({figure}): they depend on the weights, not on the photo alone."


def _open(sources: Sequence[str]) -> list[Subject]:
    """The models, each with a name of its own."""
    subjects: list[Subject] = []
    for source in sources:
        subject = open_subject(source)
        if not subject.trained:
            raise untrained(source)
        names, number = {s.name for s in subjects}, 2
        name = subject.name
        while name in names:
            name, number = f"{subject.name}-{number}", number + 1
        subjects.append(replace(subject, name=name))
    return subjects


def _model(
    subject: Subject, samples: list[Image.Image], classes: Sequence[str] | None, layer: int | str | None, check: bool
) -> _Model:
    wanted = None if classes is None else [_class(subject, name) for name in dict.fromkeys(classes)]
    seen, name = [_seen(subject, image) for image in samples], layer_name(subject, layer)
    cell = cell_size(subject, seen[0], name)
    return _Model(subject, name, cell, wanted, randomised(subject, seen) if check else None)


def _class(subject: Subject, name: str) -> int:
    if name not in subject.class_names:
        raise unknown(f"class of {subject.name}", name, subject.class_names)
    return subject.class_names.index(name)


def _first_images(names: list[str]) -> dict[str, Image.Image | str]:
    """The first photos, up to `SAMPLES` that can be read; what cannot be, as the reason."""
    read: dict[str, Image.Image | str] = {}
    for name in names:
        read[name] = _image(name)
        if sum(isinstance(image, Image.Image) for image in read.values()) == SAMPLES:
            break
    if all(isinstance(image, str) for image in read.values()):
        which = f"{names[0]} cannot be read" if len(names) == 1 else f"none of {len(names)} photos can be read"
        raise UserError(f"{which}: {read[names[0]]}")
    return read


def _image(name: str) -> Image.Image | str:
    """A photo, or why it cannot be read."""
    try:
        return decode(content_of(name))
    except BrokenImageError as error:
        return str(error)


def _seen(subject: Subject, image: Image.Image) -> Tensor:
    """A photo as the model gets it, (3, H, W): of segmenters up to `LARGEST`, or the middle of one size."""
    x = subject.prepare(image)
    height, width = x.shape[-2:]
    if subject.task == "segmentation" and subject.image_size is not None:
        return center_crop(x, [min(height, subject.image_size[0]), min(width, subject.image_size[1])])
    if subject.task == "segmentation" and height * width > LARGEST:
        scale = (LARGEST / (height * width)) ** 0.5
        size = (max(int(height * scale), 1), max(int(width * scale), 1))
        return F.interpolate(x[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return x


@torch.no_grad()
def _find(model: _Model, image: Image.Image, top: int, method: str) -> _Maps:
    subject = model.subject
    x = _seen(subject, image)
    logits = subject.model(x[None])
    if subject.task == "classification":
        shares = logits[0].softmax(0)
        classes = model.wanted or shares.argsort(descending=True, stable=True)[:top].tolist()
        maps = _Maps(x, classes, shares[classes].tolist(), torch.empty(0))
    else:
        areas = logits[0].argmax(0).flatten().bincount(minlength=len(subject.class_names))
        largest = [k for k in areas.argsort(descending=True, stable=True)[:top].tolist() if areas[k]]
        classes = model.wanted or largest
        masks, called = predicted_masks(logits.expand(len(classes), -1, -1, -1), classes)
        shares = areas / areas.sum()
        maps = _Maps(x, classes, shares[classes].tolist(), torch.empty(0), masks, tuple(called))
    return replace(maps, maps=_activation(subject, maps, method, model.layer))


def _activation(subject: Subject, found: _Maps, method: str, layer: str) -> Tensor:
    """Maps (N, H, W); of segmenters one after the other, for their sake who have large photos."""
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


def _tell(
    name: str,
    subject: Subject,
    found: _Maps,
    controls: Tensor | None,
    place: Path,
    method: str,
    taken: set[str],
) -> tuple[View, list[Explanation]]:
    """Write the pictures of a photo; what the page and the caller are told of them."""
    seen = enlarged(subject.picture(found.x))
    panels, rows, control = [], [], None
    place.parent.mkdir(parents=True, exist_ok=True)
    for i, k in enumerate(found.classes):
        label, values = subject.class_names[k], found.maps[i]
        called = found.masks is not None and found.called[i]
        over = _over(seen, values, found.masks[i] if found.masks is not None and called else None)
        file = _file(place, subject.name, label, taken)
        save_png(side_by_side(seen, over, method), file)
        note = ""
        if found.masks is not None and not called:
            note = "no pixel is called so: the map is that of all pixels"
        if not values.any():
            note = "nothing here speaks for it at this layer"
        correlation = None if controls is None else rank_correlation(values, controls[i])
        panels.append(Panel(label, found.scores[i], for_page(over), whereabouts(values.numpy()), note, correlation))
        rows.append(Explanation(name, subject.name, label, found.scores[i], str(file), correlation, note))
        if controls is not None and i == 0:
            control = for_page(_over(seen, controls[i]))
    return View(subject.name, subject.task, for_page(seen), panels, control), rows


def _over(seen: Image.Image, values: Tensor, mask: Tensor | None = None) -> Image.Image:
    smooth = enlarged(Image.fromarray(values.numpy()), Image.Resampling.BILINEAR)
    outline = None if mask is None else np.asarray(enlarged(Image.fromarray(mask.byte().numpy()))).astype(bool)
    return heat(seen, np.asarray(smooth).clip(0, 1), outline)


def _facts(model: _Model, found: list[Explanation], method: str) -> ModelFacts:
    told = "" if model.control is None else verdict(found, model.subject.name)
    return ModelFacts(model.subject.name, model.layer, model.cell, told, _followed(model, method))


def _followed(model: _Model, method: str) -> list[tuple[str, float | None]]:
    """Mean rank correlation with the trained model's maps as more and more of it is drawn anew."""
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
    """STEM.MODEL.CLASS.png, whatever characters the names have; numbered where another has it, whatever its case."""
    name, number = f"{_stem(place)}.{_safe(model)}.{_safe(label)}", 2
    file = place.with_name(f"{name}.png")
    while str(file).casefold() in taken:
        file, number = place.with_name(f"{name}-{number}.png"), number + 1
    taken.add(str(file).casefold())
    return file


def _stem(place: Path) -> str:
    return place.name if len(os.fsencode(place.name)) <= LONGEST_STEM else _safe(place.name, LONGEST_STEM)


def _safe(text: str, longest: int = LONGEST_NAME) -> str:
    """The letters, digits, - and _ of a text, with - for all else; at most so many bytes."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in text)
    return kept.encode()[:longest].decode(errors="ignore") or "-"
