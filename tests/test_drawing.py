"""`drawing`: pixels computed by hand; `data.label_sets`: the known facts about the datasets."""

import numpy as np
import pytest
from PIL import Image

from dmformer.data.detections import Detections
from dmformer.data.palette import default_palette
from dmformer.report.drawing import colour, draw_detections, draw_frames, draw_objects, legend, name_areas, overlay
from dmformer.tasks.segmentation.label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC

PALETTE = [(255, 0, 0), (0, 200, 100)]


def test_colour():
    picture = colour(np.array([[0, 1], [255, 1]], dtype=np.uint8), PALETTE)
    assert picture.mode == "RGB"
    assert np.asarray(picture).tolist() == [[[255, 0, 0], [0, 200, 100]], [[0, 0, 0], [0, 200, 100]]]


@pytest.mark.parametrize("n", [255, 300])
def test_colours_of_every_class(n):
    """255 stays the ignored id with any palette."""
    palette = [(i % 256, 1, 2) for i in range(n)]
    pixels = np.asarray(colour(np.arange(256, dtype=np.uint8)[None], palette))[0]
    assert pixels[:255, 0].tolist() == list(range(255))
    assert pixels[255].tolist() == [0, 0, 0]


def test_class_without_a_colour():
    with pytest.raises(ValueError, match="class 2, the palette only 2 colours"):
        colour(np.full((2, 2), 2, dtype=np.uint8), PALETTE)


def test_ignored_needs_no_palette():
    assert colour(np.full((1, 1), 255, dtype=np.uint8), []).getpixel((0, 0)) == (0, 0, 0)


def test_overlay():
    """The third column is darkened as a border; the last is ignored and keeps the photo."""
    photo = Image.new("RGB", (4, 1), (100, 100, 100))
    ids = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    picture = np.asarray(overlay(photo, ids, PALETTE, opacity=0.4))[0]
    assert picture[:2].tolist() == [[162, 60, 60]] * 2
    assert picture[2].tolist() == [27, 63, 45]
    assert picture[3].tolist() == [100, 100, 100]


def test_many_classes_are_named_inside_their_areas():
    """Class 3 has room for its name; class 5, a line of 4 pixels, and the ignored pixels have not."""
    ids = np.full((120, 160), 3, np.uint8)
    ids[:60] = 255
    ids[100:104] = 5
    photo, palette = Image.new("RGB", (160, 120), "white"), default_palette(9)
    names = [f"class {k}" for k in range(9)]
    drawn = np.asarray(name_areas(photo, ids, names, palette))
    rows, columns = np.nonzero((drawn == palette[3]).all(-1))
    assert 30 < np.ptp(columns) < 80
    assert 62 < rows.min() < rows.max() < 98  # not at the border either
    changed = (drawn != 255).any(-1)
    assert changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].sum() == changed.sum()
    large = name_areas(photo.resize((1600, 1200)), ids.repeat(10, 0).repeat(10, 1), names, palette)
    assert (np.asarray(large)[620:980] == palette[3]).all(-1).sum() > 1000
    assert name_areas(photo, ids, names[:7], palette) is photo


def test_overlay_without_opacity_is_the_photo():
    photo = Image.effect_noise((20, 10), 50).convert("RGB")
    ids = np.zeros((10, 20), dtype=np.uint8)
    assert np.array_equal(overlay(photo, ids, PALETTE, opacity=0.0), photo)


def test_overlay_of_another_size():
    with pytest.raises(ValueError, match="photo is 4 x 3 pixels, its mask 3 x 4"):
        overlay(Image.new("RGB", (4, 3)), np.zeros((4, 3), dtype=np.uint8), PALETTE)


@pytest.mark.parametrize("labels", [CAMVID, ADE20K])
@pytest.mark.slow
def test_legend(labels):
    """Every colour and every name appears."""
    picture = np.asarray(legend(labels.class_names, labels.palette))
    shown = {tuple(rgb) for rgb in picture.reshape(-1, 3).tolist()}
    assert set(labels.palette) <= shown
    assert (picture < 40).all(-1).sum() > 20 * len(labels.palette)


NAMES = ["car", "traffic light"]


def drawn(photo, boxes, labels, scores=None, names=NAMES, palette=PALETTE, masks=None):
    """With scores as detections, else as objects."""
    boxes, labels = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)
    if scores is None:
        return np.asarray(draw_objects(photo, boxes, labels, names, palette, masks))
    found = Detections(boxes, np.array(scores, np.float32), labels, masks)
    return np.asarray(draw_detections(photo, found, names, palette))


def test_frames():
    """A box from 40.0 to 120.0 begins with column 40 and ends with 119; its line is two pixels wide."""
    photo = Image.new("RGB", (320, 240), (90, 90, 90))
    picture = drawn(photo, [[40, 60.4, 120, 149.6]], [0], [0.87])
    assert (picture[61:149, [40, 41, 118, 119]] == PALETTE[0]).all()
    assert (picture[[60, 61, 148, 149], 40:120] == PALETTE[0]).all()
    assert (picture[62:148, 42:118] == 90).all()  # without a mask the inside is the photo
    assert (picture[61:150, [39, 120]] == 0).all()  # a black line around a bright frame
    assert (picture[:40] == 90).all()
    assert (picture[152:] == 90).all()
    assert np.asarray(photo).max() == 90  # the photo itself is unchanged


def test_dark_frames_have_a_light_outline():
    picture = drawn(Image.new("RGB", (320, 240), (90, 90, 90)), [[40, 60, 120, 150]], [0], palette=[(0, 0, 90)])
    assert (picture[61:150, [39, 120]] == 255).all()


@pytest.mark.parametrize(("size", "width"), [((320, 240), 2), ((1000, 1000), 4), ((4000, 3000), 14)])
def test_lines_and_tags_grow_with_the_photo(size, width):
    photo = Image.new("RGB", size, (90, 90, 90))
    box = [size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 0.75]
    picture = drawn(photo, [box], [0], [0.5])
    row = (picture[round(size[1] * 0.6)] == PALETTE[0]).all(-1)
    assert row.sum() == 2 * width
    tag = (picture == PALETTE[0]).all(-1)[: round(box[1])]  # above the box
    height, length = tag.any(1).sum(), tag.any(0).sum()
    assert 0.025 < height / (size[0] * size[1]) ** 0.5 < 0.07
    assert 2 * height < length < 5 * height  # "car 50 %"
    assert np.flatnonzero(tag.any(0))[0] == round(box[0])


def test_tags_show_names_and_scores():
    """The tag is wider with the score; letters on bright colours are black, on dark ones white."""
    photo = Image.new("RGB", (320, 240), (90, 90, 90))
    box = [[40, 60, 280, 150]]
    lengths = []
    for scores in (None, [0.87]):
        picture = drawn(photo, box, [0], scores, palette=[(240, 228, 66)])
        tag = (picture[44:59] == (240, 228, 66)).all(-1)
        lengths.append(tag.any(0).sum())
        assert (picture[44:59, 40:60] < 60).all(-1).sum() > 10
    assert lengths[0] + 20 < lengths[1]
    dark = drawn(photo, box, [0], palette=[(0, 0, 90)])
    assert (dark[44:59, 40:60] > 180).all(-1).sum() > 10


@pytest.mark.parametrize(
    ("box", "right", "lower"),
    [
        ([-20, -20, 30, 30], False, None),
        ([290, 0, 340, 30], True, None),
        ([290, 220, 320, 240], True, 220),
        ([0, 5, 320, 240], False, None),
        ([100, 239, 300, 260], None, 239),
    ],
)
def test_tags_stay_within_the_photo(box, right, lower):
    """Above the box, or inside if there is no room above; moved to the left if there is no room on the right."""
    photo = Image.new("RGB", (320, 240), (90, 90, 90))
    there = drawn(photo, [[100, 100, 250, 200]], [0], [0.5])
    tag = (there == PALETTE[0]).all(-1)[:100]
    height, width = int(tag.any(1).sum()), int(tag.any(0).sum())
    left = 100 if right is None else 320 - width if right else 0
    upper = lower - height if lower else max(box[1], 0)
    picture = drawn(photo, [box], [0], [0.5])
    expected = there[100 - height : 100, 100 : 100 + width]
    assert np.array_equal(picture[upper : upper + height, left : left + width], expected)


def test_long_names_are_cut():
    """The tag is at most as wide as the photo, and the score still appears."""
    photo, name = Image.new("RGB", (320, 240), (90, 90, 90)), "a name that is much longer than the photo is wide " * 3
    one, other = (drawn(photo, [[200, 100, 280, 200]], [0], [score], [name])[:99] for score in (0.5, 0.6))
    assert 300 < (one == PALETTE[0]).all(-1).any(0).sum() <= 320
    assert (one[50:99, -1] == PALETTE[0]).all(-1).any()
    different = np.flatnonzero((one != other).any((0, 2)))
    assert 280 < different[0] < different[-1] < 320


def test_masks():
    """Masks are blended with the photo, at 45 % of their colour; the object with the higher score is on top."""
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    masks = np.zeros((2, 200, 300), dtype=bool)
    masks[0, 50:150, 50:150] = masks[1, 50:150, 100:200] = True
    picture = drawn(photo, [[50, 50, 150, 150], [100, 50, 200, 150]], [0, 1], [0.9, 0.8], masks=masks)
    assert picture[100, 75].tolist() == [170, 55, 55]
    assert picture[100, 175].tolist() == [55, 145, 100]
    assert picture[100, 125].tolist() == [145, 80, 55]  # green first, then red: 55 * 0.55 + 255 * 0.45
    assert picture[180, 75].tolist() == [100, 100, 100]
    again = drawn(photo, [[50, 50, 150, 150], [100, 50, 200, 150]], [0, 1], masks=masks.astype(np.uint8))
    assert np.array_equal(again[100], picture[100])


def test_the_most_confident_box_is_on_top():
    picture = drawn(Image.new("RGB", (320, 240)), [[40, 60, 120, 150], [40, 60, 120, 150]], [0, 1], [0.9, 0.8])
    assert (picture[70:140, 40] == PALETTE[0]).all()


@pytest.mark.parametrize("name", ["خلية سليمة", "有裂纹", "two\nlines\t", "\udcff", "\x00", "", "🐈", "x" * 5000])
def test_any_name(name):
    picture = drawn(Image.new("RGB", (60, 40)), [[10, 10, 50, 30]], [0], [0.5], [name])
    assert (picture == PALETTE[0]).all(-1).sum() > 50


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [-9, -9, -5, -5], [400, 400, 500, 500], [3, 3, 3.5, 9]])
@pytest.mark.parametrize("size", [(20, 20), (1, 1)])
def test_odd_boxes_and_photos(box, size):
    assert drawn(Image.new("L", size), [box], [0], [0.5]).shape == (*size, 3)


def test_nothing_to_draw():
    photo = Image.effect_noise((20, 10), 50).convert("RGB")
    assert np.array_equal(drawn(photo, [], [], []), photo)
    assert np.array_equal(drawn(photo, [], [], masks=np.zeros((0, 10, 20))), photo)
    assert np.array_equal(draw_frames(photo, np.zeros((0, 4), np.float32)), photo)


def test_thin_frames():
    """White between two black lines."""
    picture = np.asarray(draw_frames(Image.new("RGB", (100, 80), (90, 90, 90)), np.array([[20.0, 10.0, 60.0, 50.0]])))
    assert picture[30, 18:23, 0].tolist() == [90, 0, 255, 0, 90]
    assert picture[30, 57:62, 0].tolist() == [90, 0, 255, 0, 90]
    assert picture[8:13, 40, 0].tolist() == [90, 0, 255, 0, 90]


def test_eighty_classes():
    palette = default_palette(80)
    for label in range(80):
        picture = drawn(
            Image.new("RGB", (100, 80), (90, 90, 90)), [[20, 20, 80, 70]], [label], [0.5], ["x"] * 80, palette
        )
        assert (picture[30:60, 20] == palette[label]).all()


def test_default_palette():
    assert default_palette(0) == []
    assert default_palette(2) == [(230, 159, 0), (86, 180, 233)]
    assert default_palette(150) == default_palette(255)[:150]
    assert len(set(default_palette(255))) == 255
    for i, one in enumerate(default_palette(20)):
        for other in [*default_palette(20)[:i], (0, 0, 0), (255, 255, 255)]:
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60


@pytest.mark.parametrize(
    ("labels", "n", "known"),
    [
        (ADE20K, 150, {0: ("wall", (120, 120, 120)), 89: ("television", (0, 255, 194)), 149: ("flag", (92, 0, 255))}),
        (CITYSCAPES, 19, {0: ("road", (128, 64, 128)), 13: ("car", (0, 0, 142)), 18: ("bicycle", (119, 11, 32))}),
        (VOC, 21, {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))}),
        (CAMVID, 11, {0: ("sky", (128, 128, 128)), 10: ("bicyclist", (0, 128, 192))}),
    ],
)
def test_label_sets(labels, n, known):
    assert len(labels.class_names) == len(set(labels.class_names)) == len(labels.palette) == n
    for i, (name, rgb) in known.items():
        assert (labels.class_names[i], labels.palette[i]) == (name, rgb)
    assert colour(np.arange(n, dtype=np.uint8)[None], labels.palette).size == (n, 1)


def test_ade20k_colours_as_a_whole():
    """The checksums of a list that is the same in MMSegmentation and in a GIMP plug-in."""
    assert np.array(ADE20K.palette).sum(0).tolist() == [17965, 20212, 20250]


def test_cityscapes_train_ids():
    assert sorted(CITYSCAPES_TRAIN_IDS) == list(range(-1, 34))
    assert sorted(v for v in CITYSCAPES_TRAIN_IDS.values() if v != 255) == list(range(19))
    assert {i: CITYSCAPES_TRAIN_IDS[i] for i in (-1, 0, 7, 17, 24, 33)} == {
        -1: 255,
        0: 255,
        7: 0,
        17: 5,
        24: 11,
        33: 18,
    }
