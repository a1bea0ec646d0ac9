"""A task of its own, which no file of the package knows: it is trained, scored, used and reported like the others."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dmformer.cli import main
from dmformer.data.decode import decode
from dmformer.data.finding import list_photos
from dmformer.predict.answers import ANSWERS, Answer, Rows
from dmformer.predict.predictor import open_predictor, opened
from dmformer.serve.limits import Limits
from dmformer.serve.metrics import Metrics
from dmformer.serve.opening import open_service
from dmformer.tasks.build import load_model, save_model
from dmformer.tasks.config import TrainedFolder, folder_for, read_as
from dmformer.tasks.progress import Progress
from dmformer.tasks.recipe import FREE, Recipe
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.tasks.results import Summary, write_scores
from dmformer.tasks.table import TASKS
from dmformer.tasks.task import Task, check_paths, figure_lines
from dmformer.tasks.view import View
from dmformer.utils.errors import UserError
from dmformer.utils.files import write_whole
from dmformer.utils.intervals import wilson

SIDE = 8


@dataclass(frozen=True)
class ColourRecipe(Recipe):
    """Train a regressor of the mean colour of photos."""

    task: ClassVar[str] = "colour"

    data: str = field(default="", metadata=FREE)
    """A folder of photos."""
    epochs: int = field(default=2, metadata=FREE)
    """Passes over the photos."""


def colours() -> ColourRecipe:
    """dmformer train colours --data photos/: the mean colour of photos."""
    return ColourRecipe(batch_size=4, lr=0.1, lr_batch=4, image_size=32, workers=0, tracker="none", precision="no")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(images).mean((2, 3))


@dataclass(frozen=True)
class ColourConfig:
    backbone: str
    class_names: tuple[str, ...]
    side: int


@dataclass(frozen=True)
class Regressor:
    model: Net
    config: ColourConfig
    name: str
    form: str = "PyTorch"
    task = "colour"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    def for_inference(self, device: str = "auto") -> "Regressor":
        return self

    @torch.inference_mode()
    def colour(self, image: Image.Image) -> list[float]:
        return self.model(prepared(image)[None])[0].tolist()


def prepared(image: Image.Image) -> Tensor:
    small = image.resize((SIDE, SIDE))
    return torch.tensor(list(small.tobytes())).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


def open_regressor(source: str | TrainedFolder) -> Regressor:
    trained = folder_for("colour", source, "a regressor")
    return Regressor(load_model(trained, Net), read_as(ColourConfig, trained, "a regressor"), trained.name)


class Photos(Dataset):
    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x = prepared(decode(self.files[i]))
        return x, x.mean((1, 2)), i


@dataclass(frozen=True)
class ColourScores:
    count: int
    close: Any


@torch.inference_mode()
def score(model: nn.Module, files: Sequence[str]) -> ColourScores:
    photos = [Photos(files)[i] for i in range(len(files))]
    near = [float((model(x[None])[0] - wanted).abs().max()) < 0.1 for x, wanted, _ in photos]
    return ColourScores(len(near), wilson(sum(near), len(near)))


class ColourJob:
    """See `Job`."""

    headline, unit, param_groups = "val_close", "epoch", None
    notes: ClassVar[list[str]] = []
    class_names: ClassVar[list[str]] = ["red", "green", "blue"]

    def __init__(self, recipe: ColourRecipe, files: list[str]) -> None:
        self.recipe, self.data, self.train, self.val = recipe, files, files[::2], files[1::2]
        self.images, self.size, self.epochs = (len(self.train), len(self.val), 0), f"{SIDE} px", recipe.epochs

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        return Net(), []

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return DataLoader(Photos(self.train), self.recipe.batch_size, shuffle=True, drop_last=True)

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return DataLoader(Photos(self.val), self.recipe.batch_size)

    def schedule(self) -> dict[str, Any]:
        return {"sched": "cosine", "num_epochs": self.epochs}

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        return (model(inputs) - targets).square().mean(), {}

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable
    ) -> dict[str, float]:
        return {"val_close": score(model, self.val).close.value}

    def check_resumed(self, progress: Progress, updates: int) -> None: ...

    def line(self, row: dict[str, float]) -> str:
        return "epoch {epoch:g}: {val_close:.1%} close".format(**row)

    def check_broken(self, broken: list[int]) -> None: ...

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        save_model(folder, "colour", ColourConfig("none", tuple(self.class_names), SIDE), state)

    def contents(self) -> Iterator[str]:
        return (Path(name).name for name in (*self.train, *self.val))

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[ColourScores, str]:
        scores = score(open_regressor(str(folder)).model, self.val)
        write_scores(folder, scores)
        write_whole(folder / "report.html", f"<p>{scores.close.value:.1%} of {scores.count} are close</p>")
        return scores, "validation"


def evaluate(source: Any, data: str, **_: Any) -> ColourScores:
    return score(open_regressor(source).model, list_photos([data]))


@dataclass(frozen=True)
class Colour:
    name: str
    values: tuple[float, ...] = ()
    error: str | None = None


def predict(source: Any, photos: Sequence[str], top: int, progress: Callable, **_: Any) -> Iterator[Colour]:
    regressor = opened(source, "values", "a regressor")
    for name in progress(list_photos(photos)):
        yield Colour(name, tuple(regressor.colour(decode(name))))


COLOUR = Task(
    name="colour",
    model="regressor",
    answer="values",
    recipe=ColourRecipe,
    recipes={"colours": colours},
    open_data=lambda recipe, track: list_photos([recipe.data]),
    view=lambda files: View("a folder of photos", {}, (), "photos", {}, notes=[f"{len(files)} photos"]),
    job=ColourJob,
    open=open_regressor,
    evaluate=evaluate,
    summary=lambda scores, split: Summary([f"{scores.count} images ({split})", *figure_lines(("close", scores.close))]),
    headline="close",
    figure=lambda scores: scores.close.value,
    check_places=lambda recipe: check_paths(recipe.data),
)

ROWS = Rows(lambda top: ["photo", "red", "green", "blue"], lambda found, top: [[found.name, *found.values]])
VALUES = Answer(
    doing="regressing",
    predict=predict,
    table=ROWS,
    narrow=ROWS,
    csv=ROWS,
    told=lambda found: {"values": found.values},
)


@pytest.fixture
def fourth(monkeypatch):
    monkeypatch.setitem(TASKS, COLOUR.name, COLOUR)
    monkeypatch.setitem(ANSWERS, COLOUR.answer, VALUES)
    for name, recipe in COLOUR.recipes.items():
        monkeypatch.setitem(RECIPES, name, recipe)


@pytest.fixture
def best(fourth, photos, tmp_path, capsys):
    out = str(tmp_path / "runs")
    main(["train", "colours", "--data", str(photos), "--epochs", "40", "--out", out, "--name", "run"])
    printed = capsys.readouterr()
    assert "18 images (validation)" in printed.out
    assert "close" in printed.out.splitlines()[1]
    assert "epoch 40:" in printed.err
    return tmp_path / "runs" / "run" / "best"


@pytest.mark.slow
def test_a_new_task_is_trained_scored_used_and_reported(best, photos, capsys):
    run = best.parent
    assert "are close" in (run / "report.html").read_text()
    assert "<li>36 photos</li>" in (run / "check.html").read_text()
    assert json.loads((run / "scores.json").read_text())["close"]["value"] > 0.8
    assert (run / "recipe.yaml").read_text().startswith("task: colour\n")
    assert json.loads((best / "config.json").read_text()) == {
        "task": "colour",
        "architecture": "none",
        "num_classes": 3,
        "label_names": ["red", "green", "blue"],
        "side": SIDE,
    }
    main(["eval", str(best), "--data", str(photos), "--json", "-"])
    assert json.loads(capsys.readouterr().out)["count"] == 36
    main(["predict", str(best), str(photos / "red car"), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 12
    assert all(float(row["red"]) > 0.5 > float(row["blue"]) for row in rows)
    main(["train", "--resume", "--out", str(run.parent), "--name", "run", "--epochs", "41"])
    assert "epoch 41:" in capsys.readouterr().err


@pytest.mark.slow
def test_mistakes_with_a_new_task_are_one_line(best, photos, capsys, tmp_path):
    for arguments, told in (
        (["train", "colours", "--data", "nowhere"], "nowhere does not exist"),
        (["eval", best], "--data FOLDER"),
        (["eval", best, "--data", photos, "--flip"], "--flip is for segmenters; this is a regressor"),
        (["predict", best, photos, "--out", tmp_path], "--out is for segmenters and detectors; this is a regressor"),
        (["export", best], "a regressor cannot be exported"),
        (["explain", best, photos / "red car", "--out", tmp_path / "e"], "is a regressor: give a classifier"),
        (["bench", best], "is a regressor: `dmformer bench` measures"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        printed = capsys.readouterr().err
        assert stop.value.code == 2
        assert told in printed
        assert len(printed.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_new_task_cannot_be_served(best):
    with pytest.raises(UserError, match="run is a regressor, which cannot be served"):
        open_service(str(best), open_predictor(str(best)), Limits(), Metrics())


def test_every_task_has_its_record():
    for name, task in TASKS.items():
        assert task.name == task.recipe.task == name
        assert all(type(recipe()) is task.recipe for recipe in task.recipes.values())
        assert task.answer in ANSWERS


@pytest.mark.slow
def test_a_task_that_is_not_known_is_told(fourth, best, capsys, monkeypatch):
    monkeypatch.delitem(TASKS, "colour")
    with pytest.raises(SystemExit):
        main(["predict", str(best), "."])
    assert "unknown task 'colour'" in capsys.readouterr().err
    with pytest.raises(UserError, match="not a recipe"):
        read_recipe(best.parent / "recipe.yaml")
