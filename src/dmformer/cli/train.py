"""dmformer train: parse a recipe with its overrides, check it, run it."""

import json
import shlex
import sys
from dataclasses import replace

from ..tasks.config import find_config, read_folder
from ..tasks.recipe import Recipe
from ..tasks.recipes import RECIPES, read_recipe
from ..tasks.table import TASKS
from ..train.run_folder import check_folder, find_run
from ..utils.display import track
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from ..utils.pretrained import folder_of
from .checks import check_model
from .parsing import parse, value_of
from .printing import print_summary

GIVEN_BY_DATA = ("num_classes", "in_chans", "global_pool", "img_size")
"""Arguments of a trained model that a new run chooses anew."""

TRAIN_HELP = """Train a classifier, a segmenter or a detector, or pretrain a backbone, into a run folder with a report.

recipes (dmformer train RECIPE [OPTIONS]; elpv if none is named):
{recipes}

examples:
  dmformer train                                   the demo: solar cells, sound or defective
  dmformer train classify --data photos/           photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/val/
  dmformer train classify --data photos/ --epochs 60 --image-size 160 --class-weights balanced
  dmformer train tag --data photos/photos.csv      several labels per photo
  dmformer train classify --data photos/ --pretrained none          from random weights
  dmformer train finetune --data photos/ --weights runs/photos-dmformer_n-1/best --freeze 2
  dmformer train classify --data photos/ --teacher efficientnet-lite0 --teacher-cache cache/     learn from a teacher
  dmformer train pretrain --data photos/ --teacher runs/large-1/best     distil a model without labels
  dmformer train segment --data images/ --masks masks/ --classes names.txt --weights van_b2/
  dmformer train detect --data coco_like/ --weights van_b2/ --framework mask_rcnn
  dmformer train --model-args gate=False --name without-gate
  dmformer train --resume                          continue the run that was stopped
  torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/

The options below show the values of the recipe '{name}'.
"""


def of_its_weights(recipe: Recipe, keep_arguments: bool) -> Recipe:
    """The recipe with the model that its starting weights are of, and its arguments, where a config.json tells them."""
    if recipe.weights is None or not find_config(recipe.weights).is_file():
        return recipe
    stated = read_folder(recipe.weights).stated
    arguments = {k: v for k, v in (stated.get("model_args") or {}).items() if k not in GIVEN_BY_DATA}
    told = tuple(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    return replace(recipe, model=stated["architecture"], model_args=recipe.model_args if keep_arguments else told)


def train(arguments: list[str]) -> None:
    name, options = "elpv", arguments
    if arguments and not arguments[0].startswith("-"):
        name, options = arguments[0], arguments[1:]
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    start = RECIPES[name]()
    if "--resume" in options:  # the run's own recipe, with the options given now on top
        place = replace(start, out=value_of("--out", options) or start.out, name=value_of("--name", options))
        folder = find_run(place)
        saved = read_recipe(folder / "recipe.yaml")
        if options is not arguments and type(saved) is not type(start):
            raise UserError(f"{folder} is a run of {saved.task}, but {name} is a recipe for {start.task}.")
        start = replace(saved, out=place.out, name=folder.name, resume=True, overwrite=False)
    listed = "\n".join(f"  {key:24}{(recipe.__doc__ or '').splitlines()[0]}" for key, recipe in RECIPES.items())
    recipe = parse(type(start), options, "train", TRAIN_HELP.format(recipes=listed, name=name), start)
    if value_of("--model", options) is None and not recipe.resume:
        recipe = of_its_weights(recipe, keep_arguments="--model-args" in options)
    task = TASKS[recipe.task]
    recipe.check()
    check_model(recipe.model)
    task.check_places(recipe)
    if recipe.starting_weights is not None and not recipe.starting_weights.startswith("hf-hub:"):
        check_path(str(folder_of(recipe.starting_weights)))
    check_folder(recipe)
    data = task.open_data(recipe, track)  # before torch is imported, so that mistakes in the data are told at once

    from ..train.loop import Stopped, train
    from ..train.processes import number_of_processes, together

    recipe = replace(recipe, processes=number_of_processes(recipe))
    try:
        with together(recipe, arguments) as all_threads:
            command = shlex.join(["dmformer", "train", *arguments])
            run = train(recipe, command, report_threads=all_threads, data=data)
    except Stopped as stopped:
        print(f"dmformer: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    if run.scores is not None:  # only in the first of several processes
        print_summary(task.summary(run.scores, run.split))
        print(f"best weights: {run.folder / 'best'}\nreport: {run.folder / 'report.html'}")
