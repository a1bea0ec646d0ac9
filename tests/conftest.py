"""Small sets of synthetic photos, and a small recipe to train on them."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small: a second thread costs more than it gives

import numpy as np
import pytest
from PIL import Image

from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.detection.recipes import DetectionRecipe
from dmformer.tasks.segmentation.recipes import SegmentationRecipe

if TYPE_CHECKING:
    from dmformer.train.loop import Run

COLOURS = {"red car": (200, 40, 40), "grünes Haus": (40, 180, 60), "蓝天": (40, 60, 210)}


def make_photo(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Noise around a colour."""
    noise = np.random.default_rng(seed).normal(0, 30, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def _join(rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")


def _call(port: int, function: Callable[..., Any], arguments: tuple) -> Any:
    os.environ["MASTER_PORT"] = str(port)
    result = function(*arguments)
    from accelerate.state import AcceleratorState, PartialState

    PartialState().destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    return result


LONGEST = [
    "models",
    "train",
    "bench",
    "export",
    "triton",
    "detection_train",
    "detection_export",
    "runs",
    "segmentation",
    "scale",
    "explain",
    "detection_rcnn",
    "serve",
]
"""Files of 20 seconds or more, from the longest: on two cores, each of them would keep one waiting at the end."""


@pytest.hookimpl(tryfirst=True)  # before the selection by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; and long tests are slow ones, which -m "not slow" leaves out."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one process, as its tests share what takes long to make; and the order is the one above."""
    from xdist.scheduler import LoadFileScheduling

    if config.option.dist != "load":  # another --dist is asked for
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def rendered_plots() -> Iterator[Callable[[], AbstractContextManager]]:
    """Leave out matplotlib's rendering, which takes longer than most trainings, except within `with rendered_plots():`.

    The plots are still built from the run's history and scores.
    """
    from dmformer.report import page

    render = page.render
    with patch.object(page, "render", lambda figure: b"<svg/>"):
        yield lambda: patch.object(page, "render", render)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Callable[..., list]]:
    """Call a function in two processes on the CPU, connected as torchrun connects them; returns both results.

    The processes are started once, by a server that has imported PyTorch: that takes longer than most trainings.
    """
    pools: list[ProcessPoolExecutor] = []

    def close() -> None:
        while pools:
            pool = pools.pop()
            for process in pool._processes.values():
                process.kill()  # a training would save its state at SIGTERM, and wait for the other process to do so
            pool.shutdown()

    def call(function: Callable[..., Any], *arguments: Any) -> list:
        if not pools:
            server = get_context("forkserver")
            server.set_forkserver_preload(["dmformer.train.loop"])
            pools.extend(ProcessPoolExecutor(1, server, initializer=_join, initargs=(rank,)) for rank in range(2))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        results = [pool.submit(_call, port, function, arguments) for pool in pools]
        try:
            wait(results, return_when=FIRST_EXCEPTION)
            [result.result() for result in results if result.done()]  # raises what one of them raised
            return [result.result() for result in results]
        except BaseException:
            close()  # the other process would wait for the one that failed
            raise

    yield call
    close()


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache queries PyTorch's teacher, in float32: to compile another takes longer than most trainings."""
    from dmformer.tasks.classification.distillation import distillation

    monkeypatch.setattr(distillation, "quick_on_cpu", lambda teacher, threads: teacher)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of twelve photos each, in folders with spaces and non-Latin letters."""
    return draw_photos(tmp_path)


def draw_photos(folder: Path) -> Path:
    for c, (name, colour) in enumerate(COLOURS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            make_photo(colour, 100 * c + i).save(folder / "photos" / name / f"{i}.png")
    return folder / "photos"


@pytest.fixture
def recipe(photos: Path) -> ClassificationRecipe:
    """Two epochs of a very small DMFormer on `photos`."""
    return classification_recipe(photos)


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run of `recipe` with eight epochs, without mixup, trained once: tests only read its folder, or copy it."""
    from dmformer.train.loop import train

    recipe = classification_recipe(draw_photos(tmp_path_factory.mktemp("trained")))
    return train(replace(recipe, epochs=8, mixup=0.0))


def classification_recipe(photos: Path) -> ClassificationRecipe:
    return ClassificationRecipe(
        precision="no",
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        data=str(photos),
        image_size=32,
        crop_scale=(0.5, 1.0),
        epochs=2,
        batch_size=8,
        lr=2e-3,
        lr_batch=8,
        warmup_epochs=0.5,
        drop_path_rate=0.1,
        mixup=0.2,
        ema=0.9,
        workers=0,
        out=str(photos.parent / "runs"),
        name="run",
        tracker="none",
    )


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Scenes of sky, ground and sometimes a box, in ADE20K's layout; 3 is unlabelled."""
    return draw_scenes(tmp_path)


def draw_scenes(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, n in (("training", 10), ("validation", 4), ("test", 5)):
        for kind in ("images", "annotations"):
            (folder / "scenes" / kind / split).mkdir(parents=True)
        for i in range(n):
            height, width = (48, 64) if i % 2 else (40, 56)
            ids = np.ones((height, width), np.uint8)
            ids[: height // 2] = 0
            ids[height // 2 - 1] = 3
            if i % 3:
                ids[10:30, 8 + i : 24 + i] = 2
            colours = np.array([(90, 140, 230), (60, 160, 60), (200, 60, 50), (0, 0, 0)])[ids]
            noisy = (colours + generator.normal(0, 12, colours.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "scenes" / "images" / split / f"{i}.png")
            Image.fromarray(ids).save(folder / "scenes" / "annotations" / split / f"{i}.png")
    return folder / "scenes"


@pytest.fixture
def mask_recipe(scenes: Path) -> SegmentationRecipe:
    """Twelve iterations, in two validation intervals of six, of a very small DMFormer with Semantic FPN on `scenes`."""
    return segmentation_recipe(scenes)


@pytest.fixture(scope="session")
def trained_segmenter(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run of `mask_recipe`, trained once: tests only read its folder, or copy it."""
    from dmformer.train.loop import train

    return train(segmentation_recipe(draw_scenes(tmp_path_factory.mktemp("trained"))))


def segmentation_recipe(scenes: Path) -> SegmentationRecipe:
    return SegmentationRecipe(
        precision="no",
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        width=64,
        data=str(scenes),
        classes=("sky", "ground", "box"),
        ignore_index=(3,),
        image_size=32,
        scale=(0.8, 1.2),
        iterations=12,
        validate_every=6,
        batch_size=4,
        lr=3e-3,
        lr_batch=4,
        warmup_iterations=2,
        ema=0.9,
        workers=0,
        out=str(scenes.parent / "runs"),
        name="run",
        tracker="none",
    )


SHAPES = {"red box": (210, 40, 40), "blue box": (50, 60, 210)}


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Photos of grey noise with up to three coloured boxes (one photo has none), in COCO's format with masks."""
    return draw_shapes(tmp_path)


def draw_shapes(folder: Path) -> Path:
    root = folder / "shapes"
    random = np.random.default_rng(0)
    for split, first, n in (("train", 1, 8), ("val", 101, 4), ("test", 201, 4)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(n):
            width, height = (96, 64) if i % 2 else (64, 80)
            pixels = random.normal(128, 12, (height, width, 3))
            for k in range(i % 4):
                left, upper = 4 + 22 * k, int(random.integers(2, 30))
                label = int(random.integers(2))
                sides = random.integers(14, 21, 2)
                right, lower = min(left + int(sides[0]), width), min(upper + int(sides[1]), height)
                pixels[upper:lower, left:right] = list(SHAPES.values())[label]
                box = [left, upper, right - left, lower - upper]
                outline = [left, upper, right, upper, right, lower, left, lower]
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": first + i, "category_id": (3, 8)[label], "bbox": box, "iscrowd": 0}
                    | {"area": box[2] * box[3], "segmentation": [outline]}
                )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"{first + i}.png")
            images.append({"id": first + i, "file_name": f"{first + i}.png", "width": width, "height": height})
        categories = [{"id": number, "name": name} for number, name in zip((3, 8), SHAPES, strict=True)]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (root / f"instances_{split}.json").write_text(text)
    return root


@pytest.fixture
def box_recipe(shapes: Path) -> DetectionRecipe:
    """Two epochs of a very small DMFormer with RetinaNet on `shapes`."""
    return detection_recipe(shapes)


@pytest.fixture(scope="session")
def trained_detector(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run of `box_recipe`, trained once: tests only read its folder, or copy it."""
    from dmformer.train.loop import train

    return train(detection_recipe(draw_shapes(tmp_path_factory.mktemp("trained"))))


def detection_recipe(shapes: Path) -> DetectionRecipe:
    return DetectionRecipe(
        precision="no",
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        framework="retinanet",
        width=64,
        data=str(shapes),
        image_size=64,
        max_side=128,
        sides=(48, 64),
        epochs=2,
        schedule="cosine",
        warmup_iterations=1,
        batch_size=2,
        lr=3e-3,
        lr_batch=2,
        ema=0.9,
        workers=0,
        out=str(shapes.parent / "runs"),
        name="run",
        tracker="none",
    )


@pytest.fixture
def shared_data() -> Path:
    """The folder of real photos, if there is one."""
    place = os.environ.get("DMFORMER_DATA")
    if not place:
        pytest.skip("DMFORMER_DATA is not set: it names the folder of real photos")
    return Path(place)
