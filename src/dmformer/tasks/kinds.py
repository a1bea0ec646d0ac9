"""Which labels a folder holds, told from its layout: data that is given to the wrong task is sent to the right one."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..data.finding import is_litter, is_photo, split_of
from ..utils.errors import UserError

RECIPES = {"classification": "classify", "segmentation": "segment", "detection": "detect"}
"""The recipe for the user's own data, by task."""

IMAGES = ("images", "image", "imgs", "img", "jpegimages")
LABELS = ("labels", "label", "annotations", "annotation", "masks", "mask", "segmentationclass")
BESIDE = ("annot", "_annot", "_annotations", "_labels", "_label", "_masks", "_mask")
"""Endings of the folder of masks beside a split's folder of images."""
BOXES = {".txt": "YOLO's text files", ".xml": "Pascal VOC's .xml files"}
LOOKED_AT = 1000
"""Number of files of a folder that are looked at."""


def check_kind(data: str, task: str) -> None:
    """Raise UserError with the right command if a folder surely holds labels of other tasks only."""
    try:
        seen = labels_in(Path(data))
    except OSError:  # the task itself tells what cannot be read
        return
    if seen and task not in seen:
        told = ", or ".join(
            f"{what}: use dmformer train {RECIPES[kind]} --data {data}" for kind, what in sorted(seen.items())
        )
        raise UserError(f"{data} is no data for {task}, but has {told}.")


def labels_in(place: Path) -> dict[str, str]:
    """What a place holds for each task, in words; empty if its layout is not known. Few files are opened."""
    if place.suffix.lower() in (".json", ".yaml", ".yml") and place.is_file():
        return {"detection": "boxes in a file"}
    if not place.is_dir():
        return {}
    seen: dict[str, str] = {}
    for base in (place, *(path for path in _folders(place) if split_of(path.name))):
        seen = {**_in_folders(base), **_in_files(base), **seen}
    return seen


def _in_folders(base: Path) -> dict[str, str]:
    folders = {path.name.casefold(): path for path in _folders(base)}
    seen: dict[str, str] = {}
    images = next((name for name in IMAGES if name in folders), None)
    for name in LABELS:
        if name not in folders:
            continue
        files = list(_files(folders[name], deep=True))
        if any(path.suffix.lower() == ".json" and _is_coco(path) for path in files):
            seen["detection"] = "boxes in COCO's format"
        elif images and (suffix := next((p.suffix.lower() for p in files if p.suffix.lower() in BOXES), None)):
            seen["detection"] = f"boxes in {BOXES[suffix]}"
        elif images and any(map(_is_png, files)):
            seen["segmentation"] = f"masks in {folders[name].name}/"
    for name, path in folders.items():
        if any(name.endswith(end) and name.removesuffix(end) in folders for end in BESIDE):
            seen["segmentation"] = f"masks in {path.name}/"
    classes = [path.name for name, path in folders.items() if _is_class(name) and _holds_only_photos(path)]
    if len(classes) > 1 and not seen:
        seen["classification"] = f"folders of classes ({', '.join(sorted(classes)[:3])})"
    return seen


def _in_files(base: Path) -> dict[str, str]:
    files = list(_files(base))
    photos = {path.stem for path in files if is_photo(path.name)}
    if any(path.suffix.lower() in (".yaml", ".yml") and "names:" in _start(path) for path in files):
        return {"detection": "boxes in YOLO's data.yaml"}
    if any(path.suffix.lower() == ".json" and _is_coco(path) for path in files):
        return {"detection": "boxes in COCO's format"}
    for suffix, what in BOXES.items():
        if any(path.suffix.lower() == suffix and path.stem in photos for path in files):
            return {"detection": f"boxes in {what}"}
    if any(path.stem.endswith("_mask") and path.stem.removesuffix("_mask") in photos for path in files):
        return {"segmentation": "masks beside the images"}
    return {}


def _is_class(name: str) -> bool:
    """Whether a folder's name can be that of a class."""
    return name not in (*IMAGES, *LABELS) and split_of(name) is None


def _holds_only_photos(folder: Path) -> bool:
    files = list(_files(folder))
    labelled = any(path.suffix.lower() in (*BOXES, ".json") for path in files)
    return not labelled and any(is_photo(path.name) for path in files)


def _is_coco(path: Path) -> bool:
    name = path.name.lower()
    return name.startswith("instances_") or name.endswith(".coco.json") or '"bbox"' in _start(path)


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _start(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(100_000)


def _folders(base: Path) -> Iterator[Path]:
    return (path for path in sorted(base.iterdir()) if path.is_dir() and not is_litter(path.name))


def _files(folder: Path, deep: bool = False) -> Iterator[Path]:
    """The first files of a folder, `deep` also below it."""
    found = (path for path in (folder.rglob("*") if deep else folder.iterdir()) if path.is_file())
    return islice((path for path in found if not is_litter(path.name)), LOOKED_AT)
