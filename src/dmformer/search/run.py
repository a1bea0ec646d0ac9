"""The search: optuna suggests values, every trial is an ordinary run, and its validation scores prune it.

question -> trials in trials/, kept in optuna's journal -> the best by validation -> page; test photos stay unseen
"""

import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ..tasks.build import with_normalisation, with_pretrained
from ..tasks.opening import open_job
from ..tasks.recipe import Recipe
from ..train.trials import trained
from ..utils.errors import UserError, first_line
from .space import Over, combinations

JOURNAL = "search.jsonl"
"""optuna's journal of the trials, in the folder of the search."""
STUDY = "search"
COMPARED = 4
"""Trials that are trained to the end before others are pruned by the median of their scores."""
FAILURES = 3
"""So many failed trials end a search in which none has succeeded."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class TimeIsUp(Exception):  # noqa: N818 (it is not an error)
    """The search has used its minutes; the trial can be resumed."""


@dataclass(frozen=True)
class Trial:
    """A trial for the table.

    Attributes:
        name: Of its run.
        values: Of the searched options.
        score: The best score of a validation; None without any.
        scores: Of all validations.
        told: What became of it.
    """

    name: str
    values: dict[str, Any]
    score: float | None
    scores: list[float]
    told: str
    complete: bool
    seconds: float


class Search:
    """A search in its folder.

    Args:
        recipe: Of the trials; the searched options, its name and its place are replaced.
        over: The searched options.
        out: Folder of the search.
        command: The command line, for the runs.

    Attributes:
        headline: The column of metrics.csv that is searched for its maximum.
        images: Numbers of images to train on, to validate on and to test on.
    """

    def __init__(self, recipe: Recipe, over: Sequence[Over], out: Path, command: str) -> None:
        self.recipe = replace(recipe, out=str(out / "trials"), split_seed=recipe.seed_of_split, tracker="none")
        self.over, self.command, self.deadline = list(over), command, float("inf")
        # Mistakes in the data end the search here, before its first trial.
        job = open_job(with_normalisation(with_pretrained(self.recipe)))
        self.data = job.data
        self.headline, self.images, self.unit = job.headline, job.images, job.unit
        self.study = open_study(out, recipe.seed, recipe.validations)
        self.grid = combinations(self.over)
        if self.grid is not None:
            random.Random(recipe.seed).shuffle(self.grid)
        for trial in latest(self.study):  # stopped or killed within a trial: its run goes on, as a new trial of optuna
            if is_unfinished(trial):
                if trial.state == TrialState.RUNNING:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs={"run": trial.user_attrs["run"]})

    def run(self, trials: int, minutes: float | None, after: Callable[[], None]) -> None:
        """Train until there are so many trials, every combination was tried, or the time is up.

        Args:
            trials: Number of all trials, those of earlier commands included.
            after: Is called after each trial.

        Raises:
            UserError: The first trials fail.
            Stopped: After SIGTERM or Ctrl-C, with everything saved.
        """
        if minutes is not None:
            self.deadline = time.monotonic() + 60 * minutes
        while self._has_next(trials) and time.monotonic() < self.deadline:
            try:
                self._trial(self.study.ask())
            except TimeIsUp:
                _say("the time is up: the trial was stopped, and --resume continues it")
            after()
            self._check_failures()

    @property
    def best(self) -> Trial | None:
        """The trial with the highest validation score of those that were trained to the end."""
        complete = [trial for trial in self.trials if trial.complete]
        return complete[0] if complete else None

    @property
    def trials(self) -> list[Trial]:
        """All trials, the complete ones first, each kind from the highest score on."""
        rows = [self._row(trial) for trial in latest(self.study) if "run" in trial.user_attrs]
        return sorted(rows, key=lambda row: (not row.complete, -1 if row.score is None else -row.score))

    def values(self, trial: Any) -> dict[str, Any]:
        """The values of the searched options in a trial of optuna."""
        return {each.name: each.suggested(trial) for each in self.over}

    def recipe_of(self, values: dict[str, Any]) -> Recipe:
        """The recipe of a trial with these values."""
        changed: Any = values
        return replace(self.recipe, **changed).completed(self.recipe, set(values))

    def _has_next(self, trials: int) -> bool:
        """Whether there is another trial to train; of a grid, the next combination is queued."""
        if any(trial.state == TrialState.WAITING for trial in self.study.trials):
            return True
        begun = latest(self.study)
        if len(begun) >= trials:
            return False
        if self.grid is None:
            return True
        untried = [values for values in self.grid if values not in [trial.params for trial in begun]]
        if untried:
            self.study.enqueue_trial(untried[0])
        return bool(untried)

    def _trial(self, trial: optuna.Trial) -> None:
        """Train one trial, or continue its run, and tell optuna the result."""
        values = self.values(trial)
        begun = {each.user_attrs["run"] for each in self.study.trials if "run" in each.user_attrs}
        name = trial.user_attrs.get("run", f"trial-{len(begun) + 1:03d}")
        trial.set_user_attr("run", name)
        _say(f"{name}: {in_words(values)}")
        recipe = replace(self.recipe_of(values), name=name)
        reported = 0

        def report(scores: Sequence[float]) -> None:
            nonlocal reported
            for step in range(reported, len(scores)):  # of a resumed run, those of before too
                trial.report(scores[step], step)
            reported = len(scores)

        def watch(scores: list[float]) -> None:
            report(scores)
            if len(scores) < recipe.validations:
                if trial.should_prune():
                    raise optuna.TrialPruned
                if time.monotonic() > self.deadline:
                    raise TimeIsUp

        try:
            data = self.data if recipe.reads_as(self.recipe) else None  # else the trial opens its own
            run = trained(recipe, self.command, score=False, watch=watch, data=data)
            report(run.validation)
            self.study.tell(trial, max(run.validation))
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except (UserError, torch.OutOfMemoryError) as error:  # of these values: others may do better
            trial.set_user_attr("failed", first_line(error))
            self.study.tell(trial, state=TrialState.FAIL)
        row = self._row(self.study.trials[trial.number])
        best = f"; the best so far: {self.best.name}, {self.best.score:.1%}" if self.best else ""
        _say(f"{name}: {row.told}{'' if row.score is None else f', {row.score:.1%}'}{best}")

    def _check_failures(self) -> None:
        failed = [trial for trial in latest(self.study) if "failed" in trial.user_attrs]
        if len(failed) >= FAILURES and len(failed) == len(latest(self.study)):
            raise UserError(f"all {len(failed)} trials failed, the last because: {failed[-1].user_attrs['failed']}")

    def _row(self, trial: FrozenTrial) -> Trial:
        scores = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        values = self.values(optuna.trial.FixedTrial(trial.params)) if trial.params else {}
        of = f"{len(scores)} of {self.recipe_of(values).validations} {self.unit}s"
        told = f"stopped after {of}; --resume continues it"
        if trial.state == TrialState.COMPLETE:
            best = len(scores) - scores[::-1].index(max(scores))  # on a tie, the later weights are kept
            told = f"complete, {self.unit} {best} was the best"
        elif trial.state == TrialState.PRUNED:
            told = f"pruned after {of}"
        elif "failed" in trial.user_attrs:
            told = f"failed: {trial.user_attrs['failed']}"
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        complete = trial.state == TrialState.COMPLETE
        return Trial(trial.user_attrs["run"], values, max(scores, default=None), scores, told, complete, seconds)


def open_study(out: Path, seed: int = 0, validations: int = 1) -> optuna.Study:
    """The study whose journal is in a folder, which is new if there is none.

    The caller holds the folder's lock: a lock of optuna that is there was left behind by a process that was killed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = str(out / JOURNAL)
    Path(f"{journal}.lock").unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=COMPARED, n_warmup_steps=validations // 4)
    study = optuna.create_study(
        storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner
    )
    # With the seed of before, a resumed search would suggest the same values again.
    study.sampler = TPESampler(seed=seed + len(study.trials))
    return study


def latest(study: optuna.Study) -> list[FrozenTrial]:
    """The trials, of each run only the last: a run that was stopped is continued as a new trial of optuna."""
    by_run = {trial.user_attrs.get("run", trial.number): trial for trial in study.trials}
    return list(by_run.values())


def is_unfinished(trial: FrozenTrial) -> bool:
    """Whether a trial was begun and its run can go on."""
    ended = trial.state in (*DONE, TrialState.WAITING) or "failed" in trial.user_attrs
    return not ended and "run" in trial.user_attrs


def in_words(values: dict[str, Any]) -> str:
    """lr 0.001, image_size 96"""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def train_command(name: str, options: Sequence[str], search: Search, best: Trial) -> str:
    """The command that trains the best trial's recipe and scores it on the test photos.

    Args:
        options: Of the recipe, as the command line gives them.
    """
    recipe, changed = search.recipe_of(best.values), list(best.values)
    if recipe.model_args != search.recipe.model_args:  # of a model of another family
        changed.append("model_args")
    return f"{shlex.join(['dmformer', 'train', name, *options])} {recipe.spelled(changed)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
