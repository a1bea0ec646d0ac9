"""`dmformer serve` under load: 50 clients that send requests back to back for a minute.

OMP_NUM_THREADS=1 python benchmarks/serve_load.py [SOURCE...]      best/ folders, .onnx or .xml files

Without a source: dmformer_n for 10 classes at 224 px with random weights, which do not affect speed, in PyTorch, ONNX
Runtime and OpenVINO. The server is a separate process with one thread for the model, plus those that decode images; the
clients run in this process on the same machine. Images are synthetic, 1,000 x 750 px, and every response is compared
with the response to the same image without load.

Each source is measured twice: with photos alone, and with bad requests of every kind among them, three in ten. The
table of docs/serve.md is then made anew.
"""

import asyncio
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import timm
from performance_tables import table
from PIL import Image
from record import record, replace_tables, rows
from timm.data import resolve_data_config

from dmformer.export.write import export
from dmformer.tasks.classification.classifier import save_classifier

PAGE = Path(__file__).parents[1] / "docs" / "serve.md"
CLIENTS, SECONDS, WARM_UP = 50, 60, 3
BAD_SHARE = 0.3
THREADS = 1
MEGABYTES = 2
"""Size limit of a request, low so that larger requests are cheap to send."""
BATCHES, IMAGES = "dmformer_batch_images_count", "dmformer_batch_images_sum"
TOLERANCE = 1e-4
"""Tolerance of probabilities between a batched and a single prediction."""


def main() -> None:
    if "--help" in sys.argv[1:]:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for source in sys.argv[1:] or made(Path(folder)):
            for bad_share in (0.0, BAD_SHARE):
                record("serve_load", [measured(source, bad_share)])
    replace_tables(PAGE, {"load": load()})


def made(folder: Path) -> list[str]:
    """The default sources."""
    model: Any = timm.create_model("dmformer_n", num_classes=10).eval()
    best = folder / "dmformer_n" / "best"
    names = [f"class {i}" for i in range(10)]
    save_classifier(best, model, model.state_dict(), names, resolve_data_config({}, model=model))
    files = [folder / "dmformer_n.onnx", folder / "dmformer_n.xml"]
    for file, kind in zip(files, ("onnx", "openvino"), strict=True):
        export(str(best), kind, str(file), speed=False)  # type: ignore[arg-type]
    return [str(best), *map(str, files)]


def measured(source: str, bad_share: float) -> dict[str, object]:
    """Measure one row of results."""
    load = os.getloadavg()[0]
    with serving(source) as address:
        return asyncio.run(attack(address, bad_share)) | {"server_threads": THREADS, "load_before": f"{load:.1f}"}


@contextmanager
def serving(source: str) -> Iterator[str]:
    """Run a server in a separate process; yields its URL."""
    options = ["--port", "0", "--threads", str(THREADS), "--max-mb", str(MEGABYTES)]
    server = subprocess.Popen(
        [sys.executable, "-m", "dmformer", "serve", source, *options],
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+/", server.stdout.readline())
        if found is None:
            raise SystemExit(f"the server did not start: {server.wait()}")
        yield found[0]
    finally:
        server.terminate()
        server.wait()


@dataclass
class Tally:
    """Outcomes of the requests; latencies are of valid requests only."""

    latencies: list[float] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    wrong: int = 0
    errors: int = 0
    lost: int = 0

    def lose(self, error: Exception) -> None:
        self.lost += 1
        print(f"lost: {error!r}", file=sys.stderr)


async def attack(address: str, bad_share: float) -> dict[str, object]:
    pictures = photos()
    tally = Tally()
    async with httpx.AsyncClient(
        base_url=address, timeout=60, limits=httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    ) as client:
        info = (await client.get("info")).json()
        truth = [probabilities((await client.post("predict?top=10", files=form(p))).json()) for p in pictures]
        bad = bad_requests(pictures[0])

        async def ask(number: int, end: float, counting: bool) -> None:
            chance = random.Random(number)
            while time.perf_counter() < end:
                if chance.random() < bad_share:
                    await ask_badly(client, bad[chance.choice(sorted(bad))], tally)
                else:
                    await ask_well(client, chance.randrange(len(pictures)), pictures, truth, tally, counting)

        await together(ask, WARM_UP, counting=False)
        tally.__init__()
        before = figures((await client.get("metrics")).text)
        begin = time.perf_counter()
        await together(ask, SECONDS, counting=True)
        seconds = time.perf_counter() - begin
        after = figures((await client.get("metrics")).text)
    batches, images = (after[name] - before[name] for name in (BATCHES, IMAGES))
    ms = np.percentile(np.array(tally.latencies) * 1000, [50, 90, 99, 100])
    refused = sum(tally.refused.values())
    return {
        "model": info["model"],
        "form": info["form"],
        "clients": CLIENTS,
        "bad_share": bad_share,
        "requests": len(tally.latencies) + refused + tally.wrong + tally.errors + tally.lost,
        "answered": len(tally.latencies),
        "refused_with_reason": refused,
        "kinds_of_refusal": len(tally.refused),
        "wrong": tally.wrong,
        "errors": tally.errors,
        "lost": tally.lost,
        "seconds": f"{seconds:.1f}",
        "answers_per_second": f"{len(tally.latencies) / seconds:.1f}",
        **{name: f"{value:.0f}" for name, value in zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), ms, strict=True)},
        "mean_batch": f"{images / batches:.2f}",
        "server_mb": f"{after['process_resident_memory_bytes'] / 1e6:.0f}",
    }


async def together(ask: Any, seconds: float, counting: bool) -> None:
    end = time.perf_counter() + seconds
    await asyncio.gather(*(ask(number, end, counting) for number in range(CLIENTS)))


async def ask_well(
    client: httpx.AsyncClient, number: int, pictures: list[bytes], truth: list[dict], tally: Tally, counting: bool
) -> None:
    begin = time.perf_counter()
    try:
        answer = await client.post("predict?top=10", files=form(pictures[number]))
    except httpx.HTTPError as error:
        tally.lose(error)
        return
    if answer.status_code != 200:
        tally.errors += 1
        return
    found = probabilities(answer.json())
    if any(abs(found[name] - p) > TOLERANCE for name, p in truth[number].items()):
        tally.wrong += 1
    elif counting:
        tally.latencies.append(time.perf_counter() - begin)


async def ask_badly(client: httpx.AsyncClient, request: tuple[dict[str, Any], set[int]], tally: Tally) -> None:
    """Send a bad request; anything but the right status with a reason counts as an error."""
    arguments, statuses = request
    arguments: dict[str, Any] = {name: value() if callable(value) else value for name, value in arguments.items()}
    try:
        answer = await client.post("predict", **arguments)
    except httpx.HTTPError as error:
        tally.lose(error)
        return
    try:
        told = answer.json()
    except ValueError:
        told = {}
    if answer.status_code in statuses and told.get("reason") and told.get("error"):
        tally.refused[told["reason"]] += 1
    else:
        tally.errors += 1


def photos(count: int = 20) -> list[bytes]:
    """JPEGs of smooth colours with some noise, about as many bytes as a camera's at that size."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((1000, 750), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + generator.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        made.append(encoded(Image.fromarray(noisy), "JPEG"))
    return made


def bad_requests(photo: bytes) -> dict[str, tuple[dict[str, Any], set[int]]]:
    """Requests that must be refused, with the valid statuses; an unknown class has two, with and without overlays."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(48):
            yield bytes(1 << 16)

    bomb = b"P6 30000 30000 255\n"
    return {
        "text": (dict(files=form(b"hello")), {415}),
        "cut off": (dict(files=form(photo[: len(photo) // 2])), {422}),
        "bomb": (dict(files=form(bomb)), {413}),
        "too large": (dict(files=form(bytes(MEGABYTES * 10**6 + 1))), {413}),
        "too large, without a length": (dict(content=endless, headers={"Content-Type": "image/jpeg"}), {413}),
        "too many": (dict(files=form(*[b"x"] * 17)), {413}),
        "no image": (dict(), {400}),
        "damaged form": (
            dict(content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"}),
            {400},
        ),
        "another field": (dict(files={"photo": photo}), {400}),
        "another type": (dict(data={"a": "b"}), {415}),
        "unknown class": (dict(files=form(photo), params={"class": "clas 1"}), {400, 422}),
        "bad parameter": (dict(files=form(photo), params={"top": "many"}), {422}),
        "another site": (dict(files=form(photo), headers={"Origin": "http://evil.example"}), {403}),
        "another name": (dict(files=form(photo), headers={"Host": "evil.example"}), {403}),
    }


def form(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("photo.jpg", content)) for content in contents]


def encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=90)
    return buffer.getvalue()


def probabilities(answer: dict) -> dict[str, float]:
    return {row["class"]: row["probability"] for row in answer["results"][0]["classes"]}


def figures(text: str) -> dict[str, float]:
    """Figures of Prometheus' text by name; for figures by kind of work, only those of classification."""
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    counted = ((name, value) for name, _, value in rows if "{" not in name or 'work="classes"' in name)
    return {name.partition("{")[0]: float(value) for name, value in counted}


def load() -> str:
    """The table for the documentation, from the results."""
    header = ["run by", "bad requests", "answered", "refused", "wrong, failed, lost"]
    header += ["answers/s", "median ms", "90 %", "99 %", "longest", "mean batch", "MB"]
    columns = ("answers_per_second", "p50_ms", "p90_ms", "p99_ms", "max_ms", "mean_batch", "server_mb")
    lines = [
        [
            r["form"],
            f"{float(r['bad_share']):.0%}".replace("%", " %"),
            r["answered"],
            r["refused_with_reason"],
            f"{r['wrong']}, {r['errors']}, {r['lost']}",
            *(r[column] for column in columns),
        ]
        for r in rows("serve_load")
    ]
    return table(header, lines)


if __name__ == "__main__":
    main()
