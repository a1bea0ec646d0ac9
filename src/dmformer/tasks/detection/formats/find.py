"""Find out which annotations a folder holds (COCO, Pascal VOC or YOLO), and where their images are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ....utils.errors import UserError, first_line
from ...folders import (
    SPLITS,
    Fault,
    existing_folder,
    given_names,
    image_files,
    lines_of,
    relative_name,
    split_folder,
    voc_lists,
    voc_root,
)
from .coco import read_coco
from .parts import LARGEST_TEXT, Part
from .voc import read_voc
from .yolo import read_yolo

COCO_WHOLE = ("instances_default", "annotations", "_annotations.coco")
"""Names of COCO files that are not split."""
YOLO_NAMES = ("classes.txt", "obj.names")
"""Files with one class name per line, as LabelImg, Label Studio and CVAT write them."""


@dataclass
class Found:
    """Content of a folder: one reader per split, "" if it is not split; nothing is read before a reader is called."""

    kind: str
    readers: dict[str, Callable[[], Part]]
    notes: list[str] = field(default_factory=list)


def find_boxes(data: str, images: str | None, classes: Sequence[str]) -> Found:
    """Recognise the layout of `data` by its files and folders; see `boxes.open_boxes`.

    Raises:
        UserError: Nothing there, or unknown layout.
    """
    path = Path(data)
    if path.is_file() and path.suffix.lower() == ".json":
        return Found("COCO", {"": partial(read_coco, path, _folders_beside(path, images), path.parent)})
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return _find_yolo(path)
    if path.is_file():
        raise UserError(f"{path} is no .json (COCO) and no .yaml (YOLO): give one of these, or a folder.")
    root = existing_folder(data, "a folder of photos and annotations, or a COCO .json")
    yolo = _yolo_file(root)
    if (files := _coco_files(root)) and ("train" in files or not yolo):
        readers = {
            split: partial(read_coco, file, _coco_folders(root, file, split, images), root)
            for split, file in files.items()
        }
        return Found("COCO", readers)
    if voc := voc_root(root, "Annotations"):
        return _find_voc(voc)
    if yolo:
        return _find_yolo(yolo)
    if folders := _yolo_apart(root):
        return _find_yolo_folders(root, folders, classes)
    if found := _find_voc_beside(root):
        return found
    if file := _lone_json(root):
        return Found("COCO", {"": partial(read_coco, file, _folders_beside(file, images), root)})
    if folders := _yolo_beside(root):
        return _find_yolo_folders(root, folders, classes)
    raise UserError(
        f"{root} has no layout that is known: annotations/instances_train2017.json and train2017/ (COCO), "
        "train/_annotations.coco.json (Roboflow), Annotations/ and JPEGImages/ or .xml files beside the photos (Pascal "
        "VOC), data.yaml, images/ and labels/ or .txt files beside the photos (YOLO); or name one COCO .json and its "
        "--images."
    )


def _split_of(name: str) -> str | None:
    """The split that a name such as train2017 or valid stands for."""
    word = re.sub(r"20\d\d$", "", name.lower())
    return next((split for split, words in SPLITS.items() if word in words), None)


# ---- COCO


def _coco_files(root: Path) -> dict[str, Path]:
    """COCO files by split; the last one if there are several years."""
    for folder in (root / "annotations", root):
        named = ((_split_of(path.stem.removeprefix("instances_")), path) for path in sorted(folder.glob("*.json")))
        if found := {split: path for split, path in named if split}:
            return found
    places = ((split, split_folder(root, split)) for split in SPLITS)
    files = ((split, folder / "_annotations.coco.json") for split, folder in places if folder)
    return {split: file for split, file in files if file.is_file()}


def _lone_json(root: Path) -> Path | None:
    for folder in (root / "annotations", root):
        files = sorted(folder.glob("*.json"))
        if len(files) == 1:
            return files[0]
        if known := [file for file in files if file.stem in COCO_WHOLE]:
            return known[0]
    return None


def _coco_folders(root: Path, file: Path, split: str, images: str | None) -> list[Path]:
    """Where the images of a split may be."""
    words = (file.stem.removeprefix("instances_"), *SPLITS[split])
    bases = [root, root / "images"] if images is None else [existing_folder(images, "the folder of the photos")]
    return [*(base / word for base in bases for word in words), *bases[::-1], file.parent]


def _folders_beside(file: Path, images: str | None) -> list[Path]:
    if images is not None:
        return [existing_folder(images, "the folder of the photos")]
    bases = [file.parent] if file.parent.name != "annotations" else [file.parent, file.parent.parent]
    found = [folder for base in bases for folder in (base, *sorted(p for p in base.iterdir() if p.is_dir()))]
    inner = [base / "images" / file.stem.removeprefix("instances_") for base in bases]  # CVAT's images/default/
    return [*found, *(folder for folder in inner if folder.is_dir())]


# ---- Pascal VOC


def _find_voc_beside(root: Path) -> Found | None:
    """Images with .xml files beside them, or in annotations/ beside images/."""
    readers = {}
    for split, folder in _split_folders(root).items():
        apart = [folder / name for name in ("annotations", "Annotations") if (folder / name).is_dir()]
        photos, texts = (folder / "images", apart[0]) if apart and (folder / "images").is_dir() else (folder, folder)
        if any(texts.rglob("*.xml")):
            named = [(photo, texts / f"{name}.xml") for name, photo in image_files(photos).items()]
            pairs, faults = _with_xml(root, named)
            if pairs:
                readers[split] = partial(read_voc, root, pairs, faults, str(folder))
    return Found("Pascal VOC", readers) if readers else None


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders by split; all of `root` as "" if there are none."""
    return {split: folder for split in SPLITS if (folder := split_folder(root, split))} or {"": root}


def _find_voc(root: Path) -> Found:
    found = Found("Pascal VOC", {})
    photos, annotations = image_files(root / "JPEGImages"), root / "Annotations"
    lists = voc_lists(root / "ImageSets" / "Main")
    if "test" in lists and not any((annotations / f"{name}.xml").is_file() for name in lists["test"]):
        del lists["test"]
        found.notes.append("Annotations holds no .xml of the photos listed in test.txt: left out")
    for split, names in (lists or {"": list(photos)}).items():
        missing = [(name, "is listed and not in JPEGImages") for name in names if name not in photos]
        pairs = [(photos[name], annotations / f"{name}.xml") for name in names if name in photos]
        pairs, faults = _with_xml(root, pairs)
        found.readers[split] = partial(read_voc, root, pairs, [*missing, *faults], str(annotations))
    return found


def _with_xml(root: Path, pairs: Sequence[tuple[Path, Path]]) -> tuple[list[tuple[Path, Path]], list[Fault]]:
    """The images that have an .xml file, and the others as faults."""
    lacking = [(relative_name(photo, root), f"has no {xml.name}") for photo, xml in pairs if not xml.is_file()]
    return [pair for pair in pairs if pair[1].is_file()], lacking


# ---- YOLO


def _find_yolo_folders(root: Path, folders: dict[str, Path], classes: Sequence[str]) -> Found:
    """YOLO without a data.yaml, with the images of its splits in these folders."""
    places = (folder / name for folder in (root, root / "labels", *folders.values()) for name in YOLO_NAMES)
    file = next((path for path in places if path.is_file()), None)
    names = given_names((str(file),)) if file else tuple(classes)
    if not names:
        raise UserError(
            f"{root} has no data.yaml or classes.txt that names the classes: name them in their order with --classes."
        )
    found = Found("YOLO", {})
    for split, folder in folders.items():
        photos = list(image_files(folder).values())
        found.readers[split] = partial(read_yolo, root, photos, names, str(folder))
    return found


def _find_yolo(file: Path) -> Found:
    root, found = file.parent, Found("YOLO", {})
    stated = _yolo_content(file)
    names, base = _yolo_names(file, stated), _yolo_base(file, stated)
    for split, key in (("train", "train"), ("val", "val" if stated.get("val") else "valid"), ("test", "test")):
        if not stated.get(key):
            continue
        try:
            photos = _yolo_photos(file, base, stated[key])
        except UserError as error:
            if split != "test":
                raise
            found.notes.append(f"{error} The split is left out.")
            continue
        found.readers[split] = partial(read_yolo, root, photos, names, f"{file} ({key})")
    if not found.readers:
        raise UserError(f"{file} names no train: say there where the photos are.")
    return found


def _yolo_content(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{file} has more than {LARGEST_TEXT // 1_000_000} MB: it is no data.yaml.")
        stated = yaml.safe_load(file.read_text("utf-8-sig"))
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as YAML: {first_line(error)}") from None
    if not isinstance(stated, dict):
        raise UserError(f"{file} is no data.yaml: it says train, val and names.")
    if "kpt_shape" in stated:
        raise UserError(f"{file} is about key points (kpt_shape): detectors need boxes or polygons alone.")
    return stated


def _yolo_names(file: Path, stated: dict[str, Any]) -> tuple[str, ...]:
    names = stated.get("names")
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(i)) for i in range(len(names))]
        names = None if None in names else names
    if not isinstance(names, list) or not names:
        raise UserError(f"{file} names no classes: give names, a list of them or one by numbers from 0 without gaps.")
    if any(isinstance(name, bool) for name in names):
        raise UserError(f"{file}: YAML takes a class's name, such as yes or off, for a truth value: put it in quotes.")
    told = tuple(str(name) for name in names)
    if twice := [name for name in told if told.count(name) > 1]:
        raise UserError(f"{file}: two classes are called {twice[0]}: give each a name of its own.")
    return told


def _yolo_base(file: Path, stated: dict[str, Any]) -> Path:
    """The folder that paths are relative to; the file's own folder if the stated one is on another machine."""
    base = file.parent / str(stated.get("path") or ".")
    return base if base.is_dir() else file.parent


def _yolo_photos(file: Path, base: Path, places: Any) -> list[Path]:
    """Images of a split: from folders, and from text files that list them."""
    photos: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        # Roboflow writes ../train/images for a folder beside the file.
        name = str(place).replace("\\", "/")
        tried = [base / name, base / name.removeprefix("../")]
        path = next((path for path in tried if path.exists()), None)
        if path is None:
            raise UserError(f"{file}: {tried[0]} does not exist: mend the path there.")
        if path.is_dir():
            photos += image_files(path).values()
        else:
            photos += (path.parent / line.replace("\\", "/") for line in lines_of(path))
    return photos


def _yolo_file(root: Path) -> Path | None:
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    named = [path for path in files if path.stem == "data"]
    return next(iter(named or [path for path in files if "names:" in path.read_text("utf-8", errors="replace")]), None)


def _yolo_apart(root: Path) -> dict[str, Path]:
    """Image folders by split, with text files in labels/: images/train, images alone, or train/images."""
    images = root / "images"
    if images.is_dir() and (root / "labels").is_dir():
        inner = {split: path for path in sorted(images.iterdir()) if path.is_dir() and (split := _split_of(path.name))}
        return inner or {"": images}
    return {
        split: folder / "images"
        for split, folder in _split_folders(root).items()
        if (folder / "images").is_dir() and (folder / "labels").is_dir()
    }


def _yolo_beside(root: Path) -> dict[str, Path]:
    """Folders by split whose images have text files beside them, as LabelImg writes them."""
    return {
        split: folder
        for split, folder in _split_folders(root).items()
        if any(photo.with_suffix(".txt").is_file() for photo in image_files(folder).values())
    }
