"""`report`: the numbers and words on the page against hand-computed ones, and data that must not break it."""

import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import dmformer
from dmformer.tasks.classification.metrics import score
from dmformer.tasks.classification.report import Report, write_report

NAMES = ["crack", "sound", "stain"]
HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)> & '", "有裂纹的电池", "خلية سليمة"]
EPOCH = {
    "epoch": 1.0, "lr": 1e-3, "train_loss": 1.25, "val_loss": 1.5, "val_top1": 0.6, "val_balanced_accuracy": 0.5,
    "images_per_second": 120.0, "wait_share": 0.25, "memory_gb": 1.5, "seconds": 10.0,
}  # fmt: skip
HEADINGS = ["Verdict", "Training", "Confusion", "Classes", "Calibration", "Pictures", "Data", "How it was made"]


class Page(HTMLParser):
    """The tags and attributes of a page, and its text with whitespace collapsed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self._texts = set(), [], []
        self.feed(html)
        self.text = " ".join("".join(self._texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self._texts.append(data)


def make_report(names=NAMES, targets=None, predictions=None, confidences=None, **changes):
    """10 images: 2 of 3 cracks are called sound, with confidence 0.9 and 0.62; the other 8 are correct with 0.82."""
    if targets is None:
        targets, predictions = [0, 0, 0, 1, 1, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]
        confidences = [0.82, 0.62, 0.9] + [0.82] * 7
    targets, confidences = torch.tensor(targets), torch.tensor(confidences)
    K = len(names)
    probabilities = ((1 - confidences) / (K - 1))[:, None].repeat(1, K)
    probabilities[torch.arange(len(targets)), torch.tensor(predictions)] = confidences
    values = {
        "title": "dmformer_n on cells",
        "scores": score(probabilities, targets, names),
        "split": "test",
        "class_names": names,
        "history": [EPOCH, EPOCH | {"epoch": 2.0, "train_loss": 0.75, "val_balanced_accuracy": 0.625}],
        "probabilities": probabilities,
        "targets": targets,
        "image_names": [f"photo {i}.jpg" for i in range(len(targets))],
        "load_image": lambda i: Image.new("RGB", (600, 300), (20 * (i % 10), 90, 200)),
        "broken": [],
        "recipe": "model: dmformer_n\nlr: 0.001\n",
        "facts": {"command": "dmformer train --data cells", "machine": "two cores & a fan"},
    }
    return Report(**(values | changes))


def needs_nothing_else(html):
    """Check that a page loads nothing, runs nothing, and describes its pictures."""
    page = Page(html)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    fetched = [value for name, value in page.attributes if name in ("src", "srcset", "href")]
    assert len(fetched) > 20
    assert all(value.startswith(("#", "data:image/")) for value in fetched)
    assert "url(" not in html
    assert "default-src 'none'" in html
    assert html.count("<img") == html.count("<img alt=") + html.count('<img class="plot" alt=')
    return page


def shows_names_as_text(html):
    """Check that no part of `HOSTILE`, which the page shows, became markup."""
    page = Page(html)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<img src=x" not in html
    for name in HOSTILE:
        assert name in page.text
    return page


def written(tmp_path, report):
    path = tmp_path / "report.html"
    write_report(path, report)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory, rendered_plots):
    with rendered_plots():
        return written(tmp_path_factory.mktemp("report"), make_report())


def test_verdict(html):
    """8 of 10 correct: Wilson's interval is 49.0 to 94.3 and contains the 60 % of always predicting sound."""
    text = Page(html).text
    assert "On 10 test photos dmformer_n is right 80.0 % of the time (95 % interval 49.0 to 94.3)" in text
    assert "; always answering 'sound' would be right 60.0 %. The data do not show that the model does better" in text
    assert "It is weakest on 'crack' (F1 50.0 %); its most frequent error is to take 'crack' for 'sound' " in text
    assert "(2 of 3 photos)." in text


@pytest.mark.slow
def test_doubt_only_where_the_interval_warrants_it(tmp_path):
    targets = [0, 1] * 20
    text = Page(written(tmp_path, make_report(["a", "b"], targets, [1, *targets[1:]], [0.9] * 40))).text
    assert "On 40 test photos dmformer_n is right 97.5 %" in text
    assert "always answering 'a' would be right 50.0 %." in text
    assert "do not show" not in text


def test_figures(html):
    """Balanced accuracy (1/3 + 1 + 1) / 3, macro F1 (1/2 + 12/14 + 1) / 3, ECE (0.62 + 0.9 + 8 x 0.18) / 10."""
    text = Page(html).text
    for figure in ("Balanced accuracy77.8 %", "Macro F178.6 %", "Calibration error29.6 %", "Top-1 accuracy80.0 %"):
        assert figure in text
    assert "Top-5" not in text
    assert "mean confidence is 80.8 % and it is right 80.0 % of the time, so on the whole it is about as sure" in text


def test_confusion_counts(html):
    for cell in ("crack → crack: 1", "crack → sound: 2", "sound → sound: 6", "stain → stain: 1", "stain → crack: 0"):
        assert f'title="{cell}">{cell[-1]}</td>' in html


def test_classes_worst_first(html):
    rows = Page(html).text.split("F1Photos")[1]
    assert rows.startswith("crack100.0 %33.3 %50.0 %3sound75.0 %100.0 %85.7 %6stain100.0 %100.0 %100.0 %1")


def test_training(html):
    text = Page(html).text
    assert "After epoch 2 the loss is 0.750 in training and 1.500 on the validation photos." in text
    assert "Balanced accuracy is highest at epoch 2: 62.5 %." in text


def test_pictures_in_order(html):
    text = Page(html).text
    errors, unsure = text.split("Most confident errors")[1].split("Least certain")
    assert errors.index("photo 2.jpg") < errors.index("photo 1.jpg")
    assert "truthcrackpredictionsound ✗confidence90.0 %" in errors
    assert errors.count(".jpg") == 2
    assert unsure.index("photo 1.jpg") < unsure.index("photo 0.jpg") < unsure.index("photo 2.jpg")
    assert unsure.count(".jpg") == 10
    assert html.count('width="224" height="112" src="data:image/jpeg;base64,') == 12


def test_how_it_was_made(html):
    text = Page(html).text
    assert "dmformer train --data cells" in text
    assert "two cores & a fan" in text
    assert "120 images per second" in text
    assert "25.0 % of the time" in text
    assert "1.50 GB" in text
    assert "model: dmformer_n lr: 0.001" in text
    assert "All files could be read." in text


def test_page_is_self_contained(html):
    page = needs_nothing_else(html)
    assert {"html", "title", "main", "nav", "h1", "h2"} <= page.tags
    assert ("lang", "en") in page.attributes


@pytest.mark.slow
def test_hostile_names(tmp_path, rendered_plots):
    """Names appear unchanged and stay text, from any source."""
    evil = HOSTILE[0]
    targets = [0, 1, 2, 3] * 3
    report = make_report(
        HOSTILE,
        targets,
        [1, 0, 3, 2, *targets[4:]],
        [0.7] * 12,
        title=f"{evil} on {evil}",
        split=evil,
        image_names=[evil] * 12,
        broken=[(evil + "\udcff", evil)],  # how Python represents a file name that is not Unicode
        recipe=evil,
        facts={evil: evil, "command": evil},
    )
    with rendered_plots():
        html = written(tmp_path, report)
    page = shows_names_as_text(html)
    assert f"{HOSTILE[2]} → {HOSTILE[3]}: 1" in [value for name, value in page.attributes if name == "title"]


@pytest.mark.slow
def test_no_errors(tmp_path):
    text = Page(written(tmp_path, make_report(NAMES, [0, 1, 2], [0, 1, 2], [1.0, 1.0, 1.0]))).text
    assert "It made no error on these photos." in text
    assert "There is no error to show." in text


@pytest.mark.parametrize("history", [[], [EPOCH], [EPOCH | {"val_loss": math.nan, "val_balanced_accuracy": math.nan}]])
@pytest.mark.slow
def test_short_history(tmp_path, history, rendered_plots):
    with rendered_plots():
        text = Page(written(tmp_path, make_report(history=history))).text
    assert ("No epoch was recorded." in text) == (not history)
    assert ("After epoch 1 the loss is 1.250 in training" in text) == bool(history)
    assert ("images per second" in text) == bool(history)


@pytest.mark.parametrize(("K", "matrix"), [(2, True), (16, True), (60, False)])
@pytest.mark.slow
def test_number_of_classes(tmp_path, K, matrix, rendered_plots):
    """Every class has two photos; both of class 0 are predicted as class 1, and the last class has none."""
    names = [f"class {k}" for k in range(K)]
    targets = [k for k in range(K - 1) for _ in range(2)] + [0] * 2
    predictions = [1, 1, *targets[2:]]
    with rendered_plots():
        html = written(tmp_path, make_report(names, targets, predictions, [0.8] * len(targets)))
    text = Page(html).text
    assert ('aria-label="Confusion matrix"' in html) == matrix
    assert html.count("<svg") == (K == 60)
    assert ("<title>class 0 → class 1: 2</title></rect>" in html) == (K == 60)
    assert html.count('<rect class="right"') == (59 if K == 60 else 0)
    assert ("class 0class 1250.0 %" in text) == (K > 15)  # truth, prediction, photos, fraction
    assert ('title="class 0 → class 1: 2">2</td>' in html) == (K == 2)
    assert f"1 of {K} classes has no photo here and so no row." in text
    assert "It never predicts" not in text
    assert ("<script>" in html) == ("script-src 'sha256-" in html) == (K == 60)
    assert "AUROC" not in text


def test_rare_classes_that_are_never_found(tmp_path):
    """Top-1 is 90 %; balanced accuracy is 1 of 7."""
    targets = [0] * 54 + [1, 2, 3, 4, 5, 6]
    text = Page(written(tmp_path, make_report([f"c{k}" for k in range(7)], targets, [0] * 60, [0.9] * 60))).text
    assert "It never predicts 6 of the 7 classes in these photos: 'c1', 'c2', 'c3', 'c4', 'c5' and 1 more." in text
    assert "Balanced accuracy is 76 points below top-1" in text


@pytest.mark.skipif(not Path("/usr/bin/chromium").is_file(), reason="there is no /usr/bin/chromium")
@pytest.mark.browser
@pytest.mark.slow
def test_a_long_table_is_sorted_and_searched_and_a_large_matrix_zoomed(tmp_path):
    from playwright.sync_api import sync_playwright

    names, targets = [f"class {k}" for k in range(60)], [*range(60), 7, 7]
    written(tmp_path, make_report(names, targets, [1, *targets[1:]], [0.8] * 62))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        first = page.locator("table.sortable tbody tr:not([hidden]) td:first-child").first
        assert first.inner_text() == "class 0"  # the lowest F1
        for expected in ("class 0", "class 7"):
            page.click("table.sortable th:nth-child(5) button")
            assert (first.inner_text() == "class 7") == (expected == "class 7")
        page.fill("input[type=search]", "CLASS 42")
        assert page.locator("table.sortable tbody tr:visible").all_inner_texts()[0].startswith("class 42")
        assert page.locator("table.sortable tbody tr:visible").count() == 1
        width = page.locator("svg.drawn").bounding_box()["width"]
        page.check("input[value='4']")
        assert page.locator("svg.drawn").bounding_box()["width"] == pytest.approx(4 * width, rel=0.02)
        browser.close()


@pytest.mark.slow
def test_remarks_on_the_data(tmp_path):
    html = written(tmp_path, make_report(notes=["3 files skipped", HOSTILE[0]]))
    assert "3 files skipped" in Page(html).text
    assert HOSTILE[0] in Page(html).text
    assert "<script" not in html


def test_broken_files_and_placeholder(tmp_path):
    def fail(i):
        raise OSError("cut short")

    broken = [(f"bad {i}.jpg", "no image") for i in range(51)]
    html = written(tmp_path, make_report(broken=broken, load_image=fail))
    page = Page(html)
    assert "51 files could not be read and were left out. These are the first 50." in page.text
    assert "bad 49.jpg" in page.text
    assert "bad 50.jpg" not in page.text
    assert page.text.count("cannot be shown") == 12
    assert "data:image/jpeg" not in html


@pytest.mark.slow
def test_interrupted_write_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(path, make_report())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def chromium(tmp_path, *args):
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = ["chromium", "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", "--virtual-time-budget=2000"]
    page = (tmp_path / "report.html").as_uri()
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1200", *args, page]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_templates_never_bypass_escaping():
    """No template calls a text safe, and no HTML is written in the code beside one."""
    package = Path(dmformer.__file__).parent
    pages = [page for page in package.rglob("*.html") if page.parent.name != "serve"]
    assert len(pages) == 13
    for page in pages:
        assert not re.search(r"\|\s*safe|autoescape|Markup", page.read_text("utf-8"))
    for code in [package / "report" / "page.py", *package.rglob("report.py")]:
        assert not re.search(r"</[a-z]|Markup", code.read_text("utf-8"))


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed: no browser to open the page in"
)
@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser(tmp_path, rendered_plots):
    """The browser finds every section, draws something, and follows the light or dark setting."""
    with rendered_plots():
        written(tmp_path, make_report())
    page = Page(chromium(tmp_path, "--dump-dom"))
    assert "On 10 test photos dmformer_n is right 80.0 % of the time" in page.text
    start = page.text.index(HEADINGS[0])  # the style sheet and the script come before
    positions = [page.text.index(heading, start) for heading in HEADINGS]
    assert positions == sorted(positions)
    backgrounds = []
    for scheme in ("1", "0"):  # Blink's values for light and dark
        shot = tmp_path / f"{scheme}.png"
        chromium(tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
        image = Image.open(shot).convert("RGB")
        assert len(image.getcolors(1 << 24) or []) > 50
        backgrounds.append(sum(image.getpixel((2, 2))))
    assert backgrounds[0] > 700 > 150 > backgrounds[1]
