"""Formats that are not read, recognised by their files: what each is called, and what to convert it to."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from ..data.finding import is_litter
from ..data.finding import walk as files_below
from ..utils.errors import UserError
from .tables import TABLES, read_rows

LOOKED_AT = 20_000
"""Files whose names are looked at."""

ARRAYS = "save each image as a PNG"
SUFFIXES = {
    ("parquet", "arrow"): (
        "Hugging Face's tables of photos",
        "save the photos and a table of paths and labels, or name a set of the hub, --data hfds/OWNER/NAME",
    ),
    ("tfrecord", "tfrecords", "record"): ("TFRecords", "save the photos, with class folders or in COCO's format"),
    ("npz", "npy", "h5", "hdf5", "mat", "pkl", "pickle", "lmdb", "mdb"): ("arrays", ARRAYS),
    ("dcm", "dicom"): ("DICOM", "save PNGs of 16 bits, with dcm2pnm or pydicom"),
    ("nii", "mha", "mhd", "nrrd"): ("volumes", "save their slices as PNGs"),
    ("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2"): (
        "raw photos of cameras",
        "develop them to JPEG or TIFF, with darktable or dcraw",
    ),
    ("xlsx", "xls", "ods"): ("a spreadsheet", "save it as .csv"),
    ("7z", "rar", "zst"): ("archives of a kind that is not read", "unpack them, and give the folder"),
    ("zip", "tar", "tgz"): ("archives", "give one of them as --data, or unpack them"),
}
"""What files are by their suffixes, and what to do."""
FOLDERS = {
    "label_2": ("KITTI's labels", "convert them to COCO or YOLO"),
    "labelTxt": ("DOTA's oriented boxes", "convert them to upright boxes of COCO or YOLO"),
    "ann": ("Supervisely's annotations", "export them as COCO, YOLO or Pascal VOC, or masks as PNG"),
}
"""The same for folders of annotations, by their name."""
FILES = {"batches.meta": ("CIFAR's arrays", f"give --data torch/cifar10, or {ARRAYS}")}
COLUMNS = {
    "EncodedPixels": ("masks as run lengths in a table", "write them as PNGs of class ids"),
    "region_shape_attributes": ("VIA's table", "export JSON there"),
}
"""The same for tables, by a column."""


def foreign_format(place: Path) -> str:
    """A sentence, after a blank, on a format that is not read, if the files of a place are of one; else nothing."""
    names = list(islice(files_below(place), LOOKED_AT)) if place.is_dir() else [place.name]
    found = _by_name(place, [name for name in names if not any(map(is_litter, name.split("/")))])
    return f" It holds {found[0]}: {found[1]}." if found else ""


def _by_name(place: Path, names: Sequence[str]) -> tuple[str, str] | None:
    parts = {part for name in names for part in name.split("/")[:-1]}
    for known, present in ((FOLDERS, parts), (FILES, {name.rpartition("/")[2] for name in names})):
        if hits := [told for key, told in known.items() if key in present]:
            return hits[0]
    base = place if place.is_dir() else place.parent
    for name in names:
        if name.lower().endswith(TABLES) and "/" not in name:
            columns = _columns(base / name)
            if hits := [told for column, told in COLUMNS.items() if column in columns]:
                return hits[0]
    suffixes = Counter(PurePosixPath(name.lower().removesuffix(".gz")).suffix.removeprefix(".") for name in names)
    return next((told for known, told in SUFFIXES.items() if any(suffixes[each] for each in known)), None)


def _columns(table: Path) -> list[str]:
    try:
        return list(read_rows(table)[0])
    except UserError:
        return []
