"""Find out which annotations a folder holds (COCO, Pascal VOC, LabelMe or YOLO), and where their images are."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ....data.finding import SPLIT_NAMES
from ....utils.errors import UserError, first_line
from ....utils.files import read_text
from ...folders import (
    Fault,
    entered,
    existing_folder,
    given_names,
    image_files,
    lines_of,
    parts_of,
    relative_name,
    split_folders,
    voc_lists,
    voc_root,
    walk,
)
from ...foreign import foreign_format
from ...labelme import read_labelme
from ...naming import match_names, renaming_note, split_of
from ...tables import TABLES, read_rows
from .coco import read_coco
from .labelme import read_labelme_boxes
from .others import box_columns
from .parts import LARGEST_TEXT, Part
from .voc import read_voc, stated_photo
from .yolo import holds_labels, read_yolo

ROBOFLOW = ("_annotations.coco.json", "_annotations.createml.json", "_annotations.csv")
"""Files with the annotations of a split, in its folder."""
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
    if path.is_file() and (path.suffix.lower() in (".json", ".xml") or _is_table_of_boxes(path)):
        return Found("COCO", {"": partial(read_coco, path, _folders_beside(path, images), path.parent, images)})
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml", ".data"):
        return _find_yolo(path)
    if path.is_file():
        raise UserError(
            f"{path} is no .json (COCO), .yaml or .data (YOLO), .xml (CVAT) and no table of boxes: give one of these, "
            "or a folder."
        )
    root = entered(existing_folder(data, "a folder of photos and annotations, or a COCO .json"))
    yolo = _yolo_file(root)
    if (files := _coco_files(root)) and ("train" in files or not yolo):
        readers = {
            split: partial(read_coco, file, _coco_folders(root, file, split, images), root, images)
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
    if found := _find_labelme(root):
        return found
    if file := _lone_json(root) or _lone_file(root):
        return Found("COCO", {"": partial(read_coco, file, _folders_beside(file, images), root, images)})
    if folders := _yolo_beside(root):
        return _find_yolo_folders(root, folders, classes)
    raise UserError(
        f"{root} has no layout that is known: annotations/instances_train2017.json and train2017/ (COCO), "
        "train/_annotations.coco.json (Roboflow), Annotations/ and JPEGImages/ or .xml files beside the photos (Pascal "
        "VOC), data.yaml, images/ and labels/ or .txt files beside the photos (YOLO), .json files beside the photos "
        f"(LabelMe); or name one COCO .json and its --images.{foreign_format(root)}"
    )


# ---- COCO


def _coco_files(root: Path) -> dict[str, Path]:
    """COCO files by split; the last one if there are several years."""
    for folder in (root / "annotations", root):
        named = ((split_of(path.stem.removeprefix("instances_")), path) for path in sorted(folder.glob("[!.]*.json")))
        if found := {split: path for split, path in named if split}:
            return found
    for name in ROBOFLOW:
        files = ((split, folder / name) for split, folder in split_folders(root).items())
        if found := {split: file for split, file in files if file.is_file()}:
            return found if not name.endswith(".csv") or all(map(_is_table_of_boxes, found.values())) else {}
    return {}


def _lone_json(root: Path) -> Path | None:
    for folder in (root / "annotations", root):
        files = sorted(folder.glob("[!.]*.json"))
        if len(files) == 1:
            return files[0]
        if known := [file for file in files if file.stem in COCO_WHOLE]:
            return known[0]
    return None


def _lone_file(root: Path) -> Path | None:
    """CVAT's XML, or the only table of boxes."""
    if (cvat := root / "annotations.xml").is_file():
        return cvat
    tables = [path for path in sorted(root.iterdir()) if path.is_file() and _is_table_of_boxes(path)]
    return tables[0] if len(tables) == 1 else None


def _is_table_of_boxes(path: Path) -> bool:
    """Whether a table has columns of boxes."""
    try:
        return path.suffix.lower() in TABLES and bool(box_columns(read_rows(path)[0]))
    except UserError:
        return False


def _coco_folders(root: Path, file: Path, split: str, images: str | None) -> list[Path]:
    """Where the images of a split may be."""
    words = (file.stem.removeprefix("instances_"), *SPLIT_NAMES[split])
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
    notes: list[str] = []
    for split, folder in parts_of(root).items():
        apart = [folder / name for name in ("annotations", "Annotations") if (folder / name).is_dir()]
        photos, texts = (folder / "images", apart[0]) if apart and (folder / "images").is_dir() else (folder, folder)
        if xmls := _xml_files(texts):
            pairs, faults, renamed = _with_xml(root, image_files(photos, say=notes.append), xmls, texts)
            if pairs:
                renamed += _without_photo(xmls, {xml for _, xml in pairs}, [], relative_name(texts, root))
                readers[split] = partial(read_voc, root, pairs, faults, str(folder), renamed)
    return Found("Pascal VOC", readers, notes) if readers else None


def _find_voc(root: Path) -> Found:
    found = Found("Pascal VOC", {})
    photos, annotations = image_files(root / "JPEGImages", say=found.notes.append), root / "Annotations"
    lists, xmls = voc_lists(root / "ImageSets" / "Main"), _xml_files(annotations)
    if "test" in lists and not any(match_names(lists["test"], xmls)):
        del lists["test"]
        found.notes.append("Annotations holds no .xml of the photos listed in test.txt: left out")
    used: set[Path] = set()
    for split, listed in (lists or {"": list(photos)}).items():
        names = match_names(listed, photos)
        lost = [name for name, key in zip(listed, names, strict=True) if not key]
        missing = [(name, "is listed and not in JPEGImages") for name in lost]
        own = {key: photos[key] for key in names if key}
        pairs, faults, notes = _with_xml(root, own, xmls, annotations)
        notes = renaming_note(f"photos listed for {split or 'training'}", listed, names) + notes
        if twice := len(listed) - len(missing) - len(own):
            notes.append(f"photos listed twice for {split}, taken once: {twice}")
        used.update(xml for _, xml in pairs)
        found.readers[split] = partial(read_voc, root, pairs, [*missing, *faults], str(annotations), notes)
    found.notes += _without_photo(xmls, used, list(photos), relative_name(annotations, root))
    return found


def _without_photo(xmls: dict[str, Path], used: Collection[Path], photos: Sequence[str], where: str) -> list[str]:
    """A note on .xml files that are not used, and whose photo is not among those that are there."""
    free = [key for key, path in xmls.items() if path not in used]
    alone = [key for key, photo in zip(free, match_names(free, photos), strict=True) if not photo]
    if not alone:
        return []
    return [f".xml files in {where} of photos that are not there, left out: {len(alone)}, such as {alone[0]}.xml"]


def _xml_files(folder: Path) -> dict[str, Path]:
    """The .xml files below a folder by their relative path without the suffix."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".xml" and path.name[0] != ".")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _with_xml(
    root: Path, photos: dict[str, Path], xmls: dict[str, Path], folder: Path
) -> tuple[list[tuple[Path, Path]], list[Fault], list[str]]:
    """The images that have an .xml file, with it; the others as faults; notes.

    A file belongs to the image of its own name; if there is none, to the image that it names.
    """
    names = list(photos)
    found = match_names(names, xmls)
    bare = [name for name, key in zip(names, found, strict=True) if not key]
    free = {key: stated_photo(path) for key, path in xmls.items() if key not in found} if bare else {}
    counts = Counter(free.values())
    stated = {photo: key for key, photo in free.items() if photo and counts[photo] == 1}
    named = dict(zip(bare, match_names(bare, stated), strict=True))
    found = [key or stated.get(named[name] or "") for name, key in zip(names, found, strict=True)]
    pairs = [(photos[name], xmls[key]) for name, key in zip(names, found, strict=True) if key]
    lacking = [name for name, key in zip(names, found, strict=True) if not key]
    faults = [(relative_name(photos[name], root), f"has no .xml: {Path(name).name}.xml") for name in lacking]
    return pairs, faults, renaming_note(f"annotations in {relative_name(folder, root)}", names, found)


# ---- LabelMe


def _find_labelme(root: Path) -> Found | None:
    """Images with LabelMe's .json files beside them or in another folder; images without one are left out."""
    found = Found("LabelMe", {})
    for split, folder in parts_of(root).items():
        texts = [path for path in sorted(folder.rglob("*.json")) if not read_labelme(path).fault]
        if not texts:
            continue
        photos = {
            path.relative_to(folder).as_posix(): path for path in image_files(folder, say=found.notes.append).values()
        }
        names = [_photo_name(path, folder) for path in texts]
        keys = match_names(names, photos)
        pairs = [(photos[key], path) for key, path in zip(keys, texts, strict=True) if key]
        lost = [path for key, path in zip(keys, texts, strict=True) if not key]
        faults = [(relative_name(path, root), "is of a photo that is not there") for path in lost]
        notes = renaming_note(f"photos of {folder}", names, keys)
        if bare := len(photos) - len(pairs):
            notes.append(f"photos in {folder} without a .json, left out: {bare}")
        if pairs:
            found.readers[split] = partial(read_labelme_boxes, root, pairs, faults, str(folder), notes)
    return found if found.readers else None


def _photo_name(text: Path, folder: Path) -> str:
    """The name of the photo that a LabelMe file is of, relative to a folder: the file's own with the photo's suffix."""
    stated = read_labelme(text).photo.replace("\\", "/")
    return text.with_suffix(PurePosixPath(stated).suffix).relative_to(folder).as_posix()


# ---- YOLO


def _find_yolo_folders(root: Path, folders: dict[str, Path], classes: Sequence[str]) -> Found:
    """YOLO without a data.yaml, with the images of its splits in these folders."""
    places = (folder / name for folder in (root, root / "labels", *folders.values()) for name in YOLO_NAMES)
    file = next((path for path in places if path.is_file()), None)
    names = given_names((str(file),)) if file else tuple(classes)
    if not names:
        raise UserError(
            f"{root} has no data.yaml or classes.txt that names the classes: give them in order with --classes."
        )
    found, lists = Found("YOLO", {}), voc_lists(root)
    for split, folder in folders.items():
        files = image_files(folder, say=found.notes.append)
        if list(folders) == [""] and {"train", "val"} <= set(lists):
            for listed, keys in lists.items():
                photos = [
                    files.get(own or "", folder / key) for key, own in zip(keys, match_names(keys, files), strict=True)
                ]
                found.readers[listed] = partial(read_yolo, root, list(dict.fromkeys(photos)), names, f"{listed}.txt")
        else:
            found.readers[split] = partial(read_yolo, root, list(files.values()), names, str(folder))
    return found


def _find_yolo(file: Path) -> Found:
    root, found = file.parent, Found("YOLO", {})
    stated = _yolo_content(file)
    names, base = _yolo_names(file, stated), _yolo_base(file, stated)
    if stated.get("nc") not in (None, len(names)):
        found.notes.append(f"{file} states nc: {stated['nc']} and names {len(names)} classes: the names count")
    for split, key in (("train", "train"), ("val", "val" if stated.get("val") else "valid"), ("test", "test")):
        if not stated.get(key):
            continue
        try:
            photos, notes = _yolo_photos(file, base, stated[key])
        except UserError as error:
            if split != "test":
                raise
            found.notes.append(f"{error} The split is left out.")
            continue
        found.readers[split] = partial(read_yolo, root, photos, names, f"{file} ({key})", notes)
    if not found.readers:
        raise UserError(f"{file} has no train entry: add the path of the training photos.")
    return found


def _yolo_content(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{file} has more than {LARGEST_TEXT // 1_000_000} MB: it is no data.yaml.")
        stated = _darknet(file) if file.suffix.lower() == ".data" else yaml.safe_load(read_text(file))
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as YAML: {first_line(error)}") from None
    if not isinstance(stated, dict):
        raise UserError(f"{file} is no data.yaml: that has train, val and names.")
    if "kpt_shape" in stated:
        raise UserError(f"{file} describes key points (kpt_shape): detectors need boxes or polygons.")
    return stated


def _darknet(file: Path) -> dict[str, Any]:
    """Darknet's obj.data, lines of `key = value`, with the content of the file that `names` names."""
    pairs = (line.partition("=")[::2] for line in lines_of(file))
    stated = {key.strip(): value.strip() for key, value in pairs}
    if not stated.get("names"):
        raise UserError(f"{file} has no line `names = FILE`: the file with one class name per line.")
    names = _yolo_place(file, file.parent, stated["names"])
    return {"names": list(given_names((str(names),))), **{key: stated.get(key) for key in ("train", "valid", "test")}}


def _yolo_names(file: Path, stated: dict[str, Any]) -> tuple[str, ...]:
    names = stated.get("names")
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(i)) for i in range(len(names))]
        names = None if None in names else names
    if not isinstance(names, list) or not names:
        raise UserError(f"{file} has no class names: add names, as a list or as a mapping from 0, 1, … to names.")
    if any(isinstance(name, bool) for name in names):
        raise UserError(f"{file}: YAML reads a class name such as yes or off as true or false: put it in quotes.")
    told = tuple(str(name) for name in names)
    if twice := [name for name in told if told.count(name) > 1]:
        raise UserError(f"{file}: two classes are called {twice[0]}: give each a name of its own.")
    return told


def _yolo_base(file: Path, stated: dict[str, Any]) -> Path:
    """The folder that paths are relative to; the file's own folder if the stated one is on another machine."""
    base = file.parent / str(stated.get("path") or ".")
    return base if base.is_dir() else file.parent


def _yolo_photos(file: Path, base: Path, places: Any) -> tuple[list[Path], list[str]]:
    """Images of a split, from folders and from text files that list them, each once; and notes."""
    photos: list[Path] = []
    notes: list[str] = []
    for place in places if isinstance(places, list) else [places]:
        path = _yolo_place(file, base, str(place))
        if path.is_dir():
            photos += image_files(path, say=notes.append).values()
            continue
        listed = [line.replace("\\", "/") for line in lines_of(path)]
        if not all((path.parent / line).is_file() for line in listed):
            known = [photo.relative_to(path.parent).as_posix() for photo in walk(path.parent)]
            plain = [os.path.normpath(line) for line in listed]
            names = match_names(plain, known)
            notes += renaming_note(f"photos of {path}", plain, names)
            listed = [name or line for name, line in zip(names, listed, strict=True)]
        photos += (path.parent / line for line in listed)
    once = list(dict.fromkeys(photos))
    if len(once) < len(photos):
        notes.append(f"photos of {file} listed twice, taken once: {len(photos) - len(once)}")
    return once, notes


def _yolo_place(file: Path, base: Path, stated: str) -> Path:
    """The folder or list that a data.yaml names, perhaps by its path on another machine."""
    name = stated.replace("\\", "/")
    # Roboflow writes ../train/images for a folder beside the file.
    tried = [base / name, base / name.removeprefix("../")]
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    if (
        name.startswith("/") or re.match(r"[A-Za-z]:", name) or file.suffix.lower() == ".data"
    ):  # relative to Darknet's folder
        tried += [base.joinpath(*parts[i:]) for i in range(1, len(parts))]
    path = next((path for path in tried if path.exists()), None)
    if path is None:
        raise UserError(f"{file}: {tried[0]} does not exist: correct the path there.")
    return path


def holds_yolo(root: Path) -> bool:
    """Whether a folder has a data.yaml, or another file that names YOLO's classes, even if it is faulty."""
    return _yolo_file(root) is not None


def _yolo_file(root: Path) -> Path | None:
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    named = [path for path in files if path.stem == "data"]
    named = named or [path for path in files if "names:" in path.read_text("utf-8", errors="replace")]
    return next(
        iter([*named, *filter(_is_darknet, [*sorted(root.glob("*.data")), *sorted(root.glob("data/*.data"))])]), None
    )


def _is_darknet(file: Path) -> bool:
    """Whether a file is Darknet's obj.data, and the list of training photos and the names of the classes are there."""
    try:
        stated = _darknet(file)
        return _yolo_place(file, file.parent, str(stated["train"])).is_file()
    except (UserError, KeyError):
        return False


def _yolo_apart(root: Path) -> dict[str, Path]:
    """Image folders by split, with text files in labels/: images/train, images alone, or train/images."""
    images = root / "images"
    if images.is_dir() and (root / "labels").is_dir():
        inner = {split: path for path in sorted(images.iterdir()) if path.is_dir() and (split := split_of(path.name))}
        return inner or {"": images}
    return {
        split: folder / "images"
        for split, folder in parts_of(root).items()
        if (folder / "images").is_dir() and (folder / "labels").is_dir()
    }


def _yolo_beside(root: Path) -> dict[str, Path]:
    """Folders by split whose images have text files beside them, as LabelImg writes them."""
    return {
        split: folder
        for split, folder in parts_of(root).items()
        if any(
            text.is_file() and holds_labels(text)  # no captions
            for text in (photo.with_suffix(".txt") for photo in image_files(folder).values())
        )
    }
