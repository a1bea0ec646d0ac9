"""Files under other names than annotations give them, photos turned by EXIF, and files that name classes' colours."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dmformer.data.orientation import as_shown, orientation, turned, turned_points
from dmformer.tasks.labelme import read_labelme
from dmformer.tasks.naming import match_names, renaming_note
from dmformer.tasks.segmentation.colour_maps import find_colour_map, parse_colours, read_colour_map
from dmformer.utils.errors import UserError
from dmformer.utils.visible import visible

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Köln/Straße é.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        ("a.jpg", ["a.jpg", "A.jpg"], "a.jpg"),  # the same name wins
        (COMPOSED, [DECOMPOSED], DECOMPOSED),
        (DECOMPOSED, [COMPOSED], COMPOSED),
        ("a.JPG", ["a.jpg"], "a.jpg"),
        ("C:\\data\\set\\a.jpg", ["set/a.jpg"], "set/a.jpg"),
        ("set/a.jpg", ["set\\a.jpg"], "set\\a.jpg"),  # unpacked from a Windows archive
        ("/home/someone/set/a.jpg", ["set/a.jpg", "other/a.jpg"], "set/a.jpg"),  # the longest tail wins
        ("https://host.example/x/a%20b.jpg?size=2", ["deep/below/a b.jpg"], "deep/below/a b.jpg"),
        ("./deep/a.jpg", ["a.jpg"], "a.jpg"),
        ("a.jpg", ["one/a.jpg", "two/a.jpg"], None),  # which one is meant?
        ("a.jpg", ["b.jpg"], None),
        ("train/a.jpg", ["val2017/a.jpg"], None),  # another photo of another split
        ("val/a.jpg", ["valid/a.jpg"], "valid/a.jpg"),
        ("", ["a.jpg"], None),
    ],
)
def test_names_are_matched(wanted, known, expected):
    assert match_names([wanted], known) == [expected]


def test_no_file_is_given_to_two_names():
    assert match_names(["a.jpg", "old/a.jpg"], ["a.jpg"]) == ["a.jpg", None]
    assert match_names(["x/a.jpg", "y/a.jpg"], ["a.jpg"]) == [None, None]
    assert match_names(["x/a.jpg", "./x/a.jpg"], ["z/a.jpg"]) == ["z/a.jpg", "z/a.jpg"]  # one name, written twice
    found = match_names(["a.jpg", "b.JPG", "gone.jpg"], ["a.jpg", "b.jpg"])
    note = "photos found under another name: 1, such as b.JPG as b.jpg"
    assert renaming_note("photos", ["a.jpg", "b.JPG", "gone.jpg"], found) == [note]
    assert renaming_note("photos", ["a.jpg"], ["a.jpg"]) == []


@pytest.mark.parametrize("way", [5, 6, 7, 8])
def test_masks_and_points_turn_as_the_photo_does(tmp_path: Path, way: int):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = way
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert orientation(tmp_path / "a.png") == way
    assert np.array_equal(turned(stored, way), shown)
    assert np.array_equal(as_shown(stored, tmp_path / "a.png", (3, 4)), shown)
    assert as_shown(stored, tmp_path / "a.png", (4, 3)) is stored  # it has the size of the photo as shown
    for y, x in np.ndindex(3, 4):  # centres of pixels
        right, down = turned_points(np.array([x + 0.5, y + 0.5]), way, 3, 4)
        assert shown[int(down), int(right)] == stored[y, x]


def test_photos_that_are_not_turned(tmp_path: Path):
    stored = np.zeros((3, 4), np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no photo")
    assert [orientation(tmp_path / name) for name in ("a.png", "b.png", "gone.png")] == [1, 1, 1]
    assert as_shown(stored, tmp_path / "a.png", (3, 4)) is stored


NAMES, COLOURS = ("sky", "road: wet", "a cat"), ((128, 128, 128), (128, 64, 128), (0, 0, 255))
IN_JSON = [{"name": name, "color": list(colour)} for name, colour in zip(NAMES, COLOURS, strict=True)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nsky:128,128,128::\nroad: wet:128,64,128::\n\na cat:0,0,255:head:runs\n",
        ),
        ("class_dict.csv", "name,r,g,b\nsky, 128, 128, 128\nroad: wet,128,64,128\na cat,0,0,255\n"),
        ("class_dict.csv", '"red","green","blue","class"\n128,128,128,sky\n128,64,128,road: wet\n0,0,255,a cat\n'),
        ("label_colors.txt", "128 128 128\tsky\n128 64 128\t\troad: wet\n0 0 255 a cat\n"),
        ("classes.json", json.dumps(IN_JSON)),
        ("classes.json", json.dumps({"classes": [{"title": e["name"], "color": e["color"]} for e in IN_JSON]})),
        ("classes.json", json.dumps({"sky": "#808080", "road: wet": "804080", "a cat": [0, 0, 255, 255]})),
    ],
)
def test_colour_maps_are_read(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    read = read_colour_map(tmp_path / name)
    assert (read.class_names, read.colours) == (NAMES, COLOURS)
    assert find_colour_map([tmp_path / "none", tmp_path]) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, sky\n2, a cat\n1, road: wet\n"),
        ("classes.json", json.dumps(["sky", "road: wet", "a cat"])),
        ("classes.json", json.dumps({"1": "road: wet", "0": "sky", "2": "a cat"})),
        ("classes.json", json.dumps({"a cat": 2, "sky": 0, "road: wet": 1})),
        (
            "classes.json",
            json.dumps([{"id": 1, "name": "road: wet"}, {"id": 0, "name": "sky"}, {"id": 2, "name": "a cat"}]),
        ),
    ],
)
def test_names_of_ids_are_read(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    read = read_colour_map(tmp_path / name)
    assert (read.class_names, read.colours) == (NAMES, ())


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("labelmap.txt", "sky:1,2\n", "cannot be read as names and colours"),
        ("labelmap.txt", "sky:1,2,300::\n", "cannot be read as names and colours of classes: .* is no colour"),
        ("labelmap.txt", "a:1,2,3::\nb:1,2,3::\n", "two classes have the colour 010203"),
        ("classes.json", "{", "cannot be read as names"),
        ("classes.json", "[]", "names no class"),
        ("classes.json", '[{"name": "a", "color": "#000000"}, {"name": "b"}]', "gives no colour for b"),
        ("_classes.csv", "Pixel Value, Class\n0, a\n2, b\n", "ids of the classes must be 0 to 1 without gaps"),
    ],
)
def test_colour_maps_that_cannot_be_used(tmp_path: Path, name: str, text: str, told: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told) as error:
        read_colour_map(tmp_path / name)
    assert "\n" not in str(error.value)


def test_colours_of_the_option():
    assert parse_colours(["800000", "#0000Ff"]) == ((128, 0, 0), (0, 0, 255))
    for given, told in (
        (["80"], "give colours as RRGGBB"),
        (["red"], "--colours red"),
        (["0a0a0a"] * 2, "two classes"),
    ):
        with pytest.raises(UserError, match=told):
            parse_colours(given)


def test_labelme_is_read(tmp_path: Path):
    shapes = [
        {"label": "cat", "points": [[1, 1], [9, 1], [9, 5]], "shape_type": "polygon", "group_id": 3},
        {"label": "dog", "points": [[9, 8], [2, 3]], "shape_type": "rectangle"},
        {"label": "sun", "points": [[5, 5], [5, 8]], "shape_type": "circle"},
        {"label": "way", "points": [[5, 5], [5, 8]], "shape_type": "line"},
        {"label": "", "points": [[1, 1], [9, 1], [9, 5]]},
        {"label": "cat", "points": [[1, 1], [9, 1]]},
        {"points": [[1, 1]]},
        "text",
    ]
    content = {"shapes": shapes, "imagePath": "..\\a.jpg", "imageHeight": 10, "imageWidth": 20, "imageData": None}
    (tmp_path / "a.json").write_text(json.dumps(content))
    read = read_labelme(tmp_path / "a.json")
    assert (read.photo, read.size, read.fault) == ("..\\a.jpg", (10, 20), "")
    cat, dog, sun = read.shapes
    assert (cat.label, cat.group, cat.points.tolist()) == ("cat", 3, [[1, 1], [9, 1], [9, 5]])
    assert dog.points.tolist() == [[2, 3], [9, 3], [9, 8], [2, 8]]
    assert np.allclose([sun.points.min(0), sun.points.max(0)], [[2, 2], [8, 8]])
    assert [(number, why) for number, why in read.faults] == [
        (4, "is a line, which has no outline"),
        (5, "has no label"),
        (6, "has an outline of 2 points"),
        (7, "cannot be read"),
        (8, "cannot be read"),
    ]
    for text, told in (("{", "cannot be read"), ("[]", "no list of shapes"), ('{"images": []}', "no list of shapes")):
        (tmp_path / "a.json").write_text(text)
        assert told in read_labelme(tmp_path / "a.json").fault


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("cat ", "cat␣"),
        ("a  b c", "a␣␣b c"),
        ("cat\u200b", "cat\\u200b"),
        ("cat\u00a0", "cat\\xa0"),
        ("line\nline", "line\\nline"),
        ("蓝天 grünes Haus", "蓝天 grünes Haus"),
        ("👩\u200d🔬", "👩\u200d🔬"),  # one emoji of two
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ca\u200dt", "ca\\u200dt"),
    ],
)
def test_what_cannot_be_seen_in_a_name_is_shown(name, shown):
    assert visible(name) == shown
