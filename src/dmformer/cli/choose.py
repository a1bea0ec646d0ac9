"""dmformer choose: the best backbone for these photos on this machine."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..choose.candidates import Question, available_forms, missing_package
from ..choose.limits import Limits, parse_limits
from ..choose.state import STATE, State, question_of, read_state
from ..tasks.kinds import RECIPES as OWN_RECIPES
from ..tasks.recipe import Recipe
from ..tasks.recipes import RECIPES
from ..tasks.table import TASKS
from ..tasks.task import Contest, Task
from ..utils.errors import UserError, unknown
from ..utils.lock import locked
from ..utils.machine import available_cores, energy_joules
from .checks import check_model
from .parsing import parse
from .printing import print_rows
from .resuming import prepare_folder, resumable

LIMITS = {"--latency", "--memory", "--disk", "--energy"}


@dataclass(frozen=True)
class ChooseOptions:
    """Choose the best backbone for your photos on this machine: dmformer choose --data photos/ [LIMITS] [OPTIONS]

    For classification, several labels per photo (--recipe tag), segmentation and detection. Every candidate is a model
    (for segmentation and detection with a head on it) at an image size, in a form, on a number of threads. First the
    limits: what cannot meet them by its size or its operations is not measured; the rest is measured here, on the CPU,
    with random weights: latency of a call, peak memory of a process that only runs the model, size of the file, energy.
    Then a race on your photos: all models that are left are trained for a few epochs, the better half goes on with
    more, and the last three are trained with several seeds. The winner is trained once more, for as long as there is
    time, and exported in its fastest form within the limits; the file is checked. Only validation photos decide; the
    winner alone is scored on the test photos, once.

    Without limits, the models that go on are those that no other beats in both score (top-1, mAP, mIoU, AP) and
    latency.

    Everything is in the folder --out: choice.html says who won, how sure that is, and who fell out where and why;
    trials/ has the training runs; choose.json has every measurement, from which --resume goes on.

    examples:
      dmformer choose --data photos/                                   accuracy against latency, within an hour
      dmformer choose --data photos/ --latency 20ms --disk 20MB        the most accurate within limits
      dmformer choose --data photos/ --memory 300MB --batch 8          memory and latency with 8 photos per call
      dmformer choose --data photos/ --models dmformer_n resnet18 --image-sizes 96 160 --hours 0.2
      dmformer choose --data elpv --recipe elpv --hours 0.5 --out cells
      dmformer choose --data photos.csv --recipe tag --hours 0.5       several labels per photo
      dmformer choose --data street/ --energy 2GMAC                    images with masks, within 2e9 operations a call
      dmformer choose --data boxes/ --heads atss retinanet --latency 100ms    photos with boxes
      dmformer choose --resume --out choice                            go on where it stopped
    """

    data: str = ""
    """Labelled photos, as for `dmformer train classify`, `tag`, `segment` or `detect`; or elpv."""
    latency: str | None = None
    """Maximum time of a call, e.g. 20ms or 0.5s."""
    memory: str | None = None
    """Maximum peak memory of a process that runs the model, e.g. 300MB (MB are 2^20 bytes)."""
    disk: str | None = None
    """Maximum size of the model's file, e.g. 20MB."""
    energy: str | None = None
    """Maximum energy of a call, e.g. 50mJ, if the processor's counters can be read (RAPL, mostly for administrators);
    else its operations, e.g. 0.5GMAC (10^9 multiply-adds)."""
    batch: int = 1
    """Photos per call."""
    hours: float = 1.0
    """Time for measuring and training together, e.g. 0.5."""
    models: tuple[str, ...] = ()
    """Names from dmformer or timm; by default some small ones. Weights in this package are the start where a model has
    them; other models start from random weights."""
    heads: tuple[str, ...] = ()
    """For segmentation fpn, upernet; for detection mask_rcnn, cascade_rcnn, retinanet, atss, sparse_rcnn, dino; by
    default the recipe's."""
    image_sizes: tuple[int, ...] = ()
    """Sizes in pixels, as --image-size of `dmformer train`; by default 96 and 128, for segmentation 192 and 256, for
    detection 256 and 320. A segmenter's photos are resized in proportion if the recipe resizes them."""
    forms: tuple[Literal["fused", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8"], ...] = ()
    """fused: PyTorch, by dmformer.fuse; onnxruntime, openvino: exported files; int8: with 8-bit weights and
    activations, not for detectors, kept if they lose at most 1 point of the validation score.
    Default: all whose packages are installed."""
    threads: tuple[int, ...] = ()
    """Numbers of CPU threads to try; by default one per core."""
    recipe: str | None = None
    """Recipe of the training runs, one of those of `dmformer train`; by default classify, segment or detect, by what
    --data holds."""
    epochs: int | None = None
    """Maximum number of epochs, passes over the photos, of a training run; by default the recipe's."""
    seeds: int = 3
    """Training runs of each finalist, with different seeds; fewer if the time is short."""
    seed: int = 0
    """First seed, and seed of the split of photos without splits."""
    out: str = "choice"
    """Folder to write."""
    resume: bool = False
    """Go on with the choice in --out; --hours may change, and limits as long as no training has begun."""
    overwrite: bool = False
    """Start again, and delete what an earlier choice wrote to --out."""
    format: Literal["table", "json"] = "table"
    """How to print the result."""


def choose(arguments: list[str]) -> None:
    options = parse(ChooseOptions, arguments, "choose")
    out = Path(options.out)
    if options.resume:
        state = read_state(out)
        question = _resumed(options, arguments, state)
    else:
        question = _question(options)
        prepare_folder(out, STATE, "choice", options.overwrite)
        state = State(question.to_dict())
    recipe, _ = _recipe(question.recipe)

    from ..choose.report import PAGE, finalists, write_choice
    from ..choose.run import choose

    command = shlex.join(["dmformer", "choose", *arguments])
    out.mkdir(parents=True, exist_ok=True)
    with resumable("choose", options.out), locked(out):
        choice = choose(question, recipe, out, state, command)
        write_choice(out / PAGE, choice, command)
    if options.format == "json":
        print(json.dumps({**choice.winner, "finalists": [asdict(each) for each in choice.finalists]}, indent=2))
        return
    rows = [
        [r.name, r.form, r.score, f"{100 * r.interval[0]:.1f} to {100 * r.interval[1]:.1f}", r.latency, r.disk]
        for r in finalists(choice)
    ]
    print_rows(["model and size", "form", f"validation {choice.figure}", "95 %", "ms a call", "MB"], rows, "table")
    _print_winner(choice, out / PAGE)


def _print_winner(choice: Any, page: Path) -> None:
    from ..choose.report import certainty, verdict

    print(f"\n{verdict(choice)}")
    print("\n".join(certainty(choice)))
    print(f"\nuse it: {choice.winner['use']}\nreport: {page}")
    if longer := choice.winner["longer"]:
        print(f"train it to the end: {longer}")


def _question(options: ChooseOptions) -> Question:
    """The question that the options ask, checked."""
    if not options.data:
        raise UserError("name the photos: dmformer choose --data photos/. See dmformer choose --help.")
    _check_numbers(options)
    for model in options.models:
        if model.startswith(("hf-hub:", "local-dir:")):
            raise UserError(f"--models {model}: give names of models from dmformer or timm.")
        check_model(model)
    for form in options.forms:
        if package := missing_package(form):
            raise UserError(f"the form {form} needs the package {package}: pip install 'dmformer[export]'.")
    name = options.recipe or _own_recipe(options.data)
    recipe, contest = _recipe(name)
    _check_places(replace(recipe, data=options.data), contest, options.heads)
    return Question(
        data=options.data,
        recipe=name,
        limits=_limits(options),
        batch_size=options.batch,
        hours=options.hours,
        models=_once(options.models or contest.models),
        heads=_once(options.heads or ((getattr(recipe, contest.head),) if contest.head else ())),
        image_sizes=_once(options.image_sizes or contest.image_sizes),
        forms=_once(options.forms or available_forms()),
        threads=_once(options.threads or (available_cores(),)),
        epochs=options.epochs,
        seeds=options.seeds,
        seed=options.seed,
    )


def _limits(options: ChooseOptions) -> Limits:
    limits = parse_limits(options.latency, options.memory, options.disk, options.energy)
    if limits.energy_j is not None and energy_joules() is None:
        raise UserError(
            f"--energy {options.energy}: the energy counters of this machine cannot be read; limit the operations, "
            "e.g. --energy 0.5GMAC."
        )
    return limits


def _once(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _check_numbers(options: ChooseOptions) -> None:
    for name, values in (
        ("batch", [options.batch]),
        ("threads", options.threads),
        ("seeds", [options.seeds]),
        ("epochs", [1 if options.epochs is None else options.epochs]),
    ):
        if any(value < 1 for value in values):
            raise UserError(f"--{name} must be 1 or more.")
    if not options.hours > 0:
        raise UserError(f"--hours is {options.hours:g}: it must be more than 0.")
    if small := [size for size in options.image_sizes if size < 32]:
        raise UserError(f"--image-sizes {small[0]}: the models need 32 pixels or more.")


def _own_recipe(data: str) -> str:
    """The recipe for the user's own data by what it holds; classify if that is not known."""
    found = [name for name, task in TASKS.items() if task.contest is not None and task.recognises(data)]
    return OWN_RECIPES[found[-1] if found else next(iter(OWN_RECIPES))]  # the first layouts ask least


def _recipe(name: str) -> tuple[Any, Contest]:
    """A recipe, and how its models are compared."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe: Recipe = RECIPES[name]()
    if (contest := TASKS[recipe.task].contest) is None:
        known = ", ".join(task.name for task in TASKS.values() if task.contest is not None)
        raise UserError(f"--recipe {name} is for {recipe.task}: `dmformer choose` knows {known}.")
    return recipe, contest


def _check_places(recipe: Any, contest: Contest, heads: Sequence[str]) -> None:
    """Raise UserError for data that is not there, a head that the task lacks, or a package that it needs."""
    task: Task = TASKS[recipe.task]
    task.check_places(recipe)
    for head in heads:
        if not contest.head:
            raise UserError(f"--heads {head}: a {task.model} has no choice of heads.")
        if head not in contest.heads:
            raise unknown("head", head, contest.heads)
        chosen: Any = {contest.head: head}
        task.check_places(replace(recipe, **chosen))


def _resumed(options: ChooseOptions, arguments: Sequence[str], state: State) -> Question:
    """The saved question, with the new time and limits if there are any."""
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    if extra := sorted(given - {"--resume", "--out", "--hours", "--format", *LIMITS}):
        raise UserError(f"--resume goes on with the saved question, to which {extra[0]} belongs: leave it out.")
    question = question_of(state)
    if "--hours" in given:
        _check_numbers(options)
        question = replace(question, hours=options.hours)
    if given & LIMITS:
        if state.rounds:
            raise UserError("the training has begun, with the limits as they were: start again with another --out.")
        new = _limits(options)
        kept = {f.name: getattr(new, f.name) or getattr(question.limits, f.name) for f in fields(new)}
        question = replace(question, limits=Limits(**kept))
        if question.limits.memory_mb is not None:  # else only the fastest form's memory is measured
            state.measured = {k: v for k, v in state.measured.items() if v.get("memory_mb") is not None}
    state.question = question.to_dict()
    return question
