"""Model soups: which runs may be averaged, which of them are, and the folder that comes of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmformer.cli import main
from dmformer.tasks.classification.classifier import save_ensemble
from dmformer.tasks.classification.evaluate import evaluate
from dmformer.tasks.recipes import read_recipe
from dmformer.train.soup import Member, _chosen, make_soup
from dmformer.utils.errors import UserError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def copied(
    run: Path, place: Path, name: str, noise: float = 0.0, change: Callable[[dict], object] | None = None
) -> str:
    """A copy of a run with noise on its weights and statistics, and changes in its config.json."""
    shutil.copytree(run, place / name)
    generator = torch.Generator().manual_seed(len(name))
    weights = place / name / "best" / "model.safetensors"
    state = load_file(weights)

    def noisy(tensor: Tensor) -> Tensor:
        return tensor * (1 + noise * torch.rand(tensor.shape, generator=generator)) if noise else tensor

    save_file({key: noisy(t) if t.is_floating_point() else t for key, t in state.items()}, weights)
    config = place / name / "best" / "config.json"
    stated = json.loads(config.read_text("utf-8"))
    if change is not None:
        change(stated)
    config.write_text(json.dumps(stated), "utf-8")
    return str(place / name)


class Counted:
    """In the place of `_Kitchen`: a state is a number of runs, and each has a value that is added to the soup's."""

    class job:  # noqa: N801
        headline = "val_top1"

    def __init__(self) -> None:
        self.now, self.kept = 0.0, 0.0

    def score(self, state: dict[str, float], what: str) -> float:
        self.now = state["score"]
        return self.now

    def mean(self, states: list[dict[str, float]]) -> dict[str, float]:
        return {"score": sum(state["gain"] for state in states)}

    def keep(self) -> None:
        self.kept = self.now


def test_a_greedy_soup_takes_what_does_not_lower_the_score():
    runs = {"a": (0.5, 0.2), "b": (0.8, 0.8), "c": (0.7, -0.1), "d": (0.6, 0.0)}
    states = [{"score": score, "gain": gain} for score, gain in runs.values()]
    kitchen = Counted()
    soup = _chosen(kitchen, list(runs), states, uniform=False)  # type: ignore[arg-type]
    assert [(m.run, m.used) for m in soup.members] == [("b", True), ("c", False), ("d", True), ("a", True)]
    assert soup.score == kitchen.kept == pytest.approx(1.0)
    assert soup.members[0] == Member("b", 0.8, True)
    soup = _chosen(kitchen, list(runs), states, uniform=True)  # type: ignore[arg-type]
    assert all(member.used for member in soup.members)
    assert soup.score == kitchen.kept == pytest.approx(0.9)


def test_a_soup_of_students_needs_no_teacher(recipe):
    student = replace(recipe, teacher="large/best", teacher_size=64, teacher_cache="cache", feature_loss="cosine")
    assert student.alone() == recipe


@pytest.mark.slow
def test_a_soup_of_classifiers_is_an_ordinary_model(trained_classifier, tmp_path, capsys):
    first = copied(trained_classifier.folder, tmp_path, "a")
    second = copied(trained_classifier.folder, tmp_path, "bb", 0.02, lambda stated: stated.update(tta="flip"))
    main(["soup", first, f"{second}/best", "--uniform", "--out", str(tmp_path / "soup"), "--threads", "1"])
    told = capsys.readouterr()
    assert "soup of 2 of 2 runs" in told.out
    assert "validation top-1" in told.out
    assert told.err.count("val_top1") == 3
    made = json.loads((tmp_path / "soup" / "soup.json").read_text("utf-8"))
    assert [member["used"] for member in made["members"]] == [True, True]

    states = [load_file(Path(run) / "best" / "model.safetensors") for run in (first, second)]
    soup = load_file(tmp_path / "soup" / "best" / "model.safetensors")
    norms = {key for key in soup if key.endswith(STATISTICS)}
    assert len(norms) > 9
    for key in set(soup) - norms:
        assert torch.allclose(soup[key], (states[0][key] + states[1][key]) / 2, atol=1e-6), key
    variances = [key for key in norms if key.endswith("running_var")]
    assert all((soup[key] - (states[0][key] + states[1][key]) / 2).abs().max() > 1e-6 for key in variances)
    config = (tmp_path / "soup" / "best" / "config.json").read_text("utf-8")
    assert json.loads(config) == json.loads((Path(first) / "best" / "config.json").read_text("utf-8"))

    model = timm.create_model(f"local-dir:{tmp_path / 'soup' / 'best'}", pretrained=True)
    assert torch.equal(model.state_dict()["head.fc.weight"], soup["head.fc.weight"])
    main(["eval", str(tmp_path / "soup"), "--workers", "0"])
    assert "the test photos of the run" in capsys.readouterr().err
    recipe = read_recipe(tmp_path / "soup" / "recipe.yaml")
    assert (recipe.name, recipe.data) == ("soup", read_recipe(Path(first) / "recipe.yaml").data)

    third = copied(trained_classifier.folder, tmp_path, "ccc", 30.0)  # worse than guessing, alone and in a soup
    soup = make_soup([third, second, first], tmp_path / "greedy", device="cpu")
    assert [member.run for member in soup.members if not member.used] == [third]
    assert soup.score is not None
    assert soup.score >= (soup.members[0].score or 1.0)


@pytest.mark.slow
def test_equal_statistics_stay(trained_segmenter, tmp_path):
    """Those of frozen norms; a soup of one run with itself is that run."""
    runs = [copied(trained_segmenter.folder, tmp_path, name) for name in ("a", "b")]
    soup = make_soup(runs, tmp_path / "soup", device="cpu")
    before, after = (load_file(Path(run) / "best" / "model.safetensors") for run in (runs[0], tmp_path / "soup"))
    assert [key for key in before if not torch.allclose(before[key].double(), after[key].double(), atol=1e-6)] == []
    assert soup.score == soup.members[0].score == soup.members[1].score


@pytest.mark.slow
def test_a_soup_of_detectors_is_scored_and_keeps_its_threshold(trained_detector, tmp_path):
    runs = [copied(trained_detector.folder, tmp_path, name, noise) for name, noise in (("a", 0.0), ("bb", 0.01))]
    soup = make_soup(runs, tmp_path / "soup", uniform=True, device="cpu")
    assert soup.figure == "val_ap"
    assert soup.score is not None
    assert 0 <= json.loads((tmp_path / "soup" / "best" / "config.json").read_text("utf-8"))["threshold"] <= 1


@pytest.mark.slow
def test_runs_that_differ_are_refused_in_a_line(trained_classifier, tmp_path, capsys):
    run = trained_classifier.folder
    first = copied(run, tmp_path, "a")
    changes = {
        "another model, van_b0 instead of dmformer_n": lambda stated: stated.update(architecture="van_b0"),
        "another classes, ": lambda stated: stated["label_names"].reverse(),
        "another image size, 3, 64, 64 instead of 3, 32, 32": lambda stated: stated["pretrained_cfg"].update(
            input_size=[3, 64, 64]
        ),
        "another gate, False instead of None": lambda stated: stated["model_args"].update(gate=False),
    }
    for i, (told, change) in enumerate(changes.items()):
        with pytest.raises(UserError, match=told):
            make_soup([first, copied(run, tmp_path, f"changed-{i}", change=change)], tmp_path / "soup")
    with pytest.raises(UserError, match="two runs or more"):
        make_soup([first], tmp_path / "soup")

    other = Path(copied(run, tmp_path, "other-split"))
    shutil.rmtree(other / "last")
    recipe = read_recipe(other / "recipe.yaml")
    (other / "recipe.yaml").write_text(replace(recipe, seed=5).to_yaml(), "utf-8")
    with pytest.raises(UserError, match="or with another split of them"):
        make_soup([first, str(other)], tmp_path / "soup")
    (other / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="is not in a run's folder"):
        make_soup([first, str(other)], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for arguments, message in (
        ([first, first, "--out", str(tmp_path / "mine"), "--overwrite"], "mine exists already"),
        ([first, str(tmp_path / "aa")], "aa does not exist; did you mean"),
        (["hf-hub:a/b", first], "hf-hub:a/b is not a run"),
        ([first, first, "--threads", "0"], "--threads is 0"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["soup", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_folds_of_a_run_are_averaged_unscored(trained_classifier, tmp_path, capsys):
    whole = tmp_path / "whole"
    whole.mkdir()
    recipe = replace(read_recipe(trained_classifier.folder / "recipe.yaml"), folds=2)  # type: ignore[call-arg]
    (whole / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    folds = [Path(copied(trained_classifier.folder, whole, f"fold-{k}", noise)) for k, noise in ((1, 0.0), (2, 0.02))]
    save_ensemble(whole / "best", [fold / "best" for fold in folds])
    main(["soup", str(whole), "--out", str(tmp_path / "soup"), "--device", "cpu"])
    assert "soup of 2 of 2 runs" in capsys.readouterr().out
    made = json.loads((tmp_path / "soup" / "soup.json").read_text("utf-8"))
    assert [(Path(m["run"]).name, m["score"]) for m in made["members"]] == [("fold-1", None), ("fold-2", None)]
    with pytest.raises(UserError, match="each photo was in the training of some of the folds"):
        evaluate(str(tmp_path / "soup"))
