"""Run folders that earlier versions wrote, and damaged ones: they open, or are refused in one line.

data/old_run.tar.xz holds a run of an early version, its report left out: DMFormer on the `photos` of conftest, four
epochs with the first stage frozen. answers.json has the probabilities that it gave for the first photo of each class.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dmformer.cli import main
from dmformer.tasks.classification.classifier import open_classifier


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / "old_run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old"


def test_an_old_run_opens_and_answers_as_it_did(old, photos):
    classifier = open_classifier(str(old))
    assert classifier.name == "old"
    for name, expected in json.loads((old / "answers.json").read_text()).items():
        image = classifier.prepare(Image.open(photos / name / "0.png"))
        assert classifier.probabilities([image])[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_an_old_run_is_scored_and_resumed(old, photos, capsys):
    main(["eval", str(old), "--data", str(photos), "--workers", "0"])
    assert "36 images" in capsys.readouterr().out
    options = ["--out", str(old.parent), "--name", "old", "--data", str(photos), "--epochs", "5"]
    main(["train", "--resume", *options])
    assert "epoch 5 of 5:" in capsys.readouterr().err
    epochs = [row.split(",")[0] for row in (old / "metrics.csv").read_text().splitlines()]
    assert epochs == ["epoch", "1", "2", "3", "4", "5"]
    assert (old / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pretrained_cfg": [1, 2]}, "its pretrained_cfg is not a mapping"),
        ({"pretrained_cfg": "none"}, "its pretrained_cfg is not a mapping"),
        ({"pretrained_cfg": {"mean": "grey"}}, 'its pretrained_cfg.mean is "grey"'),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "no photo can be given its mean"),
        ({"pretrained_cfg": {"std": [0.2, 0.2, 0]}}, "no photo can be given its std"),
        ({"pretrained_cfg": {"input_size": 32}}, "its pretrained_cfg.input_size is 32"),
        ({"pretrained_cfg": {"crop_pct": "all"}}, 'its pretrained_cfg.crop_pct is "all"'),
        ({"pretrained_cfg": {"interpolation": "magic"}}, "no photo can be given its interpolation"),
        ({"model_args": {"global_pool": "magic"}}, "the model cannot be built"),
        ({"model_args": {"depths": "deep"}}, "the model cannot be built"),
        ({"model_args": ["gate"]}, 'its model_args is ["gate"]'),
        ({"architecture": 5}, "is not a model's configuration"),
        ({"num_classes": True}, "is not a model's configuration"),
        ({"num_classes": -1, "model_args": None}, "best"),
        ({"task": "magic"}, "unknown task 'magic'"),
        ({"task": ["a"]}, "unknown task"),
    ],
)
@pytest.mark.slow
def test_damaged_configurations_are_told_in_one_line(old, photos, capsys, change: dict[str, Any], told: str):
    path = old / "best" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(old), str(photos / "red car" / "0.png")])
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert told in printed
    assert len(printed.strip().splitlines()) == 1


def test_weights_beside_a_damaged_configuration_are_not_started_from(old, photos, tmp_path, capsys):
    path = old / "best" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pretrained_cfg": {"mean": 5}}))
    start = ["--weights", str(old / "best"), "--data", str(photos), "--image-size", "32", "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stop:
        main(["train", "scratch", *start, "--tracker", "none"])
    assert stop.value.code == 2
    assert "its pretrained_cfg.mean is 5" in capsys.readouterr().err
