"""dmformer search: the best values of a few options of a recipe, by validation."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..search.space import Over, read_over
from ..tasks.recipe import Recipe
from ..tasks.recipes import RECIPES
from ..utils.errors import UserError, unknown
from ..utils.extras import require
from ..utils.files import write_whole, writing_to
from ..utils.lock import locked
from .checks import check_model
from .parsing import option_name, parse, split_options, value_of
from .printing import print_rows, remark
from .resuming import prepare_folder, resumable
from .train import check_recipe, named_recipe, own_recipe, recipe_of

STATE = "search.json"
"""The question, from which --resume goes on; the trials are in optuna's journal beside it."""

MAY_CHANGE = ("resume", "out", "trials", "minutes")
"""Options with which a search goes on."""
FOR_ONE_RUN = ("name", "tracker", "export")
"""Options of `dmformer train` that a search does not have."""
OF_THE_RUN = ("out", "resume", "overwrite", "minutes", *FOR_ONE_RUN)
OF_THE_DATA = ("data", "val_data", "test_data", "val_share", "test_share", "split_seed", "masks", "images")
"""Options that cannot be searched: the scores could not be compared."""


@dataclass(frozen=True)
class SearchOptions:
    """Search the best values of a few options: dmformer search RECIPE --data DATA --over OPTION=VALUES ... [OPTIONS]

    RECIPE and all further options are those of `dmformer train`; by default, RECIPE is classify. Every trial is an
    ordinary run with other values of the options in --over. optuna chooses the values from the trials before. A trial
    whose validation score is below the median of the complete ones at the same epoch is pruned: it ends early. If every
    option has a list, each combination is tried once.

    Only validation photos decide; no test photo is scored. At the end, the command that trains the best trial in
    full and scores it on the test photos is printed: with the length of the recipe, if the trials were shorter.

    Everything is in the folder --out: search.html has the best trial, plots and a table; trials/ has the runs;
    search.jsonl is optuna's journal, from which --resume goes on. Needs the extra 'search'.

    examples:
      dmformer search classify --data photos/ --over lr=1e-4..3e-3 weight_decay=0.01,0.05 image_size=96,160
      dmformer search classify --data photos/ --epochs 8 --over lr=1e-4..3e-3 mixup=0..0.4 --trials 30 --minutes 60
      dmformer search segment --data images/ --masks masks/ --over lr=1e-4..1e-2 head=fpn,upernet
      dmformer search detect --data photos/ --over framework=atss,retinanet lr=1e-4..1e-3 --out boxes
      dmformer search --resume --out boxes --trials 40
    """

    over: tuple[str, ...] = ()
    """Options to search: OPTION=LOW..HIGH or OPTION=VALUE,VALUE. Ranges of lr and weight_decay, and those whose upper
    end is 10 times the lower or more, have a logarithmic scale."""
    trials: int = 20
    """Number of trials, pruned ones included."""
    minutes: float | None = None
    """Minutes after which no trial goes on; the one that is running stops after its next validation."""
    out: str = "search"
    """Folder to write."""
    resume: bool = False
    """Go on with the search in --out; --trials and --minutes may change."""
    overwrite: bool = False
    """Start again, and delete what an earlier search wrote to --out."""


@dataclass(frozen=True)
class Question:
    """What a search was started with: the name of a recipe, its options, and --over."""

    recipe: str
    options: tuple[str, ...]
    over: tuple[str, ...]
    trials: int


def search(arguments: list[str]) -> None:
    asked, given = named_recipe(arguments, "classify")
    own, options = split_options(given, {field.name for field in fields(SearchOptions)})
    name, recipe = asked, None
    if {"--help", "-h"} & set(given):
        own = ["--help"]
    elif "--resume" not in own:
        name = own_recipe(asked, value_of("--data", options))
        recipe = _recipe(name, options)
    wanted = parse(SearchOptions, own, "search")
    out = Path(wanted.out)
    if wanted.trials < 1:
        raise UserError("--trials must be 1 or more.")
    if wanted.minutes is not None and not wanted.minutes > 0:
        raise UserError(f"--minutes is {wanted.minutes:g}: it must be more than 0.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("dmformer search runs in one process: start it without torchrun.")
    require("search", "dmformer search", "optuna")
    if recipe is None:
        question = _read_question(out)
        if extra := [o for o in given if o.startswith("--") and option_name(o) not in MAY_CHANGE]:
            raise UserError(f"--resume goes on with the saved search, to which {extra[0]} belongs: leave it out.")
        recipe = _recipe(question.recipe, list(question.options))
        if value_of("--trials", own) is not None:
            question = replace(question, trials=wanted.trials)
    else:
        question = Question(name, tuple(options), wanted.over, wanted.trials)
    over = _over(question.over, recipe)
    check_recipe(recipe)
    if "--resume" not in own:
        prepare_folder(out, STATE, "search", wanted.overwrite)
        if name != asked:
            remark(f"{asked} is the recipe of a demo; for --data {recipe.data}, the recipe is {name}")
    _run(question, recipe, over, out, wanted.minutes, shlex.join(["dmformer", "search", *arguments]))


def _run(
    question: Question, recipe: Recipe, over: Sequence[Over], out: Path, minutes: float | None, command: str
) -> None:
    """Run the search, and print its table and the command for the best trial."""
    from ..search.report import PAGE, write_search
    from ..search.run import JOURNAL, Search, train_command

    out.mkdir(parents=True, exist_ok=True)
    with resumable("search", str(out)), locked(out):
        if not (out / STATE).is_file():  # else it is resumed
            (out / JOURNAL).unlink(missing_ok=True)
        found = Search(recipe, over, out, command)
        with writing_to(out):
            write_whole(out / STATE, json.dumps(asdict(question), indent=1, ensure_ascii=False) + "\n")

        def in_full() -> str:
            own = getattr(RECIPES[question.recipe](), recipe.length)
            shorter = {recipe.length} if getattr(recipe, recipe.length) < own else set()
            _, options = split_options(question.options, shorter)
            return train_command(question.recipe, options, found, found.best) if found.best else ""

        def write_page() -> None:
            write_search(out / PAGE, found, in_full(), command)

        try:
            found.run(question.trials, minutes, write_page)
        except OSError as error:  # of optuna's journal
            told = f"{out} cannot be written: {error.strerror or error}; free some space and go on with --resume."
            raise UserError(told) from None
        write_page()
    names = [each.name for each in over]
    rows = [
        [t.name, *(str(t.values.get(name, "")) for name in names), "–" if t.score is None else t.score, t.told]
        for t in found.trials
    ]
    print_rows(["trial", *names, found.headline, ""], rows, "table")
    print(f"\nnext: {in_full()}" if found.best else "\nno trial is complete: go on with --resume and more --minutes")
    print(f"report: {out / PAGE}")


def _recipe(name: str, options: list[str]) -> Recipe:
    """The recipe of the trials."""
    for option in options:
        if option.startswith("--") and option_name(option) in FOR_ONE_RUN:
            raise UserError(f"{option} is for a single run: `dmformer search` has no such option.")
    recipe = recipe_of(RECIPES[name](), options, "search")
    if not recipe.data:
        raise UserError("name the photos: dmformer search --data photos/ --over lr=1e-4..3e-3.")
    return recipe


def _read_question(out: Path) -> Question:
    """The question of the search in a folder."""
    try:
        values = json.loads((out / STATE).read_text("utf-8"))
        return Question(values["recipe"], tuple(values["options"]), tuple(values["over"]), values["trials"])
    except FileNotFoundError:
        raise UserError(f"{out} holds no {STATE} to go on from: start without --resume.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{out / STATE} cannot be read ({error}): start again with another --out.") from None


def _over(texts: Sequence[str], recipe: Recipe) -> list[Over]:
    """The searched options, each value checked with the recipe."""
    if not texts:
        raise UserError("name the options to search: --over lr=1e-4..3e-3 image_size=96,160.")

    def typed(name: str, text: str) -> object:
        if name in OF_THE_RUN or name in OF_THE_DATA:
            raise UserError(f"--over {name}: this option cannot be searched.")
        known = {field.name for field in fields(recipe)}
        if name not in known:
            raise unknown("option", name, known)
        before, option = getattr(recipe, name), f"--{name.replace('_', '-')}"
        if isinstance(before, tuple):
            raise UserError(f"--over {name}: an option of several values cannot be searched.")
        if isinstance(before, bool):
            if text not in ("true", "false"):
                raise UserError(f"--over {name}={text}: its values are true and false.")
            return text == "true"
        return getattr(parse(type(recipe), [option, text], "search", default=recipe), name)

    over = [read_over(text, typed) for text in texts]
    for each in over:
        for value in each.values:
            changed: dict = {each.name: value}
            if each.name == "model":
                check_model(value)
            replace(recipe, **changed).completed(recipe, {each.name}).check()
    if len({each.name for each in over}) < len(over):
        raise UserError("--over names an option twice.")
    return over
