"""Semantic segmentation: models, loss, inference with windows and scales, training, scores, prediction."""

import csv
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.utils import set_seed
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import nn

import dmformer
from dmformer.bench.rounds import bench
from dmformer.cli import main
from dmformer.predict.masks import predict_masks
from dmformer.tasks.build import with_normalisation
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.evaluate import evaluate
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.tasks.sampling import StepSampler
from dmformer.tasks.segmentation.evaluate import count_pixels, evaluate_masks
from dmformer.tasks.segmentation.masks import IGNORE, map_labels
from dmformer.tasks.segmentation.model import (
    likeliest,
    predict_probabilities,
    segmentation_loss,
    segmentation_model,
    semantic_fpn,
    upernet,
)
from dmformer.tasks.segmentation.segmenter import open_segmenter
from dmformer.tasks.segmentation.training import SegmentationJob
from dmformer.train.loop import Stopped, Trainer, train
from dmformer.utils.errors import UserError

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
BACKBONES = {
    "dmformer_n": TINY,
    "van_b0": {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)},
    "smt_t": {"dims": (16, 32, 48, 64), "depths": (1, 1, 2, 1)},
    "vitaev2_s": {},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": {"img_size": (64, 96)},
    "convnext_atto": {},
}


def seeded_images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", [semantic_fpn, upernet])
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.slow
def test_heads_over_backbones_of_ours_and_of_timm(name, head):
    model = segmentation_model(name, 5, head, backbone_args=BACKBONES[name], width=64).eval()
    x = seeded_images(1, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
        maps = [m.movedim(-1, 1) if name.startswith("swin") else m for m in model.backbone(x)[-4:]]
        assert [m.shape[-2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        at_stride_4 = model.head(maps)
    assert logits.shape == (1, 5, 64, 96)
    expected = nn.functional.interpolate(at_stride_4, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("head", [semantic_fpn, upernet])
@pytest.mark.parametrize("size", [(33, 33), (45, 100), (129, 70)])
def test_any_size(head, size):
    model = segmentation_model("dmformer_n", 3, head, backbone_args=TINY, width=64).eval()
    assert model(seeded_images(1, 3, *size)).shape == (1, 3, *size)


def test_padding_is_at_the_right_and_the_bottom():
    model = segmentation_model("dmformer_n", 3, backbone_args=TINY, width=64).eval()
    x = seeded_images(1, 3, 40, 50)
    padded = nn.functional.pad(x, (0, 14, 0, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded)[..., :40, :50])


def test_upernet_has_its_auxiliary_head_and_dropout_in_training():
    model = segmentation_model("dmformer_n", 3, upernet, backbone_args=TINY, width=64)
    outputs = model(seeded_images(2, 3, 64, 64))
    assert [o.shape for o in outputs] == [(2, 3, 64, 64)] * 2
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]
    targets = torch.randint(0, 3, (2, 64, 64))
    targets[:, :9] = IGNORE
    terms = [nn.functional.cross_entropy(o, targets, ignore_index=IGNORE) for o in outputs]
    torch.testing.assert_close(segmentation_loss(outputs, targets), terms[0] + 0.4 * terms[1])


def test_weighted_loss_is_that_of_pytorch():
    logits, targets = seeded_images(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    targets[0, :4] = IGNORE
    weights = torch.tensor([1.0, 5.0, 0.5])
    expected = nn.functional.cross_entropy(logits, targets, weights, ignore_index=IGNORE)
    torch.testing.assert_close(segmentation_loss(logits, targets, class_weights=weights), expected)


def test_balanced_classes_weigh_by_their_pixels(mask_recipe):
    job = SegmentationJob(with_normalisation(replace(mask_recipe, class_weights="balanced")))
    stored = [np.asarray(Image.open(path)) for path in job.splits.train.masks]
    counts = np.array([sum(int((ids == k).sum()) for ids in stored) for k in range(3)])
    torch.testing.assert_close(job.class_weights, torch.tensor(1 / np.log(1.02 + counts / counts.sum())).float())


def test_loss_without_labelled_pixels_is_zero_not_nan():
    loss = segmentation_loss(seeded_images(1, 3, 8, 8), torch.full((1, 8, 8), IGNORE))
    assert loss.item() == 0


def test_unfit_backbones_are_refused():
    with pytest.raises(UserError, match="strides 16, 16, 16; a segmenter needs 4, 8, 16 and 32"):
        segmentation_model("vit_tiny_patch16_224", 3)
    with pytest.raises(UserError, match="cannot be the backbone of a segmenter"):
        segmentation_model("dmformer_n", 3, backbone_args={"colour": 1})


class Positional(nn.Module):
    """Logits that encode where in the input a pixel was, and its value."""

    def forward(self, x):
        rows = torch.arange(x.shape[-2]).view(1, 1, -1, 1).expand(1, 1, *x.shape[-2:])
        return torch.cat([x, rows.to(x)], 1)


def test_windows():
    model = segmentation_model("dmformer_n", 4, backbone_args=TINY, width=64).eval()
    x = seeded_images(1, 3, 50, 40)
    whole = predict_probabilities(model, x)
    assert torch.equal(whole, predict_probabilities(model, x, window=50))
    assert torch.equal(whole, predict_probabilities(model, x, window=400, stride=7))
    # two windows of 32 rows, at 0 and at 18: in the overlap their logits are averaged
    first, second = Positional()(x[..., :32, :]), Positional()(x[..., 18:, :])
    expected = torch.zeros(1, 4, 50, 40)
    expected[..., :18, :], expected[..., 32:, :] = first[..., :18, :], second[..., 14:, :]
    expected[..., 18:32, :] = (first[..., 18:, :] + second[..., :14, :]) / 2
    found = predict_probabilities(Positional(), x[..., :32], window=32, stride=31)
    torch.testing.assert_close(found, expected[..., :32].softmax(1))
    with pytest.raises(ValueError, match="leave gaps"):
        predict_probabilities(model, x, window=32, stride=33)


def test_scales_and_flip_average_probabilities():
    model = segmentation_model("dmformer_n", 4, backbone_args=TINY, width=64).eval()
    x = seeded_images(1, 3, 64, 64)
    one, mirrored = predict_probabilities(model, x), predict_probabilities(model, x.flip(-1)).flip(-1)
    torch.testing.assert_close(predict_probabilities(model, x, flip=True), (one + mirrored) / 2)
    larger = nn.functional.interpolate(x, (96, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        back = nn.functional.interpolate(model(larger), (64, 64), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(predict_probabilities(model, x, scales=(1.0, 1.5)), (one + back) / 2)


@pytest.mark.parametrize("at_once", [1, 5 * 30 * 20, 10**9])
def test_likeliest_class_is_found_some_classes_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr(dmformer.tasks.segmentation.model, "AT_ONCE", at_once)
    probabilities = seeded_images(1, 12, 15, 10).softmax(1)
    larger = nn.functional.interpolate(probabilities, (30, 20), mode="bilinear", align_corners=False)
    targets = torch.randint(0, 12, (1, 30, 20), generator=torch.Generator().manual_seed(0))
    ids, wanted = likeliest(probabilities, (30, 20), targets)
    assert torch.equal(ids, larger.argmax(1))
    torch.testing.assert_close(wanted, larger.gather(1, targets[:, None])[:, 0])


@pytest.mark.parametrize("head", [semantic_fpn, upernet])
def test_fused_segmenter_agrees(head):
    model = segmentation_model("dmformer_n", 4, head, backbone_args=TINY, width=64).train()
    with torch.no_grad():
        for seed in range(3):  # separate statistics for the norms
            model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    model.eval()
    x = seeded_images(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(dmformer.fuse(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_endless_sampler():
    """Every image comes once per epoch, epochs continue where the last one stopped, processes share each iteration."""
    whole = StepSampler(5, 4, seed=3, steps=5)
    whole.epoch = 0
    keys = [key for batch in whole for key in batch]
    assert len(keys) == 20
    for number in range(4):
        assert sorted(i for n, i in keys if n == number) == list(range(5))
    whole.epoch = 1
    assert next(iter(whole))[0][0] == 4
    whole.epoch, whole.start = 0, 3
    assert [key for batch in whole for key in batch] == keys[12:]
    halves = [StepSampler(5, 2, rank, 2, seed=3, steps=5) for rank in (0, 1)]
    joined = [sorted(a + b) for a, b in zip(*halves, strict=True)]
    assert joined == [sorted(keys[k : k + 4]) for k in range(0, 20, 4)]


@pytest.mark.parametrize("head", ["fpn", pytest.param("upernet", marks=pytest.mark.long)])
@pytest.mark.slow
def test_run_folder_scores_and_prediction(mask_recipe, scenes, tmp_path, head):
    """Train, compare the scores with scikit-learn's on the same predictions, and use the run as a user would."""
    run = train(replace(mask_recipe, head=head, iterations=60, validate_every=30))
    assert read_recipe(run.folder / "recipe.yaml").iterations == 60
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["iteration", "30", "60"]
    assert "mean IoU of" in (run.folder / "report.html").read_text(encoding="utf-8")
    assert run.split == "test"
    assert json.loads((run.folder / "scores.json").read_text())["miou"]["value"] == run.scores.miou.value
    assert run.scores.aacc > 0.7  # three plain colours

    segmenter = open_segmenter(str(run.folder))
    truths, predictions = [], []
    for i in range(5):
        stored = np.asarray(Image.open(scenes / "annotations" / "test" / f"{i}.png"))
        truth = map_labels(stored, 3, ignore_index=(3,))
        found = segmenter.segment(Image.open(scenes / "images" / "test" / f"{i}.png"))
        truths.append(truth[truth != IGNORE])
        predictions.append(found[truth != IGNORE])
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    assert run.scores.miou.value == pytest.approx(jaccard_score(truth, prediction, average="macro"), abs=1e-6)
    for label, found in enumerate(run.scores.classes):
        expected = jaccard_score(truth, prediction, labels=[label], average="macro")
        assert found.iou == pytest.approx(expected, abs=1e-6)
    said: list[str] = []
    assert evaluate_masks(str(run.folder), str(scenes), say=said.append) == run.scores
    assert evaluate_masks(str(run.folder), say=said.append) == run.scores
    assert said == [f"scoring the test images of the run, from {scenes}"]
    evaluate_masks(
        str(run.folder), str(scenes / "images/training"), str(scenes / "annotations/training"), say=said.append
    )
    assert said[1:] == ["the run was trained on 10 of these 10 photos: scores on them prove nothing"]

    photos = str(scenes / "images" / "test")
    made = list(predict_masks(str(run.folder), [photos], str(tmp_path / "out")))
    assert [Path(p.mask).name for p in made] == [f"{i}.mask.png" for i in range(5)]
    fused = np.asarray(Image.open(made[0].mask))
    with Image.open(made[0].overlay) as laid_over:
        assert laid_over.size == fused.shape[::-1]
    plain = segmenter.segment(Image.open(scenes / "images" / "test" / "0.png"))
    assert (fused == plain).mean() > 0.999
    assert made[0].shares[0][1] == pytest.approx((fused == ["sky", "ground", "box"].index(made[0].shares[0][0])).mean())
    with pytest.raises(UserError, match=r"overlay\.png exists already"):
        list(predict_masks(str(run.folder), [photos], str(tmp_path / "out")))


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.slow
def test_resumed_run_equals_one_never_stopped(mask_recipe, trained_segmenter, monkeypatch, steps):
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == steps:
            self.stop.append(15)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)
    stopped = replace(mask_recipe, name="stopped")
    with pytest.raises(Stopped):
        train(stopped)
    again = train(replace(stopped, resume=True))
    one, two = (open_segmenter(str(run.folder)).model.state_dict() for run in (trained_segmenter, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert trained_segmenter.scores == again.scores


def test_shares_of_the_images_add_up(mask_recipe):
    """The loaders of three processes, which do not split four images evenly, together give the images of one loader."""
    job = SegmentationJob(with_normalisation(mask_recipe))
    model, _ = job.build_model()
    device = torch.device("cpu")
    whole = count_pixels(model, job.val_loader(0, 1, False), 3, device)
    parts = [count_pixels(model, job.val_loader(rank, 3, False), 3, device) for rank in range(3)]
    assert torch.equal(whole.confusion, sum(part.confusion for part in parts))
    assert sorted(p for part in parts for p in part.positions) == whole.positions


@pytest.mark.slow
def test_starting_weights(mask_recipe, trained_segmenter, tmp_path):
    """From a classifier, the backbone; from another segmenter, all but the last convolutions if the classes differ."""
    recipe = with_normalisation(mask_recipe)
    torch.manual_seed(1)
    classifier = timm.create_model("dmformer_n", num_classes=7, **recipe.parsed_model_args())
    torch.save(classifier.state_dict(), tmp_path / "c.pth")
    model, _ = SegmentationJob(replace(recipe, weights=str(tmp_path / "c.pth"))).build_model()
    assert torch.equal(model.backbone.stages_3.blocks[0].mlp.fc1.weight, classifier.stages[3].blocks[0].mlp.fc1.weight)

    run = trained_segmenter
    start = open_segmenter(str(run.folder)).model
    model, _ = SegmentationJob(replace(recipe, weights=str(run.folder / "best"))).build_model()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), start.state_dict().values(), strict=True))
    four = replace(recipe, weights=str(run.folder / "best"), classes=("a", "b", "c", "d"), ignore_index=(255,))
    model, _ = SegmentationJob(four).build_model()
    assert model.head[-1].weight.shape[0] == 4
    other = {n for n, t in model.state_dict().items() if not torch.equal(t, start.state_dict()[n])}
    assert other == {"head.1.weight", "head.1.bias"}
    with pytest.raises(UserError, match="is of another model: it has head"):
        SegmentationJob(replace(four, weights=str(run.folder / "best"), width=128)).build_model()
    with pytest.raises(UserError, match="is dmformer_n with fpn"):
        SegmentationJob(replace(recipe, weights=str(run.folder / "best"), head="upernet")).build_model()


@pytest.mark.slow
def test_frozen_stages_stay(mask_recipe):
    job = SegmentationJob(with_normalisation(replace(mask_recipe, freeze=2)))
    model, frozen = job.build_model()
    moving = {name.split(".")[1] for name, p in model.backbone.named_parameters(prefix="b") if p.requires_grad}
    assert frozen
    assert moving == {"stages_2", "stages_3"}
    run = train(replace(mask_recipe, freeze=2, ema=None))
    set_seed(mask_recipe.seed)
    start, end = job.build_model()[0].state_dict(), open_segmenter(str(run.folder)).model.state_dict()
    names = [name for name in start if name.startswith("backbone.")]
    changed = {name.split(".")[1] for name in names if not torch.equal(start[name], end[name])}
    assert changed == {"stages_2", "stages_3"}  # weights and BatchNorm statistics


@pytest.mark.parametrize("head", ["fpn", "upernet"])
@pytest.mark.slow
def test_backbones_of_one_size_take_any_image(mask_recipe, head):
    """Swin, made for crops of 64 px: validated on images of 40 x 56 and 48 x 64, predicted at any scale."""
    small = ("embed_dim=16", "depths=[1,1,1,1]", "num_heads=[1,2,2,2]")
    swin = replace(mask_recipe, model="swin_tiny_patch4_window7_224", model_args=small, image_size=64, head=head)
    run = train(replace(swin, iterations=1, ema=None))
    segmenter = open_segmenter(str(run.folder))
    for size in ((20, 31), (64, 64), (100, 150)):
        assert segmenter.segment(Image.new("RGB", size), scales=(0.5, 1.0), window=96).shape == size[::-1]
    with pytest.raises(UserError, match="a multiple of 32"):
        SegmentationJob(with_normalisation(replace(swin, image_size=72))).build_model()
    decayed = Trainer(replace(swin, name="other")).optimizer.param_groups
    tables = {p.shape for n, p in segmenter.model.named_parameters() if n.endswith("relative_position_bias_table")}
    assert tables
    assert not any(p.shape in tables for group in decayed if group["weight_decay"] for p in group["params"])


def test_norms_of_timm_keep_their_activations_when_shared():
    model = segmentation_model("efficientnet_b0", 3, upernet, width=64).eval()
    x = seeded_images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dmformer.train.loop.convert_sync_batchnorm(model)(x), model(x))


@pytest.mark.slow
def test_a_run_resumes_with_its_own_rounds(mask_recipe):
    train(replace(mask_recipe, iterations=4, validate_every=2))
    with pytest.raises(UserError, match=r"validated every 2 iterations, not every 4.*--validate-every 2"):
        train(replace(mask_recipe, iterations=8, validate_every=4, resume=True))
    longer = train(replace(mask_recipe, iterations=8, validate_every=2, resume=True))
    assert (longer.folder / "metrics.csv").read_text().splitlines()[-1].split(",")[1] == "8"


@pytest.mark.slow
def test_splits_without_labels(mask_recipe, scenes):
    for path in (scenes / "annotations" / "test").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 3)).save(path)
    run = train(mask_recipe)
    assert run.split == "validation"
    with pytest.raises(UserError, match="no mask has a labelled pixel"):
        evaluate_masks(str(run.folder), str(scenes))
    for path in (scenes / "annotations" / "validation").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 3)).save(path)
    with pytest.raises(UserError, match="no validation mask has a labelled pixel"):
        SegmentationJob(with_normalisation(mask_recipe))


@pytest.mark.slow
def test_truncated_images_are_found_before_training_and_named_in_the_report(mask_recipe, scenes):
    torn = scenes / "images" / "training" / "0.png"
    torn.write_bytes(torn.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"images/training/0\.png"):
        train(mask_recipe)
    run = train(replace(mask_recipe, max_broken=0.2))  # the first attempt has left nothing behind
    assert "images/training/0.png" in run.report.read_text(encoding="utf-8")


def test_papers_recipes():
    fpn, uper = RECIPES["ade20k_fpn"](), RECIPES["ade20k_upernet"]()
    assert (fpn.iterations, fpn.lr, fpn.power, fpn.batch_size * 8, fpn.lr_batch) == (40_000, 2e-4, 0.9, 16, 16)
    assert (uper.iterations, uper.lr, uper.power, uper.warmup_iterations) == (160_000, 6e-5, 1.0, 1_500)
    assert (uper.head, uper.auxiliary_weight, uper.dropout, uper.reduce_zero_label) == ("upernet", 0.4, 0.1, True)
    assert (fpn.optimizer, fpn.image_size, fpn.scale, fpn.largest_share) == ("adamw", 512, (0.5, 2.0), 0.75)


def test_learning_rate_warms_up_and_falls_as_stated(mask_recipe):
    recipe = replace(mask_recipe, iterations=40, validate_every=10, warmup_iterations=4, power=0.9, lr_min=0.0)
    trainer = Trainer(recipe)
    rates = []
    for k in range(40):
        trainer.scheduler.step_update(k)
        rates.append(trainer.optimizer.param_groups[-1]["lr"])
    assert rates[:4] == pytest.approx([3e-3 * k / 4 for k in range(4)])
    assert rates[4:] == pytest.approx([3e-3 * (1 - k / 40) ** 0.9 for k in range(4, 40)])
    decayed = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    norms = [m for m in trainer.bare.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert norms
    assert not any(id(p) in decayed for m in norms for p in m.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "DATA", "--classes", "sky", "ground"], "the class list has 2 names but ids go up to 3"),
        (["--data", "DATA", "--image-size", "16"], "32 pixels or more"),
        (["--data", "DATA", "--iterations", "10", "--validate-every", "4"], "not a multiple"),
        (["--data", "DATA", "--width", "100"], "multiple of 64"),
        (["--data", "DATA", "--head", "mask2former"], "head"),
        (["--data", "DATA", "--epochs", "3"], "unknown option '--epochs'"),
        (["--data", "DATA", "--head", "upernet", "--batch-size", "1"], "--batch-size 2 or more"),
        (["--data", "DATA", "--layer-decay", "0.8"], "--layer-decay is for classification"),
        (["--data", "DATA", "--model", "vitae_t"], "a segmenter needs 4, 8, 16 and 32"),
        ([], "--data FOLDER"),
    ],
)
def test_mistakes_are_one_line(scenes, tmp_path, capsys, options, told):
    given = [str(scenes) if o == "DATA" else o for o in options]
    start = [] if "--classes" in options else ["--classes", "sky", "ground", "box", "--ignore-index", "3"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "segment", *given, *start, "--out", str(tmp_path / "runs"), "--workers", "0"])
    printed = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert told in printed
    assert len(printed.splitlines()) == 1


def test_command_line(trained_segmenter, scenes, tmp_path, capsys):
    best = str(trained_segmenter.folder / "best")
    main(["eval", best, "--data", str(scenes), "--json", "-", "--workers", "0", "--scales", "1", "1.5", "--flip"])
    assert 0 < json.loads(capsys.readouterr().out)["miou"]["value"] <= 1
    photos = str(scenes / "images" / "test")
    (scenes / "images" / "test" / "torn.jpg").write_bytes(b"\xff\xd8 no")
    main(["predict", best, photos, "--out", str(tmp_path / "made"), "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert sum(rows[0]["shares"].values()) == pytest.approx(1)
    assert rows[-1]["error"]
    assert (tmp_path / "made" / "legend.png").is_file()
    for arguments, told in (
        (["predict", best, photos, "--out", str(tmp_path / "made")], "exists already"),
        (["predict", best, photos, "--batch-size", "2", "--out", str(tmp_path / "n")], "--batch-size is for class"),
        (["predict", best, photos, "--window", "8"], "32 or more"),
        (["eval", best, "--data", str(scenes), "--split", "train"], "--split is for classifiers"),
        (["eval", best, "--data", "nowhere"], "nowhere does not exist"),
        (["bench", "dmformer_n+unet"], "unknown head 'unet'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="for segmentation, not a classifier"):
        open_classifier(best)
    with pytest.raises(UserError, match="for segmentation"):
        evaluate(best)


@pytest.mark.parametrize(
    "change",
    [
        {"palette": [[0, 0, 0]]},
        {"head": "os.system"},
        {"dropout": None},
        {"label_names": None},
        {"window": "wide"},
        {"architecture": "hf-hub:nobody/nothing"},
    ],
)
@pytest.mark.slow
def test_hostile_or_damaged_configurations_are_refused(trained_segmenter, tmp_path, change):
    path = shutil.copytree(trained_segmenter.folder / "best", tmp_path / "best") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="is not a segmenter's configuration"):
        open_segmenter(str(tmp_path))


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_bench_of_segmenters(trained_segmenter):
    best = str(trained_segmenter.folder / "best")
    forms = ("eager", "fused", "onnxruntime")
    rows = bench([best, "dmformer_n+upernet"], forms=forms, batch_sizes=(2,), image_size=64, rounds=1, seconds=0.001)
    assert [row.form for row in rows] == [*forms, *forms]
    assert all(row.difference < 1e-4 for row in rows)
    (trained,) = bench(
        ["dmformer_n+upernet"], mode="training", forms=("eager",), batch_sizes=(2,), image_size=64, rounds=1
    )
    assert trained.images_per_second > 0


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.fpn.decoder", None)
    with pytest.raises(UserError, match=r"pip install 'dmformer\[seg\]'"):
        segmentation_model("dmformer_n", 3, backbone_args=TINY)


@pytest.mark.slow
def test_two_processes_validate_and_report_as_one(mask_recipe, two_processes):
    """With a learning rate of 0 the weights stay; each process scores its part of the images, and the parts add up."""
    still = replace(mask_recipe, iterations=2, validate_every=2, lr=0.0, lr_min=0.0, ema=None, freeze=4)
    one = train(replace(still, name="one"))
    two_processes(train, replace(still, name="two", batch_size=2))
    rows = []
    for name in ("one", "two"):
        with (Path(still.out) / name / "metrics.csv").open() as file:
            rows.append(next(iter(csv.DictReader(file))))
    for column in ("val_miou", "val_macc", "val_aacc", "val_loss"):
        assert rows[0][column] == rows[1][column]
    scores = json.loads((Path(still.out) / "two" / "scores.json").read_text())
    assert scores == asdict(one.scores)
