"""dmformer search: what is searched, which trials run, are pruned, fail or go on, and what the page says."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import run

from dmformer.cli.parsing import split_options
from dmformer.search.space import Over, combinations, read_over
from dmformer.tasks.recipes import RECIPES
from dmformer.utils.errors import UserError


def typed(name: str, text: str) -> float | int | str:
    return int(text) if text.isdigit() else text if text.isalpha() else float(text)


def test_over_names_ranges_and_lists():
    assert read_over("lr=1e-4..3e-3", typed) == Over("lr", (1e-4, 3e-3), is_range=True, log=True)
    assert read_over("weight-decay=0.01..0.05", typed) == Over("weight_decay", (0.01, 0.05), is_range=True, log=True)
    assert read_over("mixup=0.1..0.4", typed) == Over("mixup", (0.1, 0.4), is_range=True)
    assert read_over("mixup=0.0..0.4", typed) == Over("mixup", (0.0, 0.4), is_range=True)
    assert read_over("clip_grad=0.1..1.0", typed).log
    sizes = read_over("image_size=96,160,96", typed)
    assert sizes == Over("image_size", (96, 160))
    models = Over("model", ("a", "b"))
    assert combinations([sizes, models])[1] == {"image_size": 96, "model": "b"}
    assert len(combinations([sizes, models])) == 4
    assert combinations([sizes, read_over("epochs=2..9", typed)]) is None
    for text, told in (
        ("lr", "give a range or a list"),
        ("lr=", "give a range or a list"),
        ("lr=0.1..0.01", "the first number must be the smaller one"),
        ("model=a..b", "only numbers have a range"),
    ):
        with pytest.raises(UserError, match=told):
            read_over(text, typed)


def test_options_are_split_by_their_names():
    given = ["--data", "a", "--over", "lr=1..2", "x=1,2", "--no-compile", "--resume", "--trials=3"]
    own, others = split_options(given, {"over", "trials", "resume"})
    assert own == ["--over", "lr=1..2", "x=1,2", "--resume", "--trials=3"]
    assert others == ["--data", "a", "--no-compile"]


OVER = ["--over", "lr=1e-4..3e-3"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name the photos: dmformer search --data photos/ --over lr=1e-4..3e-3"),
        (["--data", "{photos}"], "name the options to search: --over lr=1e-4..3e-3"),
        (["clasify", "--data", "{photos}", *OVER], "unknown recipe 'clasify': did you mean classify"),
        (["--data", "nowhere", *OVER], "unknown data 'nowhere'"),
        (["--data", "{photos}", *OVER, "--epocs", "3"], "unknown option '--epocs': did you mean --epochs"),
        (["--data", "{photos}", *OVER, "--name", "x"], "--name is for a single run"),
        (["--data", "{photos}", *OVER, "--trials", "0"], "--trials must be 1 or more"),
        (["--data", "{photos}", *OVER, "--minutes", "0"], "--minutes is 0: it must be more than 0"),
        (["--data", "{photos}", "--over", "lrr=1,2"], "unknown option 'lrr': did you mean lr"),
        (["--data", "{photos}", "--over", "lr=1,fast"], "could not convert string to float: 'fast'"),
        (["--data", "{photos}", "--over", "image_size=16,96"], "--image-size is 16: the models need 32 pixels"),
        (["--data", "{photos}", "--over", "model=dmformer_n,dmformer_z"], "unknown model 'dmformer_z'"),
        (["--data", "{photos}", "--over", "val_share=0.1..0.2"], "--over val_share: this option cannot be searched"),
        (["--data", "{photos}", "--over", "crop_scale=0.1,0.2"], "an option of several values cannot be searched"),
        (["--data", "{photos}", "--over", "compile=yes,no"], "its values are true and false"),
        (["--data", "{photos}", *OVER, "lr=1,2"], "--over names an option twice"),
        (["--resume"], "search holds no search.json to go on from"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, photos, tmp_path, arguments, told):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("dmformer.cli.search.require", lambda *_: None)
    code, out, err = run(capsys, "search", *(each.format(photos=photos) for each in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert list(Path().iterdir()) == []


class Trainings:
    """Stands for training: four validations whose scores depend on the learning rate; counts what was trained."""

    def __init__(self, monkeypatch) -> None:
        self.trained: list[tuple[str, float, int]] = []
        self.begun: dict[str, list[float]] = {}
        self.stop_at: int | None = None
        self.opened: list[tuple[float, bool]] = []
        job = SimpleNamespace(headline="val_top1", images=(26, 5, 5), unit="epoch", data="opened")
        monkeypatch.setattr("dmformer.search.run.open_job", lambda recipe: job)
        monkeypatch.setattr("dmformer.search.run.trained", self)

    def __call__(self, recipe, command, score, watch, data):
        from dmformer.train.loop import Stopped

        self.opened.append((recipe.max_broken, data == "opened"))
        assert (score, recipe.split_seed, recipe.tracker) == (False, 0, "none")
        if recipe.lr > 1:
            raise UserError("the loss is nan.")
        scores = self.begun.setdefault(recipe.name, [])
        best = 0.9 - abs(math.log10(recipe.lr) + 3) / 4  # at lr 0.001
        while len(scores) < 4:
            scores.append(best * (len(scores) + 1) / 4)
            if self.stop_at == len(scores):
                self.stop_at = None
                raise Stopped("stopped", 15)
            watch(list(scores))
        self.trained.append((recipe.name, recipe.lr, len(scores)))
        return SimpleNamespace(validation=tuple(scores))


def search(capsys, photos, *arguments):
    begin = [] if "--resume" in arguments else ["classify", "--data", str(photos), "--epochs", "4"]
    return run(capsys, "search", *begin, *arguments)


def test_a_search_prunes_goes_on_and_names_the_best(capsys, monkeypatch, photos, tmp_path):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    trainings = Trainings(monkeypatch)
    trainings.stop_at = 3  # within the first trial
    over = ["--over", "lr=1e-5..1e-1", "--trials", "12", "--out", "s"]
    code, _, err = search(capsys, photos, *over)
    assert code == 128 + 15
    assert "everything is saved; go on with: dmformer search --resume --out s" in err
    first = list(trainings.begun["trial-001"])
    code, out, err = search(capsys, photos, "--resume", "--out", "s")
    assert code == 0, err
    assert trainings.begun["trial-001"][:3] == first  # it went on, and was not begun again
    assert len(trainings.begun) == 12
    complete, best = {name for name, _, _ in trainings.trained}, max(trainings.begun.items(), key=lambda e: max(e[1]))
    pruned = {name: scores for name, scores in trainings.begun.items() if name not in complete}
    assert pruned
    assert all(2 <= len(scores) < 4 for scores in pruned.values())  # not at once
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("trial-")]
    assert rows[0][0] == best[0]
    lr = next(lr for name, lr, _ in trainings.trained if name == best[0])
    assert rows[0][1] == str(lr)
    assert f"next: dmformer train classify --data {photos} --lr {lr}" in out  # with the epochs of the recipe
    page = (tmp_path / "s" / "search.html").read_text("utf-8")
    assert f"dmformer train classify --data {photos} --lr {lr}<" in page
    assert f"12 trials, {len(complete)} complete, {len(pruned)} not" in page
    assert "lr 1e-05 to 0.1, logarithmic" in page
    assert "The test photos took no part in the search" in page
    assert len(re.findall(r"<bdi>trial-0\d\d</bdi>", page)) == 12
    assert json.loads((tmp_path / "s" / "search.json").read_text())["over"] == ["lr=1e-5..1e-1"]

    before = {lr for _, lr, _ in trainings.trained}
    assert search(capsys, photos, "--resume", "--out", "s", "--trials", "14")[0] == 0
    assert len(trainings.begun) == 14
    assert len({lr for _, lr, _ in trainings.trained} - before) == len(trainings.trained) - len(before)  # others
    assert "s holds a search already: go on with --resume" in search(capsys, photos, *over)[2]
    assert "unknown option 'lrr'" in search(capsys, photos, "--over", "lrr=1,2", "--out", "s", "--overwrite")[2]
    assert len(list((tmp_path / "s").iterdir())) > 2  # a mistake deletes nothing
    assert "--epochs belongs: leave it out" in search(capsys, photos, "--resume", "--out", "s", "--epochs", "5")[2]


@pytest.mark.slow
def test_lists_are_tried_once_and_failures_are_told(capsys, monkeypatch, photos, tmp_path):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    trainings = Trainings(monkeypatch)
    over = ["--over", "lr=1e-3,9.0,1e-2", "mixup=0.0,0.2", "--out"]
    code, out, err = search(capsys, photos, *over, "g", "--epochs", "400")
    assert code == 0, err
    assert sorted(lr for _, lr, _ in trainings.trained) == [0.001, 0.001, 0.01, 0.01]
    assert out.count("failed: the loss is nan.") == 2
    assert re.search(r"next: dmformer train classify .* --epochs 4 --epochs 400 --lr 0.001 --mixup 0.[02]\n", out)

    assert (
        "all 3 trials failed, the last because: the loss is nan"
        in search(capsys, photos, "--over", "lr=2.0..9.0", "--out", "f")[2]
    )
    trainings.begun.clear()
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("dmformer.search.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    code, out, err = search(capsys, photos, "--over", "lr=1e-3,1e-2", "--out", "t", "--minutes", "1")
    assert code == 0
    assert "the time is up: the trial was stopped, and --resume continues it" in err
    assert "stopped after 2 of 4 epochs; --resume continues it" in out
    assert "no trial is complete: go on with --resume and more --minutes" in out
    assert search(capsys, photos, "--resume", "--out", "t")[1].count("complete, epoch 4 was the best") == 2


def test_data_are_opened_once_unless_a_searched_option_changes_what_is_read(capsys, monkeypatch, photos, tmp_path):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    trainings = Trainings(monkeypatch)
    assert search(capsys, photos, "--over", "max_broken=0.05,0.2", "lr=1e-3,1e-2", "--out", "m")[0] == 0
    assert sorted(trainings.opened) == [(0.05, True), (0.05, True), (0.2, False), (0.2, False)]


def test_a_model_of_another_family_has_its_own_arguments():
    pytest.importorskip("optuna")
    from dmformer.search.run import Search, Trial, train_command

    recipe = replace(RECIPES["classify"](), model_args=("gate=False",))
    found = Search.__new__(Search)
    found.recipe = recipe
    for model, told in (("van_b0", "--model van_b0 --model-args"), ("dmformer_t", "--model dmformer_t")):
        best = Trial("trial-001", {"model": model}, 0.5, [0.5], "", True, 1.0)
        assert (
            train_command("classify", ["--data", "a b"], found, best).rstrip()
            == f"dmformer train classify --data 'a b' {told}"
        )


@pytest.mark.long
@pytest.mark.slow
def test_trials_are_ordinary_runs(capsys, monkeypatch, recipe, photos, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ["--image-size", "32", "--model-args", *recipe.model_args, "--batch-size", "8", "--workers", "0"]
    code, out, err = search(
        capsys, photos, *options, "--pretrained", "none", "--over", "lr=1e-3,1e-2", "--lr-batch", "8"
    )
    assert code == 0, err
    runs = sorted((tmp_path / "search" / "trials").iterdir())
    assert [path.name for path in runs] == ["trial-001", "trial-002"]
    assert all((path / "best").is_dir() and (path / "metrics.csv").is_file() for path in runs)
    assert not list((tmp_path / "search").rglob("scores.json"))  # no test photo was scored
    assert "next: dmformer train classify" in out
