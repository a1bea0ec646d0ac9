"""Training, evaluating and predicting with detectors: from a recipe to the run folder and its use."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPES
from PIL import Image
from torch import nn

import dmformer.models  # noqa: F401 (registers them with timm)
from dmformer.cli import main
from dmformer.data.detections import Detections, coco_results
from dmformer.predict import load
from dmformer.predict.boxes import predict_boxes
from dmformer.tasks.build import with_normalisation
from dmformer.tasks.detection.detector import DetectorConfig, open_detector, save_detector
from dmformer.tasks.detection.evaluate import evaluate_boxes, find_objects
from dmformer.tasks.detection.model import FRAMEWORKS
from dmformer.tasks.detection.recipes import DetectionRecipe
from dmformer.tasks.detection.training import DetectionJob
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.train.loop import Run, Stopped, Trainer, train
from dmformer.utils.errors import UserError


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return open_detector(str(folder)).model.state_dict()


def test_a_run_leaves_a_detector_and_a_report(box_recipe: DetectionRecipe, trained_detector: Run) -> None:
    run = trained_detector
    assert run.split == "test"
    found = rows(run.folder)
    assert [float(row["epoch"]) for row in found] == [1, 2]
    assert {"train_classification", "train_bbox_regression", "val_ap", "val_ap50"} <= set(found[0])
    total = float(found[0]["train_classification"]) + float(found[0]["train_bbox_regression"])
    assert float(found[0]["train_loss"]) == pytest.approx(total, rel=1e-4)
    assert run.scores.images == 4
    assert run.scores.objects == 0 + 1 + 2 + 3
    scores = json.loads((run.folder / "scores.json").read_text())
    assert scores["boxes"]["ap"] == run.scores.boxes.ap
    assert "AP" in run.report.read_text()
    recipe = replace(box_recipe, data=str(run.folder.parents[1] / "shapes"), out=str(run.folder.parent))
    assert read_recipe(run.folder / "recipe.yaml") == with_normalisation(recipe)
    detector = open_detector(str(run.folder))
    assert detector.class_names == tuple(SHAPES)
    assert detector.category_ids == (3, 8)
    job = DetectionJob(with_normalisation(recipe))
    loader = job.val_loader(0, 1, False)
    meter, _ = find_objects(detector.model, loader, job.splits.val, torch.device("cpu"), False)
    assert detector.threshold == meter.best_threshold()
    again = evaluate_boxes(detector, box_recipe.data)
    assert again.boxes == run.scores.boxes
    said: list[str] = []
    assert evaluate_boxes(str(run.folder), say=said.append).boxes == run.scores.boxes
    assert said[0] == f"scoring the test photos of the run, from {recipe.data}"
    listed = json.loads((run.folder / "detections.json").read_text())
    assert {row["image_id"] for row in listed} <= {201, 202, 203, 204}
    assert {row["category_id"] for row in listed} <= {3, 8}


@pytest.mark.slow
@pytest.mark.long
def test_it_learns(box_recipe: DetectionRecipe) -> None:
    """After a quarter of a minute of training, the detector finds coloured boxes on grey noise."""
    recipe = replace(box_recipe, framework="atss", epochs=50, validate_every=50, sides=(96,), image_size=96)
    recipe = replace(recipe, max_side=160)
    run = train(recipe)
    photos = Path(recipe.data) / "train"
    said: list[str] = []
    annotations = str(photos.parent / "instances_train.json")
    scores = evaluate_boxes(str(run.folder), annotations, str(photos), say=said.append)
    count = len(list(photos.iterdir()))
    assert f"the run was trained on {count} of these {count} photos: scores on them prove nothing" in said
    assert scores.boxes.ap50 is not None
    assert scores.boxes.ap50 > 0.7


@pytest.mark.parametrize("framework", ["mask_rcnn", "cascade_rcnn"])
@pytest.mark.slow
def test_masks_are_learned_and_scored(box_recipe: DetectionRecipe, framework: Any) -> None:
    recipe = replace(box_recipe, framework=framework, width=None, samples=8, queries=8, epochs=1)
    run = train(recipe)
    assert "val_mask_ap" in rows(run.folder)[0]
    assert run.scores.masks is not None
    detector = open_detector(str(run.folder))
    assert detector.config.masks
    found = detector.detect(Image.new("RGB", (70, 50), (128, 128, 128)))
    assert found.masks is not None
    assert found.masks.shape[1:] == (50, 70)


@pytest.mark.parametrize("framework", ["sparse_rcnn", "dino"])
@pytest.mark.slow
def test_detectors_of_queries_are_trained(box_recipe: DetectionRecipe, framework: Any) -> None:
    recipe = replace(box_recipe, framework=framework, width=None, queries=10, epochs=1)
    run = train(recipe)
    assert run.scores.boxes.ap is not None
    assert len(open_detector(str(run.folder)).detect(Image.new("RGB", (64, 64)))) > 0


def test_boxes_alone_make_it_faster_rcnn(box_recipe: DetectionRecipe, shapes: Path) -> None:
    for split in ("train", "val", "test"):
        file = shapes / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    job = DetectionJob(with_normalisation(replace(box_recipe, framework="mask_rcnn", width=None)))
    assert job.framework == "Faster R-CNN"
    assert any("Faster R-CNN" in note for note in job.notes)
    assert not job.build_model()[0].predicts_masks


@pytest.mark.slow
def test_masks_are_not_validated_where_an_outline_is_missing(box_recipe: DetectionRecipe, shapes: Path) -> None:
    for split in ("val", "test"):
        file = shapes / f"instances_{split}.json"
        content = json.loads(file.read_text())
        del content["annotations"][0]["segmentation"]
        file.write_text(json.dumps(content))
    run = train(replace(box_recipe, framework="mask_rcnn", width=None, samples=8, queries=8, epochs=1))
    assert open_detector(str(run.folder)).config.masks
    assert "val_mask_ap" not in rows(run.folder)[0]
    assert run.scores.masks is None


@pytest.mark.slow
def test_one_class_of_several_is_learned_and_scored(box_recipe: DetectionRecipe) -> None:
    run = train(replace(box_recipe, classes=("blue box",), epochs=1))
    scores = evaluate_boxes(str(run.folder), box_recipe.data)
    assert [c.name for c in scores.classes] == ["blue box"]
    assert scores.boxes == run.scores.boxes


@pytest.mark.slow
def test_a_resumed_run_is_the_run(box_recipe: DetectionRecipe, trained_detector: Run) -> None:
    whole = trained_detector
    trainer = Trainer(replace(box_recipe, name="parted"))

    class Quiet:
        def say(self, text: str) -> None: ...
        def step(self, *_: object) -> None:
            if trainer.progress.epoch == 0 and trainer.progress.step >= 1:
                trainer.stop.append(15)

    with pytest.raises(Stopped):
        trainer.fit(Quiet())  # type: ignore[arg-type]
    parted = train(replace(box_recipe, name="parted", resume=True))
    for name, value in state(whole.folder).items():
        assert torch.equal(value, state(parted.folder)[name]), name
    assert [row["val_ap"] for row in rows(whole.folder)] == [row["val_ap"] for row in rows(parted.folder)]


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(box_recipe: DetectionRecipe, two_processes: Any) -> None:
    """The losses are means over the photos of each process, so only values over all photos agree: the scores."""
    recipe = replace(box_recipe, batch_size=1, epochs=1, name="two", ema=None)
    two_processes(train, recipe)
    folder = Path(recipe.out) / "two"
    val = [str(Path(recipe.data) / f"{part}") for part in ("instances_val.json", "val")]
    scores = evaluate_boxes(str(folder), val[0], val[1])
    assert float(rows(folder)[0]["val_ap"]) == pytest.approx(scores.boxes.ap, abs=1e-5)
    assert float(rows(folder)[0]["val_ap50"]) == pytest.approx(scores.boxes.ap50, abs=1e-5)


@pytest.mark.slow
def test_frozen_stages_and_kept_statistics(box_recipe: DetectionRecipe, trained_detector: Run) -> None:
    first = trained_detector
    recipe = replace(
        box_recipe, weights=str(first.folder), freeze=2, norm_statistics="kept", epochs=1, name="frozen", ema=None
    )
    second = train(recipe)
    before, after = state(first.folder), state(second.folder)
    parts = tuple(f"pyramid.backbone.{part}" for part in ("stem", "stages_0", "stages_1"))
    frozen = [name for name in before if name.startswith(parts)]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    statistics = [n for n in before if n.startswith("pyramid.backbone") and "running" in n]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["pyramid.fpn.inner_blocks.0.0.weight"], after["pyramid.fpn.inner_blocks.0.0.weight"])


@pytest.mark.slow
def test_weights_of_another_detector_are_continued(box_recipe: DetectionRecipe, trained_detector: Run) -> None:
    first = trained_detector
    fewer = replace(box_recipe, weights=str(first.folder), classes=("red box",), max_broken=1.0, lr=0.0, name="fewer")
    model = DetectionJob(with_normalisation(fewer)).build_model()[0].state_dict()
    before = state(first.folder)
    different = {name for name in before if before[name].shape != model[name].shape}
    assert different == {f"head.classification_head.cls_logits.{part}" for part in ("weight", "bias")}
    assert all(torch.equal(before[name], model[name]) for name in set(before) - different)
    with pytest.raises(UserError, match="dmformer_n with retinanet: give the same --model and --framework"):
        DetectionJob(with_normalisation(replace(fewer, framework="atss"))).build_model()


def test_the_backbones_rate_is_its_own(box_recipe: DetectionRecipe) -> None:
    trainer = Trainer(replace(box_recipe, backbone_lr=0.1, name="slow", warmup_iterations=0))
    trainer.scheduler.step_update(0)
    inside = {id(p) for p in trainer.bare.backbone_module().parameters()}
    rates = {(id(p) in inside): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert rates[True] == pytest.approx(0.1 * rates[False])
    counted = sum(len(g["params"]) for g in trainer.optimizer.param_groups)
    assert counted == len(list(trainer.bare.parameters()))
    decayed = {g["weight_decay"] for g in trainer.optimizer.param_groups}
    assert decayed == {0.0, trainer.recipe.weight_decay}


@pytest.mark.slow
def test_what_timm_spares_is_not_decayed(box_recipe: DetectionRecipe) -> None:
    small = ("strict_img_size=False", "embed_dim=16", "depths=[1,1,1,1]", "num_heads=[1,2,2,2]")
    swin = replace(box_recipe, model="swin_tiny_patch4_window7_224", model_args=small, name="swin")
    trainer = Trainer(swin)
    decayed = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    tables = [p for n, p in trainer.bare.named_parameters() if n.endswith("relative_position_bias_table")]
    assert tables
    assert not any(id(p) in decayed for p in tables)


def test_learning_rates_drop_where_the_recipe_says(box_recipe: DetectionRecipe) -> None:
    recipe = replace(box_recipe, schedule="steps", epochs=6, validate_every=2, drops=(2, 4), warmup_iterations=0)
    trainer = Trainer(replace(recipe, name="steps"))
    per_pass = trainer.updates // 2
    rates = []
    for update in range(6 * per_pass):
        trainer.scheduler.step_update(update)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    # timm drops one update before the milestone
    assert rates[0] == pytest.approx(recipe.lr)
    assert rates[2 * per_pass] == pytest.approx(recipe.lr / 10)
    assert rates[-1] == pytest.approx(recipe.lr / 100)
    assert rates[2 * per_pass - 2] == pytest.approx(recipe.lr)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("coco_")])
def test_coco_recipes_are_complete(name: str) -> None:
    recipe = RECIPES[name]()
    assert isinstance(recipe, DetectionRecipe)
    replace(recipe, weights="weights").check()
    framework, times = name.removeprefix("coco_").rsplit("_", 1)
    assert recipe.framework == framework
    assert framework in FRAMEWORKS
    assert recipe.epochs == {"1x": 12, "3x": 36}[times]
    if framework != "dino" or times == "3x":
        assert recipe.drops == {"1x": (8, 11), "3x": (27, 33)}[times]
    assert (min(recipe.sides), max(recipe.sides), recipe.lr_batch) == (480, 800, 16)


def test_all_frameworks_have_both_recipes() -> None:
    assert {f"coco_{framework}_{times}" for framework in FRAMEWORKS for times in ("1x", "3x")} <= set(RECIPES)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"queries": 10}, "--queries is for mask_rcnn, cascade_rcnn, sparse_rcnn, dino; this is retinanet"),
        ({"samples": 64}, "--samples is for mask_rcnn, cascade_rcnn"),
        ({"width": 80}, "multiple of 32"),
        ({"width": 32}, "64 or more"),
        ({"epochs": 3, "validate_every": 2}, "not a multiple of --validate-every"),
        ({"schedule": "steps", "drops": (2,)}, "never reached in 2 epochs"),
        ({"drops": (3, 1)}, "ascending order"),
        ({"max_side": 50}, "less than --image-size"),
        ({"shard": True}, "--shard is for classifiers and segmenters"),
        ({"sides": (16,)}, "32 or more"),
        ({"norm_statistics": "kept"}, "needs --weights"),
        ({"data": ""}, "name your photos and their boxes"),
    ],
)
def test_what_cannot_be_meant_is_told(box_recipe: DetectionRecipe, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(box_recipe, **changes).check()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A detector's folder as a run leaves it, with random weights that find something everywhere."""
    config = DetectorConfig(
        backbone="dmformer_n",
        backbone_args={"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        framework="retinanet",
        masks=False,
        width=32,
        samples=None,
        queries=None,
        class_names=tuple(SHAPES),
        category_ids=(3, 8),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        image_size=64,
        max_side=128,
    )
    torch.manual_seed(0)
    values = config.build().state_dict()
    values["head.classification_head.cls_logits.bias"] += 3
    save_detector(tmp_path / "run" / "best", config, values)
    return tmp_path / "run"


def test_predict_draws_and_lists(trained: Path, shapes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    Image.new("RGB", (50, 40), (200, 40, 40)).save(photos / "a.png")
    Image.new("RGB", (30, 60), (40, 40, 200)).save(photos / "sub" / "b.jpg")
    (photos / "torn.png").write_bytes(b"\x89PNG torn")
    out = tmp_path / "out"
    found = {Path(p.name).name: p for p in predict_boxes(str(trained), [str(photos)], str(out), threshold=0.0)}
    assert found["torn.png"].error
    for name, size in (("a", (50, 40)), ("sub/b", (30, 60))):
        with Image.open(out / f"{name}.detections.png") as picture:
            assert picture.size == size
    listed = json.loads((out / "detections.json").read_text())
    assert [Path(i["file_name"]).name for i in listed["images"]] == ["a.png", "b.jpg"]
    assert listed["categories"] == [{"id": 3, "name": "red box"}, {"id": 8, "name": "blue box"}]
    assert len(listed["annotations"]) == sum(len(p.objects) for p in found.values()) > 0
    assert len({a["id"] for a in listed["annotations"]}) == len(listed["annotations"])
    for annotation in listed["annotations"]:
        image = listed["images"][annotation["image_id"] - 1]
        x, y, w, h = annotation["bbox"]
        assert -0.01 <= x <= x + w <= image["width"] + 0.01
        assert -0.01 <= y <= y + h <= image["height"] + 0.01
    with pytest.raises(UserError, match="exists already"):
        list(predict_boxes(str(trained), [str(photos)], str(out)))
    config = trained / "best" / "config.json"
    assert '"threshold": 0.3' in config.read_text()
    every = sorted(each["score"] for p in found.values() for each in p.objects)
    own = every[len(every) // 2]
    config.write_text(config.read_text().replace('"threshold": 0.3', f'"threshold": {own}'))
    above = list(predict_boxes(str(trained), [str(photos)], str(out), threshold=own, overwrite=True))
    chosen = {Path(p.name).name: p for p in predict_boxes(str(trained), [str(photos)], str(out), overwrite=True)}
    assert list(chosen.values()) == above
    assert 0 < sum(len(p.objects) for p in above) < len(every)
    assert len(load(trained).predict(photos / "a.png").scores) == len(chosen["a.png"].objects)


def run_command(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def test_the_commands(trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("eval", trained, "--data", shapes, "--json", tmp_path / "scores.json")
    told = capsys.readouterr().out
    assert "4 images" in told
    assert "AP of boxes" in told
    assert json.loads((tmp_path / "scores.json").read_text())["objects"] == 6
    photo = shapes / "test" / "204.png"
    run_command("predict", trained, photo, "--out", tmp_path / "drawn", "--threshold", 0.01, "--format", "json")
    (answer,) = json.loads(capsys.readouterr().out)
    assert Path(answer["picture"]).is_file()
    assert {"class", "score", "bbox"} <= set(answer["objects"][0])
    again = ("--out", tmp_path / "drawn", "--overwrite")
    run_command("predict", trained, photo, *again, "--threshold", 0.01, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["class"] for row in rows] == [each["class"] for each in answer["objects"]]
    left, _, width, _ = answer["objects"][0]["bbox"]
    assert [float(rows[0]["left"]), float(rows[0]["right"])] == pytest.approx([left, left + width], abs=0.011)
    run_command("predict", trained, photo, *again, "--threshold", 0.99, "--format", "csv")
    assert capsys.readouterr().out.splitlines()[1:] == [f"{photo},,,,,,,"]
    run_command("predict", trained, photo, *again, "--threshold", 0.99)
    assert "204.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("predict", "--threshold", "2"), "must be from 0 to 1"),
        (("predict", "--window", "64"), "--window is for segmenters; this is a detector"),
        (("predict", "--batch-size", "4"), "--batch-size is for classifiers"),
        (("eval", "--data", ".", "--json", "nowhere/scores.json"), "a file cannot be written there"),
    ],
)
def test_wrong_options_are_told(
    trained: Path, shapes: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], told: str
) -> None:
    photo = [] if command[0] == "eval" else [shapes / "test" / "204.png"]
    with pytest.raises(SystemExit) as stopped:
        run_command(command[0], trained, *photo, *command[1:])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_models_of_one_size_are_refused_unless_they_are_told(box_recipe: DetectionRecipe) -> None:
    recipe = replace(box_recipe, model="swin_tiny_patch4_window7_224", model_args=())
    with pytest.raises(UserError, match="takes images of one fixed size"):
        train(recipe)
    assert not (Path(recipe.out) / "run").exists()
    DetectionJob(with_normalisation(replace(recipe, model_args=("strict_img_size=False",))))


@pytest.mark.slow
def test_faults_stop_training_before_it_begins(box_recipe: DetectionRecipe, shapes: Path) -> None:
    file = shapes / "instances_train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"][:4]:
        annotation["bbox"][2] = 0
        annotation["segmentation"] = []  # otherwise the box is taken from the outline
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be used .* more than --max-broken 0.02: .* without area"):
        train(box_recipe)
    assert not (Path(box_recipe.out) / "run").exists()
    run = train(replace(box_recipe, max_broken=0.5, epochs=1))
    assert "without area" in run.report.read_text()


def test_coco_results_have_boxes_and_masks() -> None:
    from faster_coco_eval.core import mask as codes

    masks = np.zeros((1, 4, 5), bool)
    masks[0, 1:3, 2:4] = True
    found = Detections(
        np.array([[2, 1, 4, 3]], np.float32), np.array([0.5], np.float32), np.array([1], np.int64), masks
    )
    (row,) = coco_results(found, 7, (3, 8))
    assert row["image_id"] == 7
    assert row["category_id"] == 8
    assert row["bbox"] == [2, 1, 2, 2]
    json.dumps(row)
    counts = {**row["segmentation"], "counts": row["segmentation"]["counts"].encode()}
    assert np.array_equal(codes.decode(counts), masks[0])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.slow
def test_batch_norms_are_found_in_every_framework(box_recipe: DetectionRecipe, framework: Any) -> None:
    """`--norm-statistics kept` keeps those of the backbone in evaluation mode, and no others."""
    recipe = replace(box_recipe, framework=framework, width=None, norm_statistics="kept", weights="none")
    job = DetectionJob(with_normalisation(replace(recipe, weights=None)))
    model, kept = job.build_model()
    norms = [m for m in model.backbone_module().modules() if isinstance(m, nn.BatchNorm2d)]
    assert kept == norms
    assert norms
