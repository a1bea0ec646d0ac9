"""A detector behind the server: its responses, its overlay, what it refuses, and its page."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_serve import browser_page, choose, decoded, encoded, form, in_a_thread, png, sample, serving

from dmformer.data.detections import Detections
from dmformer.report.drawing import draw_detections
from dmformer.serve.limits import Limits
from dmformer.serve.opening import SWITCHED_OFF
from dmformer.serve.pictures import LARGEST, boxed, resized_boxes

PALETTE = ((200, 40, 40), (40, 200, 40))
SHARES = np.array([[0.0, 0.0, 0.5, 1.0], [0.25, 0.2, 0.75, 0.6], [0.5, 0.5, 1.0, 1.0]], np.float32)
SCORES = np.array([0.875, 0.5, 0.25], np.float32)
LABELS = np.array([1, 0, 1])


class Finder:
    """A detector that finds three objects at the same positions in every photo; with masks, each mask fills its box."""

    task, name, form, class_names, palette = "detection", "finder", "NumPy", ["cat", "<b>dog</b>"], PALETTE
    category_ids, values = (3, 7), None

    def __init__(self, masks: bool = False) -> None:
        self.masks = masks
        self.sizes: list[tuple[int, int]] = []

    def detect(self, image: Image.Image) -> Detections:
        self.sizes.append(image.size)
        boxes = resized_boxes(SHARES, (1, 1), image.size)
        masks = None
        if self.masks:
            masks = np.zeros((3, image.height, image.width), bool)
            for mask, (left, upper, right, lower) in zip(masks, boxes.round().astype(int), strict=True):
                mask[upper:lower, left:right] = True
        return Detections(boxes, SCORES, LABELS, masks)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_boxes_are_in_pixels_of_the_uploaded_photo():
    async def ask() -> None:
        model = Finder()
        async with serving(model, replace(Limits(), work_pixels=200)) as client:
            (plain,) = (await client.post("/predict", files=form(png(size=(20, 10))))).json()["results"]
            assert plain == {
                "name": "0.png",
                "objects": [
                    {"class": "<b>dog</b>", "score": 0.875, "box": [0, 0, 10, 10], "colour": "#28c828"},
                    {"class": "cat", "score": 0.5, "box": [5, 2, 15, 6], "colour": "#c82828"},
                ],
            }
            answer = (await client.post("/predict?threshold=0.6", files=form(png(size=(80, 40))))).json()
            assert (answer["model"], answer["task"]) == ("finder", "detection")
            (reduced,) = answer["results"]
            assert (model.sizes[-1], reduced["reduced_to"]) == ((20, 10), [20, 10])
            assert [row["box"] for row in reduced["objects"]] == [[0, 0, 40, 40]]
            (odd,) = (await client.post("/predict", files=form(png(size=(3, 7))))).json()["results"]
            assert odd["objects"][1]["box"] == [0.75, 1.4, 2.25, 4.2]  # to hundredths
            (every,) = (await client.post("/predict?threshold=0", files=form(png()))).json()["results"]
            assert [row["score"] for row in every["objects"]] == SCORES.tolist()
            (none,) = (await client.post("/predict?threshold=1", files=form(png()))).json()["results"]
            assert none["objects"] == []
            several = (await client.post("/predict", files=form(png(), b"text", png()))).json()["results"]
            assert [("objects" in row, row.get("reason")) for row in several] == [
                (True, None),
                (False, "not_an_image"),
                (True, None),
            ]
            assert await sample(client, 'dmformer_batch_images_bucket{le="1.0",work="objects"}') == 7

    asyncio.run(ask())


@pytest.mark.parametrize("masks", [False, True])
def test_the_overlay_is_the_photo_with_the_detections(masks):
    photo = noise(60, 40)

    async def ask() -> None:
        model = Finder(masks)
        async with serving(model) as client:
            found = model.detect(photo)
            (both,) = (await client.post("/predict?overlay=1", files=form(encoded(photo)))).json()["results"]
            expected = draw_detections(photo, found.above(0.3), model.class_names, PALETTE)
            assert "overlay_class" not in both
            assert np.array_equal(decoded(both["overlay"]), expected)
            query = {"class": "cat", "threshold": "0.1"}
            (one,) = (await client.post("/predict", params=query, files=form(encoded(photo)))).json()["results"]
            cat = Detections(
                found.boxes[1:2], found.scores[1:2], found.labels[1:2], None if not masks else found.masks[1:2]
            )
            assert one["overlay_class"] == "cat"
            assert len(one["objects"]) == 3
            assert np.array_equal(decoded(one["overlay"]), draw_detections(photo, cat, model.class_names, PALETTE))
            assert not np.array_equal(decoded(one["overlay"]), expected)

    asyncio.run(ask())


def test_large_photos_and_their_boxes_are_drawn_smaller():
    photo, small = noise(2 * LARGEST, 40), noise(2 * LARGEST, 40).resize((LARGEST, 20))
    boxes = np.array([[200, 4, 600, 36]], np.float32)
    masks = np.zeros((1, 40, 2 * LARGEST), bool)
    masks[:, 10:20, 300:500] = True
    found = Detections(boxes, SCORES[:1], LABELS[:1], masks)
    expected = Detections(boxes / 2, SCORES[:1], LABELS[:1], masks[:, ::2, ::2])
    names = Finder.class_names
    assert np.array_equal(boxed(photo, found, names, PALETTE), draw_detections(small, expected, names, PALETTE))
    assert np.array_equal(boxed(photo, found, names, PALETTE, only=0), small)


@pytest.mark.parametrize(
    ("query", "status", "reason", "words"),
    [
        ({"threshold": "1.5"}, 422, "bad_query", "The parameter 'threshold' is invalid"),
        ({"threshold": "nan"}, 422, "bad_query", "The parameter 'threshold' is invalid"),
        ({"mask": "1"}, 400, "no_mask", "finder is a detector, which has no masks."),
        ({"class": "cow"}, 422, "unknown_class", "Unknown class 'cow'"),
    ],
)
def test_refusals_are_explained_in_a_sentence(query, status, reason, words):
    async def ask() -> None:
        async with serving(Finder()) as client:
            answer = await client.post("/predict", params=query, files=form(png()))
            assert (answer.status_code, answer.json()["reason"]) == (status, reason)
            assert words in answer.json()["error"]

    asyncio.run(ask())


def test_info_and_a_server_without_overlays():
    async def ask() -> None:
        async with serving(Finder()) as client:
            info = (await client.get("/info")).json()
            assert (info["task"], info["palette"], info["overlay"]) == (
                "detection",
                ["#c82828", "#28c828"],
                {"offered": True},
            )
        async with serving(Finder(), overlay=False) as client:
            answer = await client.post("/predict?overlay=1", files=form(png()))
            assert (answer.status_code, answer.json()["error"]) == (400, SWITCHED_OFF)
            assert "objects" in (await client.post("/predict", files=form(png()))).json()["results"][0]

    asyncio.run(ask())


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_detector(tmp_path):
    noise(700, 500).save(tmp_path / "street.png")
    limits = replace(Limits(), work_pixels=87_500)
    model: Any = Finder()
    with in_a_thread(model, "finder", limits) as address, browser_page(address) as (page, said):
        assert page.locator("#about").inner_text() == "A detector of 2 classes, run by NumPy"
        choose(page, tmp_path / "street.png")
        page.wait_for_selector("#overlay")
        rows = [row.replace("\u00a0", " ").split("\n") for row in page.locator("#bars li").all_inner_texts()]
        assert rows == [["<b>dog</b>", "87.5 %"], ["cat", "50.0 %"]]
        assert page.locator("#bars b").count() == 0  # the name is not interpreted as HTML
        assert page.locator("#said").inner_text().startswith("Surest: <b>dog</b>, 87.5")
        assert "reduced to 350 x 250 pixels" in page.locator("#caption").inner_text()
        assert page.locator("#overlay").get_attribute("alt") == "The photo, a frame round each object"
        first = page.locator("#overlay").get_attribute("src")
        assert decoded(first).size == (350, 250)
        assert page.locator("#class option").all_inner_texts() == ["all classes", "<b>dog</b>", "cat"]
        page.locator("#class").select_option("cat")
        page.wait_for_selector("#overlay:not(.stale)")
        assert page.locator("#overlay").get_attribute("src") != first
        assert page.locator("#overlay").get_attribute("alt") == "The photo, cat framed"
        page.fill("#value", "0.6")
        page.locator("#value").press("Enter")
        page.wait_for_selector("#bars li:only-child")
        assert said == []
        page.goto(f"{address}docs")
        assert "threshold 0.3 Minimum score" in " ".join(page.locator("main").inner_text().split())
        assert said == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_says_if_nothing_was_found(tmp_path):
    class Blind(Finder):
        def detect(self, image: Image.Image) -> Detections:
            return super().detect(image).above(2)

    noise(70, 50).save(tmp_path / "street.png")
    model: Any = Blind()
    with in_a_thread(model, "finder", Limits()) as address, browser_page(address) as (page, said):
        choose(page, tmp_path / "street.png")
        page.wait_for_selector("#overlay")
        assert page.locator("#said").inner_text() == "No object was found."
        assert page.locator("#bars li").count() == 0
        assert page.locator("#class option").all_inner_texts() == ["all classes"]
        assert said == []
