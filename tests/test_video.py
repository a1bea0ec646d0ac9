"""Frames of videos: which are read, what is predicted on them, and what becomes of files that are no videos."""

import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dmformer.data.detections import Detections
from dmformer.data.video import Every, VideoReader, is_video, read_every
from dmformer.predict import ANSWERS
from dmformer.predict.video import predict_videos, with_times
from dmformer.report.drawing import named_overlay
from dmformer.utils.errors import UserError

COLOURS = ((200, 40, 40), (40, 60, 210))
"""Of the first and of the second half of the clip."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds of ten frames, red and then blue, 63 x 48 pixels shown in 64."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = np.full((48, 64, 3), COLOURS[number >= 15], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


def redness(image: Image.Image) -> bool:
    red, _, blue = np.asarray(image).reshape(-1, 3).mean(0)
    return bool(red > blue)


class Segmenter:
    """Finds class 1 in red frames, class 0 in others."""

    task, name, form, values = "segmentation", "half", "test", None
    class_names, palette = ("blue", "red"), ((0, 0, 255), (255, 0, 0))

    def segment(self, image, scales=(1.0,)):
        return np.full((image.height, image.width), redness(image), np.uint8)


class Detector:
    """Finds one red box in red frames, with a score of 0.9, which is below its own threshold."""

    task, name, form, values = "detection", "box", "test", None
    class_names, palette, category_ids, threshold = ("red",), ((255, 0, 0),), (7,), 0.95

    def detect(self, image, threshold=0.0):
        n = int(redness(image) and threshold <= 0.9)
        boxes = np.array([[4, 8, 20, 32]] * n, np.float32).reshape(n, 4)
        return Detections(boxes, np.full(n, 0.9, np.float32), np.zeros(n, np.int64))


class Classifier:
    task, name, form, values, at_least = "classification", "colours", "test", None, 1
    class_names = ("blue", "red")

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return np.array([not redness(image), redness(image)], float)

    def probabilities(self, batch):
        self.batches.append(len(batch))
        return np.stack(batch)


def test_which_frames_are_read(clip):
    assert (read_every("0.5s"), read_every("10")) == (Every(seconds=0.5), Every(frames=10))
    for text in ("0s", "0", "-1", "x", "s", "nans", "1.5"):
        with pytest.raises(UserError, match="give seconds or a number of frames"):
            read_every(text)
    assert is_video("A/CLIP.MOV")
    assert not is_video("photo.gif")
    for every, times, rate in (
        (Every(seconds=0.5), [0, 0.5, 1, 1.5, 2, 2.5], 2),
        (Every(seconds=0.25), [0, 0.3, 0.5, 0.8, 1, 1.3, 1.5, 1.8, 2, 2.3, 2.5, 2.8], 4),
        (Every(frames=12), [0, 1.2, 2.4], Fraction(10, 12)),
        (Every(seconds=0.01), [n / 10 for n in range(30)], 10),  # no more frames than there are
    ):
        reader = VideoReader(str(clip), every)
        images = list(reader.images())
        assert list(reader.times) == pytest.approx(times)
        assert (reader.rate, reader.error) == (rate, "")
        assert [redness(image) for image in images] == [time < 1.5 for time in times]


def test_a_phone_held_upright_gives_upright_frames():
    frame = SimpleNamespace(time=None, rotation=-90, to_image=lambda: Image.new("RGB", (64, 48)))
    container = SimpleNamespace(decode=lambda stream: [frame] * 5)
    stream = SimpleNamespace(average_rate=Fraction(10), container=container)
    reader = VideoReader("", Every(frames=2))
    assert [image.size for image in reader._images(stream)] == [(48, 64)] * 3
    assert list(reader.times) == [0, 0.2, 0.4]  # counted, because the video does not tell


def test_frames_are_classified_in_batches_and_told_with_their_times(clip):
    classifier, answer = Classifier(), with_times(ANSWERS["labels"])
    found = predict_videos(classifier, "labels", [str(clip)], Every(seconds=0.5), top=1, batch_size=4)
    first = next(found)
    assert classifier.batches == [4]  # the others are not read yet
    found = [first, *found]
    assert classifier.batches == [4, 2]
    rows = [row for each in found for row in answer.csv.of(each, 1)]
    assert answer.csv.header(1) == ["video", "seconds", "class 1", "probability 1", "error"]
    assert rows[2] == [str(clip), "1.000", "red", 1.0, ""]
    assert [row[2] for row in rows] == ["red"] * 3 + ["blue"] * 3
    assert answer.told(found[5]) == {"seconds": 2.5, "classes": [{"class": "blue", "probability": 1.0}]}


def test_annotated_videos_have_the_frames_and_their_colours(clip, tmp_path):
    av = pytest.importorskip("av")
    out = str(tmp_path / "out")
    every = Every(seconds=0.5)
    masks = list(predict_videos(Segmenter(), "masks", [str(clip)], every, out=out, scales=(1.0,)))
    assert [each.prediction.shares for each in masks] == [(("red", 1.0),)] * 3 + [(("blue", 1.0),)] * 3
    written = tmp_path / "out" / "clip.annotated.mp4"
    assert masks[0].prediction.overlay == str(written)
    with av.open(str(written)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (6, 2, 64, 48)
        shown = [frame.to_image().getpixel((30, 20)) for frame in container.decode(stream)]
    assert shown[0] == pytest.approx((228, 20, 20), abs=12)  # half the frame, half the colour of its class
    assert shown[5] == pytest.approx((20, 30, 232), abs=12)
    with pytest.raises(UserError, match=r"clip\.annotated\.mp4 exists already: give another --out, or --overwrite"):
        next(predict_videos(Detector(), "boxes", [str(clip)], every, out=out))
    boxes = list(predict_videos(Detector(), "boxes", [str(clip)], every, out=out, overwrite=True, threshold=0.5))
    assert boxes[1].prediction.objects == ({"category_id": 7, "bbox": [4, 8, 16, 24], "score": 0.9, "class": "red"},)
    assert boxes[4].prediction.objects == ()
    assert not any(each.prediction.objects for each in predict_videos(Detector(), "boxes", [str(clip)], every))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.annotated.mp4"]


def test_many_classes_are_named_on_a_video_as_on_a_photo(tmp_path):
    """From 8 classes on, whose colours alone do not tell which is which."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "red.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((128, 160, 3), COLOURS[0], np.uint8))
        container.mux([*stream.encode(frame), *stream.encode()])
    model = Segmenter()
    model.class_names, model.palette = ("road", "sky", *"cdefgh"), ((255, 0, 0), (0, 0, 255), *[(0, 0, 0)] * 6)
    list(predict_videos(model, "masks", [str(tmp_path / "red.mp4")], Every(frames=1), out=str(tmp_path)))
    with av.open(str(tmp_path / "red.annotated.mp4")) as container:
        shown = next(container.decode(video=0)).to_image()
    expected = named_overlay(
        Image.new("RGB", (160, 128), COLOURS[0]), np.ones((128, 160), np.uint8), model.class_names, model.palette
    )

    def white(image: Image.Image) -> np.ndarray:
        return np.asarray(image)[..., 1] > 128

    assert white(expected).sum() > 20
    assert (white(shown) != white(expected)).sum() < white(expected).sum() / 2


def test_what_is_no_video_is_told_and_the_others_go_on(clip, tmp_path, monkeypatch):
    bad, cut = tmp_path / "bad.mp4", tmp_path / "cut.mp4"
    bad.write_bytes(b"no video" * 99)
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])  # its index is at the end
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.gif")
    names = [str(bad), str(cut), str(clip)]
    out = str(tmp_path / "out")
    found = list(predict_videos(Segmenter(), "masks", names, Every(seconds=1), out=out))
    assert [each.name for each in found] == [str(bad), str(cut), *[str(clip)] * 3]
    assert found[0].error == "not a video, damaged, or in a format that cannot be read"
    assert found[1].error
    assert [each.seconds for each in found] == [None, None, 0, 1, 2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.annotated.mp4"]
    reader = VideoReader(str(clip), Every(frames=1), max_pixels=1000)
    assert list(reader.images()) == []
    assert "64 x 48 pixels are more than --max-pixels 1000" in reader.error
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"reading videos needs the extra 'video'.*pip install 'dmformer\[video\]'"):
        next(predict_videos(Segmenter(), "masks", names, Every(seconds=1)))
