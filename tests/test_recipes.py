"""Recipes on the command line: for one's own data, for demos, and for data of another task."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dmformer import tasks
from dmformer.cli import main
from dmformer.cli.train import listed_recipes, own_recipe
from dmformer.tasks.kinds import RECIPES as OWN
from dmformer.tasks.kinds import check_kind, labels_in
from dmformer.tasks.recipe import Recipe
from dmformer.tasks.recipes import RECIPES
from dmformer.tasks.table import TASKS
from dmformer.utils.display import untracked
from dmformer.utils.errors import UserError


def touch(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def class_folders(root: Path) -> None:
    touch(root, "cat/1.jpg", "dog/2.jpg", "images/3.jpg")


def split_class_folders(root: Path) -> None:
    touch(root, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg")


def yolo(root: Path) -> None:
    touch(root, "data.yaml", text="train: train/images\nnames: [fish]\n")
    touch(root, "train/images/1.jpg", "train/labels/1.txt")


def yolo_without_yaml(root: Path) -> None:
    touch(root, "images/train/1.jpg", "labels/train/1.txt", text="0 0.5 0.5 0.1 0.1")


def coco(root: Path) -> None:
    touch(root, "train2017/1.jpg", "val2017/2.jpg", "annotations/instances_train2017.json")


def coco_beside(root: Path) -> None:
    touch(root, "cam1/1.jpg", "cam2/2.jpg")
    touch(root, "objects.json", text=json.dumps({"annotations": [{"bbox": [0, 0, 1, 1]}]}))


def voc(root: Path) -> None:
    touch(root, "JPEGImages/1.jpg", "Annotations/1.xml")


def masks(root: Path) -> None:
    touch(root, "images/1.jpg", "masks/1.png")


def camvid(root: Path) -> None:
    touch(root, "train/1.png", "trainannot/1.png", "val/2.png", "valannot/2.png")


def masks_beside(root: Path) -> None:
    touch(root, "train/1.jpg", "train/1_mask.png")


@pytest.mark.parametrize(
    ("draw", "task"),
    [
        *((draw, "classification") for draw in (class_folders, split_class_folders)),
        *((draw, "detection") for draw in (yolo, yolo_without_yaml, coco, coco_beside, voc)),
        *((draw, "segmentation") for draw in (masks, camvid, masks_beside)),
    ],
)
def test_data_of_another_task_is_sent_to_its_recipe(draw: Callable[[Path], None], task, tmp_path):
    draw(tmp_path)
    assert task in labels_in(tmp_path)
    check_kind(str(tmp_path), task)
    for other in OWN:
        if other not in labels_in(tmp_path):
            with pytest.raises(UserError, match=f"use dmformer train {OWN[task]} --data {tmp_path}"):
                check_kind(str(tmp_path), other)


def test_what_is_not_known_for_sure_is_left_to_the_task(tmp_path):
    touch(tmp_path, "mission/1.jpg", "mission/1.xml", "field/2.jpg", "field/2.xml")
    assert labels_in(tmp_path) == {}
    check_kind(str(tmp_path / "nowhere"), "detection")


def test_data_that_no_one_names_or_that_is_for_another_task_is_told_in_a_line(capsys, tmp_path):
    yolo(tmp_path / "fish")
    for arguments, told in (
        (["classify"], "name your photos: --data FOLDER, with a folder for each class"),
        (["scratch"], "name your photos: --data FOLDER"),
        (["imagenet1k_van_b2"], "name your photos: --data FOLDER"),
        (["segment"], "name your images and their masks: --data FOLDER"),
        (["detect"], "name your photos and their boxes: --data FOLDER"),
        (["--data", str(tmp_path / "fish")], f"use dmformer train detect --data {tmp_path / 'fish'}."),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments])
        printed = capsys.readouterr().err
        assert stop.value.code == 2
        assert told in printed
        assert printed.count("\n") == 1


def test_a_demo_is_for_its_own_data_only(tmp_path):
    assert own_recipe("elpv", None) == own_recipe("elpv", "elpv") == "elpv"
    assert own_recipe("elpv", "photos") == "classify"
    touch(tmp_path, "camvid/train/0001TP_006690.png", "bccd/BloodImage_00001.jpg", "mine/train/1.png")
    assert own_recipe("camvid", str(tmp_path / "camvid")) == "camvid"
    assert own_recipe("camvid", str(tmp_path / "mine")) == "segment"
    assert own_recipe("bccd", str(tmp_path / "bccd")) == "bccd"
    assert own_recipe("bccd", str(tmp_path / "mine")) == "detect"
    assert own_recipe("scratch", str(tmp_path / "mine")) == "scratch"


def test_recipes_for_own_data_start_from_the_weights_in_the_package_and_keep_every_class():
    for name in OWN.values():
        recipe = RECIPES[name]()
        assert (recipe.model, recipe.pretrained, recipe.data) == ("dmformer_n", "auto", "")
    assert RECIPES["segment"]().ignore_index == (255,)
    assert RECIPES["segment"]().classes == ()


def test_sizes_and_arguments_follow_what_is_given():
    start = RECIPES["detect"]()
    larger = replace(start, image_size=640).completed(start, {"image_size"})
    assert (larger.sides, larger.max_side) == ((512, 576, 640, 704, 768), 1280)
    assert larger.completed(larger, set()) == larger
    given = replace(start, image_size=640, sides=(480, 640), max_side=900)
    assert given.completed(start, {"image_size", "sides", "max_side"}) == given
    rcnn = replace(start, framework="mask_rcnn").completed(start, {"framework"})
    assert rcnn.width is None
    for model, arguments in (("van_b2", ()), ("dmformer_s", ("layer_scale=1.0",))):
        assert replace(start, model=model).completed(start, {"model"}).model_args == arguments


def test_the_list_of_recipes_begins_with_those_for_own_data():
    lines = listed_recipes().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["classify", "segment", "detect"]
    assert max(map(len, lines)) < 100
    assert set(listed_recipes().replace(",", " ").split()) >= set(RECIPES)


OPENING = ("datasets", "checks", "sources", "layout", "labels", "masks")
"""The modules of a task that open data, of which they know nothing but the recipe."""


def marked(kind: type[Recipe]) -> set[str]:
    return {field.name for field in fields(kind) if field.metadata.get("read")}


@pytest.mark.parametrize("name", TASKS)
def test_options_that_modules_read_to_open_data_are_marked(name):
    """A forgotten one would make a search train on data that were opened with another value."""
    kind = TASKS[name].recipe
    known = {field.name for field in fields(kind)}
    folder = Path(tasks.__file__).parent / name
    sources = [(folder / f"{module}.py").read_text("utf-8") for module in OPENING if (folder / f"{module}.py").exists()]
    read = {option for text in sources for option in re.findall(r"recipe\.(\w+)", text)} & known
    assert len(read) > 4
    assert read - marked(kind) == set()


@pytest.mark.parametrize("given", ["recipe", "mask_recipe", "box_recipe"])
def test_options_that_are_read_when_data_are_opened_are_marked(given, request):
    """Also those behind a property of the recipe."""
    recipe, read = request.getfixturevalue(given), set()

    class Watched(type(recipe)):
        def __getattribute__(self, option: str) -> object:
            read.add(option)
            return super().__getattribute__(option)

    watched = object.__new__(Watched)
    vars(watched).update(vars(recipe))
    read.clear()
    TASKS[recipe.task].open_data(watched, untracked)
    of_a_split = {"val_share", "split_seed"} if given != "mask_recipe" else set()  # whose data have validation images
    assert read >= {"data", "max_pixels"} | of_a_split
    assert read & {field.name for field in fields(recipe)} - marked(type(recipe)) == set()
    assert not recipe.reads_as(replace(recipe, max_pixels=1))
    assert recipe.reads_as(replace(recipe, lr=1.0, name="other"))
