"""dmformer train: parse a recipe with its overrides, check it, run it."""

import shlex
import sys
from dataclasses import replace

from ..tasks.recipes import RECIPES, read_recipe
from ..tasks.table import TASKS
from ..train.run_folder import check_folder, find_run
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from ..utils.pretrained import folder_of
from .checks import check_model
from .parsing import parse, value_of
from .printing import print_summary

TRAIN_HELP = """Train a classifier, a segmenter or a detector, or pretrain a backbone, into a run folder with a report.

recipes (dmformer train RECIPE [OPTIONS]; elpv if none is named):
{recipes}

examples:
  dmformer train                                   the demo: solar cells, sound or defective
  dmformer train scratch --data photos/            photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/val/
  dmformer train scratch --data photos/ --epochs 60 --image-size 160 --class-weights balanced
  dmformer train finetune --data photos/ --weights runs/scratch-1/best --freeze 2
  dmformer train scratch --data photos/ --teacher efficientnet-lite0 --teacher-cache cache/     learn from a teacher
  dmformer train pretrain --data photos/ --teacher runs/large-1/best     distil a model without labels
  dmformer train segment --data images/ --masks masks/ --classes names.txt --weights van_b2/ --model van_b2
  dmformer train detect --data coco_like/ --weights van_b2/ --model van_b2 --framework mask_rcnn
  dmformer train --model-args gate=False --name without-gate
  dmformer train --resume                          continue the run that was stopped
  torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/

The options below show the values of the recipe '{name}'.
"""


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
    task = TASKS[recipe.task]
    recipe.check()
    check_model(recipe.model)
    task.check_places(recipe)
    if recipe.starting_weights is not None and not recipe.starting_weights.startswith("hf-hub:"):
        check_path(str(folder_of(recipe.starting_weights)))
    check_folder(recipe)

    from ..train.loop import Stopped, train
    from ..train.processes import number_of_processes, together

    recipe = replace(recipe, processes=number_of_processes(recipe))
    try:
        with together(recipe, arguments) as all_threads:
            run = train(recipe, shlex.join(["dmformer", "train", *arguments]), report_threads=all_threads)
    except Stopped as stopped:
        print(f"dmformer: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    if run.scores is not None:  # only in the first of several processes
        print_summary(task.summary(run.scores, run.split))
        print(f"best weights: {run.folder / 'best'}\nreport: {run.folder / 'report.html'}")
