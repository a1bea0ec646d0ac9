"""`report` of detection: the numbers on the page against hand-computed ones, and data that must not break it."""

import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_detection_scores import make_found, make_truth, outlined
from test_report import HOSTILE, Page, chromium, needs_nothing_else, shows_names_as_text
from test_segmentation_report import Nesting

from dmformer.data.palette import default_palette
from dmformer.report.page import Picture
from dmformer.tasks.detection.metrics import DetectionMeter
from dmformer.tasks.detection.report import DetectionReport, write_detection_report

pytest.importorskip("faster_coco_eval")
NAMES = ["cat", "dog", "bird"]
SIZE = (200, 300)
ROW = {
    "epoch": 1.0, "lr": 1e-4, "train_loss": 1.25, "train_loss_box_reg": 0.5, "train_loss_classifier": 0.75,
    "val_ap": 0.25, "val_ap50": 0.5, "images_per_second": 42.0, "wait_share": 0.25, "memory_gb": 7.5, "seconds": 90.0,
}  # fmt: skip
HEADINGS = [
    "Verdict", "Training", "Sizes", "Classes", "Precision and recall", "Wrong detections", "Missed objects",
    "Pictures", "Data", "How it was made",
]  # fmt: skip


def two_images():
    """Two cats and a dog, with one cat missed; and a small dog, found twice, taken for a cat and badly located.

    The last detection is below the score with the highest F1; the crowd matches the one before it.
    """
    first = make_truth([[10, 10, 110, 110], [150, 100, 250, 190], [200, 10, 220, 30]], [0, 1, 0])
    second = make_truth([[10, 10, 50, 50], [100, 10, 290, 190]], [1, 0], [False, True])
    found = [
        make_found([[10, 10, 110, 110], [150, 100, 250, 190]], [0, 1], [0.9, 0.8]),
        make_found(
            [[10, 10, 50, 50], [10, 10, 50, 48], [10, 10, 50, 46], [100, 100, 150, 150], [60, 150, 90, 180]],
            [1, 1, 0, 0, 0],
            [0.7, 0.6, 0.55, 0.5, 0.1],
        ),
    ]
    return found, [first, second]


def make_report(names=NAMES, found=None, truths=None, masked=False, **changes):
    if found is None:
        found, truths = two_images()
    meter = DetectionMeter(names, masked)
    for i, pair in enumerate(zip(found, truths, strict=True)):
        meter.add(i, *pair, SIZE)
    values = {
        "title": "dmformer_n with RetinaNet on pets",
        "scores": meter.scores(resamples=20),
        "split": "test",
        "threshold": meter.best_threshold(),  # in a run, that of the validation photos
        "class_names": names,
        "palette": default_palette(len(names)),
        "history": [],  # plots take time
        "image_names": [f"photo {i}.jpg" for i in range(len(found))],
        "found": [replace(each, masks=None) for each in found],
        "truths": truths,
        "load": lambda i: Image.new("RGB", SIZE[::-1], (20 * (i % 10), 90, 200)),
        "masks": None,
        "faults": [],
        "recipe": "model: dmformer_n\nlr: 0.0001\n",
        "facts": {"command": "dmformer train --data pets", "machine": "two cores & a fan"},
    }
    return DetectionReport(**(values | changes))


def written(tmp_path, report):
    path = tmp_path / "report.html"
    write_detection_report(path, report)
    html = path.read_text(encoding="utf-8")
    Nesting(html)
    return html


@pytest.fixture(scope="module")
def html(tmp_path_factory, rendered_plots):
    history = [ROW, ROW | {"epoch": 2.0, "train_loss": 0.75, "val_ap": 0.375}]
    with rendered_plots():
        return written(tmp_path_factory.mktemp("report"), make_report(history=history))


def test_verdict(html):
    """Cats: one of two found first, precision 1 up to a recall of 0.5, 51 of 101. Dogs: both, before any wrong one.

    F1 from 0.61 to 0.7: 3 of 3 correct, 4 objects, 6 / 7.
    """
    text = Page(html).text
    assert (
        "On 2 test photos with 4 objects dmformer_n with RetinaNet reaches an AP of 75.2 % (AP50 75.2 %, 95 % " in text
    )
    assert (
        "With a score of 66 % or more, chosen for the highest F1 on the validation photos, it finds 3 of 4 objects, "
        "and 100.0 % of its 3 detections are right." in text
    )
    assert "It is weakest on 'cat' (AP 50.5 %). No detection is wrong with this score or more; 1 object missed." in text


def test_figures(html):
    text = Page(html).text
    assert "AP75.2 %average precision" in text
    assert re.search(r"AP5075.2 %95 %: \d+\.\d to \d+\.\d", text)
    assert "AP7575.2 %" in text
    assert "AR10075.0 %" in text
    assert "Mask AP" not in text


def test_sizes(html):
    """Areas of 10,000, 9,000, 400 and 1,600 pixels; the crowd does not count."""
    rows = Page(html).text.split("ObjectsAreaNumberAP")[1]
    assert rows.startswith("smallless than 32 × 32 pixels10.0 %mediumfrom there to 96 × 96 pixels2100.0 %")
    assert "largemore1100.0 %" in rows


def test_classes_worst_first(html):
    text = Page(html).text
    rows = text.split("ClassAPAP50ARObjects")[1]
    assert rows.startswith("cat50.5 %50.5 %50.0 %2dog100.0 %100.0 %100.0 %2")
    assert "1 of 3 classes has no object here and so no row." in text
    assert 'style="--own:#e69f00"' in html


def test_curves(html):
    """One curve for the mean and one for each of the two classes, with the names below in any script."""
    text = Page(html).text.split("Each class at IoU 0.5")[1]
    assert text.startswith("cat: AP50 50.5 %dog: AP50 100.0 %")
    assert html.count('class="plot"') == 3 + 2 + 1 + 2


def test_training(html):
    page = Page(html)
    assert "After epoch 2 the loss is 0.750." in page.text
    assert "AP on the validation photos is highest at epoch 2: 37.5 %." in page.text
    alts = [value for name, value in page.attributes if name == "alt"]
    assert "Validation by epoch. AP 25.0 % to 37.5 %; AP50 50.0 % to 50.0 %." in [
        alt.replace("\u00a0", " ") for alt in alts
    ]
    assert "loss box reg by epoch. from 0.5 to 0.5." in alts


@pytest.mark.parametrize("history", [[], [ROW], [ROW | {"val_ap": math.nan, "val_ap50": math.nan}]])
@pytest.mark.slow
def test_short_history(tmp_path, history, rendered_plots):
    with rendered_plots():
        text = Page(written(tmp_path, make_report(history=history))).text
    assert ("No epoch was recorded." in text) == (not history)
    assert ("After epoch 1 the loss is 1.250." in text) == bool(history)
    assert "nan" not in text


@pytest.mark.slow
def test_wrong_detections(tmp_path):
    """If the correct detections below have higher scores, the false positives of the second photo count."""
    found, truths = two_images()
    found[0] = make_found(found[0].boxes, found[0].labels, [0.58, 0.56])
    page = Page(written(tmp_path, make_report(found=found, truths=truths)))
    text = page.text
    assert "Objects that are missed: 1; detections that are wrong: 1, most often because of this: object found" in text
    assert "With a score of 56 % or more" in text
    assert "it finds 3 of 4 objects, and 75.0 % of its 4 detections are right." in text
    assert "KindWhat is thereNumberShareobject found alreadya surer detection has this object1100.0 %" in text
    assert "founddog 60 %kindobject found alreadytheredog, IoU 0.95photo 1.jpg" in text
    alts = [value for name, value in page.attributes if name == "alt"]
    assert "photo 1.jpg: dog found, object found already" in alts


@pytest.mark.slow
def test_all_kinds_of_wrong_detections(tmp_path):
    """Each has the same score as the correct one, so all of them count."""
    truth = make_truth([[0, 0, 40, 40], [100, 0, 140, 40], [100, 100, 200, 190]], [0, 1, 2], [False, False, True])
    found = make_found(
        [[0, 0, 40, 40], [0, 0, 40, 39], [100, 0, 140, 40], [0, 0, 40, 12], [100, 0, 140, 12], [250, 150, 280, 190]],
        [0, 0, 0, 0, 0, 0],
        [0.5] * 6,
    )
    text = Page(written(tmp_path, make_report(found=[found], truths=[truth]))).text
    cards = text.split("White frames are the objects of the truth.")[1].split("Missed objects")[0]
    assert cards.replace("photo 0.jpg", "|").split("|")[:5] == [
        "foundcat 50 %kindobject found alreadytherecat, IoU 0.97",
        "foundcat 50 %kindright place, wrong classtheredog, IoU 1.00",
        "foundcat 50 %kindbadly placedtherecat, IoU 0.30",
        "foundcat 50 %kindbadly placed, wrong classtheredog, IoU 0.30",
        "foundcat 50 %kindnothing there",
    ]
    assert "Of 5 wrong detections with a score of 26 % or more" in text


def test_missed(html):
    text = Page(html).text
    assert "1 object was not found with a score of 66 % or more. The largest of every class come first." in text
    assert "missedcatsize20 × 20 pixelsphoto 0.jpg" in text


@pytest.mark.slow
def test_missed_of_every_class(tmp_path):
    """Of 20 missed cats and 2 missed dogs, the page shows 10 cats and both dogs, the largest first."""
    cats = make_truth([[0, 0, 10 + i, 20] for i in range(20)], [0] * 20)
    dogs = make_truth([[0, 0, 5, 5], [0, 0, 6, 5]], [1, 1])
    nothing = make_found([], [], [])
    html = written(tmp_path, make_report(found=[nothing] * 2, truths=[cats, dogs]))
    shown = re.findall(r"missed(cat|dog)size(\d+) × \d+ pixels", Page(html).text)
    assert shown[:5] == [("cat", "29"), ("dog", "6"), ("cat", "28"), ("dog", "5"), ("cat", "27")]
    assert len(shown) == 12
    assert "22 objects were not found with a score of 50 % or more. These are 12 of them." in Page(html).text


def test_crops_show_the_box(tmp_path, monkeypatch):
    """The frame encloses a missed object wherever it is in the photo."""
    truth = make_truth([[280, 190, 300, 200], [0, 0, 300, 200], [100, 50, 110, 60]], [0, 0, 0])
    photo = Image.new("RGB", SIZE[::-1], "black")
    for box in truth.boxes[[0, 2]]:
        photo.paste((0, 0, 255), tuple(box.astype(int).tolist()))
    pictures = []
    monkeypatch.setattr("dmformer.report.page.jpeg", lambda image, alt: pictures.append(image) or Picture(alt))
    written(tmp_path, make_report(found=[make_found([], [], [])], truths=[truth], load=lambda i: photo))
    for crop in pictures[1:3]:
        pixels = np.asarray(crop).astype(int)
        frame = np.abs(pixels - default_palette(1)[0]).max(2) == 0
        blue = (pixels[..., 2] > 150) & (pixels[..., 0] < 50)
        rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
        assert rows.size > 10
        framed = np.flatnonzero(frame[rows].any(0))
        assert 1 <= columns[0] - framed[0] <= 4
        assert 1 <= framed[-1] - columns[-1] <= 4
    assert pictures[0].size == (256, 171)
    assert pictures[1].size == (256, 256)


def test_few_pictures(html):
    """F1 at 0.7: in the first photo 2 of 2 correct, 3 objects; in the second 1 and 1."""
    shown = Page(html).text.split("All photos, the worst first")[1]
    assert shown.startswith(
        "2 found3 objects in the truthphoto 0.jpg F1 80.0 %1 found1 object in the truthphoto 1.jpg F1 100.0 %"
    )
    assert html.count("data:image/jpeg") == 1 + 4


@pytest.mark.slow
def test_pictures_in_groups(tmp_path):
    """Of 14 photos the first has nothing; the others have one object and i false positives."""
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(14)]
    truths = [make_truth([], [])] + [make_truth(boxes[:1], [0])] * 13
    found = [make_found([], [], [])] + [make_found(boxes[: i + 1], [0] * (i + 1), [0.5] * (i + 1)) for i in range(13)]
    html = written(tmp_path, make_report(found=found, truths=truths))
    worst, rest = Page(html).text.split("Worst")[1].split("Middle")
    middle, best = rest.split("Best")
    shown = [[int(i) for i in re.findall(r"photo (\d+)\.jpg", part)] for part in (worst, middle, best)]
    assert shown == [[13, 12, 11], [8, 7, 6], [3, 2, 1]]


@pytest.mark.slow
def test_masks(tmp_path, monkeypatch):
    """They are predicted again only for the pictures, and lie over the object."""
    found, truths = two_images()
    whole = np.zeros((2, *SIZE), bool)
    whole[0, 10:110, 10:110] = whole[1, 100:190, 150:250] = True
    found = [replace(found[0], masks=whole)]
    truths = [outlined(truths[0], np.concatenate([whole, np.zeros((1, *SIZE), bool)]))]
    asked, pictures = [], []

    def masks(i):
        asked.append(i)
        return found[i]

    monkeypatch.setattr("dmformer.report.page.jpeg", lambda image, alt: pictures.append(image) or Picture(alt))
    text = Page(written(tmp_path, make_report(found=found, truths=truths, masked=True))).text
    assert "Mask AP75.2 %overlap of the masks" in text
    assert asked == []
    pictures.clear()
    changes = {"masked": True, "masks": masks, "load": lambda i: Image.new("RGB", (300, 200))}
    written(tmp_path, make_report(found=found, truths=truths, **changes))
    assert asked == [0]
    expected = [round(0.45 * channel) for channel in default_palette(1)[0]]
    for picture in pictures[-2:]:
        assert list(picture.getpixel((60, 60))) == expected
        assert picture.getpixel((130, 60)) == (0, 0, 0)


@pytest.mark.slow
def test_faults(tmp_path):
    faults = [(f"train/{i}.jpg, object {i}", "has no area") for i in range(51)]
    text = Page(written(tmp_path, make_report(faults=faults))).text
    assert "51 things were faulty and left out. These are the first 50." in text
    assert "train/49.jpg, object 49has no area" in text
    assert "object 50" not in text


@pytest.mark.slow
def test_photos_that_cannot_be_read(tmp_path):
    def load(i):
        raise OSError("cut short")

    html = written(tmp_path, make_report(load=load))
    assert Page(html).text.count("cannot be shown") == 5
    assert "data:image/jpeg" not in html


def test_no_objects(tmp_path):
    nothing = make_found([], [], []), make_truth([], [])
    some = make_found([[0, 0, 9, 9]], [0], [0.9]), make_truth([], [])
    found, truths = zip(nothing, some, strict=True)
    text = Page(written(tmp_path, make_report(found=list(found), truths=list(truths)))).text
    assert "On 2 test photos there is no object, so nothing can be scored." in text
    assert "No class has an object here." in text
    assert "No object is missed." in text
    assert "nothing there" in text
    assert "nan" not in text


@pytest.mark.parametrize("truths", [[make_truth([], [])], [make_truth([[0, 0, 9, 9]], [0])]])
def test_no_detections(tmp_path, truths):
    text = Page(written(tmp_path, make_report(found=[make_found([], [], [])], truths=truths))).text
    if len(truths[0].labels):
        assert "Nothing that it finds is right." in text
        assert "It finds nothing with this score or more; 1 object missed." in text
        assert "1 object was not found" in text
    else:
        assert "No photo has an object, and nothing was found." in text
    assert "There is none with a score of 50 % or more." in text


def test_the_threshold_is_the_runs(tmp_path):
    """Not that with the best F1 on the photos of the page; without test photos it was chosen on these."""
    text = Page(written(tmp_path, make_report(threshold=0.85, split="validation"))).text
    assert "With a score of 85 % or more, chosen for the highest F1 on these photos, it finds 1 of 4 objects" in text
    assert "What is found with a score of 85 % or more, beside the truth." in text


def test_no_errors(tmp_path):
    truth = make_truth([[0, 0, 50, 50]], [0])
    text = Page(written(tmp_path, make_report(["cat"], [make_found(truth.boxes, [0], [0.75])], [truth]))).text
    assert "AP of 100.0 % (AP50 100.0 %, 95 % interval 100.0 to 100.0)." in text
    assert "it finds 1 of 1 object, and 100.0 % of its 1 detection are right." in text
    assert "weakest" not in text


def test_how_it_was_made(html):
    text = Page(html).text
    assert "dmformer train --data pets" in text
    assert "two cores & a fan" in text
    assert "42 images per second (median of the epochs)" in text
    assert "model: dmformer_n lr: 0.0001" in text
    assert "Nothing had to be left out." in text


def test_needs_nothing_else(html):
    needs_nothing_else(html)


@pytest.mark.slow
def test_hostile_names(tmp_path, rendered_plots):
    """Names appear unchanged and stay text, from any source, including right-to-left scripts."""
    evil = HOSTILE[0]
    boxes = [[60 * k, 0, 60 * k + 40, 40] for k in range(4)]
    truths = [make_truth(boxes, [0, 1, 2, 3]), make_truth(boxes, [3, 2, 1, 0])]
    found = [make_found(boxes, [0, 1, 2, 3], [0.9] * 4), make_found(boxes[:2], [2, 1], [0.9, 0.9])]
    report = make_report(
        HOSTILE,
        found,
        truths,
        title=f"{evil} on {evil}",
        split=evil,
        image_names=[evil, HOSTILE[1]],
        faults=[(evil + "\udcff", evil)],  # how Python represents a file name that is not Unicode
        recipe=evil,
        facts={evil: evil, "command": evil},
    )
    with rendered_plots():
        html = written(tmp_path, report)
    shows_names_as_text(html)


@pytest.mark.parametrize("K", [1, 7, 8, 60, 80])
@pytest.mark.slow
def test_number_of_classes(tmp_path, K, rendered_plots):
    """Every class has an object except the last of many; the first class is missed."""
    names = [f"class {k}" for k in range(K)]
    present = max(K - 1, 1)
    boxes = [[3 * k, 0, 3 * k + 3, 40] for k in range(present)]
    truth = make_truth(boxes, range(present))
    found = make_found(boxes[1:], range(1, present), np.linspace(0.9, 0.5, present - 1))
    with rendered_plots():
        html = written(tmp_path, make_report(names, [found], [truth]))
    text = Page(html).text
    assert ("Each class at IoU 0.5" in text) == (K in (7, 8))
    assert ('<table class="sortable">' in html) == (K > 16)
    assert (f"1 of {K} classes has no object here" in text) == (K > 1)
    assert text.split("ARObjects")[1].startswith("class 00.0 %0.0 %0.0 %1")
    legend = html.split('aria-label="Colours of the classes"')[1].split("</ul>")[0]
    assert legend.count("<li>") == (K if K <= 40 else present)


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed: no browser to open the page in"
)
@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser(tmp_path, rendered_plots):
    """The browser finds every section and follows the light or dark setting."""
    with rendered_plots():
        written(tmp_path, make_report())
    page = Page(chromium(tmp_path, "--dump-dom"))
    start = page.text.index(HEADINGS[0])  # the style sheet and the script come before
    positions = [page.text.index(heading, start) for heading in HEADINGS]
    assert positions == sorted(positions)
    backgrounds = []
    for scheme in ("1", "0"):  # Blink's values for light and dark
        shot = tmp_path / f"{scheme}.png"
        chromium(tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
        backgrounds.append(sum(Image.open(shot).convert("RGB").getpixel((2, 2))))
    assert backgrounds[0] > 700 > 150 > backgrounds[1]


def test_remarks_on_the_data_are_shown(tmp_path):
    html = written(tmp_path, make_report(notes=["3 photos are copies", "a < b"]))
    assert "3 photos are copies" in Page(html).text
    assert "<li>a &lt; b</li>" in html
