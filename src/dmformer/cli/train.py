"""dmformer train: parse a recipe with its overrides, check it, run it."""

import json
import os
import shlex
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

from ..export import PACKAGES
from ..runtimes.card import is_exported
from ..tasks.config import find_config, read_folder
from ..tasks.kinds import RECIPES as OWN_RECIPES
from ..tasks.recipe import Recipe
from ..tasks.recipes import RECIPES, read_recipe
from ..tasks.table import TASKS
from ..train.run_folder import check_folder, find_run, is_unfinished
from ..utils.display import duration, track
from ..utils.errors import UserError, first_line, unknown
from ..utils.extras import require
from ..utils.files import check_path
from ..utils.pretrained import folder_of
from .checks import check_model
from .parsing import option_name, parse, split_options, value_of
from .printing import print_summary, remark

DEFAULT_RECIPE = "elpv"

GIVEN_BY_DATA = ("num_classes", "in_chans", "global_pool", "img_size")
"""Arguments of a trained model that a new run chooses anew."""

TRAIN_HELP = """Train a classifier, a segmenter or a detector, or pretrain a backbone, into a run folder with a report.

dmformer train RECIPE --data DATA [OPTIONS]

{recipes}

examples:
  dmformer train                                      # the demo: solar cells, sound or defective
  dmformer train classify --data photos/              # photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/val/
  dmformer train classify --data photos/ --epochs 60 --image-size 160 --class-weights balanced
  dmformer train classify --data photos/ --folds 5    # cross-validation; best/ is the ensemble of the folds
  dmformer train classify --data photos/ --tta flip   # answers average each photo and its mirror image
  dmformer train tag --data photos/photos.csv         # several labels per photo
  dmformer train classify --data photos/ --pretrained none          # from random weights
  dmformer train segment --data images/ --masks masks/ --classes names.txt
  dmformer train detect --data photos/                # YOLO, COCO, Pascal VOC or LabelMe
  dmformer train detect --data coco/ --weights van_b2/ --framework mask_rcnn
  dmformer train finetune --data photos/ --weights runs/photos-dmformer_n-1/best --freeze 2
  dmformer train scratch --data photos/ --model van_b0
  dmformer train classify --data photos/ --teacher efficientnet-lite0 --teacher-cache cache/   # learn from a teacher
  dmformer train pretrain --data photos/ --teacher runs/large-1/best    # distil a model without labels
  dmformer train --model-args gate=False --name without-gate
  dmformer train classify --data photos/ --export onnx            # also a file that answers in about a second
  dmformer train --resume                             # continue the run that was stopped
  torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/

The options below show the values of the recipe '{name}'.
"""


def of_its_weights(recipe: Recipe, keep_arguments: bool) -> Recipe:
    """The recipe with the model that its starting weights are of, and its arguments, where a config.json tells them."""
    if recipe.weights is None or not find_config(recipe.weights).is_file():
        return recipe
    stated = read_folder(recipe.weights).stated
    if "members" in stated:
        told = f"--weights {recipe.weights} is an ensemble, which has no weights of its own"
        raise UserError(f"{told}: give one of its members, such as fold-1/best.")
    arguments = {k: v for k, v in (stated.get("model_args") or {}).items() if k not in GIVEN_BY_DATA}
    told = tuple(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    return replace(recipe, model=stated["architecture"], model_args=recipe.model_args if keep_arguments else told)


def listed_recipes() -> str:
    """Every recipe in its group: for the user's data, demos, and those of papers, which differ only in their names."""
    own, demos, papers = [], [], []
    for task in TASKS.values():
        for name, recipe in task.recipes.items():
            line = f"  {name:10}{(recipe.__doc__ or '').splitlines()[0]}"
            (demos if name in task.demos else own).append(line)
        papers += task.papers
    own.sort(key=lambda line: line.split()[0] not in OWN_RECIPES.values())
    groups = {
        "recipes for your data:": own,
        "recipes for demos (elpv without a RECIPE and --data):": demos,
        "recipes of papers, for large data sets and several GPUs:": textwrap.wrap(
            ", ".join(papers), 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        ),
    }
    return "\n\n".join("\n".join([heading, *lines]) for heading, lines in groups.items())


def own_recipe(name: str, data: str | None) -> str:
    """The recipe for data: that of a demo is only for the demo's own data."""
    demos = {demo: which for task in TASKS.values() for demo, which in task.demos.items()}
    return name if name not in demos or data is None or demos[name].is_its(data) else demos[name].own


def _goes_on(recipe: Recipe, options: list[str]) -> bool:
    """Whether to resume unasked: torchrun may start all processes again (`--max-restarts`), and this run has a state.

    torchrun does not tell every process that it is started again.

    Raises:
        UserError: `--overwrite` would delete the run when it is started again.
    """
    named = value_of("--name", options)
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or named is None or "--resume" in options:
        return False
    if "--overwrite" in options:
        raise UserError("--overwrite would delete the run at the first of torchrun's --max-restarts: leave it out.")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("RANK") == "0":
        remark("a restart by torchrun can fail: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun")
    return is_unfinished(Path(value_of("--out", options) or recipe.out, named))


def named_recipe(arguments: list[str], default: str) -> tuple[str, list[str]]:
    """The name of the recipe that arguments begin with, or the default, and the options after it."""
    if not arguments or arguments[0].startswith("-"):
        return default, arguments
    if arguments[0] not in RECIPES:
        raise unknown("recipe", arguments[0], RECIPES)
    return arguments[0], arguments[1:]


def recipe_of(start: Recipe, options: list[str], command: str, description: str | None = None) -> Recipe:
    """The recipe with the options of a command line, and with what follows from them."""
    recipe = parse(type(start), options, command, description, start)
    if not recipe.resume:
        recipe = recipe.completed(start, {option_name(option) for option in options if option.startswith("--")})
    if value_of("--model", options) is None and not recipe.resume:
        recipe = of_its_weights(recipe, keep_arguments="--model-args" in options)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for impossible values, and for a model, data or weights that are not there."""
    recipe.check()
    check_model(recipe.model)
    TASKS[recipe.task].check_places(recipe)
    if recipe.starting_weights is not None and not recipe.starting_weights.startswith("hf-hub:"):
        check_path(str(folder_of(recipe.starting_weights)))


def train(arguments: list[str]) -> None:
    started = time.monotonic()
    asked, options = named_recipe(arguments, DEFAULT_RECIPE)
    name = asked if "--resume" in options else own_recipe(asked, value_of("--data", options))
    start = RECIPES[name]()
    if _goes_on(start, options):
        options = [*options, "--resume"]
    auto = value_of("--batch-size", options) == "auto"
    if auto:
        _, options = split_options(options, {"batch_size"})
    if "--resume" in options:  # the run's own recipe, with the options given now on top
        place = replace(start, out=value_of("--out", options) or start.out, name=value_of("--name", options))
        folder = find_run(place)
        saved = read_recipe(folder / "recipe.yaml")
        if arguments[0] == asked and type(saved) is not type(start):
            raise UserError(f"{folder} is a run of {saved.task}, but {name} is a recipe for {start.task}.")
        start = replace(saved, out=place.out, name=folder.name, resume=True, overwrite=False)
    recipe = recipe_of(start, options, "train", TRAIN_HELP.format(recipes=listed_recipes(), name=name))
    task = TASKS[recipe.task]
    check_recipe(recipe)
    check_folder(recipe)
    _check_export(recipe)
    if auto and recipe.in_folds:
        raise UserError("--batch-size auto is for a single run: give a number with --folds.")
    if name != asked:
        remark(f"{asked} is the recipe of a demo; for --data {recipe.data}, the recipe is {name}")
    data = task.open_data(recipe, track)  # before torch is imported, so that mistakes in the data are told at once

    from ..train.folds import train_folds
    from ..train.loop import Stopped, train
    from ..train.processes import number_of_processes, together

    recipe = replace(recipe, processes=number_of_processes(recipe))
    try:
        with together(recipe, arguments) as all_threads:
            command = shlex.join(["dmformer", "train", *arguments])
            if recipe.in_folds:
                folder, summary = train_folds(recipe, data, command, all_threads)
            else:
                auto = auto and not recipe.resume  # a resumed run keeps its number
                run = train(recipe, command, report_threads=all_threads, data=data, largest_batch=auto)
                folder, summary = run.folder, None if run.scores is None else task.summary(run.scores, run.split)
    except Stopped as stopped:
        print(f"dmformer: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    if summary is not None:  # only in the first of several processes
        print_summary(summary)
        starts_fast = [path for path in _exported(folder, recipe) if is_exported(str(path))]
        why = "   # answers in about a second, without PyTorch" if starts_fast else ""
        source = shlex.quote(str(starts_fast[0] if starts_fast else folder / "best"))
        print(f"next: {task.next_step.format(best=source)}{why}")
        what = "ensemble of the folds" if recipe.in_folds else "best weights"
        print(f"{what}: {folder / 'best'}\nreport: {folder / 'report.html'}")
        print(f"it took {duration(time.monotonic() - started)}")


def _check_export(recipe: Recipe) -> None:
    """Raise UserError, before any training, if the model cannot be exported here."""
    if recipe.export and not TASKS[recipe.task].exports(vars(recipe)):
        raise UserError(f"--export: {getattr(recipe, 'framework', recipe.task)} models cannot be exported.")
    for format in recipe.export:
        require("export", f"--export {format}", *PACKAGES[format])


def _exported(folder: Path, recipe: Recipe) -> list[Path]:
    """The files that --export writes into a finished run; a failure is told, because the run itself is complete."""
    if not recipe.export:
        return []
    from ..export.write import export

    paths = []
    for format in dict.fromkeys(recipe.export):
        try:
            written = export(str(folder / "best"), format, str(folder), speed=False, overwrite=True)
        except Exception as error:  # each runtime raises its own
            again = shlex.join(["dmformer", "export", str(folder / "best"), "--to", format])
            reason = first_line(error).rstrip(".")
            remark(f"the run is complete, but its export to {format} failed: {reason}; try again with: {again}")
            continue
        for told in written.remarks:
            remark(told)
        difference = max(each.difference for each in written.agreements)
        print(f"exported: {written.path}, {written.megabytes:.1f} MB, largest difference to PyTorch {difference:.1e}")
        paths.append(written.path)
    return paths
