"""The whole choice: limits first, then a race on the photos, then the winner exported and scored.

question -> bounds -> measurements -> rounds of training -> finalists with several seeds -> the winner once more
-> export, test score, page
"""

import csv
import shlex
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..bench.variants import set_threads
from ..export.write import Written, export, spread
from ..report.page import number as counted
from ..tasks.build import with_normalisation
from ..tasks.job import Job
from ..tasks.recipe import Recipe
from ..tasks.table import TASKS
from ..train.loop import Stopped
from ..train.trials import trained
from ..utils.display import Display, duration, track
from ..utils.errors import UserError, first_line
from ..utils.intervals import Score
from ..utils.pretrained import tags
from . import race
from .candidates import FORMS, Candidate, Entrant, Question, candidates, entrants
from .limits import lower_bounds, none_meets
from .measure import Shape, cost, gmacs_per_second, image_seconds, measure, size_of_photo
from .race import Standing
from .state import State, save_state

FOR_THE_END = 0.05
"""Fraction of the time that is kept for the export and the test score."""
FOR_THE_WINNER = 0.4
"""Maximum fraction of the time that is kept for the longest training of the winner (a reconstruction)."""
VALIDATION_COST = 1 / 3
"""Time of an image in validation, relative to training: the forward pass alone (a reconstruction)."""
CALIBRATED, MAX_LOSS = 64, 0.01
"""Photos that calibrate an int8 file, and the maximum loss of the validation score by int8."""


@dataclass(frozen=True)
class Fallen:
    """An entrant that fell out: at which stage, and why.

    Attributes:
        behind: How far its score was below that of the last that went on; None if its score did not decide.
        level: Whether their intervals overlap.
    """

    name: str
    stage: str
    reason: str
    behind: float | None = None
    level: bool = False


@dataclass
class Choice:
    """The answer.

    Attributes:
        figure: Name of the score: "top-1", "mAP", "mIoU" or "AP".
        forms: The candidates of each entrant that meet the limits, the fastest first.
        scores: Validation score of each entrant in its last round.
        finalists: The best first.
        winner: As in `State.winner`.
    """

    question: Question
    state: State
    figure: str
    images: tuple[int, int, int]
    notes: list[str]
    forms: dict[str, list[Candidate]] = field(default_factory=dict)
    fallen: list[Fallen] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    finalists: list[Standing] = field(default_factory=list)

    @property
    def winner(self) -> dict[str, Any]:
        return self.state.winner

    def figures(self, candidate: Candidate) -> dict[str, Any]:
        return self.state.measured[candidate.name]

    def latency(self, name: str) -> float:
        """Milliseconds of an entrant's fastest form that meets the limits."""
        return self.figures(self.forms[name][0])["latency_ms"]


def choose(question: Question, recipe: Recipe, out: Path, state: State, command: str) -> Choice:
    """Answer a question, going on from what the state holds already.

    Args:
        recipe: Of the trials; its data, model, size, epochs, seed and place are replaced.
        out: Folder for the state, the runs and the exported file.
        command: The command line, for the reports of the runs.

    Raises:
        UserError: A mistake in the data, no candidate within the limits, or no model that could be trained.
        Stopped: After SIGTERM or Ctrl-C during a training, with everything saved.
    """
    return _Choosing(question, recipe, out, state, command).answer()


class _Choosing:
    def __init__(self, question: Question, recipe: Recipe, out: Path, state: State, command: str) -> None:
        self.question, self.out, self.state, self.command = question, out, state, command
        self.task = TASKS[recipe.task]
        assert self.task.contest is not None
        self.contest = self.task.contest
        given: Any = {"data": question.data, "split_seed": question.seed, "out": str(out / "trials"), "tracker": "none"}
        recipe = replace(recipe, **given)
        self.data = self.task.open_data(recipe, track)
        self.job = self.task.job(with_normalisation(recipe), self.data)
        images = self.job.images
        self.recipe = replace(recipe, batch_size=min(recipe.batch_size, images[0] // 2 * 2 or 1))
        self.most_epochs = question.epochs or self._sized(question.image_sizes[0]).validations
        self.entrants = {entrant.name: entrant for entrant in entrants(question)}
        self.pretrained = {name for name, entrant in self.entrants.items() if tags(entrant.model)}
        self.choice = Choice(question, state, self.task.headline, images, list(self.job.notes))
        self.jobs: dict[str, Job] = {}
        self.clock = time.monotonic()

    def answer(self) -> Choice:
        with Display() as self.display:  # training shows its own
            for note in self.job.notes:
                self.display.say(f"note: {note}")
            self._measure(self._possible())
            self._time_training()
        self._race()
        if not self.state.winner:
            self._conclude()
        return self.choice

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.clock
        self.clock = now
        save_state(self.state, self.out)

    # ---- limits

    def _possible(self) -> dict[str, list[Candidate]]:
        """The candidates of each entrant whose lower bounds meet the limits."""
        question, state = self.question, self.state
        for threads in question.threads:
            if str(threads) not in state.gmacs_per_second:
                state.gmacs_per_second[str(threads)] = gmacs_per_second(threads)
        possible: dict[str, list[Candidate]] = {}
        bounds: list[tuple[str, dict[str, float | None]]] = []
        int8 = self._has_int8()
        for i, (name, entrant) in enumerate(self.entrants.items()):
            self.display.step("sizes of the models", i, len(self.entrants), "")
            try:
                state.costs[name] = state.costs.get(name) or self._cost(entrant)
            except Exception as error:  # timm's models raise their own errors, e.g. for an image size
                self._fall(name, "measuring", first_line(error))
                continue
            own = [c for c in candidates(entrant, question) if self._can_be(c, int8)]
            if not own:
                self._fall(name, "measuring", "it cannot be exported in one of these forms")
                continue
            least = {c: self._least(c) for c in own}
            bounds += [(c.name, figures) for c, figures in least.items()]
            if within := [c for c in own if not question.limits.exceeded(least[c])]:
                possible[name] = within
            else:
                closest = min(own, key=lambda c: max(question.limits.ratios(least[c]).values()))
                self._fall(name, "bounds", f"at least {question.limits.exceeded(least[closest])}")
        self._save()
        if not bounds:
            raise UserError(f"no model can be built; {self.choice.fallen[0].name}: {self.choice.fallen[0].reason}.")
        if not possible:
            raise none_meets(question.limits, bounds)
        return possible

    def _has_int8(self) -> bool:
        """Whether the data can calibrate int8 files, if forms in int8 are asked for; says why not."""
        asked = [FORMS[form][1] == "int8" for form in self.question.forms]
        try:
            return any(asked) and bool(self.contest.calibration(self.data))
        except UserError as error:
            if all(asked):
                raise UserError(f"{error}: give --forms with another form.") from None
            self.display.say(f"note: {error}: int8 is left out")
            return False

    def _can_be(self, candidate: Candidate, int8: bool) -> bool:
        """Whether a candidate's form can be had at all."""
        exported = candidate.form == "fused" or self.task.exports({self.contest.head: candidate.entrant.head})
        return exported and (int8 or not candidate.int8)

    def _cost(self, entrant: Entrant) -> dict[str, Any]:
        job = self._job_of(entrant.name)
        size = size_of_photo(job, self.contest.multiple)
        return {**cost(job, *size), "size": list(size)}

    def _job_of(self, name: str) -> Job:
        """An entrant's job for measurements: from random weights, reading photos without processes of its own."""
        if name not in self.jobs:
            recipe = replace(self._recipe(self.entrants[name], 1, self.question.seed, name), workers=0)
            self.jobs[name] = self.task.job(with_normalisation(recipe), self.data)
        return self.jobs[name]

    def _shape(self, name: str) -> Shape:
        """Of the images of a call."""
        height, width = self.state.costs[name]["size"]
        return self.question.batch_size, 3, height, width

    def _least(self, candidate: Candidate) -> dict[str, float | None]:
        """Lower bounds of a candidate's figures."""
        needs = self.state.costs[candidate.entrant.name]
        return lower_bounds(
            needs["parameters_m"],
            needs["gmacs"],
            int8=candidate.int8,
            batch_size=self.question.batch_size,
            gmacs_per_second=self.state.gmacs_per_second[str(candidate.threads)],
        )

    def _measure(self, possible: Mapping[str, list[Candidate]]) -> None:
        """Measure what is possible, and keep what meets the limits."""
        question, measured = self.question, self.state.measured
        total = sum(map(len, possible.values()))
        self.display.say(
            f"{counted(total, 'candidate')} to measure at batch {question.batch_size}: models and sizes "
            f"{len(possible)}, forms {len(question.forms)}, numbers of threads {len(question.threads)}"
        )
        for i, (name, own) in enumerate(possible.items()):
            self.display.step(f"measuring {name}", i, len(possible), "")
            if new := [candidate for candidate in own if candidate.name not in measured]:
                with tempfile.TemporaryDirectory(dir=self.out, prefix=".measuring.") as folder:
                    measured |= measure(
                        self._job_of(name),
                        self.contest,
                        new,
                        self._shape(name),
                        question.limits,
                        Path(folder),
                        self.display.say,
                    )
                self._save()
            self._judge(name, own)
        if not self.choice.forms:
            found = [(c.name, measured[c.name]) for own in possible.values() for c in own]
            if there := [(name, figures) for name, figures in found if "failed" not in figures]:
                raise none_meets(question.limits, there)
            raise UserError(f"no candidate could be measured; {found[0][0]}: {found[0][1]['failed']}.")

    def _judge(self, name: str, own: list[Candidate]) -> None:
        """Keep the forms of an entrant that meet the limits, the fastest first."""
        measured, limits = self.state.measured, self.question.limits
        there = [candidate for candidate in own if "failed" not in measured[candidate.name]]
        within = [candidate for candidate in there if not limits.exceeded(measured[candidate.name])]
        if within:
            self.choice.forms[name] = sorted(within, key=lambda c: measured[c.name]["latency_ms"])
        elif there:
            closest = min(there, key=lambda c: max(limits.ratios(measured[c.name]).values()))
            told = f"{closest.form}, {counted(closest.threads, 'thread')}: {limits.exceeded(measured[closest.name])}"
            self._fall(name, "limits", told)
        else:
            self._fall(name, "measuring", str(measured[own[0].name]["failed"]))

    # ---- race

    def _time_training(self) -> None:
        """Measure a training step of every entrant that is still in."""
        for i, name in enumerate(list(self.choice.forms)):
            self.display.step(f"timing the training of {name}", i, len(self.choice.forms), "")
            if name in self.state.image_seconds:
                continue
            try:
                seconds = image_seconds(self._job_of(name), self.recipe.batch_size)
            except Exception as error:  # timm's models raise their own errors
                self._fall(name, "training", first_line(error))
                del self.choice.forms[name]
                continue
            self.state.image_seconds[name] = seconds
            self._save()
        if not self.choice.forms:
            raise UserError(f"no model can be trained; {self.choice.fallen[-1].name}: {self.choice.fallen[-1].reason}.")

    def _epoch_seconds(self, name: str) -> float:
        """Expected seconds of one epoch: as in its last trial, else from its training step, corrected by how the trials
        of others compare with theirs."""
        train_images, val_images, _ = self.job.images
        images = train_images + VALIDATION_COST * val_images
        done = [t for t in self.state.trials.values() if "failed" not in t]
        if own := [t["seconds"] / t["epochs"] for t in done if t["entrant"] == name]:
            return own[-1]
        ratios = [
            t["seconds"] / t["epochs"] / (self.state.image_seconds[t["entrant"]] * images)
            for t in done
            if t["entrant"] in self.state.image_seconds
        ]
        return self.state.image_seconds[name] * images * (statistics.median(ratios) if ratios else 1.0)

    def _seconds_left(self) -> float:
        return max(self.question.hours * 3600 * (1 - FOR_THE_END) - self.state.seconds, 0.0)

    def _seconds_of_race(self, standing: Mapping[str, float]) -> float:
        """The time left without that of the winner's longest training.

        Args:
            standing: Seconds of one epoch of those that may win, by name.
        """
        kept = min(FOR_THE_WINNER * self.question.hours * 3600, self.most_epochs * max(standing.values()))
        return max(self._seconds_left() - kept, 0.0)

    def _race(self) -> None:
        """Halve the field until the finalists are left, and train those with several seeds."""
        standing, number, epochs = list(self.choice.forms), 0, 0
        if not self.state.rounds:
            self._tell_plan(standing)
        while True:
            rounds_left = len(race.sizes_of_rounds(len(standing)))
            plan = self._round(number, standing, rounds_left, epochs)
            stage = "final" if rounds_left == 1 else f"round {number + 1}"
            for name in plan.left_out:
                self._fall(name, stage, "no time: one epoch of all models does not fit into --hours")
            scores = self._trials(plan, stage)
            standings = [race.standing(name, found) for name, found in scores.items()]
            self.choice.scores |= {each.name: each.score for each in standings}
            ranked = race.ranking(standings, {name: self.choice.latency(name) for name in scores})
            if rounds_left == 1:
                self.choice.finalists = ranked
                return
            standing = self._halved(ranked, plan, stage)
            number, epochs = number + 1, plan.epochs

    def _tell_plan(self, standing: list[str]) -> None:
        """Print what the race will take, before it starts."""
        seconds = {name: self._epoch_seconds(name) for name in standing}
        left = self._seconds_of_race(seconds)
        told = race.forecast(seconds, left, self.most_epochs, self.question.seeds, self.pretrained)
        for i, (plan, length) in enumerate(told):
            name = "final" if i + 1 == len(told) else f"round {i + 1}"
            seeds = f", {plan.seeds} seeds" if plan.seeds > 1 else ""
            self.display.say(
                f"{name}: {counted(len(plan.names), 'model')}, {counted(plan.epochs, 'epoch')}{seeds}, about "
                f"{duration(length)}"
            )
        whole = self.state.seconds + sum(length for _, length in told)
        if told[-1][0].epochs < self.most_epochs:
            self.display.say(f"the winner again: at most {counted(self.most_epochs, 'epoch')}, in the time left")
            whole = self.question.hours * 3600
        hours = duration(self.question.hours * 3600)
        self.display.say(f"at most {duration(whole)} of {hours} in all, measurements included")

    def _round(self, number: int, standing: list[str], rounds_left: int, least_epochs: int) -> race.Round:
        """A round that has begun already, or a new one that fits into its part of the time left."""
        begun = self.state.rounds
        if number < len(begun):
            return race.Round(**begun[number])
        seconds = {name: self._epoch_seconds(name) for name in standing}
        left, part = self._seconds_of_race(seconds), race.part_of_time(rounds_left, self.question.seeds)
        seeds = self.question.seeds if rounds_left == 1 else 1
        plan = race.plan_round(seconds, left, self.most_epochs, least_epochs, seeds, part, self.pretrained)
        begun.append({"names": plan.names, "epochs": plan.epochs, "seeds": plan.seeds, "left_out": plan.left_out})
        self._save()
        return plan

    def _trials(self, plan: race.Round, stage: str) -> dict[str, list[Score]]:
        """Validation scores of a round by name, one for each seed; models that cannot be trained fall out."""
        scores: dict[str, list[Score]] = {}
        for seed in range(self.question.seed, self.question.seed + plan.seeds):
            for name in plan.names:
                trial = self._trial(name, plan.epochs, seed)
                if "failed" not in trial:
                    scores.setdefault(name, []).append(Score(*trial["score"]))
                elif name not in {each.name for each in self.choice.fallen}:
                    self._fall(name, stage, trial["failed"])
        scores = {name: found for name, found in scores.items() if len(found) == plan.seeds}
        if not scores:
            last = self.choice.fallen[-1]
            raise UserError(f"no model could be trained; {last.name}: {last.reason}")
        return scores

    def _trial(self, name: str, epochs: int, seed: int) -> dict[str, Any]:
        """Train an entrant, or read the trial if it is done."""
        key = f"{name}-{epochs}-epochs-seed-{seed}"
        if key not in self.state.trials:
            started = time.monotonic()
            trial: dict[str, Any] = {"entrant": name, "epochs": epochs, "seed": seed}
            try:
                recipe = self._recipe(self.entrants[name], epochs, seed, key)
                run = trained(recipe, self.command, score=False, data=self.data)
                rows = list(csv.DictReader((run.folder / "metrics.csv").read_text("utf-8").splitlines()))
                score = self.contest.scored(self.job, self.task.open(str(run.folder / "best")), "val")
                seconds = max(time.monotonic() - started, float(rows[-1]["seconds"]))
                trial |= {"run": run.folder.name, "score": astuple(score), "seconds": seconds}
            except Stopped:
                self._save()
                raise
            except UserError as error:  # of this model: the data was opened before
                trial["failed"] = str(error)
            self.state.trials[key] = trial
            self._save()
        return self.state.trials[key]

    def _sized(self, image_size: int) -> Any:
        return self.contest.trial(self.recipe, image_size, self.job.images[0])

    def _recipe(self, entrant: Entrant, epochs: int, seed: int, name: str) -> Any:
        """The recipe of a trial."""
        chosen: Any = {"model": entrant.model, **({self.contest.head: entrant.head} if entrant.head else {})}
        recipe = replace(self._sized(entrant.image_size), **chosen).completed(self.recipe, chosen)
        return replace(recipe.lasting(epochs), seed=seed, name=name)

    def _halved(self, ranked: list[Standing], plan: race.Round, stage: str) -> list[str]:
        """The names that go on after a round; the others fall out."""
        by_front = not self.question.limits
        points = {each.name: (each.score, self.choice.latency(each.name)) for each in ranked}
        sizes = race.sizes_of_rounds(len(ranked))
        kept = race.going_on(points, sizes[1] if len(sizes) > 1 else sizes[0], by_front)
        last = next(each for each in reversed(ranked) if each.name in kept)
        for each in ranked:
            if each.name in kept:
                continue
            epochs = counted(plan.epochs, "epoch")
            reason = f"{each.score:.1%} after {epochs}; the last that went on: {last.name}, {last.score:.1%}"
            level = bool(race.level_with(last, [each]))
            reason += " (level: the intervals overlap)" if level else ""
            self.choice.fallen.append(Fallen(each.name, stage, reason, last.score - each.score, level))
        return [name for name in points if name in kept]

    def _fall(self, name: str, stage: str, reason: str) -> None:
        self.choice.fallen.append(Fallen(name, stage, reason))

    # ---- winner

    def _conclude(self) -> None:
        """Export the best finalist that can be exported in a form that meets the limits, and score it on the test
        photos."""
        for each in self.choice.finalists:
            trial = self._best_trial(each)
            for candidate in self.choice.forms[each.name]:
                try:
                    written = self._export(candidate, trial)
                except UserError as error:
                    told = f"{candidate.name} cannot be exported: {error}"
                    self.display.say(told)
                    self.choice.notes.append(told)
                    continue
                self._score(each, candidate, trial, written)
                return
        raise UserError("no finalist could be exported in a form that meets the limits: see the remarks above.")

    def _best_trial(self, each: Standing) -> dict[str, Any]:
        """A finalist's trial with the best score: of those of the final, and of one more with as many epochs as there
        is time for, up to the recipe's."""
        found = [trial for trial in self.state.trials.values() if self._is_final(trial, each)]
        if each.name not in self.state.longest:
            affordable = int(self._seconds_left() / self._epoch_seconds(each.name))
            self.state.longest[each.name] = min(affordable, self.most_epochs)
        epochs = self.state.longest[each.name]
        if epochs > found[0]["epochs"]:
            self.display.say(f"training {each.name} for {counted(epochs, 'epoch')}")
            longest = self._trial(each.name, epochs, self.question.seed)
            found += [longest] if "failed" not in longest else []
        return max(found, key=lambda trial: trial["score"][0])

    def _is_final(self, trial: Mapping[str, Any], each: Standing) -> bool:
        final = self.state.rounds[-1]
        return "failed" not in trial and trial["entrant"] == each.name and trial["epochs"] == final["epochs"]

    def _longer(self, recipe: Any) -> str:
        """The command that trains the winner for as many epochs as its recipe has."""
        names = [name for name in ("model", self.contest.head, "image_size", "resize") if hasattr(recipe, name)]
        changed = [name for name in names if getattr(recipe, name) != getattr(self.recipe, name)]
        command = ["dmformer", "train", self.question.recipe, "--data", self.question.data]
        return " ".join([shlex.join(command), *([recipe.spelled(changed)] if changed else [])])

    def _export(self, candidate: Candidate, trial: Mapping[str, Any]) -> Written | None:
        """Export a trial's weights in a candidate's form; None for PyTorch, which runs the folder itself."""
        _, dtype, format = FORMS[candidate.form]
        if format is None:
            return None
        options: dict[str, Any] = {}
        if dtype == "int8":
            photos = self.contest.calibration(self.data)
            options = {"int8": spread(photos, CALIBRATED), "max_loss": MAX_LOSS}
            options["score"] = lambda model: self.contest.scored(self.job, model, "val").value  # no test photo decides
        with set_threads(candidate.threads):
            return export(
                str(self.out / "trials" / trial["run"] / "best"),
                "openvino" if format == "openvino" else "onnx",
                str(self.out / f"{candidate.entrant.name}.{'xml' if format == 'openvino' else 'onnx'}"),
                dynamic_size=self.contest.free_size,  # as it was measured
                overwrite=True,
                say=lambda line: self.display.step(line, 0, 1, ""),
                **options,
            )

    def _score(
        self, standing: Standing, candidate: Candidate, trial: Mapping[str, Any], written: Written | None
    ) -> None:
        """Score the winner's run on the test photos, for the first and only time, and save everything."""
        recipe = self._recipe(candidate.entrant, trial["epochs"], trial["seed"], trial["run"])
        run = trained(recipe, self.command, score=True, data=self.data)
        best = run.folder / "best"
        split = "test" if self.job.images[2] else "val"
        score = self.contest.scored(self.job, self.task.open(str(best)), split)
        self.state.winner = {
            "entrant": candidate.entrant.name,
            "candidate": candidate.name,
            "level": [each.name for each in race.level_with(standing, self.choice.finalists)],
            "run": str(run.folder),
            "file": str(written.path) if written else str(best),
            "megabytes": written.megabytes if written else self.choice.figures(candidate)["disk_mb"],
            "images_per_second": written.speeds[0].exported if written else None,
            "int8": list(written.scores) if written and written.scores else None,
            "figure": self.choice.figure,
            "test": asdict(score),
            "split": run.split,
            "count": self.job.images[2] or self.job.images[1],
            "epochs": trial["epochs"],
            "validation": trial["score"][0],
            "longer": self._longer(recipe) if trial["epochs"] < self.most_epochs else None,
            "use": shlex.join(["dmformer", "predict", str(written.path if written else best), "photo.jpg"]),
        }
        self._save()
