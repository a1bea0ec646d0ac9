"""Images with id masks: the supported folder layouts, and the pairing of images with masks."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ...data.decode import PLAIN, Reading
from ...data.palette import default_palette
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from ..folders import (
    NAMES_FILE,
    Fault,
    alike_note,
    classes_in,
    entered,
    existing_folder,
    first_faults,
    first_few,
    given_names,
    image_files,
    names_in,
    parts_of,
    relative_name,
    share_out,
    split_folders,
    voc_lists,
    voc_root,
    walk,
    without_suffix,
)
from ..foreign import foreign_format
from ..labelme import read_labelme
from ..leaks import Copies, find_copies, refuse_leaks
from ..naming import match_names, renaming_note
from ..reading import found_reading
from .colour_maps import FILES, ColourMap, find_colour_map, parse_colours, read_colour_map
from .label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, LabelSet
from .masks import IGNORE, NO_CLASSES, Colours, draw_mask, map_labels, read_mask
from .recipes import SegmentationRecipe

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("annotations", "masks", "labels", "annotation", "mask", "label")
BESIDE = ("annot", "_annot", "_annotations", "_labels", "_label", "_masks", "_mask")
"""Endings of the folder of masks beside a split's folder of images, as in CamVid's train/ and trainannot/."""
ENDING = re.compile(r"[-_. ](masks?|labels?|labelids|l|seg|segmentation|gt|annotation|images?|img|sat|rgb)$", re.I)
"""Endings in which the names of an image and its mask may differ: x.jpg and x_mask.png, x_sat.jpg and x_mask.png."""
BACKGROUND = "background"
"""The class of what LabelMe's outlines leave free."""
INDICES = "ids"
"""As the only colour: the indices of palette masks are ids, whatever their colours."""


@dataclass(frozen=True)
class Labels:
    """The classes, and how masks store them; a call maps stored ids to training ids (see `map_labels`).

    `colours` gives the stored ids of colours. If `indexed`, palette indices are ids even if the palettes differ. If
    `binary`, 255 is stored for the second of two classes.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    reduce_zero_label: bool = False
    ignore_index: tuple[int, ...] = (IGNORE,)
    table: dict[int, int] | None = None
    colours: Colours = ()
    indexed: bool = False
    binary: bool = False

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        if self.binary:
            return map_labels(ids, len(self.class_names), False, (), {0: 0, 1: 1, IGNORE: 1})
        return map_labels(ids, len(self.class_names), self.reduce_zero_label, self.ignore_index, self.table)

    def stored(self, mask: Path, palette: dict[int, str] | None = None) -> np.ndarray:
        """The ids (H, W) of a mask's file, as stored or as drawn from LabelMe's outlines; see `read_mask`."""
        if mask.suffix == ".json":
            return draw_mask(read_labelme(mask), self.class_names, BACKGROUND)
        return read_mask(mask, self.colours, palette)


@dataclass(frozen=True)
class Pairs:
    """Images and their masks; display names start at the folder `root`.

    `unpaired` lists images that should be here but lack a mask, or the other way round. `notes` say what else users
    should know; `reading` says how the images are read.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    labels: Labels
    root: Path = Path()
    unpaired: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    reading: Reading = PLAIN

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Display name of image i: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def filename(self, i: int) -> str:
        """The same, as `leaks.Photos` calls it."""
        return self.name(i)

    def open(self, i: int) -> IO[bytes]:
        """The file of image i."""
        return open(self.images[i], "rb")

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """Some of the pairs, in the given order, with nothing unpaired."""
        chosen = [int(i) for i in indices]
        images, masks = (tuple(paths[i] for i in chosen) for paths in (self.images, self.masks))
        return replace(self, images=images, masks=masks, unpaired=())


@dataclass(frozen=True)
class PairSplits:
    """A data set of images with masks, ready to train on.

    Attributes:
        layout: How it is stored, in words.
        copies: Images that occur twice.
        pixels: Number of pixels of each class in each mask, by split, with those of `IGNORE`; from `check_pairs`.
    """

    labels: Labels
    train: Pairs
    val: Pairs
    test: Pairs | None
    notes: list[str]
    layout: str = ""
    copies: Copies = field(default_factory=Copies)
    pixels: dict[str, list[dict[int, int]]] = field(default_factory=dict)


def open_pairs(recipe: SegmentationRecipe, track: Track = untracked, compare: bool = True) -> PairSplits:
    """Find the images and masks of a recipe; the layout is recognised by the folders in `data`.

    - `images/` and `annotations/` (or `masks/`, `labels/`), with `training/`, `validation/` and perhaps `test/` in both
      (ADE20K's SceneParsing), around both (`train/images/`), as lists beside them (`train.txt`, `val.txt`) or
      without; or `train/` and `trainannot/` (CamVid);
    - `x.jpg` and `x_mask.png` in the same folders (Roboflow); or LabelMe's `x.json` beside each image;
    - `leftImg8bit/` and `gtFine/` (Cityscapes): masks of training ids if they exist, else labelIds;
    - `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/` (Pascal VOC), also below `VOCdevkit/VOC2012/`;
    - with `masks`: any folder of images and any folder of masks.

    A mask has the name of its image except for the suffix and perhaps an ending such as _mask, and the same relative
    path; if it has not, see `match_names`. Data without a validation split is split at random by `seed`.

    Args:
        recipe: Its fields marked READ count; see `map_labels` for how masks store the classes, and `read_colour_map`
            for a file of colours, which may also lie beside the masks.
        track: Shows how far it has got.
        compare: Look for images that occur twice; otherwise only if a random split needs to know them.

    Raises:
        UserError: Nothing there, unknown layout, no masks, no names, the same image in two splits, or too few images to
            split.
    """
    found = _find(recipe.data, recipe.masks)
    labels = _labels(found, recipe)
    parts = {split: _as_pairs(found, split, labels) for split in found.parts}
    whole = parts.get("train") or parts.get("")
    if whole is None:
        raise UserError(f"{recipe.data} has {' and '.join(parts)} but no train: put the training images there.")
    reading = found_reading(whole, recipe.max_pixels, found.notes.append)
    parts = {split: replace(pairs, reading=reading) for split, pairs in parts.items()}
    whole = replace(whole, reading=reading)
    needed = compare or "val" not in parts
    copies = find_copies(parts, recipe.near_duplicates, track=track) if needed else Copies()
    found.notes += [*copies.notes, *refuse_leaks(parts, copies, recipe.allow_leaks)]
    train, val, test = whole, parts.get("val"), parts.get("test")
    if val is None:
        groups = copies.together("train" if "train" in parts else "")
        train, val, rest = _split_off(whole, recipe, 0.0 if test else recipe.test_share, groups)
        test = test or rest
    return PairSplits(labels, train, val, test, found.notes, _layout(found), copies)


def has_masks(data: str) -> bool:
    """Whether a folder has a layout of images with masks."""
    try:
        return bool(_find(data, None).parts)
    except UserError:
        return False


def open_evaluation_pairs(recipe: SegmentationRecipe, known_colours: Colours = ()) -> Pairs:
    """Open one set of pairs for scoring: the test split of `data`, else its validation split, else all of it.

    The fields of the recipe and the errors are the same as for `open_pairs`. `known_colours` are the ids of the colours
    that the training masks had, used if neither the recipe nor a file beside the masks gives any.
    """
    found = _find(recipe.data, recipe.masks)
    labels = _labels(found, recipe)
    if known_colours and not labels.colours and not labels.indexed:
        labels = replace(labels, colours=known_colours)
    split = next(split for split in ("test", "val", "train", "") if split in found.parts)
    return replace(_as_pairs(found, split, labels), notes=tuple(found.notes))


def class_pixels(pairs: Pairs) -> np.ndarray:
    """Number of pixels of each class in the masks, (K)."""
    K = len(pairs.labels.class_names)

    def count(mask: Path) -> np.ndarray:
        return np.bincount(pairs.labels(pairs.labels.stored(mask)).ravel(), minlength=IGNORE + 1)[:K]

    with ThreadPoolExecutor() as threads:
        return np.sum(list(threads.map(count, pairs.masks)), axis=0)


# ---- finding


class _Part(NamedTuple):
    pairs: list[tuple[Path, Path]]
    unpaired: list[Fault]


@dataclass
class _Found:
    """Content of a folder: its parts by split, "" if it is not split, and what its layout says about the classes."""

    root: Path
    parts: dict[str, _Part]
    notes: list[str] = field(default_factory=list)
    kind: str = ""
    known: LabelSet | None = None
    table: dict[int, int] | None = None
    outlined: bool = False


def _find(data: str, masks: str | None) -> _Found:
    root = existing_folder(data, "a folder of images and masks")
    if masks is None:
        root = entered(root)
    if masks is not None:
        images = root / "images" if (root / "images").is_dir() else root
        folder = existing_folder(masks, "the folder of masks")
        if images.samefile(folder):
            raise UserError(f"{folder} is given for images and for masks: put the masks in a separate folder.")
        found = _open_folders(root, images, folder)
    elif (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        found = _open_cityscapes(root)
    elif voc := voc_root(root, "SegmentationClass"):
        found = _open_voc(voc)
    elif images := _inner(root, IMAGE_FOLDERS):
        folder = _inner(root, MASK_FOLDERS)
        if folder is None:
            raise UserError(
                f"{root} has {images.name}/ but no annotations/, masks/ or labels/: give the masks with --masks."
            )
        found = _open_folders(root, images, folder)
    elif folders := _split_folders(root):
        found = _Found(root, {}, kind="folders")
        for split, (images, folder) in folders.items():
            found.parts[split] = _match(found, images, folder)
    elif not (found := _open_beside(root)).parts:
        raise UserError(
            f"{root} has no layout that is known: images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ "
            "(Cityscapes), JPEGImages/ and SegmentationClass/ (Pascal VOC), train/ and trainannot/ (CamVid), "
            "x_mask.png (Roboflow) or x.json (LabelMe) beside x.jpg; or give the folder of masks with --masks."
            f"{foreign_format(root)}"
        )
    for split, part in found.parts.items():
        if not part.pairs:
            where = f"{root} has no {split or 'image'}{' image' if split else ''} with a mask"
            raise UserError(f"{where}: {first_faults(part.unpaired, 3) or 'there are no images.'}")
    return found


def _layout(found: _Found) -> str:
    """How the images and masks are stored, in words."""
    if found.kind != "folders":
        return found.kind
    return "LabelMe's outlines beside the images" if found.outlined else "folders of images and masks"


def _open_folders(root: Path, images: Path, masks: Path) -> _Found:
    found = _Found(root, {}, kind="folders")
    folders, partners = split_folders(images), split_folders(masks)
    if not folders:
        whole = _match(found, images, masks)
        lists = voc_lists(root)
        found.parts = _by_lists(found, whole, images, lists) if {"train", "val"} <= set(lists) else {"": whole}
    for split, folder in folders.items():
        partner = partners.get(split)
        if partner is not None and any(walk(partner)):
            found.parts[split] = _match(found, folder, partner)
        elif split == "train":
            raise UserError(f"{folder} has no masks: put them in {masks / folder.name}.")
        else:
            found.notes.append(f"{relative_name(folder, root)} has no masks in {relative_name(masks, root)}: left out")
    if not found.parts:
        raise UserError(f"{masks} holds no masks for {' or '.join(map(str, folders.values()))}.")
    return found


def _by_lists(found: _Found, whole: _Part, images: Path, lists: dict[str, list[str]]) -> dict[str, _Part]:
    """The pairs by the split in whose list, such as train.txt, the image is; notes on the others."""
    pairs = {without_suffix(pair[0].relative_to(images).as_posix()): pair for pair in whole.pairs}
    parts, taken = {}, set()
    for split, listed in lists.items():
        keys = match_names(listed, pairs)
        taken.update(keys)
        lost = [name for name, key in zip(listed, keys, strict=True) if not key]
        faults = [(name, f"is listed in {split}.txt, without an image and a mask") for name in lost]
        parts[split] = _Part([pairs[key] for key in dict.fromkeys(keys) if key], faults)
    parts["train"].unpaired.extend(whole.unpaired)
    if rest := [key for key in pairs if key not in taken]:
        found.notes.append(f"images in none of the lists of {found.root}, left out: {len(rest)} ({first_few(rest, 3)})")
    return parts


def _inner(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the named folders in a folder, in any case."""
    inner = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((inner[name] for name in names if name in inner), None)


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks by split: in the split's folder, or beside each other."""
    found = {}
    for split, folder in split_folders(root).items():
        images = _inner(folder, IMAGE_FOLDERS) or folder
        masks = _inner(folder, MASK_FOLDERS) or _inner(root, [f"{folder.name}{end}".casefold() for end in BESIDE])
        if masks is not None:
            found[split] = (images, masks)
    return found


def _open_beside(root: Path) -> _Found:
    """Masks in the folders of their images, by an ending of their names, or as LabelMe's .json; nothing without."""
    found = _Found(root, {}, kind="folders")
    for split, folder in parts_of(root).items():
        files = image_files(folder, say=found.notes.append)
        masks = {key: path for key, path in files.items() if ENDING.sub("", key) != key and _is_mask(key, files)}
        outlines = _labelme_files(found, folder)
        if masks or outlines:
            images = {key: path for key, path in files.items() if key not in masks}
            found.outlined = found.outlined or not masks
            found.parts[split] = _paired(found, images, masks or outlines, folder, folder)
    return found


def _labelme_files(found: _Found, folder: Path) -> dict[str, Path]:
    """LabelMe's files below a folder; shapes that are no outlines are noted."""
    files, faults = {}, []
    for path in sorted(folder.rglob("*.json")):
        content = read_labelme(path)
        if not content.fault:
            files[path.relative_to(folder).with_suffix("").as_posix()] = path
            faults += [(f"{relative_name(path, found.root)}, shape {number}", why) for number, why in content.faults]
    if faults:
        found.notes.append(
            f"shapes in {folder} that cannot be used, left out ({len(faults)}): {first_faults(faults, 3)}"
        )
    return files


def _is_mask(key: str, files: dict[str, Path]) -> bool:
    """Whether a file is the mask of another one beside it: of x.jpg or x_image.jpg if it is x_mask.png."""
    plain = ENDING.sub("", key)
    ending = key.removeprefix(plain)[1:].casefold()
    image = ending in ("image", "images", "img", "sat", "rgb")
    return not image and any(f"{plain}{end}" in files for end in ("", "_image", "_img", "_sat", "_rgb"))


def _open_cityscapes(root: Path) -> _Found:
    images, masks = root / "leftImg8bit", root / "gtFine"
    made = any(path.stem.endswith("_gtFine_labelTrainIds") for path in walk(masks))
    ending = "_gtFine_labelTrainIds" if made else "_gtFine_labelIds"
    table = None if made else CITYSCAPES_TRAIN_IDS
    found = _Found(root, {}, kind="Cityscapes", known=CITYSCAPES, table=table)
    for split in ("train", "val"):
        if (images / split).is_dir():
            found.parts[split] = _match(found, images / split, masks / split, "_leftImg8bit", ending)
    if (images / "test").is_dir():
        found.notes.append("the masks of Cityscapes' test images are not published: left out, scores are of val")
    if not found.parts:
        raise UserError(f"{images} holds neither train/ nor val/: unpack leftImg8bit_trainvaltest.zip there.")
    return found


def _open_voc(root: Path) -> _Found:
    names = voc_lists(root / "ImageSets" / "Segmentation")
    found = _Found(root, {}, kind="Pascal VOC", known=VOC)
    images = image_files(root / "JPEGImages", say=found.notes.append)
    masks = image_files(root / "SegmentationClass", say=found.notes.append)
    if "test" in names and not any(match_names(names["test"], masks)):
        del names["test"]
        found.notes.append("SegmentationClass holds no masks of the images listed in test.txt: left out")
    if not names:
        raise UserError(f"{root} has no ImageSets/Segmentation/train.txt and val.txt: they list the images to use.")
    for split, listed in names.items():
        keys = match_names(listed, images)
        found.notes += renaming_note(f"images listed for {split or 'training'}", listed, keys)
        own = {key: images[key] for key in keys if key}
        if twice := sum(key is not None for key in keys) - len(own):
            found.notes.append(f"images listed twice for {split or 'training'}, taken once: {twice}")
        with_mask = {key: masks[key] for key in match_names(list(own), masks) if key}
        part = _paired(found, own, with_mask, root / "JPEGImages", root / "SegmentationClass")
        lost = [name for name, key in zip(listed, keys, strict=True) if not key]
        part.unpaired.extend((name, "there is no such image in JPEGImages") for name in lost)
        found.parts[split] = part
    return found


def _match(found: _Found, images: Path, masks: Path, image_ending: str = "", mask_ending: str = "") -> _Part:
    """Pair the files of two folders by name, ignoring the endings of their stems; add a note about unpaired masks."""
    inner = images / os.path.relpath(masks, images)  # masks may be inside the image folder
    of_images = {
        key: path
        for key, path in image_files(images, image_ending, found.notes.append).items()
        if not path.is_relative_to(inner)
    }
    of_masks = image_files(masks, mask_ending, found.notes.append)
    return _paired(found, of_images, of_masks, images, masks)


def _paired(
    found: _Found, images: dict[str, Path], masks: dict[str, Path], image_folder: Path, mask_folder: Path
) -> _Part:
    """Pair images and masks by their keys; add notes about masks with other names and without an image."""
    keys = list(images)
    partners = match_names(keys, masks)
    found.notes += renaming_note(f"masks in {relative_name(mask_folder, found.root)}", keys, partners)
    free = [key for key in masks if key not in partners]
    lost = _without_endings(key for key, own in zip(keys, partners, strict=True) if not own)
    of_plain = _without_endings(free)
    pairs = zip(lost.values(), match_names(list(lost), of_plain), strict=True)
    ended = {key: of_plain[other] for key, other in pairs if other}
    partners = [own or ended.get(key) for key, own in zip(keys, partners, strict=True)]
    alone = [relative_name(masks[key], mask_folder) for key in free if key not in partners]
    if alone:
        found.notes.append(f"masks without an image in {image_folder}, left out ({len(alone)}): {first_few(alone, 5)}")
    part = _Part([], [])
    for key, partner in zip(keys, partners, strict=True):
        if partner:
            part.pairs.append((images[key], masks[partner]))
        else:
            name = relative_name(images[key], found.root)
            part.unpaired.append((name, f"has no mask in {relative_name(mask_folder, found.root)}"))
    return part


def _without_endings(keys: Iterable[str]) -> dict[str, str]:
    """Keys by what is left without such endings, if only one key has that left."""
    plain = [(ENDING.sub("", without_suffix(key)), key) for key in keys]  # some tools call the mask of x.jpg x.jpg.png
    counts = Counter(rest for rest, _ in plain)
    return {rest: key for rest, key in plain if counts[rest] == 1}


def _as_pairs(found: _Found, split: str, labels: Labels) -> Pairs:
    part = found.parts[split]
    images, masks = (tuple(paths) for paths in zip(*part.pairs, strict=True))
    return Pairs(images, masks, labels, found.root, tuple(part.unpaired))


def _split_off(
    pairs: Pairs, recipe: SegmentationRecipe, test_share: float, groups: Sequence[Sequence[int]]
) -> tuple[Pairs, Pairs, Pairs | None]:
    what = f"{recipe.data}: {len(pairs)} images with masks"
    train, val, test = share_out(what, len(pairs), recipe.val_share, test_share, recipe.seed_of_split, groups)
    rest = replace(pairs.subset(train), unpaired=pairs.unpaired)
    return rest, pairs.subset(val), pairs.subset(test) if len(test) else None


# ---- classes


def _labels(found: _Found, recipe: SegmentationRecipe) -> Labels:
    classes, colours = recipe.classes, recipe.colours
    if recipe.reduce_zero_label and (found.kind == "Cityscapes" or (found.known and not classes)):
        raise UserError(f"{recipe.data}: {found.kind}'s classes begin at id 0: leave out --reduce-zero-label.")
    own = _class_file(classes)
    stated = own if own.colours and not colours else _stated_colours(found, colours)
    names = own.class_names or (given_names(classes) if classes else _known_names(found, stated, recipe.data))
    if len(names) == 1:
        raise UserError(
            f"there is one class, '{names[0]}': segmentation needs two or more, e.g. background and {names[0]}."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the class {twice[0]} is given twice: class names must be unique.")
    found.notes += alike_note(names)
    ids = _ids_of_colours(found, stated, names)
    palette = tuple((r, g, b) for r, g, b, i in sorted(ids, key=lambda each: each[3]) if i < len(names))
    return Labels(
        names,
        palette if len(palette) == len(names) else _palette(names, found.kind),
        recipe.reduce_zero_label,
        tuple(recipe.ignore_index) if not ids else tuple(dict.fromkeys((*recipe.ignore_index, IGNORE))),
        found.table or _table(found, stated, names),
        ids,
        tuple(colours) == (INDICES,),
    )


def _class_file(classes: Sequence[str]) -> ColourMap:
    """Names, and colours if there are any, from the file that --classes names; nothing if it names classes."""
    if len(classes) != 1 or not Path(classes[0]).is_file():
        return ColourMap(())
    path = Path(classes[0])
    return (
        read_colour_map(path)
        if path.name in FILES or path.suffix in (".csv", ".json")
        else ColourMap(*classes_in(path))
    )


def _stated_colours(found: _Found, colours: Sequence[str]) -> ColourMap:
    """Classes and colours from --colours, or else from a file beside the masks."""
    if tuple(colours) == (INDICES,):
        return ColourMap(())
    if len(colours) == 1 and Path(colours[0]).is_file():
        return read_colour_map(Path(colours[0]))
    if colours:
        return ColourMap((), parse_colours(colours))
    if found.kind == "Cityscapes":
        return ColourMap(())
    paths = [path for part in found.parts.values() for path in part.pairs[0][::-1]]
    above = [folder for path in paths for folder in path.parents if folder.is_relative_to(found.root)]
    masks = [mask.parent for mask in paths[::2]]
    file = find_colour_map(dict.fromkeys([found.root, *above, *masks]))
    return read_colour_map(file) if file else ColourMap(())


def _known_names(found: _Found, stated: ColourMap, data: str) -> tuple[str, ...]:
    info = found.root / NAMES_FILE
    if stated.class_names:
        return stated.class_names
    if found.known is not None:
        return found.known.class_names
    if info.is_file():
        return names_in(info)
    if (beside := found.root / "classes.txt").is_file():
        found.notes.append(f"the classes are those of {relative_name(beside, found.root)}")
        return names_in(beside)
    if found.outlined:
        masks = (mask for part in found.parts.values() for _, mask in part.pairs)
        labels = {shape.label for mask in masks for shape in read_labelme(mask).shapes}
        return (BACKGROUND, *sorted(labels - {BACKGROUND, f"_{BACKGROUND}_", *NO_CLASSES}))
    raise UserError(
        f"{data} has no class names: give them in the order of their ids with --classes, "
        "or a text file with one name per line."
    )


def _table(found: _Found, stated: ColourMap, names: Sequence[str]) -> dict[int, int] | None:
    """The ids of the given names, if a file beside the masks names the stored ids in another order."""
    own = stated.class_names
    if stated.colours or tuple(names) == own or not set(names) & set(own):
        return None
    if others := [name for name in own if name not in names]:
        found.notes.append(f"classes that are not among those named, ignored: {first_few(others, 10)}")
    return {i: names.index(name) if name in names else IGNORE for i, name in enumerate(own)}


def _ids_of_colours(found: _Found, stated: ColourMap, names: Sequence[str]) -> tuple[tuple[int, int, int, int], ...]:
    """The stored id of each colour; a colour of a class that is not among the names is ignored."""
    if not stated.colours:
        return ()
    if set(names) <= set(stated.class_names):
        others = [name for name in stated.class_names if name not in names]
        if others:
            found.notes.append(f"classes that are not among those named, ignored: {first_few(others, 10)}")
        ids = [names.index(name) if name in names else IGNORE for name in stated.class_names]
    elif len(names) == len(stated.colours):
        ids = range(len(names))
    else:
        raise UserError(f"there are {len(stated.colours)} colours for {len(names)} classes: give each class its own.")
    return tuple((*colour, i) for colour, i in zip(stated.colours, ids, strict=True))


def _palette(names: tuple[str, ...], kind: str) -> tuple[tuple[int, int, int], ...]:
    for known in (CAMVID, CITYSCAPES, VOC, ADE20K):
        if set(names) == set(known.class_names):
            colours = dict(zip(known.class_names, known.palette, strict=True))
            return tuple(colours[name] for name in names)
    if kind == "folders" and len(names) == len(ADE20K.class_names):
        return ADE20K.palette
    return tuple(default_palette(len(names)))
