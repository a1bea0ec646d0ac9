"""dmformer explain: which places in photos count as evidence for a class to a trained model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..data.limits import MAX_PIXELS
from ..utils.device import check_device
from ..utils.errors import UserError, untrained
from ..utils.files import check_path
from ..utils.model_names import model_names
from ..utils.pretrained import name_of
from .checks import check_source
from .parsing import parse
from .printing import print_rows, remark


@dataclass(frozen=True)
class ExplainOptions:
    """Show where in photos a trained model finds evidence for a class: dmformer explain SOURCE PHOTOS... [OPTIONS]

    Class activation maps: bright places are those whose features raise the class's score the most, at one layer of the
    model. Writes OUT/index.html, a page with all pictures that explains how to read them, and STEM.MODEL.CLASS.png for
    each map.

    Every map is compared with the map of the same model with new random weights, which has learnt nothing. A map that
    stays the same shows the photo and not what was learnt; the page says so.

    Requires pip install 'dmformer[explain]'.

    examples:
      dmformer explain runs/elpv-dmformer_n-1/best photo.jpg
      dmformer explain runs/photos-1/best folder/ --classes cat --out cats/
      dmformer explain runs/photos-1/best photo.jpg --beside runs/photos-2/best    two models side by side
      dmformer explain runs/photos-1/best photo.jpg --layer 3 --method layer-cam   finer: the third stage
      dmformer explain runs/camvid-1/best street.jpg --classes car pedestrian
      dmformer explain runs/bccd-1/best cells.jpg --layer 2 --top 5                a detector's five surest objects
    """

    source: str
    """A run's best/ folder, or hf-hub:owner/name; of a classifier, a segmenter or a detector."""
    photos: tuple[str, ...]
    """Image files, folders (searched recursively), or - for an image on standard input."""
    beside: tuple[str, ...] = ()
    """Further models to show side by side."""
    classes: tuple[str, ...] = ()
    """Names of the classes to explain, which every model must have; by default the most likely ones of each photo.
    For a detector, the most confident object of each."""
    top: int = 3
    """Number of classes to explain per photo: the most likely ones; for segmenters, the largest ones.
    For detectors, the number of objects: the most confident ones."""
    method: Literal["auto", "grad-cam", "grad-cam++", "eigen-cam", "layer-cam"] = "auto"
    """auto: grad-cam, but layer-cam for detectors, because the others do not show one box.
    layer-cam suits early layers; eigen-cam shows the layer's strongest pattern, whatever the class."""
    layer: str | None = None
    """A stage's number, from 1, or a module's name; by default the last stage.
    Earlier layers are finer but less specific to a class."""
    out: str = "explanation"
    """Output folder."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto: a GPU if there is one."""
    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of a photo; larger ones are not read."""
    check: bool = True
    """Compare with new random weights; about doubles the time, plus some seconds."""
    overwrite: bool = False
    """Replace existing files."""
    format: Literal["table", "json"] = "table"
    """How to print the result."""


def explain(arguments: list[str]) -> None:
    options = parse(ExplainOptions, arguments, "explain")
    if options.top < 1:
        raise UserError("--top must be 1 or more.")
    if options.max_pixels < 1:
        raise UserError("--max-pixels must be 1 or more.")
    check_device(options.device)
    if not options.photos:
        raise UserError("name the photos: image files, folders, or - for standard input.")
    sources = tuple(name_of(source) or source for source in (options.source, *options.beside))
    for source in sources:
        if not Path(source).exists() and source in (*model_names(), *model_names("timm")):
            raise untrained(source)
        check_source(source)
    for photo in options.photos:
        if photo != "-":
            check_path(photo)
    if (page := Path(options.out, "index.html")).exists() and not options.overwrite:
        raise UserError(f"{page} exists already: give another --out, or --overwrite.")

    from ..interpret.explain import explain, verdict
    from ..utils.display import track

    found = explain(
        sources,
        options.photos,
        options.out,
        options.classes or None,
        options.top,
        options.method,
        options.layer,
        options.check,
        options.overwrite,
        lambda names: track(names, "explaining"),
        options.max_pixels,
        remark,
        options.device,
    )
    names = dict.fromkeys(e.model for e in found if e.error is None)
    verdicts = {name: verdict(found, name) for name in names} if options.check else {}
    if options.format == "json":
        told = {"page": str(page), "verdicts": verdicts, "explanations": [asdict(e) for e in found]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    rows = [
        [e.photo, e.model, e.label, e.score, "" if e.correlation is None else f"{e.correlation:+.2f}", e.note]
        if e.error is None
        else [e.photo, "", "", "", "", e.error]
        for e in found
    ]
    print_rows(["photo", "model", "class", "score", "control", "remark"], rows, "table")
    for name, told in verdicts.items():
        print(f"{name}: {told}")
    print(f"page: {page}")
