"""Exported detectors find what the run finds, carry their metadata, and run without PyTorch."""

import asyncio
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_export import CARD as CLASSES_CARD
from test_export import bad, photo
from test_serve import encoded, form, serving
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

import dmformer.export.write
from dmformer.data.detections import Detections, select
from dmformer.data.pasting import pasted
from dmformer.data.selection import Selection
from dmformer.export.check import box_difference, in_numpy, object_difference
from dmformer.export.formats import export_onnx, export_openvino
from dmformer.export.kinds import KINDS, as_scored
from dmformer.export.write import export
from dmformer.nn.fuse import fuse
from dmformer.predict.boxes import predict_boxes
from dmformer.runtimes.card import Boxes, Card
from dmformer.runtimes.exported import ExportedDetector, open_exported
from dmformer.runtimes.sessions import Session, to_onnxruntime
from dmformer.tasks.detection.detector import Detector, DetectorConfig, open_detector, save_detector
from dmformer.tasks.detection.evaluate import evaluate_boxes
from dmformer.tasks.detection.frameworks.base import DetectionModel
from dmformer.tasks.detection.frameworks.dense import DenseDetector
from dmformer.tasks.detection.frameworks.regions import suppressed
from dmformer.utils.errors import UserError

TINY = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_scale": 1.0}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAMES, IDS = ("red car", "grünes Haus", "蓝天"), (7, 1, 90)
BOXES = Boxes(
    category_ids=[3, 5],
    side=64,
    max_side=128,
    filled=True,
    strides=[32, 64],
    per_place=2,
    queries=None,
    selection=Selection(threshold=0.3, per_level=None, iou=0.5, most=10),
)
CARD = Card(
    name="run",
    task="detection",
    architecture="dmformer_n+retinanet",
    class_names=["a", "蓝天"],
    mean=[*MEAN],
    std=[*STD],
    image_size=None,
    palette=[(1, 2, 3), (4, 5, 6)],
    boxes=BOXES,
)


def small_detector(framework: str) -> Detector:
    """A small untrained detector whose norms have seen the statistics of photos."""
    config = DetectorConfig(
        backbone="dmformer_n",
        backbone_args=dict(TINY),
        framework=framework,
        masks=framework == "mask_rcnn",
        width=32 if framework == "retinanet" else None,
        samples=None,
        queries={"dino": 40, "sparse_rcnn": 40, "mask_rcnn": 12, "cascade_rcnn": 12}.get(framework),
        class_names=NAMES,
        category_ids=IDS,
        mean=MEAN,
        std=STD,
        image_size=96,
        max_side=160,
    )
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for _ in range(10):
            model.backbone_module().train()(torch.randn(4, 3, 64, 64))
    return Detector(model.eval(), config, "run")


@pytest.fixture(scope="module")
def retinanet() -> Detector:
    """A RetinaNet that finds many objects of all classes."""
    detector = small_detector("retinanet")
    head = detector.model.get_submodule("head")
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
        head.get_parameter("classification_head.cls_logits.weight").mul_(0.3)
        head.get_parameter("classification_head.cls_logits.bias").fill_(-2)
        head.get_parameter("regression_head.bbox_reg.weight").mul_(0.1)
    return detector


@pytest.fixture(scope="module")
def runs(retinanet, tmp_path_factory) -> Path:
    """The best/ folder of the RetinaNet, and the ONNX and OpenVINO files exported from it."""
    folder = tmp_path_factory.mktemp("runs")
    save_detector(folder / "run" / "best", retinanet.config, retinanet.model.state_dict())
    written = export(str(folder / "run"), out=str(folder / "boxes.onnx"), speed=False)
    assert [(a.height, a.width, a.batch) for a in written.agreements] == [
        *((h, w, b) for h, w in ((256, 320), (192, 320), (256, 416)) for b in (1, 3)),
        (96, 128, 1),
    ]
    assert max(a.difference for a in written.agreements) < 1e-5
    assert not written.fixed_size
    export_openvino(written.path, folder / "boxes.xml", written.card.to_metadata())
    return folder


def near(found: Detections, expected: Detections, size: tuple[int, int]) -> None:
    """Boxes to a thousandth of the photo, scores to a thousandth."""
    assert np.array_equal(found.labels, expected.labels)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert np.abs(found.scores - expected.scores).max() < 1e-3
    assert (np.abs(found.boxes - expected.boxes) / np.array([*size, *size])).max() < 1e-3


@pytest.mark.parametrize("file", ["boxes.onnx", "boxes.xml"])
@pytest.mark.export
@pytest.mark.slow
def test_file_detects_what_the_run_detects(runs, retinanet, file):
    exported: Any = open_exported(str(runs / file), 1)
    assert (exported.task, exported.name, exported.class_names) == ("detection", "run", list(NAMES))
    assert (exported.category_ids, exported.palette) == (list(IDS), retinanet.palette)
    for size in ((120, 90), (61, 97), (40, 200), (33, 33), (96, 96)):
        image = photo(*size, seed=3)
        expected, found = retinanet.detect(image), exported.detect(image)
        assert len(expected) > 20
        assert len(set(expected.labels)) == 3
        assert expected.scores.max() > 1.4 * expected.scores.min()
        near(found, expected, size)
    merged, image = exported.answering("flip"), photo(61, 97, seed=3)
    found = merged.detect(image)
    near(found, retinanet.answering("flip").detect(image), image.size)
    assert not np.allclose(found.scores[:20], exported.detect(image).scores[:20], atol=1e-3)
    (scored,) = as_scored(merged).model([torch.from_numpy(merged.prepare(image))])
    assert scored["scores"].tolist() == found.scores.tolist()


@pytest.mark.export
@pytest.mark.slow
def test_file_describes_itself(runs):
    model = onnx.load(runs / "boxes.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert (said["task"], said["architecture"], said["image_size"]) == ("detection", "dmformer_n+retinanet", None)
    assert said["boxes"] == {
        "category_ids": list(IDS),
        "side": 96,
        "max_side": 160,
        "filled": True,
        "any_size": False,
        "strides": [8, 16, 32, 64, 128],
        "per_place": 9,
        "queries": None,
        "mask_side": None,
        "selection": {"threshold": 0.05, "per_level": 1000, "iou": 0.5, "most": 100},
    }
    assert [output.name for output in model.graph.output] == ["candidates"]
    dimensions = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions[1] == 3
    assert all(isinstance(dimensions[i], str) for i in (0, 2, 3))


@pytest.mark.export
@pytest.mark.slow
def test_file_scores_as_the_run_does(runs, retinanet, tmp_path):
    """The objects that the RetinaNet finds on the first photo serve as ground truth for all three."""
    (tmp_path / "images").mkdir()
    images, objects = [], []
    for i, size in enumerate(((90, 70), (70, 90), (64, 48)), 1):
        picture = photo(*size, seed=i)
        picture.save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
        found = retinanet.detect(photo(*size, seed=1))
        for (left, upper, right, lower), label in zip(found.boxes[:9].tolist(), found.labels[:9].tolist(), strict=True):
            box = [left, upper, right - left, lower - upper]
            objects.append({"image_id": i, "category_id": IDS[label], "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)]
    rows = [{"id": i, "iscrowd": 0, **row} for i, row in enumerate(objects, 1)]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": images, "categories": categories, "annotations": rows}))
    where = {"data": str(truth), "images": str(tmp_path / "images"), "workers": 0, "max_broken": 1.0}
    expected = evaluate_boxes(retinanet, **where)
    scored: Any = as_scored(open_exported(str(runs / "boxes.onnx"), 1))
    found = evaluate_boxes(scored, **where)
    assert 0.05 < expected.boxes.ap < 0.95
    assert found.boxes.ap == pytest.approx(expected.boxes.ap, abs=1e-6)


@pytest.mark.export
@pytest.mark.slow
def test_command_uses_files_without_torch(runs, tmp_path):
    photo(90, 70).save(tmp_path / "a.png")
    code = (
        "import sys, dmformer_command\n"
        "sys.argv = ['dmformer', 'predict', *sys.argv[1:]]\n"
        "dmformer_command.main()\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'"
    )
    for file in ("boxes.onnx", "boxes.xml"):
        command = [sys.executable, "-c", code, runs / file, tmp_path / "a.png", "--out", tmp_path / file]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        listed = json.loads((tmp_path / file / "detections.json").read_text())["annotations"]
        (again,) = predict_boxes(str(runs / file), [str(tmp_path / "a.png")], str(tmp_path / "again"), overwrite=True)
        assert [(row["bbox"], row["category_id"]) for row in listed] == [
            (row["bbox"], row["category_id"]) for row in again.objects
        ]
        assert len(listed) > 3


@pytest.mark.export
@pytest.mark.slow
def test_file_is_served(runs):
    predictor: Any = open_exported(str(runs / "boxes.onnx"), 1)
    image = photo(90, 70)

    async def ask() -> None:
        async with serving(predictor, source="boxes.onnx") as client:
            answer = await client.post("/predict?threshold=0.5&overlay=1", files=form(encoded(image)))
            (result,) = answer.json()["results"]
            expected = predictor.detect(image).above(0.5)
            assert len(expected) > 3
            assert [row["class"] for row in result["objects"]] == [NAMES[i] for i in expected.labels]
            assert [row["box"] for row in result["objects"]] == [
                pytest.approx(box, abs=0.01) for box in expected.boxes.tolist()
            ]

    asyncio.run(ask())


@pytest.mark.export
@pytest.mark.slow
def test_a_file_that_disagrees_is_not_kept(runs, tmp_path, monkeypatch):
    real = dmformer.export.write.open_file

    def slightly_wrong(*args):
        def run(images: np.ndarray) -> np.ndarray:
            found = np.array(open_file(images))
            found[-1, 17, 6] += 2e-3 * (images.shape[3] == 416)
            return found

        open_file = real(*args)
        return run

    monkeypatch.setattr(dmformer.export.write, "open_file", slightly_wrong)
    monkeypatch.setattr(
        dmformer.export.write, "_write", lambda *args: shutil.copyfile(runs / "boxes.onnx", args[2]) and None
    )
    with pytest.raises(UserError, match=r"2.0e-03 of an image's side or of a score of 1 at 256 x 416 px.*Nothing was"):
        export(str(runs / "run"), out=str(tmp_path), speed=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.export
@pytest.mark.slow
def test_speeds_are_measured_at_the_models_own_size(runs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(dmformer.export.write, "speeds", lambda one, other, batches: asked.extend(batches) or [])
    monkeypatch.setattr(
        dmformer.export.write, "_write", lambda *args: shutil.copyfile(runs / "boxes.onnx", args[2]) and None
    )
    export(str(runs / "run"), out=str(tmp_path))
    assert [batch.shape for batch in asked] == [(1, 3, 96, 128)]


def test_box_difference():
    expected = np.zeros((1, 40, 6), np.float32)
    expected[..., :4], expected[..., 4:] = (0.1, 0.2, 1.4, 0.9), 0.5
    answer = expected.copy()
    answer[0, 3, 2], answer[0, 5, 0] = 3.0, 0.102
    assert box_difference(expected, answer, queries=False) == pytest.approx(0.002, abs=1e-6)  # 3 and 1.4 are clipped
    answer[0, 7, 5] = 0.7
    assert box_difference(expected, answer, queries=False) == pytest.approx(0.2)
    assert box_difference(expected, answer, queries=True) < 0.003  # one candidate in twenty may be anything
    answer[0, 8:10, 5] = 0.7
    assert box_difference(expected, answer, queries=True) == pytest.approx(0.2)
    answer[0, 0, 0] = np.nan
    assert box_difference(expected, answer, queries=True) == math.inf
    assert box_difference(expected, expected[:, 1:], queries=False) == math.inf
    moved = np.linspace(0, 0.9, 40 * 6, dtype=np.float32).reshape(1, 40, 6)
    assert box_difference(moved, moved[:, ::-1], queries=False, selected=True) == 0
    extra = moved.copy()
    extra[0, 3:9] = extra[0, 2]  # six objects are missing
    assert box_difference(moved, extra, queries=True, selected=True) > 0.01
    assert box_difference(extra, moved, queries=True, selected=True) > 0.01


def test_object_difference():
    """Three objects of 2 classes with masks of one value; below them, one more that they suppress."""
    own = np.zeros((5, 7), np.float32)
    own[0] = (0.1, 0.1, 0.3, 0.3, 0.9, 0, 0.6)
    own[1] = (0.5, 0.5, 0.9, 0.9, 0, 0.7, 0.2)
    own[2] = (0.6, 0.1, 0.7, 0.2, 0.0504, 0, 0.5)  # at the threshold
    like = np.array([[0.11, 0.1, 0.31, 0.3, 0.8, 0, np.nan]], np.float32)
    expected = np.concatenate([own, own[:3], like])[None]

    def apart(answer: np.ndarray, expected: np.ndarray = expected) -> float:
        return object_difference(expected, answer[None], classes=2, threshold=0.05)

    assert apart(own) == 0
    answer = own.copy()
    answer[1, 2] += 2e-3
    assert apart(answer) > 1e-3
    answer = own.copy()
    answer[1, 6] += 0.1  # in its mask
    assert apart(answer) == pytest.approx(0.09, abs=1e-3)  # the largest but a twentieth, interpolated
    answer = own.copy()
    answer[2] = 0  # its score may round below the threshold
    assert apart(answer) == 0
    answer[1] = 0
    assert apart(answer) > 0.1
    answer = own.copy()
    answer[0], answer[0, 6] = like, 0.6  # suppresses the one that PyTorch keeps
    assert apart(answer) == 0
    assert apart(answer, expected[:, :-1]) > 1e-2  # PyTorch has no such object
    answer[0, 4:6] = 0, 0.8  # of another class
    assert apart(answer) > 0.1
    assert apart(own[:, :6]) == math.inf
    assert apart(np.full_like(own, np.nan)) == math.inf
    assert apart(np.zeros_like(own), np.zeros_like(expected)) == 0


@pytest.mark.parametrize("framework", ["mask_rcnn", "cascade_rcnn"])
@pytest.mark.slow
def test_objects_are_selected_from_the_unsuppressed(framework):
    model: Any = small_detector(framework).model
    torch.manual_seed(1)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1)
    model.rpn._pre_nms_top_n = {"testing": 50}
    with torch.inference_mode():
        candidates, every = model.candidates(images := torch.randn(2, 3, 70, 101)), model.unsuppressed(images)
    columns = 4 + model.num_classes
    for rows, of_image in zip(candidates, every, strict=True):
        real = rows[rows[:, 4:columns].amax(1) > 0, :columns]
        assert 5 < len(real) < len(of_image)
        assert torch.cdist(real, of_image, p=float("inf")).amin(1).amax() < 1e-4
        assert of_image[:, 4:].amax(1).min() > model.selection.threshold - 1e-3


def found_by(card: Card, candidates: np.ndarray, image: Image.Image) -> tuple[Detections, np.ndarray]:
    """The objects from a file that outputs these candidates (N, 6), and the image that it received."""
    given = []
    session = Session(lambda images: given.append(images) or candidates[None], lambda: None)
    return ExportedDetector(session, card, "NumPy").detect(image), given[0]


def test_boxes_are_mapped_back_to_the_photo():
    """A photo of 200 x 50 px becomes 128 x 32; one of 50 x 75 becomes 64 x 96, and one of 80 x 100, 64 x 80."""
    for size, shape, count in (((200, 50), (32, 128), 12), ((50, 75), (96, 64), 16), ((80, 100), (96, 64), 16)):
        candidates = np.zeros((count, 6), np.float32)
        candidates[1] = (0.25, 0.5, 0.75, 1.5, 0.1, 0.9)
        candidates[2] = (0.26, 0.5, 0.75, 0.99, 0.1, 0.8)  # of the same class, overlapping
        candidates[-1] = (-0.5, 0, 0.5, 1, 0.4, 0.3)
        found, given = found_by(CARD, candidates, photo(*size))
        assert given.shape == (1, 3, *shape)
        assert found.labels.tolist() == [1, 0]
        assert found.scores.tolist() == pytest.approx([0.9, 0.4])
        width, height = size
        # of the 96 rows for a photo of 80 x 100, 80 belong to the photo
        filled = 96 / 80 if size == (80, 100) else 1
        assert found.boxes[0] == pytest.approx([width / 4, filled * height / 2, 3 * width / 4, height])
        assert found.boxes[1] == pytest.approx([0, 0, width / 2, height])
        if filled > 1:
            assert given[0, :, :80].any()
            assert not given[0, :, 80:].any()


def test_photos_of_a_model_without_padding_become_multiples_of_32():
    """A photo of 80 x 100 px becomes 64 x 80, then 64 x 64 (halves round to even); one of 128 x 16 has 32 rows."""
    boxes = replace(BOXES, filled=False, queries=3, per_place=1)
    for size, shape in (((80, 100), (64, 64)), ((128, 16), (32, 128)), ((80, 110), (96, 64))):
        candidates = np.zeros((3, 6), np.float32)
        candidates[2] = (0.25, 0.5, 0.75, 0.9, 0.1, 0.9)
        found, given = found_by(replace(CARD, boxes=boxes), candidates, photo(*size))
        assert given.shape == (1, 3, *shape)
        width, height = size
        assert found.boxes.tolist() == [pytest.approx([width / 4, height / 2, 3 * width / 4, 0.9 * height])]


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"run has an output of 1 x 13 x 6 for images of 1 x 3 x 32 x 128"):
        found_by(CARD, np.zeros((13, 6), np.float32), photo(200, 50))


@pytest.mark.parametrize("shape", [(50, 70), (71, 50), (96, 128), (20, 25), (301, 40), (1, 90)])
def test_preprocessing_without_torch_equals_the_runs(retinanet, shape):
    card = replace(CARD, boxes=replace(BOXES, side=96, max_side=160))
    image = photo(*shape)
    found = ExportedDetector(Session(lambda x: x, lambda: None), card, "NumPy").prepare(image)
    expected = retinanet.transform()(image).numpy()
    assert found.dtype == expected.dtype
    assert np.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("framework", ["retinanet", "atss", "dino"])
@pytest.mark.export
@pytest.mark.slow
def test_levels_of_a_file_equal_the_models(framework):
    detector = small_detector(framework)
    assert isinstance(detector.model, DenseDetector)
    card = KINDS["boxes"].card(detector, "run", False)
    assert Card.from_metadata(card.to_metadata(), "file") == card
    assert card.boxes is not None
    assert card.boxes.selection == detector.model.selection
    assert card.boxes.filled == (framework != "dino")
    for size in ((32, 32), (96, 160), (224, 64)):
        x = torch.zeros(1, 3, *size)
        assert card.boxes.levels(*size) == detector.model.levels(*size)
        with torch.inference_mode():
            assert sum(card.boxes.levels(*size)) == detector.model.candidates(x).shape[1]


@pytest.mark.parametrize("framework", ["retinanet", "atss", "dino", "mask_rcnn", "cascade_rcnn", "sparse_rcnn"])
@pytest.mark.slow
def test_fused_detectors_agree(framework):
    model: Any = small_detector(framework).model
    fused: Any = fuse(model)
    torch.manual_seed(1)
    images = [torch.randn(3, 64, 64)]
    with torch.inference_mode():
        if isinstance(model, DenseDetector):
            x, sizes = torch.randn(2, 3, 64, 96), [(64, 96), (50, 60)]
            expected, found = model.candidates(x, sizes), fused.candidates(x, sizes)
            assert torch.allclose(found, expected, atol=1e-5)
            assert expected.std() > 1e-3
            return
        expected, found = found_without_threshold(model, images), found_without_threshold(fused, images)
    for a, b in zip(expected, found, strict=True):
        assert len(a["scores"]) > 5
        assert a.keys() == b.keys()
        assert torch.equal(a["labels"], b["labels"])
        assert torch.allclose(a["boxes"] / 64, b["boxes"] / 64, atol=1e-3)
        for key in a.keys() - {"boxes"}:
            assert torch.allclose(a[key], b[key], atol=1e-3)


def found_without_threshold(model: DetectionModel, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """What a model finds among few regions, whatever their scores."""
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
        if hasattr(module, "_post_nms_top_n"):
            module._post_nms_top_n = {"testing": 30}  # type: ignore[assignment]
    found: Any = model(images)
    return found


@pytest.mark.parametrize("framework", ["mask_rcnn", "cascade_rcnn", "sparse_rcnn"])
@pytest.mark.slow
def test_candidates_of_regions_hold_what_the_run_finds(framework):
    """Images that are no multiples of 32, and more regions than found: the fixed number of them changes nothing."""
    model: Any = small_detector(framework).model
    torch.manual_seed(1)
    if framework != "sparse_rcnn":
        for heads in [model.roi_heads] if framework == "mask_rcnn" else model.stages:
            nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.1)
        nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1)
    images, columns = torch.randn(2, 3, 70, 101), 4 + model.num_classes
    with torch.inference_mode():
        expected, candidates = model([*images]), model.candidates(images)
    for one, rows in zip(expected, candidates, strict=True):
        found, places = select(rows[:, :columns].numpy(), model.levels(70, 101), (70, 101), (70, 101), model.selection)
        assert len(found) == len(one["scores"]) > 5
        assert np.array_equal(found.labels, one["labels"])
        assert np.allclose(found.scores, one["scores"], atol=1e-4)
        assert np.quantile(np.abs(found.boxes - one["boxes"].numpy()), 0.9) < 0.05
        if "masks" in one:
            masks = rows[torch.from_numpy(places), columns:].reshape(one["masks"].shape)
            assert (masks - one["masks"]).abs().quantile(0.9) < 1e-3


@pytest.mark.export
@pytest.mark.long
def test_mask_rcnn_is_exported(tmp_path):
    detector = small_detector("mask_rcnn")
    model: Any = detector.model
    torch.manual_seed(1)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1)
    save_detector(tmp_path / "run" / "best", detector.config, model.state_dict())
    written = export(str(tmp_path / "run"), out=str(tmp_path / "boxes.onnx"), speed=False)
    shapes = [(a.height, a.width, a.batch) for a in written.agreements]
    assert shapes == [(256, 320, 2), (205, 333, 1), (96, 128, 1)]
    expected, found = (each.detect(photo(120, 90, seed=3)) for each in (detector, open_exported(str(written.path), 1)))
    assert expected.masks is not None
    assert found.masks is not None
    assert len(expected) > 5
    apart = np.abs(expected.boxes[:, None] - found.boxes).max(-1) + (expected.labels[:, None] != found.labels) * 1e3
    nearest, same = apart.argmin(1), apart.min(1) < 0.1
    assert same.mean() > 0.8
    assert np.abs(expected.scores - found.scores[nearest])[same].max() < 1e-3
    assert (expected.masks == found.masks[nearest])[same].mean() > 0.999


class Suppressing(nn.Module):
    """Images (B, 3, H, W) -> 1 for each of the H boxes in the first 4 columns that suppression leaves, (B, H)."""

    def forward(self, x: Tensor) -> Tensor:
        corner, side = x[:, 0, :, :2], x[:, 0, :, 2:4].abs()
        return suppressed(torch.cat([corner, corner + side], -1), x[:, 1, :, 0], 0.3, 0.2).float()


@pytest.mark.export
@pytest.mark.slow
def test_suppression_in_a_file_equals_pytorchs(tmp_path):
    images = torch.rand(3, 3, 64, 8, generator=torch.Generator().manual_seed(0)).numpy()
    path = export_onnx(Suppressing().eval(), tmp_path / "kept.onnx", (64, 8), dynamic_size=False, metadata={})
    expected, found = in_numpy(Suppressing())(images), to_onnxruntime(path, 1).run(images)
    assert np.array_equal(found, expected)
    assert 0 < expected.sum() < (images[:, 1, :, 0] > 0.2).sum()


@pytest.mark.parametrize("box", [(3.2, 4.1, 20.7, 11.9), (-6.0, 5.5, 9.0, 40.0), (30.0, 2.0, 30.2, 2.1)])
def test_masks_are_pasted_as_by_torchvision(box):
    mask = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = paste_masks_in_image(mask, torch.tensor([box]), (30, 41))[0, 0] >= 0.5
    assert expected.any()
    assert np.array_equal(pasted(mask[0, 0].numpy(), np.array(box, np.float32), (30, 41)), expected)


def test_card_round_trip():
    assert Card.from_metadata(CARD.to_metadata(), "file") == CARD
    queries = replace(CARD, boxes=replace(BOXES, queries=900, per_place=1, selection=Selection(0.0, None, None, 300)))
    assert Card.from_metadata(queries.to_metadata(), "file") == queries
    own = replace(BOXES, strides=[], queries=9, any_size=True, mask_side=28)
    regions = replace(CARD, boxes=own)
    assert Card.from_metadata(regions.to_metadata(), "file") == regions
    assert own.levels(32, 32) == [9]


def test_files_from_before_detectors_are_read():
    metadata = CLASSES_CARD.to_metadata()
    del metadata["boxes"]
    assert Card.from_metadata(metadata, "file") == CLASSES_CARD


WRONG = {
    "no ids": {"category_ids": []},
    "too few ids": {"category_ids": [3]},
    "one id twice": {"category_ids": [3, 3]},
    "an id that is no number": {"category_ids": [3, "5"]},
    "an id too large": {"category_ids": [3, 2**53]},
    "an id that is true": {"category_ids": [3, True]},
    "ids that are text": {"category_ids": "35"},
    "side": {"side": 0},
    "side too large": {"side": 20_000},
    "side half a pixel": {"side": 64.5},
    "max_side": {"max_side": None},
    "filled": {"filled": 1},
    "no strides": {"strides": []},
    "a stride of nothing": {"strides": [32, 0]},
    "a stride below nothing": {"strides": [-32]},
    "a stride too large": {"strides": [32, 10**9]},
    "too many strides": {"strides": [32] * 17},
    "per_place": {"per_place": 0},
    "per_place too many": {"per_place": 10**7},
    "queries": {"queries": -1},
    "any_size": {"any_size": 1},
    "mask_side": {"mask_side": 0},
    "threshold": {"selection": {"threshold": 2, "per_level": None, "iou": 0.5, "most": 10}},
    "threshold no number": {"selection": {"threshold": math.nan, "per_level": None, "iou": 0.5, "most": 10}},
    "per_level": {"selection": {"threshold": 0.3, "per_level": 0, "iou": 0.5, "most": 10}},
    "iou": {"selection": {"threshold": 0.3, "per_level": None, "iou": -0.5, "most": 10}},
    "most": {"selection": {"threshold": 0.3, "per_level": None, "iou": 0.5, "most": 10**9}},
    "unknown in the selection": {"selection": {"threshold": 0.3, "per_level": None, "iou": 0.5, "most": 1, "x": 1}},
    "missing in the selection": {"selection": {"threshold": 0.3, "per_level": None, "iou": 0.5}},
    "no selection": {"selection": None},
    "unknown": {"x": 1},
}


@pytest.mark.parametrize("case", WRONG)
def test_untrusted_metadata_is_checked(case):
    metadata = CARD.to_metadata()
    boxes = json.dumps({**json.loads(metadata["boxes"]), **WRONG[case]})
    with pytest.raises(UserError, match=r"model.onnx was not written by `dmformer export`, or is damaged"):
        Card.from_metadata({**metadata, "boxes": boxes}, "model.onnx")


@pytest.mark.parametrize(
    "wrong",
    [
        {"boxes": "null"},
        {"boxes": "[]"},
        {"boxes": '"side"'},
        {"boxes": "{"},
        {"task": '"segmentation"'},
        {"task": '"classification"', "image_size": "[32, 32]"},
        {"image_size": "[32, 32]"},
        {"preprocessing": "true"},
        {"palette": "null"},
        {"palette": "[[0, 0, 0]]"},
        {"class_names": '["a"]'},
    ],
)
def test_attributes_must_go_together(wrong):
    with pytest.raises(UserError, match="was not written by"):
        Card.from_metadata({**CARD.to_metadata(), **wrong}, "model.onnx")
    metadata = CARD.to_metadata()
    del metadata["boxes"]
    with pytest.raises(UserError, match="was not written by"):
        Card.from_metadata(metadata, "model.onnx")


@pytest.mark.export
@pytest.mark.slow
def test_mistakes_are_reported_in_one_line(runs, tmp_path, capsys):
    best, data = runs / "run" / "best", tmp_path / "photos"
    data.mkdir()
    photo(90, 70).save(data / "a.png")
    assert "--preprocessing is for classifiers and segmenters" in bad(["export", best, "--preprocessing"], capsys)
    assert "omit --no-dynamic-size" in bad(["export", best, "--no-dynamic-size"], capsys)
    assert "--tta merges a detector's objects outside the graph" in bad(["export", best, "--tta", "flip"], capsys)
    assert "--int8 is for classifiers and segmenters" in bad(["export", best, "--int8", data, "--data", data], capsys)
    other = small_detector("mask_rcnn")
    save_detector(tmp_path / "other", other.config, other.model.state_dict())
    told = bad(["export", tmp_path / "other", "--to", "pt2"], capsys)
    assert "mask_rcnn contains suppression" in told
    assert "export it --to onnx or openvino" in told
    other = small_detector("sparse_rcnn")
    save_detector(tmp_path / "sparse", other.config, other.model.state_dict())
    assert "RoIAlign, which PyTorch without Python" in bad(["export", tmp_path / "sparse", "--to", "aoti"], capsys)
    assert open_detector(str(best)).name == "run"
