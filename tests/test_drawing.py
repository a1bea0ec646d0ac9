"""`drawing`: pixels worked out by hand; `data.label_sets`: what is known of the sets."""

import numpy as np
import pytest
from PIL import Image

from dmformer.data.label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC
from dmformer.drawing import colour, default_palette, legend, overlay

PALETTE = [(255, 0, 0), (0, 200, 100)]


def test_colour():
    picture = colour(np.array([[0, 1], [255, 1]], dtype=np.uint8), PALETTE)
    assert picture.mode == "RGB"
    assert np.asarray(picture).tolist() == [[[255, 0, 0], [0, 200, 100]], [[0, 0, 0], [0, 200, 100]]]


@pytest.mark.parametrize("n", [255, 300])
def test_colours_of_every_class(n):
    """255 stays the ignored one with any palette."""
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
    """The third column is darkened as a border, the last is ignored and stays the photo."""
    photo = Image.new("RGB", (4, 1), (100, 100, 100))
    ids = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    picture = np.asarray(overlay(photo, ids, PALETTE, opacity=0.4))[0]
    assert picture[:2].tolist() == [[162, 60, 60]] * 2
    assert picture[2].tolist() == [27, 63, 45]
    assert picture[3].tolist() == [100, 100, 100]


def test_overlay_without_opacity_is_the_photo():
    photo = Image.effect_noise((20, 10), 50).convert("RGB")
    ids = np.zeros((10, 20), dtype=np.uint8)
    assert np.array_equal(overlay(photo, ids, PALETTE, opacity=0.0), photo)


def test_overlay_of_another_size():
    with pytest.raises(ValueError, match="photo is 4 x 3 pixels, its mask 3 x 4"):
        overlay(Image.new("RGB", (4, 3)), np.zeros((4, 3), dtype=np.uint8), PALETTE)


@pytest.mark.parametrize("labels", [CAMVID, ADE20K])
def test_legend(labels):
    """Every colour is there, and the names."""
    picture = np.asarray(legend(labels.class_names, labels.palette))
    shown = {tuple(rgb) for rgb in picture.reshape(-1, 3).tolist()}
    assert set(labels.palette) <= shown
    assert (picture < 40).all(-1).sum() > 20 * len(labels.palette)


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
    """The sums of a list that agrees in MMSegmentation and in a plug-in of GIMP."""
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
