"""Segment images with a trained model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.decode import BrokenImageError, Reading
from ..data.finding import no_remark
from ..data.limits import MAX_PIXELS
from ..data.pages import Pages
from ..utils.errors import UserError
from .photos import content_of, places_in, read, save_png, suffixed
from .predictor import MaskPredictor, Source, opened


@dataclass(frozen=True)
class MaskPrediction:
    """Result for one image: the written files, and the classes' fractions of its pixels, largest first; or an error."""

    name: str
    overlay: str = ""
    mask: str = ""
    shares: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict_masks(
    source: Source | MaskPredictor,
    photos: Sequence[str],
    out: str = "predictions",
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    say: Callable[[str], None] = no_remark,
) -> Iterator[MaskPrediction]:
    """Segment images; yield one `MaskPrediction` per image, in order.

    Writes into `out`, with the subfolders of the input: STEM.overlay.png, the image overlaid with the classes' colours
    and, if these are many, their names; STEM.mask.png, class ids from 0 at the image's size; and legend.png.

    Args:
        source: A run's best/ folder, an exported .onnx or .xml file, or an open predictor.
        photos: Files, folders (searched recursively) or "-" for an image on standard input.
        window: Side of the sliding window; by default the segmenter's own.
        scales, flip: Multi-scale testing; see `predict_probabilities`.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of a folder, and on files of several pages.

    Raises:
        UserError: A path does not exist, a folder contains no images, the model is not a segmenter, or a file exists.
    """
    from ..report.drawing import legend, named_overlay  # imported here, so that classifiers start faster

    places = dict(places_in(Path(out), photos, say))
    legend_file = Path(out) / "legend.png"
    taken = [f for place in places.values() for f in _mask_files(place) if f.exists()]
    if legend_file.exists() and not any(Path(out).rglob("*.overlay.png")):
        taken.append(legend_file)  # not ours
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    segmenter: Any = opened(source, "masks", "a segmenter")
    names, palette, pages = segmenter.class_names, segmenter.palette, Pages()
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        save_png(legend(names, palette), legend_file)
        for name in progress(list(places)):
            try:
                image = read(content_of(name, pages), reading=Reading(segmenter.values, max_pixels))
            except BrokenImageError as error:
                yield MaskPrediction(name, error=str(error))
                continue
            ids = segmenter.segment(image, window, scales, flip)
            overlay_file, mask_file = _mask_files(places[name])
            overlay_file.parent.mkdir(parents=True, exist_ok=True)
            save_png(named_overlay(image, ids, names, palette), overlay_file)
            save_png(Image.fromarray(ids), mask_file)
            yield MaskPrediction(name, str(overlay_file), str(mask_file), tuple(fractions(ids, names)))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    for note in pages.notes():
        say(note)


def fractions(ids: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """The classes in a mask (H, W) of ids with their fractions of its pixels, largest first."""
    counts = np.bincount(ids.ravel(), minlength=len(class_names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return [(class_names[i], int(counts[i]) / ids.size) for i in order]


def _mask_files(place: Path) -> tuple[Path, Path]:
    return suffixed(place, "overlay"), suffixed(place, "mask")
