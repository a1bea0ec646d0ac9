"""The server: its responses, what it refuses, its batches, its page in a browser, and how it stops."""

import asyncio
import base64
import io
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import timm
import torch
import uvicorn
from conftest import COLOURS, make_photo
from PIL import Image
from timm.data import create_transform, resolve_data_config

from dmformer.cli.serve import serve
from dmformer.interpret.cam import class_activation
from dmformer.interpret.subject import open_subject
from dmformer.predict.predictor import open_predictor
from dmformer.report.drawing import heat
from dmformer.serve import uploads
from dmformer.serve.address import is_loopback, known_names, listen, url
from dmformer.serve.app import make_app
from dmformer.serve.batcher import Batcher, BatchError
from dmformer.serve.guard import HEADERS
from dmformer.serve.limits import Limits
from dmformer.serve.metrics import Metrics
from dmformer.serve.opening import EXPORTED, SWITCHED_OFF, open_service
from dmformer.serve.pictures import masked, reduced, resized_ids
from dmformer.tasks.classification.classifier import save_classifier
from dmformer.tasks.segmentation.segmenter import SegmenterConfig, save_segmenter
from dmformer.utils.errors import UserError

TINY: Any = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
NAMES = ["red", "green", "<b>blue</b>"]
PALETTE = ((200, 40, 40), (40, 200, 40))


class Colours:
    """A classifier that knows three colours; a closed gate blocks it, an error makes it fail."""

    task, name, form, class_names, at_least, values = "classification", "colours", "NumPy", NAMES, 8, None

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32).mean((0, 1))[:, None, None] / 255

    def probabilities(self, batch) -> np.ndarray:
        assert self.gate.wait(20)
        self.batches.append(len(batch))
        if self.error is not None:
            raise self.error
        scores = np.stack(batch)[:, :, 0, 0] + 0.01
        return scores / scores.sum(1, keepdims=True)


class Halves:
    """A segmenter with one class for dark pixels and another for bright ones."""

    task, name, form, class_names, palette = "segmentation", "halves", "NumPy", ["dark", "bright"], PALETTE
    values = None

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def segment(self, image: Image.Image, window=None, scales=(1.0,), flip=False) -> np.ndarray:
        self.sizes.append(image.size)
        return (np.asarray(image).mean(2) > 127).astype(np.uint8)


def png(colour: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (12, 10)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def half_bright(size: tuple[int, int] = (40, 20)) -> bytes:
    """The right quarter of the columns is white."""
    values = np.zeros((size[1], size[0], 3), np.uint8)
    values[:, -(size[0] // 4) :] = 255
    return encoded(Image.fromarray(values))


def form(*contents: bytes | str | tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    named = [c if isinstance(c, tuple) else (f"{i}.png", c) for i, c in enumerate(contents)]
    return [("images", part) for part in named]  # type: ignore[list-item]


@asynccontextmanager
async def serving(
    predictor: Any,
    limits: Limits | None = None,
    source: str = "model.onnx",
    names=None,
    any_address=False,
    **options: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics()
    service = open_service(source, predictor, limits or Limits(), metrics, **options)
    getattr(predictor, "batches", []).clear()
    app = make_app(service, metrics, *([names, any_address] if names else []))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", timeout=30) as client,
    ):
        yield client


@contextmanager
def in_a_thread(predictor: Any, source: str, limits: Limits) -> Iterator[str]:
    """The address of a server in this process, which has loaded PyTorch already."""
    metrics = Metrics()
    service = open_service(source, predictor, limits, metrics)
    with listen("127.0.0.1", 0) as place:
        server = uvicorn.Server(uvicorn.Config(make_app(service, metrics), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, args=[[place]])
        thread.start()
        yield url(place)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def sample(client: httpx.AsyncClient, line: str) -> float:
    """A value of /metrics by its name and labels; 0 if it is missing."""
    text = (await client.get("/metrics")).text
    return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(f"{line} ")), 0.0)


# Responses


def test_classes_of_one_and_of_several_images():
    async def ask() -> None:
        async with serving(Colours()) as client:
            answer = (await client.post("/predict?top=2", files=form(("grünes Haus.png", png((0, 153, 51)))))).json()
            assert {key: answer[key] for key in ("model", "form", "task")} == {
                "model": "colours",
                "form": "NumPy",
                "task": "classification",
            }
            (result,) = answer["results"]
            assert result["name"] == "grünes Haus.png"
            assert [row["class"] for row in result["classes"]] == ["green", "<b>blue</b>"]
            assert [row["probability"] for row in result["classes"]] == pytest.approx([0.61 / 0.83, 0.21 / 0.83])
            assert set(result) == {"name", "classes"}
            seconds = answer["seconds"]
            parts = [seconds[part] for part in ("read", "prepare", "queue", "model", "overlay")]
            assert min(parts) >= 0
            assert sum(parts) <= seconds["total"] + 1e-6
            several = (await client.post("/predict", files=form(png(), png((0, 0, 255))))).json()["results"]
            assert [r["classes"][0]["class"] for r in several] == ["red", "<b>blue</b>"]
            assert len(several[0]["classes"]) == 3
            raw = await client.post("/predict", content=png(), headers={"Content-Type": "image/png"})
            assert raw.json()["results"][0] == {**several[0], "name": "image"}

    asyncio.run(ask())


def test_shares_mask_and_overlay_of_a_segmenter():
    photo = half_bright()

    async def ask() -> None:
        segmenter = Halves()
        async with serving(segmenter, replace(Limits(), work_pixels=200)) as client:
            (plain,) = (await client.post("/predict", files=form(half_bright((20, 10))))).json()["results"]
            assert plain == {
                "name": "0.png",
                "shares": [
                    {"class": "dark", "share": 0.75, "colour": "#c82828"},
                    {"class": "bright", "share": 0.25, "colour": "#28c828"},
                ],
            }
            answer = await client.post("/predict?mask=true&overlay=true", files=form(photo))
            (result,) = answer.json()["results"]
            assert result["reduced_to"] == [20, 10]
            assert segmenter.sizes[-1] == (20, 10)
            mask = np.asarray(decoded(result["mask"]))
            assert mask.shape == (20, 40)
            assert mask[:, :29].max() == 0
            assert mask[:, 31:].min() == 1
            overlay = np.asarray(decoded(result["overlay"]))
            assert overlay[5, 2].tolist() == [100, 20, 20]  # half its colour, over black
            assert overlay[5, 18].tolist() == [148, 228, 148]  # half its colour, over white
            (one,) = (await client.post("/predict?class=bright", files=form(photo))).json()["results"]
            assert one["overlay_class"] == "bright"
            assert np.asarray(decoded(one["overlay"]))[5, 2].tolist() == [0, 0, 0]

    asyncio.run(ask())


def test_the_frames_of_an_animation_are_counted():
    frames = [Image.new("RGB", (12, 10), colour) for colour in ((200, 40, 40), (40, 200, 40))]
    film = io.BytesIO()
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:])

    async def check() -> None:
        async with serving(Colours()) as client:
            reply = await client.post("/predict", files=form(film.getvalue(), png()))
            first, second = reply.json()["results"]
            assert (first["pages"], first["classes"][0]["class"]) == (2, "red")
            assert "pages" not in second

    asyncio.run(check())


def test_pictures():
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert resized_ids(ids, (6, 4)).tolist() == np.kron(ids, np.ones((2, 2), int)).tolist()
    assert reduced(Image.new("RGB", (400, 100)), 10_000).size == (200, 50)
    small = Image.new("RGB", (10, 10))
    assert reduced(small, 10_000) is small
    wide = Image.new("RGB", (2560, 2))
    assert masked(wide, np.zeros((2, 2560), np.uint8), NAMES, PALETTE).size == (1280, 1)


def test_info_health_openapi_and_unknown_paths():
    async def ask() -> None:
        async with serving(Halves(), replace(Limits(), max_bytes=1000)) as client:
            info = (await client.get("/info")).json()
            assert info["classes"] == ["dark", "bright"]
            assert (info["task"], info["kind"]) == ("segmentation", "segmenter")
            assert info["palette"] == ["#c82828", "#28c828"]
            assert info["overlay"] == {"offered": True}
            assert info["limits"]["bytes"] == 1000
            health = await client.get("/healthz")
            assert (health.status_code, health.json()["status"], health.json()["task"]) == (
                200,
                "ready",
                "segmentation",
            )
            described = (await client.get("/openapi.json")).json()
            assert set(described["paths"]) == {"/predict", "/info", "/healthz", "/metrics"}
            taken = described["paths"]["/predict"]["post"]["requestBody"]["content"]
            assert set(taken) == {"multipart/form-data", "image/*"}
            page = (await client.get("/docs")).text
            assert "<code>POST /predict</code>" in page
            assert "<td>0.3</td>" in page  # the threshold's default
            assert "http" not in page.replace("http://localhost:8000", "")  # nothing from another place
            for path in ("/redoc", "/nothing"):
                assert (await client.get(path)).status_code == 404
        async with serving(Colours(), overlay=False) as client:
            assert (await client.get("/info")).json()["overlay"] == {"offered": False, "why_not": SWITCHED_OFF}

    asyncio.run(ask())


def test_health_reports_a_dead_model(monkeypatch):
    async def ask() -> None:
        async with serving(Colours()) as client:
            monkeypatch.setattr(Batcher, "is_alive", False)
            health = await client.get("/healthz")
            assert (health.status_code, health.json()["status"]) == (503, "failed")

    asyncio.run(ask())


def test_the_page_loads_nothing_from_other_sites():
    async def ask() -> None:
        async with serving(Colours()) as client:
            files = {path: await client.get(path) for path in ("/", "/page.css", "/page.js")}
            kinds = [answer.headers["content-type"].partition(";")[0] for answer in files.values()]
            assert kinds == ["text/html", "text/css", "text/javascript"]
            for answer in files.values():
                assert set(re.findall(r"https?://[\w.]+", answer.text)) <= {"http://www.w3.org"}
            script = files["/page.js"].text
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", script)
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", files["/"].text)

    asyncio.run(ask())


# Refusals


IMAGE = {"Content-Type": "image/png"}
REFUSALS = {
    "no body": (dict(), 400, "no_image", "There is no image"),
    "empty form": (dict(files=[("images", ("", b""))]), 400, "no_image", "There is no image"),
    "empty image": (dict(content=b"", headers=IMAGE), 400, "no_image", "There is no image"),
    "another body": (dict(data={"a": "b"}), 415, "body_type", "this is 'application/x-www-form-urlencoded'"),
    "form without boundary": (
        dict(content=b"x", headers={"Content-Type": "multipart/form-data"}),
        415,
        "body_type",
        "Send a form",
    ),
    "another field": (dict(files=[("photo", ("a.png", png()))]), 400, "unknown_field", "field 'photo'"),
    "damaged form": (
        dict(content=b"garbage", headers={"Content-Type": "multipart/form-data; boundary=x"}),
        400,
        "damaged_form",
        "damaged",
    ),
    "form cut off": (
        dict(
            content=b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nabc',
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        ),
        400,
        "damaged_form",
        "ends early",
    ),
    "text": (dict(files=form(("notes.txt", b"hello"))), 415, "not_an_image", "notes.txt is not an image"),
    "a format that runs programs": (
        dict(files=form(("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"))),
        415,
        "not_an_image",
        "a.eps is not an image",
    ),
    "too many bytes": (dict(files=form(bytes(60_000))), 413, "too_many_bytes", "at most 0.05 MB are allowed"),
    "too many pixels": (
        dict(files=form(png(size=(110, 100)))),
        413,
        "too_many_pixels",
        "too many pixels: 110 x 100; 0.01 megapixels are allowed",
    ),
    "a line of pixels": (dict(files=form(png(size=(1, 101)))), 413, "too_long", "more than 100 times"),
    "too many images": (dict(files=form(*[png()] * 4)), 413, "too_many_images", "Send 3 images or fewer"),
    "cut off": (
        dict(files=form(("a.jpg", encoded(make_photo((9, 99, 200), 1), "JPEG")[:600]))),
        422,
        "broken_image",
        "a.jpg is damaged: ",
    ),
    "all of several": (
        dict(files=form(b"text", encoded(make_photo((9, 99, 200), 1))[:600])),
        415,
        "not_an_image",
        "None of the 2 images could be used. 0.png is not",
    ),
    "class": (
        dict(files=form(png()), params={"class": "gren"}, overlay=True),
        422,
        "unknown_class",
        "Unknown class 'gren': did you mean green?",
    ),
    "overlay": (dict(files=form(png()), params={"overlay": "1"}), 400, "no_overlay", "Exported files"),
    "mask": (dict(files=form(png()), params={"mask": "1"}), 400, "no_mask", "colours is a classifier"),
    "top": (dict(files=form(png()), params={"top": "0"}), 422, "bad_query", "The parameter 'top' is invalid"),
    "method": (dict(method="GET"), 405, "wrong_method", "does not support this method"),
    "path": (dict(path="/nothing"), 404, "not_found", "nothing here"),
}
SMALL = replace(Limits(), max_bytes=50_000, max_pixels=10_000, max_images=3)


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_explained_in_a_sentence(case, monkeypatch):
    request, status, reason, words = REFUSALS[case]
    request = dict(request)
    model = Halves() if request.pop("overlay", False) else Colours()
    if isinstance(model, Halves):
        model.class_names = ["green", "plum"]  # type: ignore[misc]

    async def ask() -> None:
        async with serving(model, SMALL) as client:
            answer = await client.request(request.pop("method", "POST"), request.pop("path", "/predict"), **request)
            told = answer.json()
            assert (answer.status_code, told["reason"]) == (status, reason)
            assert words in told["error"]
            assert told["error"][-1] in ".?"
            assert "Traceback" not in answer.text
            assert await sample(client, f'dmformer_rejected_total{{reason="{reason}"}}') >= 1
            good = await client.post("/predict", files=form(png()))
            assert good.status_code == 200

    asyncio.run(ask())


def test_a_refused_image_does_not_affect_the_others():
    async def ask() -> None:
        async with serving(Colours()) as client:
            answer = await client.post("/predict", files=form(png(), ("notes.txt", b"hello"), png((0, 0, 255))))
            assert answer.status_code == 200
            first, second, third = answer.json()["results"]
            assert (first["classes"][0]["class"], third["classes"][0]["class"]) == ("red", "<b>blue</b>")
            assert set(second) == {"name", "error", "reason"}
            assert second["reason"] == "not_an_image"
            assert await sample(client, "dmformer_images_total") == 2

    asyncio.run(ask())


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_body_without_a_length_is_read_up_to_the_limit(kind):
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        while pieces < 1000:
            pieces += 1
            yield bytes(1000)

    async def ask() -> None:
        async with serving(Colours(), SMALL) as client:
            answer = await client.post("/predict", content=endless(), headers={"Content-Type": kind})
            assert "content-length" not in answer.request.headers
            assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_bytes")

    asyncio.run(ask())
    assert pieces == 50


def test_a_body_declared_too_large_is_not_read():
    async def unread() -> AsyncIterator[bytes]:
        pytest.fail("it was read")
        yield b""

    async def ask() -> None:
        async with serving(Colours(), SMALL) as client:
            headers = {"Content-Type": "image/png", "Content-Length": "50001"}
            answer = await client.post("/predict", content=unread(), headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_bytes")

    asyncio.run(ask())


def png_header(width: int, height: int) -> bytes:
    """Of a PNG with one bit per pixel, whose data never arrive."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes([0, 0, 0, 9]) + b"IDAT"


@pytest.mark.parametrize(
    "content",
    [png_header(30_000, 30_000), png_header(13_000, 13_000), png_header(8_000, 7_000), b"P6 70000 70000 255\n"],
    ids=["an error to Pillow", "a warning to Pillow", "nothing to Pillow", "PPM"],
)
def test_decompression_bombs_are_recognised_by_their_header(content, monkeypatch):
    def explode(*_: Any) -> None:
        raise AssertionError("it was decoded")

    async def ask() -> None:
        async with serving(Colours()) as client:
            monkeypatch.setattr(uploads, "decode", explode)
            answer = await client.post("/predict", files=form(content))
            assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_pixels")

    asyncio.run(ask())


def test_images_that_the_model_refuses_or_fails_on(caplog):
    async def ask() -> None:
        model = Colours()
        async with serving(model) as client:
            model.error = UserError("colours does not take this.")
            answer = await client.post("/predict", files=form(png()))
            assert (answer.status_code, answer.json()["reason"]) == (422, "unfit_image")
            assert answer.json()["error"] == "colours does not take this."
            model.error = ZeroDivisionError("secret/path")
            answers = await asyncio.gather(*(client.post("/predict", files=form(png())) for _ in range(3)))
            for answer in answers:
                assert (answer.status_code, answer.json()["reason"]) == (500, "model_failed")
                assert "ZeroDivisionError" in answer.json()["error"]
                assert "secret" not in answer.text
            model.error = None
            assert (await client.post("/predict", files=form(png()))).status_code == 200
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(ask())
    assert "secret/path" in caplog.text


def test_server_errors_have_no_traceback_in_the_response(monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise KeyError("secret/path")

    async def ask() -> None:
        async with serving(Colours()) as client:
            monkeypatch.setattr("dmformer.serve.app.read_uploads", fail)
            answer = await client.post("/predict", files=form(png()))
            assert answer.status_code == 500
            assert answer.json() == {
                "error": "The server failed on this request; see its log.",
                "reason": "server_error",
            }
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert await sample(client, 'dmformer_requests_total{path="/predict",status="500"}') == 1

    asyncio.run(ask())
    assert "secret/path" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200),
        ({"Host": "LOCALHOST:9000"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": "192.0.2.7:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_use_it(headers, status):
    async def ask() -> None:
        async with serving(Colours()) as client:
            answer = await client.post("/predict", files=form(png()), headers=headers)
            assert answer.status_code == status
            assert not [name for name in answer.headers if name.startswith("access-control")]
            if status == 403:
                assert answer.json()["reason"] == ("strange_host" if "Host" in headers else "other_site")
            preflight = await client.options("/predict", headers={"Origin": "http://evil.example"})
            assert preflight.status_code == 405

    asyncio.run(ask())


def test_host_names_and_addresses_beyond_loopback():
    async def ask() -> None:
        names = ["localhost", "photos.example.org"]
        async with serving(Colours(), names=names, any_address=True) as client:
            for host, origin, status in [
                ("photos.example.org", "https://photos.example.org", 200),
                ("127.0.0.1:8000", "https://photos.example.org", 200),  # a proxy that sets its own Host
                ("192.0.2.7:8000", "http://192.0.2.7:8000", 200),
                ("192.0.2.7:8000", "http://192.0.2.8:8000", 403),
                ("rebound.example", "http://rebound.example", 403),
            ]:
                headers = {"Host": host, "Origin": origin}
                answer = await client.post("/predict", files=form(png()), headers=headers)
                assert answer.status_code == status, host

    asyncio.run(ask())


def test_every_response_has_the_security_headers():
    async def ask() -> None:
        async with serving(Colours()) as client:
            answers = [await client.get(path) for path in ("/", "/info", "/metrics", "/nothing")]
            answers.append(await client.get("/", headers={"Host": "evil.example"}))
            for answer in answers:
                assert {name: answer.headers[name] for name in HEADERS} == HEADERS
            policy = answers[0].headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy

    asyncio.run(ask())


# Batches, queues, time


@pytest.mark.slow
def test_concurrent_requests_share_batches_and_get_their_own_results():
    colours = [(10 * i, 255 - 10 * i, 7 * i) for i in range(24)]

    async def ask() -> None:
        model = Colours()
        async with serving(model, batch=8, wait=0.05) as client:
            alone = [(await client.post("/predict", files=form(png(c)))).json()["results"] for c in colours]
            assert model.batches == [1] * 24
            model.batches.clear()
            model.gate.clear()
            asked = [asyncio.create_task(client.post("/predict", files=form(png(c)))) for c in colours]
            await asyncio.sleep(0.3)
            model.gate.set()
            together = [(await task).json()["results"] for task in asked]
            assert sum(model.batches) == 24
            assert len(model.batches) == 3
            for one, other in zip(alone, together, strict=True):
                assert [row["class"] for row in one[0]["classes"]] == [row["class"] for row in other[0]["classes"]]
                assert [row["probability"] for row in one[0]["classes"]] == pytest.approx(
                    [row["probability"] for row in other[0]["classes"]], abs=1e-6
                )
            assert len({row[0]["classes"][0]["probability"] for row in together}) == 24
            assert await sample(client, 'dmformer_batch_images_bucket{le="4.0",work="classes"}') == 24
            assert await sample(client, 'dmformer_batch_images_count{work="classes"}') == 27

    asyncio.run(ask())


def test_a_batcher_waits_for_more_items_up_to_its_limit():
    seen: queue.Queue[list[int]] = queue.Queue()

    def work(items: list[int]) -> list[int]:
        seen.put(items)
        return [item * item for item in items]

    batcher = Batcher(work, size=3, wait=0.4)
    begin = time.perf_counter()
    futures = [batcher.submit(i) for i in (1, 2, 3)]
    assert [future.result(5).value for future in futures] == [1, 4, 9]
    assert time.perf_counter() - begin < 0.3  # it was full
    assert seen.get() == [1, 2, 3]
    begin = time.perf_counter()
    first = batcher.submit(4)
    time.sleep(0.1)
    second = batcher.submit(5)
    assert (first.result(5).value, second.result(5).value) == (16, 25)
    assert time.perf_counter() - begin >= 0.4
    assert seen.get() == [4, 5]
    batcher.close()


def test_a_batcher_finishes_its_queue_before_it_closes():
    gate = threading.Event()
    seen = []

    def work(items: list[int]) -> list[int]:
        gate.wait(5)
        seen.append(items)
        if 3 in items:
            raise OSError("no")
        return items

    batcher = Batcher(work, size=2)
    futures = [batcher.submit(i) for i in range(6)]
    while batcher.waiting > 4:
        time.sleep(0.01)
    assert futures[5].cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(5)
    assert not closing.is_alive()
    assert not batcher.is_alive
    assert seen == [[0], [1, 2], [3, 4]] or seen == [[0, 1], [2, 3], [4]]
    failed = {i for i in range(5) if futures[i].exception() is not None}
    assert failed == ({3, 4} if seen[0] == [0] else {2, 3})
    assert isinstance(futures[3].exception(), BatchError)
    assert [futures[i].result().value for i in (0, 1)] == [0, 1]
    with pytest.raises(RuntimeError, match="shutting down"):
        batcher.submit(7)


def test_missing_results_are_a_failure():
    batcher = Batcher(lambda items: items[1:], size=1)
    assert isinstance(batcher.submit(1).exception(5), BatchError)
    batcher.close()


def test_a_timeout_is_reported_and_its_work_skipped():
    async def ask() -> None:
        model = Colours()
        async with serving(model, replace(Limits(), timeout=0.3), batch=1) as client:
            model.gate.clear()
            answers = await asyncio.gather(*(client.post("/predict", files=form(png())) for _ in range(3)))
            for answer in answers:
                assert (answer.status_code, answer.json()["reason"]) == (504, "timeout")
                assert answer.headers["retry-after"] == "1"
            model.gate.set()
            assert (await client.post("/predict", files=form(png()))).status_code == 200
            assert model.batches == [1, 1]  # the one that had begun, and the last
            assert await sample(client, "dmformer_requests_in_hand") == 0

    asyncio.run(ask())


@pytest.mark.slow
def test_work_of_disconnected_clients_is_skipped():
    model = Colours()
    with in_a_thread(model, "model.onnx", SMALL) as address, httpx.Client(base_url=address) as client:
        model.gate.clear()
        model.batches.clear()
        first = threading.Thread(target=lambda: client.post("predict", files=form(png())))
        first.start()
        while "requests_in_hand 1.0" not in client.get("metrics").text:
            time.sleep(0.01)
        time.sleep(0.1)  # the first is with the model
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}predict", files=form(png()), timeout=httpx.Timeout(5, read=0.2))
        while 'rejected_total{reason="disconnected"} 1.0' not in client.get("metrics").text:
            time.sleep(0.01)
        model.gate.set()
        first.join(10)
        assert client.post("predict", files=form(png())).status_code == 200
        assert model.batches == [1, 1]


def test_a_body_that_does_not_arrive_is_reported():
    async def slow() -> AsyncIterator[bytes]:
        yield b"P5 "
        await asyncio.sleep(10)

    async def ask() -> None:
        async with serving(Colours(), replace(Limits(), timeout=0.2)) as client:
            answer = await client.post("/predict", content=slow(), headers={"Content-Type": "image/x-portable-graymap"})
            assert (answer.status_code, answer.json()["reason"]) == (408, "slow_request")
            assert answer.headers["connection"] == "close"

    asyncio.run(ask())


def test_a_full_queue_asks_to_retry():
    async def ask() -> None:
        model = Colours()
        async with serving(model, replace(Limits(), requests=4), batch=2) as client:
            model.gate.clear()
            asked = [asyncio.create_task(client.post("/predict", files=form(png()))) for _ in range(4)]
            await asyncio.sleep(0.2)
            assert await sample(client, "dmformer_requests_in_hand") == 4
            assert await sample(client, 'dmformer_queue_images{work="classes"}') in (2, 3)  # the batch has one or two
            refused = await client.post("/predict", files=form(png()))
            assert (refused.status_code, refused.json()["reason"]) == (503, "busy")
            assert refused.headers["retry-after"] == "1"
            model.gate.set()
            assert [(await task).status_code for task in asked] == [200] * 4
            assert (await client.post("/predict", files=form(png()))).status_code == 200
            assert await sample(client, 'dmformer_requests_total{path="/predict",status="503"}') == 1
            assert await sample(client, 'dmformer_requests_total{path="/predict",status="200"}') == 5
            assert await sample(client, 'dmformer_request_seconds_count{path="/predict"}') == 6

    asyncio.run(ask())


def test_decoding_does_not_run_far_ahead_of_the_model():
    most = held = 0

    class Watched(Colours):
        def prepare(self, image: Image.Image) -> np.ndarray:
            nonlocal most, held
            held += 1
            most = max(most, held)
            return super().prepare(image)

        def probabilities(self, batch) -> np.ndarray:
            nonlocal held
            time.sleep(0.01)
            found = super().probabilities(batch)
            held -= len(batch)
            return found

    async def ask() -> None:
        async with serving(Watched(), batch=2, wait=0.0) as client:
            answers = await asyncio.gather(*(client.post("/predict", files=form(*[png()] * 5)) for _ in range(6)))
            assert [answer.status_code for answer in answers] == [200] * 6

    asyncio.run(ask())
    assert 2 <= most <= 4


# Trained models


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """The folder of a classifier trained on three colours in a few iterations."""
    model: Any = timm.create_model("dmformer_n", num_classes=3, layer_scale=1.0, **TINY)
    data_config = resolve_data_config({"input_size": (3, 64, 64), "crop_pct": 1.0}, model=model)
    prepare: Any = create_transform(**data_config)
    images = torch.stack([prepare(make_photo(c, i, (80, 70))) for c in COLOURS.values() for i in range(8)])
    labels = torch.arange(3).repeat_interleave(8)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    best = tmp_path_factory.mktemp("runs") / "colours" / "best"
    save_classifier(best, model, model.state_dict(), list(COLOURS), data_config)
    return str(best)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> str:
    """The folder of an untrained segmenter."""
    config = SegmenterConfig(
        backbone="dmformer_n",
        backbone_args=TINY,
        head="fpn",
        width=64,
        dropout=0.0,
        class_names=("sky", "ground", "<i>box</i>"),
        palette=((90, 140, 230), (60, 160, 60), (200, 60, 50)),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    torch.manual_seed(0)
    best = tmp_path_factory.mktemp("runs") / "scenes" / "best"
    save_segmenter(best, config, config.build().state_dict())
    return str(best)


def test_a_trained_classifier_gives_the_same_result_alone_and_in_a_batch(classifier):
    predictor: Any = open_predictor(classifier)
    photos = [(name, make_photo(colour, 50 + i, (80, 70))) for name, colour in COLOURS.items() for i in range(4)]

    async def ask() -> None:
        async with serving(predictor, source=classifier, overlay=False, wait=0.1) as client:
            asked = (client.post("/predict", files=form(encoded(photo))) for _, photo in photos)
            together = await asyncio.gather(*asked)
            assert await sample(client, 'dmformer_batch_images_bucket{le="1.0",work="classes"}') == 0
            for (name, photo), answer in zip(photos, together, strict=True):
                found = {row["class"]: row["probability"] for row in answer.json()["results"][0]["classes"]}
                expected = predictor.probabilities([predictor.prepare(photo)])[0]
                assert [found[name] for name in predictor.class_names] == pytest.approx(expected.tolist(), abs=1e-6)
                assert max(found, key=lambda name: found[name]) == name

    asyncio.run(ask())


@pytest.mark.slow
def test_the_overlay_shows_where_the_class_is_found(classifier):
    predictor: Any = open_predictor(classifier)
    subject = open_subject(classifier)
    photo = make_photo(COLOURS["red car"], 7, (90, 70))

    async def ask() -> None:
        async with serving(predictor, source=classifier) as client:
            assert (await client.get("/info")).json()["overlay"] == {"offered": True}
            (first,) = (await client.post("/predict?overlay=true", files=form(encoded(photo)))).json()["results"]
            assert first["overlay_class"] == first["classes"][0]["class"] == "red car"
            query = {"class": "蓝天", "top": "1"}
            answer = (await client.post("/predict", params=query, files=form(encoded(photo)))).json()
            (second,) = answer["results"]
            assert second["overlay_class"] == "蓝天"
            assert len(second["classes"]) == 1
            assert answer["seconds"]["overlay"] > 0
            prepared = subject.prepare(photo)
            seen = prepared.numpy().transpose(1, 2, 0) * subject.std + subject.mean
            for result in (first, second):
                index = subject.class_names.index(result["overlay_class"])
                activation = class_activation(subject, prepared[None], [index])[0].numpy()
                drawn = np.asarray(decoded(result["overlay"])).astype(int)
                assert drawn.shape == (64, 64, 3)
                expected = heat(Image.fromarray((seen.clip(0, 1) * 255).round().astype(np.uint8)), activation)
                assert np.abs(drawn - np.asarray(expected)).max() <= 1
            unknown = await client.post("/predict?class=gr%C3%BCne+Haus", files=form(encoded(photo)))
            assert unknown.json()["error"] == "Unknown class 'grüne Haus': did you mean grünes Haus?"

    asyncio.run(ask())


def test_without_the_extra_the_page_says_why_there_is_no_overlay(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)

    async def ask() -> None:
        async with serving(open_predictor(classifier), source=classifier) as client:
            overlay = (await client.get("/info")).json()["overlay"]
            assert overlay["offered"] is False
            assert "pip install 'dmformer[explain]'" in overlay["why_not"]
            assert (await client.post("/predict", files=form(png()))).status_code == 200

    asyncio.run(ask())


def test_a_model_without_maps_is_served_without_overlay(classifier, monkeypatch):
    def refuse(*_: Any) -> None:
        raise UserError("its layer has no map.")

    monkeypatch.setattr("dmformer.interpret.cam.class_activation", refuse)

    async def ask() -> None:
        async with serving(open_predictor(classifier), source=classifier) as client:
            overlay = (await client.get("/info")).json()["overlay"]
            assert overlay == {"offered": False, "why_not": "its layer has no map."}
            assert (await client.post("/predict", files=form(png()))).status_code == 200

    asyncio.run(ask())


def test_a_segmenter_returns_its_segmentation(segmenter):
    predictor: Any = open_predictor(segmenter)
    photo = make_photo((90, 140, 230), 3, (70, 50))

    async def ask() -> None:
        async with serving(predictor, source=segmenter) as client:
            (result,) = (await client.post("/predict?mask=1", files=form(encoded(photo)))).json()["results"]
            ids = predictor.segment(photo)
            assert (np.asarray(decoded(result["mask"])) == ids).all()
            shares = {row["class"]: row["share"] for row in result["shares"]}
            for i, name in enumerate(predictor.class_names):
                assert shares.get(name, 0) == pytest.approx(float((ids == i).mean()))
            for size in ((1, 1), (1, 90), (90, 1)):
                assert (await client.post("/predict", files=form(png(size=size)))).status_code == 200

    asyncio.run(ask())


# The command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/best"], "nowhere/best does not exist"),
        (["weights.pth"], "weights.pth is a file"),
        ([".", "--port", "99999"], "--port is 99999: ports are 0 to 65535"),
        ([".", "--max-mb", "0"], "--max-mb is 0: it must be above 0"),
        ([".", "--max-megapixels", "600"], "--max-megapixels is 600: it must be above 0, and at most 500"),
        ([".", "--batch", "0"], "--batch is 0: it must be 1 or more"),
        ([".", "--wait-ms", "-1"], "--wait-ms is -1: it cannot be negative"),
        ([".", "--prot", "1"], "unknown option '--prot': did you mean --port"),
        (["."], "holds no config.json"),
    ],
)
def test_mistakes_are_reported_before_anything_is_loaded(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=re.escape(words)):
        serve(arguments)


def test_a_port_in_use_is_reported_before_the_model_is_loaded(classifier, monkeypatch):
    monkeypatch.setattr("dmformer.predict.predictor.open_predictor", lambda *_: pytest.fail("the model was loaded"))
    with listen("127.0.0.1", 0) as place:
        port = place.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of 127.0.0.1 is in use: give another --port\.$"):
            serve([classifier, "--port", str(port)])


def test_addresses():
    with listen("127.0.0.1", 0) as place:
        assert is_loopback(place)
        assert url(place) == f"http://127.0.0.1:{place.getsockname()[1]}/"
        assert known_names(place, "127.0.0.1", ["A.example"]) == {"localhost", "127.0.0.1", "::1", "a.example"}
    with listen("0.0.0.0", 0) as place:
        assert not is_loopback(place)
        assert url(place) == f"http://localhost:{place.getsockname()[1]}/"
        assert socket.gethostname().lower() in known_names(place, "0.0.0.0", [])
    with pytest.raises(UserError, match=r"--host no\.such\.invalid is not an address of this machine"):
        listen("no.such.invalid", 0)
    with pytest.raises(UserError, match="cannot be opened"):
        listen("192.0.2.1", 0)


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A serving process, and its address."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores it, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, line + str(process.communicate(timeout=20))
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


SLOW = """
import sys
import time
import numpy as np
import dmformer_command
import dmformer.predict.predictor
from dmformer.cli import main, serve

class Slow:
    task, name, class_names, palette, values = "segmentation", "slow", ["a"], [(1, 2, 3)], None
    form = "PyTorch" if "torch" in sys.modules else "NumPy"

    def segment(self, image):
        time.sleep(0.3)
        return np.zeros((image.height, image.width), np.uint8)

serve.check_source = lambda *_, **__: None
dmformer.predict.predictor.open_predictor = lambda *_: Slow()
main(["serve", "slow", "--port", "0"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_running_requests_are_answered_before_it_exits(number, code):
    answers: list[httpx.Response] = []
    with started("-c", SLOW) as (process, address):
        assert httpx.get(f"{address}healthz").json()["form"] == "NumPy"  # an exported file needs no PyTorch
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{address}predict", files=form(*[png()] * 4), timeout=30))
        )
        asking.start()
        while "requests_in_hand 1.0" not in httpx.get(f"{address}metrics").text:
            assert asking.is_alive()
        process.send_signal(number)
        asking.join(20)
        assert [result["shares"][0]["class"] for result in answers[0].json()["results"]] == ["a"] * 4
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (code, "")
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


# The page


@contextmanager
def browser_page(address: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of the server in a browser, and the messages on the browser's console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: no browser to open the page in")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(**options)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("filechooser", lambda _: None)  # or a quick Enter opens a dialog before playwright listens for it
        page.goto(address)
        page.wait_for_selector("#limits:not(:empty)")
        yield page, said
        browser.close()


def choose(page: Any, file: Path) -> None:
    """Choose a file with the keyboard: Tab to the control, Enter."""
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(file)


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_classifier(classifier, tmp_path):
    make_photo(COLOURS["grünes Haus"], 50, (80, 70)).save(tmp_path / "house.png")
    narrow: Any = dict(viewport={"width": 360, "height": 700}, color_scheme="dark")
    command = ("-m", "dmformer", "serve", classifier, "--port", "0")
    with started(*command) as (_, address), browser_page(address, **narrow) as (page, said):
        assert page.title() == "colours · dmformer"
        choose(page, tmp_path / "house.png")
        page.wait_for_selector("#bars li")
        assert page.locator("#said").inner_text().startswith("grünes Haus, ")
        assert page.locator("#said").get_attribute("aria-live") == "polite"
        rows = page.locator("#bars li").all_inner_texts()
        assert len(rows) == 3
        assert rows[0].split("\n")[0] == "grünes Haus"
        widths = [box["width"] for box in (row.bounding_box() for row in page.locator(".bar > span").all()) if box]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] > 2 * widths[1]
        page.wait_for_selector("#overlay")
        shown = page.locator("#overlay")
        first = shown.get_attribute("src")
        assert decoded(first).size == (64, 64)
        page.locator("#class").select_option("red car")
        page.wait_for_selector("#overlay:not(.stale)")
        assert shown.get_attribute("src") != first
        assert "red car" in page.locator("#caption").inner_text()
        assert {"model", "class activation", "in the queue"} <= set(page.locator("#times dt").all_inner_texts())
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert said == []

        (tmp_path / "notes.txt").write_text("hello")
        choose(page, tmp_path / "notes.txt")
        page.wait_for_selector("#trouble:not(:empty)")
        assert page.locator("[role=alert]").inner_text().startswith("notes.txt is not an image in a supported format")
        assert page.locator("#bars li").count() == 0
        assert page.locator("#where").is_hidden()
        assert [text for text in said if "415" not in text] == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_segmenter(segmenter, tmp_path):
    make_photo((90, 140, 230), 3, (700, 500)).save(tmp_path / "street.png")
    limits = replace(Limits(), work_pixels=100_000)
    with (
        in_a_thread(open_predictor(segmenter), segmenter, limits) as address,
        browser_page(address, viewport={"width": 900, "height": 800}, color_scheme="light") as (page, said),
    ):
        choose(page, tmp_path / "street.png")
        page.wait_for_selector("#overlay")
        shares = dict(row.split("\n") for row in page.locator("#bars li").all_inner_texts())
        assert set(shares) <= {"sky", "ground", "<i>box</i>"}
        assert sum(float(text.split()[0]) for text in shares.values()) == pytest.approx(100, abs=0.2)
        assert page.locator("#bars i").count() == 0  # the name is not interpreted as HTML
        largest = page.locator("#bars li").first
        colours = {"sky": "rgb(90, 140, 230)", "ground": "rgb(60, 160, 60)", "<i>box</i>": "rgb(200, 60, 50)"}
        swatch = largest.locator(".swatch").evaluate("element => getComputedStyle(element).backgroundColor")
        assert swatch == colours[largest.inner_text().split("\n")[0]]
        assert "reduced to 374 x 267 pixels" in page.locator("#caption").inner_text()
        assert decoded(page.locator("#overlay").get_attribute("src")).size == (374, 267)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        assert said == []


@pytest.mark.browser
@pytest.mark.slow
def test_a_photo_can_be_dropped_and_pasted():
    script = """([kind, bytes]) => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], "given.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: files, bubbles: true });
        document.getElementById("drop").dispatchEvent(event);
    }"""
    with in_a_thread(Colours(), "model.onnx", SMALL) as address, browser_page(address) as (page, said):
        for kind, name in (("drop", "green"), ("paste", "red")):
            page.evaluate(script, [kind, list(png((40, 180, 60) if name == "green" else (180, 40, 60)))])
            page.locator("#said", has_text=name).wait_for()
        assert page.locator("#why").inner_text() == EXPORTED
        assert page.locator("#shown").is_hidden()
        assert said == []
        page.evaluate(script, ["drop", [0] * 60_000])  # not sent: the page knows the limit
        page.locator("[role=alert]", has_text="This file has 0.1 MB; 0.05 MB are allowed.").wait_for()
        assert said == []
