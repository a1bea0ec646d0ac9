"""dmformer check: look at data as training would."""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..tasks.config import DEFAULT_TASK
from ..tasks.recipe import Recipe
from ..tasks.recipes import RECIPES
from ..tasks.table import TASKS
from ..utils.display import track
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from .checks import check_writable
from .parsing import parse
from .printing import print_summary, remark


@dataclass(frozen=True)
class CheckOptions:
    """Look at data as training would, before you train: without torch, in seconds.

    Writes a page, check.html, with small pictures: the layout that was found, splits and classes with their counts,
    sizes and values of the photos, the same photo twice or in two splits, photos that look alike, suspicious boxes and
    masks, and everything that training would leave out, with the reason.

    The exit code is 0 if training would accept the data, and 2 if it would refuse it; then the last line says why.
    The options are those of `dmformer train`, with the same defaults. With the name of a recipe, as in `dmformer check
    camvid --data camvid/`, the data is read as that recipe would read it.

    examples:
      dmformer check --data photos/                      one folder per class, or a table of paths and labels
      dmformer check --data images/ --masks masks/ --classes road sky
      dmformer check --data coco_like/ --out boxes.html
      dmformer check --data both/ --task segmentation    if a folder can be read in several ways
      dmformer check camvid --data camvid/
    """

    data: str = ""
    """A folder, an archive or a file, as for `dmformer train`."""
    task: Literal["auto", "classification", "multilabel", "segmentation", "detection", "pretraining"] = "auto"
    """What the data is for: auto finds it from the layout. Class folders and tables are for classification, masks for
    segmentation, boxes (COCO, Pascal VOC, YOLO, LabelMe) for detection."""
    out: str = "check.html"
    """File of the page; an existing one is replaced."""
    masks: str | None = None
    """Segmentation: folder of the masks, if --data is a folder of images."""
    images: str | None = None
    """Detection: folder of the photos, if they are not beside the annotations."""
    classes: tuple[str, ...] | None = None
    """Segmentation, detection: class names, or one text file with one name per line."""
    colours: tuple[str, ...] | None = None
    """Segmentation: colours of the classes in the masks as RRGGBB, one file with them, or ids."""
    reduce_zero_label: bool = False
    """Segmentation: id 0 in the masks means unlabelled and class k is stored as k + 1."""
    ignore_index: tuple[int, ...] | None = None
    """Segmentation: ids in the masks that mean unlabelled."""
    val_data: str | None = None
    """Classification: validation photos that are elsewhere."""
    test_data: str | None = None
    """Classification: test photos that are elsewhere."""
    val_share: float | None = None
    """Fraction held out for validation if the data has no validation split."""
    test_share: float | None = None
    """Fraction held out for the report if the data has neither a validation nor a test split."""
    seed: int | None = None
    """Seed of the random split."""
    max_broken: float | None = None
    """Maximum fraction of photos or objects that cannot be used; above it, training refuses the data."""
    max_pixels: int | None = None
    """Maximum number of pixels of a photo; larger ones count as unreadable."""
    image_size: int | None = None
    """Size of the training images in pixels; smaller photos are told for segmentation."""
    allow_leaks: bool = False
    """Accept photos that are in two splits."""
    near_duplicates: bool = False
    """Keep photos that look alike together in a random split, as training does with this option."""


def check(arguments: list[str]) -> None:
    name, rest = None, arguments
    if arguments and not arguments[0].startswith("-"):
        name, rest = arguments[0], arguments[1:]
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
    options = parse(CheckOptions, rest, "check")
    if not options.data:
        raise UserError("name the data: --data FOLDER.")
    recipe, others = _recipe(options, name)
    check_writable("--out", Path(options.out), overwrite=True)

    from ..tasks.check import examine, summary, write_check

    found = examine(TASKS[recipe.task], recipe, track)
    also = [name for name in others if name != DEFAULT_TASK]  # images/ and masks/ look like class folders
    print(f"task: {recipe.task}{f' (also possible: --task {also[-1]})' if also else ''}")
    print_summary(summary(found))
    for note in found.view.notes if found.view else ():
        remark(note)
    try:
        write_check(Path(options.out), found)
    except OSError as error:
        raise UserError(f"{options.out} cannot be written: {error.strerror}.") from None
    print(f"page: {options.out}")
    if found.refused is not None:
        sys.stdout.flush()
        hint = f" If the data is for {' or '.join(others)}, give --task." if others and not found.view else ""
        raise UserError(f"training would refuse this data: {found.refused}{hint}")
    print("training would accept this data")


def _recipe(options: CheckOptions, name: str | None) -> tuple[Recipe, list[str]]:
    """The recipe whose data is checked; and other tasks that could read the data, if the task was found."""
    places = (options.masks, options.images, options.val_data, options.test_data)
    for place in (options.data, *places):
        if place is not None and place != "elpv":
            check_path(place)
    others: list[str] = []
    if name is not None:
        recipe = RECIPES[name]()
        if options.task not in ("auto", recipe.task):
            raise UserError(f"{name} is a recipe for {recipe.task}: leave out --task.")
    elif options.task != "auto":
        recipe = TASKS[options.task].recipe()
    else:
        task, others = _found(options)
        recipe = TASKS[task].recipe()
    own = {field.name for field in fields(recipe)}
    given: dict[str, Any] = {
        field.name: value
        for field in fields(options)
        if field.name not in ("data", "task", "out") and (value := getattr(options, field.name)) not in (None, False)
    }
    if strange := [option for option in given if option not in own]:
        raise UserError(f"--{strange[0].replace('_', '-')} does not belong to {recipe.task}.")
    data: Any = (options.data,) if isinstance(recipe.data, tuple) else options.data
    recipe = replace(recipe, data=data, **given)
    recipe.check()
    return recipe, others


def _as_class_folders(data: str) -> str:
    """Why data cannot be read as class folders, if there are photos."""
    from ..tasks.classification.layout import read_layout

    try:
        read_layout(data)
    except UserError as error:
        return "" if "holds no images" in str(error) else f" As class folders: {error}"
    return ""


def _found(options: CheckOptions) -> tuple[str, list[str]]:
    """The task that data is for, and others that could read it."""
    if options.masks is not None or options.colours is not None:
        return "segmentation", []
    if options.images is not None:
        return "detection", []
    from ..tasks.foreign import foreign_format

    names = [name for name, task in TASKS.items() if task.recognises(options.data)]
    if not names and Path(options.data).is_file():
        from ..data.archives import ARCHIVES
        from ..tasks.tables import TABLES

        raise UserError(
            f"{options.data} is a file of a kind that is not read: give a folder, an archive ({', '.join(ARCHIVES)}), "
            f"a table as text ({', '.join(TABLES)}), or annotations in COCO's .json or YOLO's .yaml."
            f"{foreign_format(Path(options.data))}"
        )
    if not names:
        raise UserError(
            f"{options.data} has no layout that is known: class folders or a table (classification), images and masks "
            "(segmentation), boxes in COCO, Pascal VOC, YOLO or LabelMe (detection). Give --task to learn what is "
            f"missing.{foreign_format(Path(options.data)) or _as_class_folders(options.data)}"
        )
    return names[-1], names[:-1]  # the table begins with the layout that asks least
