"""How long a run lasts: --minutes and --patience."""

import csv
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dmformer.cli import main
from dmformer.tasks.progress import Progress
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.train.loop import Trainer, train
from dmformer.utils.errors import UserError


@pytest.mark.slow
def test_a_run_fitted_to_minutes_equals_one_with_its_epochs(recipe, monkeypatch, capfd):
    """The steps that are measured leave no trace; a real measurement first, then one of 2,500 s an epoch."""
    plain = train(replace(recipe, name="plain"))
    measured = []
    measure = Trainer._measured

    def spy(self, budget):
        measured.append(measure(self, budget))
        return 2500.0, 5.0

    monkeypatch.setattr(Trainer, "_measured", spy)
    run = train(replace(recipe, minutes=100.0, epochs=9))
    told = "--minutes 100: one epoch takes about 2,500.0 s with its validation; training for 2 epochs"
    assert told in capfd.readouterr().err
    assert all(0 < seconds < 600 for seconds in measured[0])
    saved = read_recipe(run.folder / "recipe.yaml")
    assert (saved.epochs, saved.minutes) == (2, None)
    assert not list(run.folder.glob("*.part"))
    a, b = (load_file(each.folder / "last" / "model.safetensors") for each in (plain, run))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UserError, match="--minutes is for the start of a run, which sets its epochs: resume it with"):
        replace(recipe, minutes=1.0, resume=True).check()

    monkeypatch.setattr(Trainer, "_measured", lambda self, budget: (10_000.0, 5.0))
    assert read_recipe(train(replace(recipe, name="short", minutes=1.0)).folder / "recipe.yaml").epochs == 1
    assert "s with its validation, more than the " in capfd.readouterr().err


@pytest.mark.slow
def test_the_time_of_many_runs_is_foretold_without_a_trace(recipe, capfd):
    """It is a measurement: the run equals one without it."""
    runs = [train(replace(recipe, name=name), runs=runs) for name, runs in (("one", 1), ("first", 40))]
    told = capfd.readouterr().err
    assert told.count("models are trained, one after another") == 1
    assert re.search(
        r"40 models are trained, one after another, for 2 epochs each: about \d+ s for one, \d+ .* for all", told
    )
    a, b = (load_file(run.folder / "last" / "model.safetensors") for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_recipes_last_as_long_as_they_are_told():
    for name, length, expected in (("classify", 3, 3), ("segment", 3, 600), ("detect", 3, 15)):
        recipe = RECIPES[name]().lasting(length)
        replace(recipe, data="photos").check()
        assert (getattr(recipe, recipe.length), recipe.validations) == (expected, length)
    steps = RECIPES["coco_atss_1x"]()
    assert steps.lasting(120).drops == (80, 110)
    assert steps.lasting(3).drops == (2,)
    assert steps.lasting(1).drops == ()
    timed = replace(RECIPES["segment"](), minutes=5.0)
    assert timed.completed(timed, {"minutes"}).iterations == 20_000
    assert timed.completed(timed, {"minutes", "iterations"}).iterations == 2_000


def test_patience_counts_validations_since_the_best_one():
    def since(*scores: float) -> int:
        return Progress(history=[{"val_ap": score} for score in scores]).since_best("val_ap")

    assert since() == since(0.0, 0.0, 0.0) == 0
    assert since(0.1, 0.3, 0.2, 0.3) == 2
    assert since(0.3, 0.1, 0.4) == 0


@pytest.mark.slow
def test_a_run_stops_early_and_says_so(recipe, monkeypatch, capfd):
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.7, 0.6, 0.6, 0.6])
    validate = "dmformer.tasks.classification.training.ClassificationJob.validate"
    row = {"val_loss": 1.0, "val_balanced_accuracy": 0.5}
    monkeypatch.setattr(validate, lambda *_: {**row, "val_top1": next(scores)})
    patient = replace(recipe, epochs=9, patience=2)
    run = train(patient)
    told = "after epoch 4 of 9: 2 validations without a better score; the best was epoch 2"
    assert f"stopped early, {told}" in capfd.readouterr().err
    assert told in run.report.read_text("utf-8")
    resumed = train(replace(patient, patience=3, resume=True))
    with (resumed.folder / "metrics.csv").open() as file:
        assert [float(line["val_top1"]) for line in csv.DictReader(file)] == [0.5, 0.6, 0.6, 0.4, 0.7, 0.6, 0.6, 0.6]
    assert "after epoch 8 of 9: 3 validations without a better score; the best was epoch 5" in capfd.readouterr().err


def test_minutes_and_patience_that_cannot_be_are_told(tmp_path, capsys):
    run = tmp_path / "runs" / "mine"
    (run / "last").mkdir(parents=True)
    saved = replace(RECIPES["elpv"](), data=str(tmp_path))
    (run / "recipe.yaml").write_text(saved.to_yaml())
    with pytest.raises(SystemExit):
        main(["train", "--resume", "--out", str(tmp_path / "runs"), "--minutes", "3"])
    assert "--minutes is for the start of a run, which sets its epochs" in capsys.readouterr().err
    for change, told in (({"patience": 0}, "--patience is 0"), ({"minutes": -1.0}, "--minutes is -1.0")):
        with pytest.raises(UserError, match=f"{told}: it must be above 0"):
            replace(saved, **change).check()
