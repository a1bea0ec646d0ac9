"""Exported files give PyTorch's outputs, carry their metadata, and run without PyTorch."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import COLOURS, make_photo
from PIL import Image
from timm.data import create_transform

import dmformer.export.write
from dmformer.cli import main
from dmformer.data.finding import list_photos
from dmformer.data.palette import default_palette
from dmformer.data.pasting import bilinear
from dmformer.export.check import compare, in_numpy
from dmformer.export.formats import Graph
from dmformer.export.kinds import as_scored, kind_of
from dmformer.export.preprocessing import Preprocessing
from dmformer.export.write import Written, export, own_photos
from dmformer.predict.classes import predict
from dmformer.predict.masks import predict_masks
from dmformer.runtimes.card import Card
from dmformer.runtimes.exported import ExportedSegmenter, normalised, open_exported, resize_and_crop
from dmformer.runtimes.sessions import Session
from dmformer.tasks.classification.classifier import Classifier, save_classifier
from dmformer.tasks.segmentation.evaluate import evaluate_masks
from dmformer.tasks.segmentation.model import AdaptivePool
from dmformer.tasks.segmentation.segmenter import Segmenter, SegmenterConfig, open_segmenter, save_segmenter
from dmformer.tasks.table import TASKS
from dmformer.utils.errors import UserError

SMALL = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_scale": 1.0}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CARD = Card(
    name="run",
    task="classification",
    architecture="dmformer_n",
    class_names=["a", "蓝天"],
    mean=[0.5, 0.4, 0.3],
    std=[0.2, 0.25, 0.3],
    image_size=[32, 32],
)


def small_model(name: str = "dmformer_n", **arguments) -> torch.nn.Module:
    """A small model whose logits differ from photo to photo."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **(arguments or SMALL)).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(4, 3, 64, 64))
        model.head.fc.weight.normal_(0, 1)
    return model.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The best/ folders of a classifier and a segmenter, and three files exported from them."""
    folder, model = tmp_path_factory.mktemp("runs"), small_model()
    data = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.9}
    save_classifier(folder / "run" / "best", model, model.state_dict(), list(COLOURS), data)
    names = ("sky", "ground", "box")
    config = SegmenterConfig("dmformer_n", dict(SMALL), "fpn", 64, 0.1, names, default_palette(3), MEAN, STD)
    config = replace(config, ignore_index=(3,))
    torch.manual_seed(0)
    network = config.build()
    torch.nn.init.normal_(network.head[-1].weight)  # type: ignore[index]
    torch.nn.init.normal_(network.head[-1].bias)  # type: ignore[index]
    save_segmenter(folder / "seg" / "best", config, network.state_dict())
    export(str(folder / "run"), out=str(folder / "plain.onnx"), speed=False)
    export(str(folder / "run"), out=str(folder / "photos.onnx"), preprocessing=True, speed=False)
    export(str(folder / "seg"), "openvino", str(folder / "masks.xml"), preprocessing=True, speed=False)
    return folder


@pytest.fixture
def no_tracing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that `runs` holds, in place of new ones."""

    def copied(model: torch.nn.Module, path: Path, *_: object, **__: object) -> Path:
        return copyfile(runs / ("photos.onnx" if isinstance(model, Graph) else "plain.onnx"), path)

    monkeypatch.setattr(dmformer.export.write, "export_onnx", copied)


@pytest.fixture
def best(runs: Path) -> str:
    return str(runs / "run" / "best")


@pytest.fixture
def segmenter(runs: Path) -> Segmenter:
    return open_segmenter(str(runs / "seg"))


def scored(written):
    return as_scored(open_exported(str(written.path), 1))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "mode"), [(32, 0.9, "center"), (31, 1.0, "center"), (40, 0.875, "squash")]
)
@pytest.mark.parametrize("shape", [(50, 70), (71, 50), (32, 32), (20, 25), (301, 40)])
def test_preprocessing_without_torch_equals_timms(interpolation, size, crop_pct, mode, shape):
    image = photo(*shape)
    transform = create_transform((3, size, size), False, interpolation=interpolation, mean=MEAN, std=STD,
                                 crop_pct=crop_pct, crop_mode=mode)  # fmt: skip
    cropped = resize_and_crop(image, (size, size), crop_pct, mode, interpolation)
    assert np.array_equal(normalised(cropped, CARD), transform(image).numpy())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 0.9), (65, 0.875), (97, 1.0)])
@pytest.mark.parametrize("shape", [(200, 310), (301, 222), (64, 64), (50, 80)])
def test_preprocessing_in_the_graph_equals_pillows(interpolation, size, crop_pct, shape):
    """Except for single steps of 8 bits in a few pixels."""
    image = photo(*shape)
    module = Preprocessing((size, size), MEAN, STD, crop_pct, "center", interpolation)
    found = module(torch.from_numpy(np.array(image))[None])[0]
    expected = create_transform((3, size, size), False, interpolation=interpolation, mean=MEAN, std=STD,
                                crop_pct=crop_pct)(image)  # fmt: skip
    steps = ((found - expected) * torch.tensor(STD).view(3, 1, 1) * 255).abs()
    assert steps.max() < 1.01
    assert (steps > 0.5).float().mean() < 5e-3


@pytest.mark.parametrize("size", [(7, 30), (13, 11), (4, 5)])
def test_bilinear_equals_torchs(size):
    maps = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    assert np.allclose(bilinear(maps.numpy(), size), expected, atol=1e-6)


@pytest.mark.parametrize(("out", "height", "width"), [(6, 4, 9), (3, 7, 8), (1, 5, 2), (2, 1, 1)])
def test_exported_pooling_is_adaptive(out, height, width, monkeypatch):
    x, pool = torch.randn(2, 3, height, width), AdaptivePool(out)
    expected = pool(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(pool(x), expected, atol=1e-6)


def test_card_round_trip():
    card = replace(CARD, palette=[(0, 1, 2), (3, 4, 5)], image_size=None, task="segmentation", ignore_index=[255])
    assert Card.from_metadata(card.to_metadata(), "file") == card
    assert Card.from_metadata(CARD.to_metadata(), "file") == CARD
    deep = replace(CARD, values=(-1000.0, 3000.0))
    assert Card.from_metadata(deep.to_metadata(), "file") == deep
    older = {name: value for name, value in CARD.to_metadata().items() if name not in ("boxes", "values")}
    assert Card.from_metadata(older, "file") == CARD


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": '"detection"'},
        {"class_names": "[1, 2]"},
        {"class_names": "[]"},
        {"image_size": "[32, 1e9]"},
        {"image_size": "[100000, 32]"},
        {"image_size": "null"},
        {"std": "[0, 0.2, 0.2]"},
        {"mean": '"abc"'},
        {"crop_pct": "0"},
        {"crop_pct": "NaN"},
        {"crop_pct": "1e-4"},
        {"crop_pct": "5e-324"},
        {"mean": "[NaN, 0, 0]"},
        {"std": "[Infinity, 1, 1]"},
        {"mean": "[1" + 400 * "0" + ", 0, 0]"},
        {"name": 100_000 * "["},
        {"class_names": '["' + 2000 * "a" + '"]'},
        {"palette": "[[0, 0, 256]]"},
        {"task": '"segmentation"', "palette": "[[0, 0, 0]]"},
        {"crop_mode": '"border"'},
        {"preprocessing": "1"},
        {"values": "[1, 0]"},
        {"values": "[0, NaN]"},
        {"values": "7"},
        {"name": "{"},
    ],
)
def test_untrusted_metadata_is_checked(wrong):
    with pytest.raises(UserError, match=r"model.onnx was not written by `dmformer export`, or is damaged"):
        Card.from_metadata({**CARD.to_metadata(), **wrong}, "model.onnx")
    with pytest.raises(UserError, match="not written by"):
        Card.from_metadata({}, "model.onnx")


@pytest.mark.parametrize("file", ["plain.onnx", "photos.onnx"])
@pytest.mark.export
@pytest.mark.slow
def test_file_classifies_as_the_run_does(runs, photos, file):
    make_photo((90, 60, 30), 7, (61, 97)).save(photos / "odd.jpg", quality=95)
    (photos / "torn.jpg").write_bytes(b"torn")
    theirs = list(predict(str(runs / "run"), [str(photos)], batch_size=5))
    ours = list(predict(str(runs / file), [str(photos)], batch_size=5))
    assert len(theirs) == 38
    for a, b in zip(theirs, ours, strict=True):
        assert (a.name, a.error) == (b.name, b.error)
        assert [name for name, _ in a.classes] == [name for name, _ in b.classes]
        # a step of 8 bits in the graph's own resizing changes the outputs of a model with large weights
        for (_, p), (_, q) in zip(a.classes, b.classes, strict=True):
            assert abs(p - q) < (0.02 if file == "photos.onnx" else 1e-4)


@pytest.mark.export
@pytest.mark.slow
def test_agreement_is_checked_at_three_sizes_and_two_batch_sizes(best, photos, tmp_path, no_tracing):
    written = export(best, "openvino", str(tmp_path), photos=[str(photos)], speed=False)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(("run", "."))) == ["run.bin", "run.xml"]
    assert [(a.height, a.width, a.batch) for a in written.agreements] == [
        (h, w, b) for h, w in ((64, 64), (48, 64), (64, 81)) for b in (1, 3)
    ]
    assert max(a.difference for a in written.agreements) < 1e-5
    assert written.remarks == []
    names = [p.classes for p in predict(best, [str(photos)])]
    found = [p.classes for p in predict(str(written.path), [str(photos)])]
    assert [[n for n, _ in classes] for classes in found] == [[n for n, _ in classes] for classes in names]


@pytest.mark.export
@pytest.mark.slow
def test_file_describes_itself(runs):
    model = onnx.load(runs / "plain.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert (said["name"], said["task"], said["class_names"]) == ("run", "classification", list(COLOURS))
    assert (said["mean"], said["std"], said["crop_pct"]) == ([*MEAN], [*STD], 0.9)
    assert model.opset_import[0].version == 20
    dimensions = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions[1] == 3
    assert all(isinstance(dimensions[i], str) for i in (0, 2, 3))


@pytest.mark.export
@pytest.mark.slow
def test_pytorch_programs_describe_themselves_too(best, tmp_path):
    written = export(best, "pt2", str(tmp_path / "m.pt2"), speed=False)
    extra = {"class_names": "", "mean": ""}
    program = torch.export.load(written.path, extra_files=extra)
    assert json.loads(extra["class_names"]) == list(COLOURS)
    assert program.module()(torch.randn(5, 3, 40, 72)).shape == (5, 3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_compiled_program_agrees(best, tmp_path):
    written = export(best, "aoti", str(tmp_path / "m.pt2"), speed=False)
    assert max(a.difference for a in written.agreements) < 1e-5
    loaded = torch._inductor.aoti_load_package(str(written.path))
    assert json.loads(loaded.get_metadata()["class_names"]) == list(COLOURS)


def same_masks(exported, run: Segmenter) -> None:
    for size in ((64, 48), (90, 71), (33, 120)):
        expected, found = run.segment(photo(*size, seed=3)), exported.segment(photo(*size, seed=3))
        assert (found.shape, found.dtype) == (expected.shape, np.uint8)
        assert len(np.unique(expected)) > 1
        assert (found != expected).mean() < 2e-3  # ties


@pytest.mark.export
@pytest.mark.slow
def test_file_segments_as_the_run_does(runs, segmenter):
    same_masks(open_exported(str(runs / "masks.xml"), 1), segmenter)


def in_windows(segmenter: Segmenter) -> Segmenter:
    return replace(segmenter, config=replace(segmenter.config, resize=40, window=36))


@pytest.mark.export
@pytest.mark.slow
def test_photos_are_resized_and_segmented_in_windows_as_the_run_does(segmenter):
    """With PyTorch in place of a file, whose tracing takes half a minute."""
    run = in_windows(segmenter)
    session = Session(in_numpy(run.network.eval()), lambda: None)
    same_masks(ExportedSegmenter(session, kind_of("segmentation").card(run, "other", False), "PyTorch"), run)


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_file_segments_in_windows_as_the_run_does(segmenter, tmp_path):
    run = in_windows(segmenter)
    save_segmenter(tmp_path / "other", run.config, run.model.state_dict())
    written = export(str(tmp_path / "other"), out=str(tmp_path), speed=False)
    same_masks(open_exported(str(written.path), 1), run)


@pytest.mark.export
@pytest.mark.slow
def test_fixed_size_models_keep_their_size(tmp_path):
    model = small_model("vitae_b", dim=32, depth=2, heads=2, img_size=64)
    save_classifier(tmp_path / "run", model, model.state_dict(), list(COLOURS), {"input_size": (3, 64, 64)})
    written = export(str(tmp_path / "run"), out=str(tmp_path), speed=False)
    assert written.fixed_size
    assert {(a.height, a.width) for a in written.agreements} == {(64, 64)}
    assert "vitae_b is built for one image size, and so is the file; the batch size is free" in written.remarks


def test_comparison_uses_photos_of_the_runs_own_data(photos, recipe, tmp_path):
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    assert own_photos(str(tmp_path / "run" / "best")) is None
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert own_photos(str(tmp_path / "run" / "best")) == list_photos([str(photos)])
    assert own_photos(str(tmp_path / "run")) == list_photos([str(photos)])
    assert own_photos("dmformer_n") is None


@pytest.mark.export
@pytest.mark.slow
def test_faults_in_folding_are_detected(best, tmp_path, monkeypatch):
    """The reference is the trained, unfused model."""
    real = dmformer.export.write.fuse

    def faulty(model):
        fused = real(model)
        fused.head.fc.weight.neg_()
        return fused

    monkeypatch.setattr(dmformer.export.write, "fuse", faulty)
    with pytest.raises(UserError, match="does not agree with PyTorch"):
        export(best, out=str(tmp_path), speed=False, dynamic_size=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.export
@pytest.mark.slow
def test_preprocessing_in_the_graph_must_be_the_runs(best, tmp_path, no_tracing, monkeypatch):
    """A run that prepares its photos in another order of channels than the graph."""
    prepare = Classifier.prepare
    monkeypatch.setattr(Classifier, "prepare", lambda self, image: np.flip(prepare(self, image), 0).copy())
    with pytest.raises(UserError, match="the preprocessing in the graph is not the run's"):
        export(best, out=str(tmp_path), preprocessing=True, speed=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def written(runs: Path) -> Written:
    """The segmenter's file for images of one size."""
    return export(str(runs / "seg"), out=str(runs / "fixed.onnx"), speed=False, dynamic_size=False)


@pytest.mark.export
@pytest.mark.slow
def test_fixed_size_segmenter_accepts_all_photos(segmenter, written, scenes):
    assert written.card.image_size == [256, 256]
    file = open_exported(str(written.path), 1)
    for width, height in ((64, 48), (300, 40), (256, 256)):
        found = file.segment(photo(width, height, seed=3))
        assert found.shape == (height, width)
    assert (found != segmenter.segment(photo(256, 256, seed=3))).mean() < 2e-3
    filled = np.pad(normalised(photo(64, 48, seed=3), file.card), ((0, 0), (0, 208), (0, 192)))[None]
    with torch.no_grad():
        expected = segmenter.model(torch.from_numpy(filled))[0, :, :48, :64].argmax(0).numpy()
    assert (file.segment(photo(64, 48, seed=3)) != expected).mean() < 2e-3
    assert evaluate_masks(scored(written), str(scenes), workers=0).miou.value > 0


@pytest.mark.export
@pytest.mark.slow
def test_speeds_are_measured_in_alternation(best, tmp_path, no_tracing, monkeypatch):
    monkeypatch.setattr(dmformer.export.check, "ROUNDS", 1)
    monkeypatch.setattr(dmformer.export.check, "SECONDS", 0.01)
    written = export(best, out=str(tmp_path / "m.onnx"))
    assert [s.batch for s in written.speeds] == [1, 8]
    assert all(s.exported > 0 and math.isclose(s.ratio, s.exported / s.pytorch) for s in written.speeds)
    assert written.operators == len(onnx.load(tmp_path / "m.onnx").graph.node)
    assert written.remarks == ["no photos were given or found through the run's recipe: compared on noise"]


@pytest.mark.export
@pytest.mark.slow
def test_a_file_that_disagrees_is_not_kept(best, tmp_path, no_tracing, monkeypatch):
    real = dmformer.export.write.open_file

    def slightly_wrong(*args):
        run = real(*args)
        return lambda images: run(images) * (1 + 2e-3 * (images.shape[-1] == 81))

    monkeypatch.setattr(dmformer.export.write, "open_file", slightly_wrong)
    with pytest.raises(
        UserError, match=r"not agree with PyTorch: it differs by 2.0e-03 .* at 64 x 81 px.*Nothing was written"
    ):
        export(best, out=str(tmp_path), speed=False)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_never_agree():
    batch = np.zeros((1, 3, 8, 8), np.float32)
    (found,) = compare(lambda x: np.ones((1, 2)), lambda x: np.full((1, 2), np.nan), [batch])
    assert found.difference == math.inf
    (found,) = compare(lambda x: np.ones((1, 2)), lambda x: np.ones((1, 3)), [batch])
    assert found.difference == math.inf


def share_right(model, photos: Path) -> float:
    return float(np.mean([Path(p.name).parent.name == p.classes[0][0] for p in predict(model, [str(photos)])]))


@pytest.mark.export
@pytest.mark.slow
def test_int8_is_scored_before_it_is_kept(best, photos, tmp_path, no_tracing):
    options = {"photos": [str(photos)], "int8": str(photos), "data": str(photos), "speed": False}
    written = export(best, "onnx", str(tmp_path / "m.onnx"), True, **options, max_loss=1.0)
    assert written.card.precision == "int8"
    exported = open_exported(str(written.path))
    assert exported.card == written.card
    before, after = written.scores
    assert after == pytest.approx(share_right(exported, photos))
    assert before == pytest.approx(share_right(best, photos), abs=0.03)
    assert 1e-4 < max(a.difference for a in written.agreements) < 1  # 8 bits are visible, and nothing more
    graph = onnx.load(written.path).graph
    assert sum(n.op_type == "QuantizeLinear" for n in graph.node) > 10
    quantised = {name for n in graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    resizing = [n for n in graph.node if n.op_type == "MatMul"]
    assert len(resizing) >= 2
    assert not quantised.intersection(name for n in resizing[:2] for name in n.input)


@pytest.mark.export
@pytest.mark.slow
def test_int8_that_loses_too_much_is_not_kept(runs, written, scenes, tmp_path, monkeypatch):
    options = {"int8": str(scenes / "images"), "data": str(scenes), "speed": False, "dynamic_size": False}
    task, figures = TASKS["segmentation"], iter((0.53, 0.50))  # of the float file, then of the int8 file
    monkeypatch.setitem(TASKS, "segmentation", replace(task, figure=lambda scores: next(figures)))
    monkeypatch.setattr(dmformer.export.write, "export_onnx", lambda _, path, *__, **___: copyfile(written.path, path))
    with pytest.raises(UserError, match=r"int8 loses 3.0 points, .* --max-loss allows 0. Nothing was written"):
        export(str(runs / "seg"), "openvino", str(tmp_path / "m.xml"), **options, max_loss=0.0)
    assert not list(tmp_path.glob("*.xml"))


@pytest.mark.parametrize("file", ["plain.onnx", "photos.onnx", "masks.xml"])
@pytest.mark.export
@pytest.mark.slow
def test_command_scores_files(runs, photos, scenes, capsys, file):
    run, data, figure = ("seg", scenes, "miou") if file == "masks.xml" else ("run", photos, "top1")
    found = []
    for model in (run, file):
        main(["eval", str(runs / model), "--data", str(data), "--json", "-", "--workers", "0"])
        found.append(json.loads(capsys.readouterr().out)[figure]["value"])
    assert found[0] == pytest.approx(found[1], abs=0.03 if file == "photos.onnx" else 1e-3)


@pytest.mark.export
@pytest.mark.slow
def test_command_uses_files_without_torch(runs, photos, tmp_path):
    picture = str(next(photos.rglob("*.png")))
    code = (
        "import sys, dmformer_command\n"
        "sys.argv = ['dmformer', 'predict', *sys.argv[1:]]\n"
        "dmformer_command.main()\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'"
    )
    for arguments in ([runs / "plain.onnx", picture], [runs / "masks.xml", picture, "--out", tmp_path / "masks"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    found = list(predict_masks(str(runs / "masks.xml"), [picture], str(tmp_path / "again")))
    assert Path(found[0].mask).read_bytes() == next((tmp_path / "masks").rglob("*.mask.png")).read_bytes()


def bad(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1), error
    return error


@pytest.mark.export
@pytest.mark.slow
def test_mistakes_are_reported_in_one_line(runs, best, segmenter, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = next(photos.rglob("*.png"))
    onnx_file = tmp_path / "m.onnx"
    onnx_file.write_bytes(b"not a model")
    assert "is not a model that ONNX Runtime can read" in bad(["predict", onnx_file, picture], capsys)
    (tmp_path / "m.xml").write_text("<net>")
    (tmp_path / "m.bin").write_bytes(b"")
    alone = copyfile(runs / "masks.xml", tmp_path / "alone.xml")
    assert "is not a model that OpenVINO can read" in bad(["predict", "m.xml", picture], capsys)
    model = onnx.load(runs / "plain.onnx")
    onnx.helper.set_model_props(model, {})
    onnx.save(model, onnx_file)
    assert "was not written by `dmformer export`" in bad(["predict", onnx_file, picture], capsys)
    onnx.helper.set_model_props(model, CARD.to_metadata())
    onnx.save(model, onnx_file)
    assert "names 2 classes, but its model has 3" in bad(["predict", onnx_file, picture], capsys)
    assert "m.onnx exists already" in bad(["export", best, "--out", onnx_file], capsys)
    assert "writes a .xml file" in bad(["export", best, "--to", "openvino", "--out", onnx_file], capsys)
    assert "cannot write a file there" in bad(["export", best, "--out", tmp_path / "no" / "m.onnx"], capsys)
    assert "does not exist" in bad(["export", tmp_path / "nothing"], capsys)
    assert "does not exist" in bad(["export", "dmformr_n"], capsys)
    damaged = shutil.copytree(best, tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    for names in ("abc", 5):
        (damaged / "config.json").write_text(json.dumps({**config, "label_names": names}))
        assert "label_names are no list of names" in bad(["predict", damaged, picture], capsys)
    assert "--max-loss is 5" in bad(
        ["export", best, "--out", "n.onnx", "--int8", photos, "--data", photos, "--max-loss", "5"], capsys
    )
    (tmp_path / "mine.bin").write_text("mine")
    assert "mine.bin exists already" in bad(["export", best, "--to", "openvino", "--out", "mine.xml"], capsys)
    assert "needs its weights in alone.bin beside it" in bad(["predict", alone, picture], capsys)
    assert "omit --no-dynamic-size" in bad(["export", best, "--preprocessing", "--no-dynamic-size"], capsys)
    assert "--int8 needs --data" in bad(["export", best, "--int8", photos], capsys)
    assert "--int8 is for onnx and openvino" in bad(["export", best, "--to", "pt2", "--int8", photos], capsys)
    assert "--data is for --int8" in bad(["export", best, "--data", photos], capsys)
    assert "is an exported file: this command takes a run's best/ folder" in bad(["bench", onnx_file], capsys)
    (tmp_path / "m.pt2").write_bytes(b"")
    assert "is an exported file" in bad(["predict", "m.pt2", picture], capsys)
    save_segmenter(tmp_path / "s", replace(segmenter.config, resize=40), segmenter.model.state_dict())
    assert "omit --preprocessing" in bad(["export", tmp_path / "s", "--preprocessing"], capsys)
    (photos / "torn").mkdir()
    (photos / "torn" / "a.jpg").write_bytes(b"torn")
    assert "none of the 1 photos" in bad(["export", best, "--out", "n.onnx", "--photos", photos / "torn"], capsys)
    masks = runs / "masks.xml"
    assert "--scales and --flip need" in bad(["predict", masks, picture, "--flip"], capsys)
    assert "is for classifiers" in bad(["predict", masks, picture, "--batch-size", "2"], capsys)


def test_training_exports_at_its_end_and_a_failure_keeps_the_run(monkeypatch, capsys, tmp_path):
    """Without a training: the files, what is told of them, and what is refused before it."""
    from dmformer.cli.train import _check_export, _exported
    from dmformer.export.check import Agreement
    from dmformer.export.write import Written
    from dmformer.tasks.recipes import RECIPES
    from dmformer.train.run_folder import clear

    def write(source, to, out, speed, overwrite):
        assert (source, speed, overwrite) == (str(tmp_path / "best"), False, True)
        if to == "pt2":
            raise RuntimeError("no operator\nfor this")
        path = Path(out) / f"{tmp_path.name}.{'xml' if to == 'openvino' else to}"
        path.touch()
        agreements = [Agreement(32, 32, 1, 2e-7), Agreement(32, 48, 3, 5e-7)]
        return Written(path, 8.62, CARD, 232, False, agreements, [], 1, None, ["compared on noise"])

    monkeypatch.setattr(dmformer.export.write, "export", write)
    recipe = replace(RECIPES["classify"](), export=("pt2", "onnx", "openvino", "onnx"))
    paths = _exported(tmp_path, recipe)
    assert [path.suffix for path in paths] == [".onnx", ".xml"]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"exported: {paths[0]}, 8.6 MB, largest difference to PyTorch 5.0e-07"
    assert "the run is complete, but its export to pt2 failed: no operator; try again with: dmformer export" in err
    assert "note: compared on noise" in err
    clear(tmp_path)  # as --overwrite does: the files would be of another model
    assert list(tmp_path.iterdir()) == []
    assert _exported(tmp_path, replace(recipe, export=())) == []

    _check_export(recipe)
    _check_export(replace(RECIPES["coco_mask_rcnn_1x"](), export=("onnx",)))
    with pytest.raises(UserError, match="--export: pretraining models cannot be exported"):
        _check_export(replace(RECIPES["pretrain"](), export=("onnx",)))
    monkeypatch.setattr("dmformer.utils.extras.find_spec", lambda package: None)
    with pytest.raises(UserError, match="--export onnx needs the extra 'export'"):
        _check_export(recipe)


@pytest.mark.long
@pytest.mark.slow
def test_a_trained_run_has_its_file_and_names_it(capsys, recipe, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--data", photos, "--image-size", 32, "--epochs", 1, "--model-args", *recipe.model_args]
    main(["train", "scratch", *map(str, options), "--workers", "0", "--batch-size", "auto", "--export", "onnx"])
    file = tmp_path / "runs" / "photos-dmformer_n-1" / "photos-dmformer_n-1.onnx"
    out, err = capsys.readouterr()
    assert f"next: dmformer predict {file.relative_to(tmp_path)} PHOTOS" in out
    assert "--batch-size auto: 2 images per step" in err
    assert open_exported(str(file)).class_names == open_exported(str(file)).card.class_names
