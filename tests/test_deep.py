"""A range of values found in training holds for every command: a deep photo counts as its 8-bit twin does."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import classification_recipe, segmentation_recipe
from PIL import Image

from dmformer.cli import main
from dmformer.data.values import to_8_bits
from dmformer.embed.features import embed, open_model
from dmformer.export.write import export
from dmformer.predict.predictor import open_predictor
from dmformer.serve.app import make_app
from dmformer.serve.limits import Limits
from dmformer.serve.metrics import Metrics
from dmformer.serve.opening import open_service
from dmformer.tasks.recipe import Recipe
from dmformer.train.loop import train


def degrees(level: float, seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """From -40 to 160, with a hole of NaN and pixels marked as no data."""
    values = np.random.default_rng(seed).normal(200 * level - 40, 3, size).clip(-40, 160).astype(np.float32)
    values[:3, :3] = np.nan
    values[3, 3] = -9999
    return values


def save(values: np.ndarray, path: Path, shown: tuple[float, float] | None = None) -> None:
    """A TIFF of the values, or with a range the PNG of 8 bits that shows them in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if shown is None:
        Image.fromarray(values).save(path.with_suffix(".tif"), tiffinfo={42113: "-9999"})
    else:
        values = np.where(values == -9999, np.nan, values.astype(np.float64))
        Image.fromarray(to_8_bits(values, shown)).save(path.with_suffix(".png"))


def both(folder: Path, draw: Callable[[Path, tuple[float, float] | None], None], shown: tuple[float, float]) -> Path:
    """What `draw` saves, as deep photos in deep/ and as their twins in twin/."""
    draw(folder / "deep", None)
    draw(folder / "twin", shown)
    return folder


def trained(recipe: Recipe, folder: Path, shown: tuple[float, float]) -> list[str]:
    """The sources of a run: its folder, and files exported from it."""
    run = train(replace(recipe, out=str(folder / "runs")))
    best = run.folder / "best"
    assert json.loads((best / "config.json").read_text())["value_range"] == pytest.approx(shown, abs=1.5)
    for to in ("onnx", "openvino"):
        export(str(best), to=to, out=str(folder), speed=False)
    return [str(best), str(folder / "run.onnx"), str(folder / "run.xml")]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    main(list(arguments))
    return json.loads(capsys.readouterr().out)


def served(source: str, photo: Path) -> dict[str, Any]:
    """The server's result for a photo, without its name."""

    async def ask() -> dict[str, Any]:
        metrics = Metrics()
        app = make_app(open_service(source, open_predictor(source), Limits(), metrics), metrics)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client,
        ):
            reply = await client.post("/predict", content=photo.read_bytes(), headers={"Content-Type": "image/*"})
            return reply.json()["results"][0]

    return asyncio.run(ask())


@pytest.mark.long
def test_a_classifiers_range_holds_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    levels = {"cold": 0.0, "mild": 0.4, "warm": 1.0}
    for c, (name, level) in enumerate(levels.items()):
        for i in range(12):
            save(degrees(level, 100 * c + i), tmp_path / "photos" / name / str(i))

    def draw(folder: Path, shown: tuple[float, float] | None) -> None:
        """New photos without warm ones: their own range would be another one."""
        for c, level in enumerate((0.1, 0.35)):
            for i in range(4):
                save(degrees(level, 900 + 10 * c + i), folder / ("cold", "mild")[c] / str(i), shown)

    sources = trained(replace(classification_recipe(tmp_path / "photos"), epochs=4), tmp_path, (-40, 160))
    exact = tuple(json.loads(Path(sources[0], "config.json").read_text())["value_range"])
    both(tmp_path, draw, exact)
    for source in sources:
        found = [asked(capsys, "predict", source, place, "--format", "json") for place in ("deep", "twin")]
        assert [each["classes"] for each in found[0]] == [each["classes"] for each in found[1]], source
        scores = [asked(capsys, "eval", source, "--data", place, "--json", "-") for place in ("deep", "twin")]
        assert scores[0] == scores[1], source
        deep, twin = served(source, Path("deep/cold/0.tif")), served(source, Path("twin/cold/0.png"))
        assert deep["classes"] == twin["classes"]
    best = sources[0]
    explained = [
        asked(
            capsys,
            "explain",
            best,
            f"{place}/cold",
            "--out",
            f"x-{place}",
            "--layer",
            "3",
            "--no-check",
            "--format",
            "json",
        )
        for place in ("deep", "twin")
    ]
    scores = [[each["score"] for each in found["explanations"]] for found in explained]
    assert scores[0] == scores[1]
    model = open_model(best)
    features = [embed([place], model, best, 8, 0, 10**6).values for place in ("deep", "twin")]
    assert np.array_equal(features[0], features[1])
    for place in ("deep", "twin"):
        main(["analyse", "gates", best, "--data", place, "--out", f"a-{place}"])
    assert Path("a-deep/gates.csv").read_text() == Path("a-twin/gates.csv").read_text()


@pytest.mark.long
def test_a_segmenters_range_holds_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def scene(root: Path, level: float, i: int, shown: tuple[float, float] | None = None) -> None:
        ids = np.zeros((40, 56), np.uint8)
        ids[20:] = 1
        stored = degrees(0.0, i, ids.shape)
        stored[20:] = degrees(level, i, ids.shape)[20:]
        save(stored, root / "images" / str(i), shown)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(root / "masks" / f"{i}.png")

    for i in range(16):
        scene(tmp_path / "set", 1.0, i)
    recipe = replace(segmentation_recipe(tmp_path / "set"), classes=("sky", "ground"), ignore_index=(255,))
    sources = trained(recipe, tmp_path, (-40, 160))
    exact = tuple(json.loads(Path(sources[0], "config.json").read_text())["value_range"])

    def draw(folder: Path, shown: tuple[float, float] | None) -> None:
        for i in range(3):
            scene(folder, 0.5, 50 + i, shown)

    both(tmp_path, draw, exact)
    for number, source in enumerate(sources):
        found = []
        for place in ("deep", "twin"):
            out = f"{place}-{number}"
            main(["predict", source, f"{place}/images", "--out", out])
            found.append([np.asarray(Image.open(file)) for file in sorted(Path(out).glob("*.mask.png"))])
        assert all(map(np.array_equal, *found)), source
        scores = [asked(capsys, "eval", source, "--data", place, "--json", "-") for place in ("deep", "twin")]
        assert scores[0] == scores[1], source
        deep, twin = served(source, Path("deep/images/50.tif")), served(source, Path("twin/images/50.png"))
        assert deep["shares"] == twin["shares"]
