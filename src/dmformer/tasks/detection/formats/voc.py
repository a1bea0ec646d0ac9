"""Pascal VOC's object annotations: one XML file per image."""

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from ....data.orientation import SIDEWAYS, orientation
from ....utils.errors import UserError, first_line
from ...folders import Fault, relative_name
from .parts import LARGEST_TEXT, Box, FaultyError, Part, Row, measured, numbers, other_size

ENCODING = re.compile(rb"""<\?xml[^>]*?encoding=["']([\w.:-]+)["'][^>]*>""")
EXCHANGED = "boxes with their edges exchanged, put in order"
LARGEST_CVAT = 1_000_000_000
"""Maximum bytes of CVAT's XML, which holds the annotations of all photos."""
PARSED = ("utf-8", "utf-16", "us-ascii", "iso-8859-1")
"""How an .xml states its encoding, and the encodings that the parser itself reads."""


def read_voc(
    root: Path, pairs: Sequence[tuple[Path, Path]], faults: Sequence[Fault], where: str, notes: Sequence[str] = ()
) -> Part:
    """Read the objects of Pascal VOC's XML files, one per image.

    VOC counts pixels from 1 and includes the last one: 1 is subtracted from the left and the upper edge. `difficult`
    objects are crowds, because VOC's scores count them neither as found nor as missed.
    """
    part = Part(root, (), None, where, faults=list(faults), notes=list(notes))
    xml_of = dict(pairs)
    labels: dict[str, int] = {}
    for photo, size in measured(part, list(xml_of)):
        try:
            tree = _voc_tree(xml_of[photo])
            stated = _stated_size(tree)
            size = _frame(stated, photo, size)
        except FaultyError as error:
            part.faults.append((relative_name(photo, root), str(error)))
            continue
        place = part.add(photo, size, stated=stated is not None)
        for i, element in enumerate(tree.findall("object"), 1):
            try:
                row = _voc_row(element, place, labels, len(part.rows) + 1)
                if row.box[0] > row.box[2] or row.box[1] > row.box[3]:
                    row = row._replace(box=_in_order(row.box))
                    part.mend(EXCHANGED, part.object_name(place, i))
                part.rows.append(row)
            except FaultyError as error:
                part.faults.append((part.object_name(place, i), str(error)))
    part.names = tuple(labels)
    return part


def _in_order(box: Box) -> Box:
    """A box whose left and right, or upper and lower edge are exchanged, after 1 was subtracted from the first."""
    left, upper, right, lower = box
    if left > right:
        left, right = right - 1, left + 1
    if upper > lower:
        upper, lower = lower - 1, upper + 1
    return left, upper, right, lower


class _PlainTree(ElementTree.TreeBuilder):
    """Refuse a document with a DOCTYPE, in which a few bytes can define gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise FaultyError("has an .xml with a DOCTYPE, which annotations do not need: left unread for safety")


def stated_photo(path: Path) -> str:
    """The name of the photo that a file says it is of, without its suffix; empty if it says nothing."""
    try:
        name = (_voc_tree(path).findtext("filename") or "").strip().replace("\\", "/")
    except FaultyError:
        return ""
    return PurePosixPath(name).with_suffix("").as_posix() if PurePosixPath(name).name else ""


def cvat_root(path: Path) -> ElementTree.Element:
    """The root of CVAT's XML for images.

    Raises:
        UserError: It is another file.
    """
    try:
        root = _tree(path, LARGEST_CVAT)
    except FaultyError as error:
        raise UserError(f"{path} {error}.") from None
    if root.tag != "annotations":
        raise UserError(f"{path} is no XML of CVAT: its root is {root.tag}. Of Pascal VOC's, give the folder.")
    return root


def _voc_tree(path: Path) -> ElementTree.Element:
    return _tree(path, LARGEST_TEXT)


def _tree(path: Path, largest: int) -> ElementTree.Element:
    try:
        if path.stat().st_size > largest:
            raise FaultyError(f"has an .xml of more than {largest // 1_000_000} MB")
        content = path.read_bytes()
        stated = ENCODING.match(content)
        if stated and (encoding := stated[1].decode()).lower() not in PARSED:  # such as GBK, which the parser refuses
            content = content[stated.end() :].decode(encoding)
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_PlainTree()))
    except FaultyError:
        raise
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise FaultyError(f"has an .xml that cannot be read: {first_line(error)}") from None


def _stated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) that a file states; None if it does not."""
    stated = (tree.findtext("size/height") or "0", tree.findtext("size/width") or "0")
    if not all(side.strip().isdecimal() for side in stated):
        return None
    height, width = (int(side) for side in stated)
    return (height, width) if height and width else None


def _frame(stated: tuple[int, int] | None, photo: Path, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the frame that the boxes are of: the photo's as shown, or as stored if the file says so."""
    if stated is None or stated == size:
        return size
    if stated[::-1] == size and orientation(photo) in SIDEWAYS:
        return stated
    raise FaultyError(other_size(size, stated))


def _voc_row(element: ElementTree.Element, image: int, labels: dict[str, int], number: int) -> Row:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise FaultyError("has no name")
    edges = [element.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    if None in edges:
        raise FaultyError(f"has no box of four numbers: {edges}")
    left, upper, right, lower = numbers(edges, "box")
    crowd = (element.findtext("difficult") or "0").strip() == "1"
    label = labels.setdefault(name, len(labels))
    return Row(image, (left - 1, upper - 1, right, lower), label, crowd, math.nan, number, None)
