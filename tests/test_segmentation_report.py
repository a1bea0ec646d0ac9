"""`report` of segmentation: the numbers on the page against hand-computed ones, and data that must not break it."""

import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import HOSTILE, Page, chromium, needs_nothing_else, shows_names_as_text

from dmformer.data.palette import default_palette
from dmformer.tasks.segmentation.label_sets import ADE20K
from dmformer.tasks.segmentation.metrics import image_ious, score_masks
from dmformer.tasks.segmentation.report import SegmentationReport, write_segmentation_report

NAMES = ["road", "car", "sky"]
ROW = {
    "epoch": 1.0, "iteration": 4000.0, "lr": 6e-5, "train_loss": 1.25, "train_accuracy": 0.7, "val_loss": 1.5,
    "val_miou": 0.5, "val_macc": 0.6, "val_aacc": 0.75, "images_per_second": 42.0, "wait_share": 0.25,
    "memory_gb": 7.5, "seconds": 90.0,
}  # fmt: skip
HEADINGS = ["Verdict", "Training", "Classes", "Confusion", "Pictures", "Data", "How it was made"]
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Nesting(HTMLParser):
    """Fails if an end tag does not close the open element."""

    def __init__(self, html):
        super().__init__()
        self.open = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute is there twice: {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def two_images():
    """10 x 10 each. Half of the cars' 20 pixels are predicted as road; the second image has 10 unlabelled pixels."""
    truth, prediction = np.zeros((2, 10, 10), dtype=np.uint8), np.zeros((2, 10, 10), dtype=np.uint8)
    truth[0, :2], prediction[0, 0] = 1, 1
    truth[1, 5:9], prediction[1, 5:] = 2, 2
    truth[1, 9] = 255
    return truth, prediction


def make_report(names=NAMES, masks=None, **changes):
    truth, prediction = masks or two_images()
    K = len(names)
    each = torch.stack(
        [
            torch.bincount(torch.from_numpy(t[t != 255].astype(int) * K + p[t != 255]), minlength=K * K).view(K, K)
            for t, p in zip(truth, prediction, strict=True)
        ]
    )
    counts = torch.stack([each.diagonal(dim1=1, dim2=2), each.sum(2), each.sum(1)], dim=1)
    values = {
        "title": "dmformer_n on streets",
        "scores": score_masks(each.sum(0), counts, names),
        "split": "test",
        "class_names": names,
        "palette": default_palette(K),
        "history": [ROW, ROW | {"iteration": 8000.0, "train_loss": 0.75, "val_miou": 0.625}],
        "image_names": [f"photo {i}.jpg" for i in range(len(truth))],
        "image_ious": image_ious(counts).tolist(),
        "load": lambda i: (Image.new("RGB", truth[i].shape[::-1], (20 * (i % 10), 90, 200)), truth[i], prediction[i]),
        "broken": [],
        "recipe": "model: dmformer_n\nlr: 0.00006\n",
        "facts": {"command": "dmformer train --data streets", "machine": "two cores & a fan"},
    }
    return SegmentationReport(**(values | changes))


def written(tmp_path, report):
    path = tmp_path / "report.html"
    write_segmentation_report(path, report)
    html = path.read_text(encoding="utf-8")
    Nesting(html)
    return html


@pytest.fixture(scope="module")
def html(tmp_path_factory, rendered_plots):
    with rendered_plots():
        return written(tmp_path_factory.mktemp("report"), make_report())


def test_verdict(html):
    """IoU: road 130 of 140 pixels, car 10 of 20, sky 40 of 40. Always road: 130 of 190 pixels, over three classes.

    A resample of only the first image gives (80 / 90 + 10 / 20) / 2, one of only the second gives 1.
    """
    text = Page(html).text
    assert "On 2 test photos dmformer_n reaches a mean IoU of 81.0 % (95 % interval 69.4 to 100.0)" in text
    assert "; calling every pixel 'road' would reach 22.8 %." in text
    assert "do not show" not in text
    assert "It is weakest on 'car' (IoU 50.0 %); its most frequent error is to take 'car' for 'road' " in text
    assert "(50.0 % of the true class's pixels)." in text


@pytest.mark.slow
def test_doubt_where_due(tmp_path):
    truth, _ = two_images()
    text = Page(written(tmp_path, make_report(masks=(truth, np.zeros_like(truth))))).text
    assert "calling every pixel 'road' would reach 22.8 %. The data do not show that the model does better" in text


def test_figures(html):
    """Found: road 130 of 130, car 10 of 20, sky 40 of 40."""
    text = Page(html).text
    for figure in ("Mean IoU81.0 %95 %: 69.4 to 100.0", "Mean accuracy83.3 %", "Pixel accuracy94.7 %"):
        assert figure in text
    assert "right ones of all 190 labelled pixels" in text


def test_classes_worst_first(html):
    rows = Page(html).text.split("IoUAccuracyShare")[1]
    assert rows.startswith("car50.0 %50.0 %10.5 %road92.9 %100.0 %68.4 %sky100.0 %100.0 %21.1 %")
    assert html.count('class="own"') == 3
    assert 'style="--share:0.500;--own:#56b4e9"' in html  # the second of the default palette


def test_confusion(html):
    cells = {"road → road: 100.0": "100", "car → road: 50.0": "50", "car → car: 50.0": "50", "sky → car: 0.0": ""}
    for told, shown in cells.items():
        assert f'title="{told}\u00a0%">{shown}</td>' in html


def test_training(html):
    text = Page(html).text
    assert "At iteration 8,000 the loss is 0.750 in training and 1.500 on the validation photos." in text
    assert "Mean IoU is highest at iteration 8,000: 62.5 %." in text
    assert html.count('class="plot"') == 4
    assert "training 70.0 % to 70.0 %; validation 75.0 % to 75.0 %." in html.replace("\u00a0", " ")


@pytest.mark.parametrize("history", [[], [ROW], [ROW | {"val_loss": math.nan, "val_miou": math.nan}]])
@pytest.mark.slow
def test_short_history(tmp_path, history, rendered_plots):
    with rendered_plots():
        text = Page(written(tmp_path, make_report(history=history))).text
    assert ("No training was recorded." in text) == (not history)
    assert ("At iteration 4,000 the loss is 1.250 in training" in text) == bool(history)
    assert ("42 images per second" in text) == bool(history)
    assert "nan" not in text


def test_few_pictures(html):
    text = Page(html).text
    assert "All photos, the worst first" in text
    told = re.sub("<svg.*?</svg>", "", html)  # without the names shown on hover
    assert "phototruthpredictionphoto 0.jpg IoU 69.4 %phototruthpredictionphoto 1.jpg IoU 100.0 %" in Page(told).text
    assert html.count("data:image/jpeg") == 6
    alts = [value for name, value in Page(html).attributes if name == "alt"]
    assert "photo 0.jpg: truth, mostly road, car" in alts
    assert "photo 1.jpg: prediction, mostly road, sky" in alts
    assert html.count('<path d="M0 6h12v6h-12z"><title>sky</title></path>') == 1  # only photo 1's prediction, below


@pytest.mark.slow
def test_pictures_in_groups(tmp_path):
    """17 images with i wrong pixels; the first has no labelled pixel and is not shown. Large ones are reduced."""
    truth = np.zeros((17, 400, 800), dtype=np.uint8)
    prediction = truth.copy()
    for i in range(17):
        prediction[i, 0, :i] = 1
    truth[0] = 255
    html = written(tmp_path, make_report(masks=(truth, prediction)))
    worst, rest = Page(html).text.split("Worst")[1].split("Middle")
    middle, best = rest.split("Best")
    shown = [[int(i) for i in re.findall(r"photo (\d+)\.jpg", part)] for part in (worst, middle, best)]
    assert shown == [[16, 15, 14, 13], [10, 9, 8, 7], [4, 3, 2, 1]]
    assert html.count('width="360" height="180" src="data:image/jpeg;base64,') == 36


@pytest.mark.slow
def test_broken_files_and_placeholder(tmp_path):
    """A photo that cannot be read, and one whose mask has a class that does not exist."""
    truth, prediction = two_images()

    def load(i):
        if i == 0:
            raise OSError("cut short")
        return Image.new("RGB", (10, 10)), truth[i], np.full_like(truth[i], 7)

    broken = [(f"bad {i}.jpg", "no image") for i in range(51)]
    html = written(tmp_path, make_report(masks=(truth, prediction), broken=broken, load=load))
    page = Page(html)
    assert "51 files could not be read and were left out. These are the first 50." in page.text
    assert "bad 50.jpg" not in page.text
    assert page.text.count("cannot be shown") == 6
    assert "data:image/jpeg" not in html


@pytest.mark.slow
def test_no_errors(tmp_path):
    truth, _ = two_images()
    text = Page(written(tmp_path, make_report(masks=(truth, np.where(truth == 255, 0, truth))))).text
    assert "mean IoU of 100.0 %" in text
    assert "It made no error on these photos." in text


def test_how_it_was_made(html):
    text = Page(html).text
    assert "dmformer train --data streets" in text
    assert "two cores & a fan" in text
    assert "42 images per second" in text
    assert "7.50 GB" in text
    assert "model: dmformer_n lr: 0.00006" in text
    assert "All files could be read." in text


def test_needs_nothing_else(html):
    needs_nothing_else(html)


@pytest.mark.slow
def test_hostile_names(tmp_path, rendered_plots):
    """Names appear unchanged and stay text, from any source."""
    evil = HOSTILE[0]
    truth, prediction = two_images()
    truth[0, 9], prediction[0, 8:] = 3, 3
    report = make_report(
        HOSTILE,
        (truth, prediction),
        title=f"{evil} on {evil}",
        split=evil,
        image_names=[evil, HOSTILE[1]],
        broken=[(evil + "\udcff", evil)],  # how Python represents a file name that is not Unicode
        recipe=evil,
        facts={evil: evil, "command": evil},
    )
    with rendered_plots():
        html = written(tmp_path, report)
    shows_names_as_text(html)


@pytest.mark.parametrize(("K", "matrix"), [(3, True), (20, True), (60, False), (150, False)])
@pytest.mark.slow
def test_number_of_classes(tmp_path, K, matrix, rendered_plots):
    """Every class but the last has a pixel; the third and fourth are confused with each other."""
    names = list(ADE20K.class_names) if K == 150 else [f"class {k}" for k in range(K)]
    truth = np.arange(K - 1, dtype=np.uint8)[None, None]
    prediction = truth.copy()
    if K > 3:
        prediction[..., [2, 3]] = [3, 2]
    palette = ADE20K.palette if K == 150 else default_palette(K)
    with rendered_plots():
        html = written(tmp_path, make_report(names, (truth, prediction), palette=palette))
    text = Page(html).text
    assert ('aria-label="Confusion matrix"' in html) == matrix
    assert (f'aria-label="Confusion matrix of {K} classes"' in html) == (not matrix)
    assert (f"{names[2]}{names[3 % K]}1100.0 %" in text) == (K > 15)  # truth, prediction, pixels, fraction
    assert f"1 of {K} classes has no pixel here and so no row." in text
    assert ('<table class="sortable">' in html) == (K > 16)
    assert html.count('<li><i style="--own:') == (K if matrix else K - 1)  # with many classes, those in the pictures


@pytest.mark.slow
def test_predicted_only_and_rare(tmp_path):
    """A class that is predicted and never present, and one with 1 of 10,000 pixels."""
    truth, prediction = np.zeros((1, 100, 100), dtype=np.uint8), np.zeros((1, 100, 100), dtype=np.uint8)
    truth[0, 0, 0], prediction[0, 5] = 1, 2
    text = Page(written(tmp_path, make_report(masks=(truth, prediction)))).text
    assert "car0.0 %0.0 %< 0.1 %" in text
    assert "sky0.0 %–0.0 %" in text
    assert "It is weakest on 'car'" in text


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
