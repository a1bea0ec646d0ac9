"""The training loop: a recipe in, a run folder out.

recipe -> job (data, model, loss, validation) -> optimiser, schedule -> epochs of steps -> best/, last/, metrics.csv,
report.html
"""

import copy
import errno
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list, send_to_device, set_seed
from accelerate.utils.memory import clear_device_cache
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..report import CHECK
from ..tasks.build import no_pretrained_note, with_normalisation, with_precision, with_pretrained
from ..tasks.check import Check, write_check
from ..tasks.opening import open_job, view_of
from ..tasks.progress import Progress, run_facts
from ..tasks.recipe import PER_EPOCH, Recipe
from ..tasks.recipes import read_recipe
from ..tasks.sampling import StepSampler
from ..utils.device import find_device
from ..utils.display import Display, duration
from ..utils.errors import UserError
from ..utils.files import replace_folder, write_whole, writing_to
from ..utils.memory import available_memory, memory_of_processes, peak_memory, return_freed_memory
from .batch_size import FEWEST_STEPS, largest_foretold, largest_tried
from .run_folder import check_unchanged, clear, csv_text, history, open_folder, record
from .same_data import check_same_data, data_of
from .sharding import Whole, check_divisible, divide, fit_moments, save_whole

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk or a quota that is full."""
TIMEOUT = "DMFORMER_TIMEOUT"
"""The environment variable with the seconds that a process waits for the others before it takes them for lost."""
PATIENCE_AT_END = timedelta(hours=3)
"""How long the others wait while the first alone scores the test images and writes the report."""
LOST = "another process of this run has ended, or its host cannot be reached"
"""How the message of `LostError` begins."""
SIGNS_OF_LOSS = ("gloo", "Connection", "Socket", "Timed out", "NCCL")
"""Words in the messages of PyTorch's backends, which raise plain errors, if another process does not answer."""


WARM_UP, MEASURED = 2, 8
"""Steps for --minutes and --folds: those before the measurement, and those of each epoch that is measured."""
FORETELLING = 300.0
"""Seconds of which a fiftieth, for each epoch that is measured, may be spent to foretell how long many runs take."""


Watch = Callable[[list[float]], None]
"""Is called after every validation with the scores of all of them so far, once the state is saved; what it raises ends
the run, which can be resumed."""


class Stopped(Exception):  # noqa: N818 (it is not an error)
    """A signal asked the run to stop, and its state is saved; `resume` continues from there."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class LostError(UserError, RuntimeError):
    """Another process of the run does not answer any more."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its scores on a split (test if there is one, else validation), its report.

    With several processes, only the first has the scores; the others have None. A run that was not scored has none,
    and no report. `validation` has the score of every validation.
    """

    folder: Path
    scores: Any | None
    split: str
    report: Path
    validation: tuple[float, ...] = ()


def train(
    recipe: Recipe,
    command: str = "",
    report_threads: int | None = None,
    data: Any = None,
    score: bool = True,
    last: bool = True,
    watch: Watch | None = None,
    largest_batch: bool = False,
    runs: int = 1,
) -> Run:
    """Train a recipe.

    Args:
        recipe: Everything that decides the run.
        command: The command line, for the report.
        report_threads: Threads with which the first process scores the model and writes the report, while the others
            wait for it; by default those it trains with.
        data: The recipe's data, if the task's `open_data` has opened it already.
        score: Score the best weights at the end and write the report. Without, the test images stay unseen; resuming
            the run does it later.
        last: The processes train nothing after this, and disconnect.
        watch: See `Watch`.
        largest_batch: Replace the recipe's batch size by the largest power of two that fits into memory, with at least
            8 steps per epoch. The recipe saved with the run has the number.
        runs: So many runs like this one are trained, this one first: if more than one, some steps are measured before,
            and a note says how long all take.

    Raises:
        UserError: A mistake in the recipe or the data, a loss that is not finite, a full disk, or a run folder that
            another command is using.
        Stopped: After SIGTERM or Ctrl-C, with the state saved.
    """
    recipe.check()
    first = start_processes(recipe).is_main_process
    recipe = with_precision(recipe)
    with open_folder(recipe) if first else nullcontext() as opened:
        shared: list[Any] = [opened]
        trainer = Trainer(broadcast_object_list(shared)[0], data, watch, largest_batch, runs)
        folder = trainer.folder
        if first:
            trainer.record("resumed" if recipe.resume else "started", command or "dmformer.train.train(recipe)")
            trainer.write_check()
        with _signals() as trainer.stop, Display(first) as display, trainer.others_told():
            trainer.fit(display)
        end: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE_AT_END) if trainer.world > 1 else None
        scores, split = None, ""
        if first:
            threads = torch.get_num_threads()
            torch.set_num_threads(report_threads or threads)
            if score:
                scores, split = trainer.conclude()
            torch.set_num_threads(threads)
            trainer.record("finished")
        if end is not None:
            torch.distributed.barrier(end)
        trainer.end(last)
    return Run(folder, scores, split, folder / "report.html", trainer.validation)


def start_processes(recipe: Recipe) -> PartialState:
    """Set up this process's device and its connection with the other processes."""
    if (threads := recipe.of_one_process().threads) is not None:
        torch.set_num_threads(threads)
    device = find_device(recipe.device)
    if device.type == "cpu" and recipe.precision == "fp16":
        raise UserError("--precision fp16 needs a GPU: give bf16 or no on a CPU.")
    if device.type == "mps" and recipe.precision == "bf16" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError("--precision bf16 needs macOS 14 or later on a Mac's GPU: give fp16 or no.")
    if PartialState._shared_state and PartialState().num_processes == 1:  # of an earlier run, on another device
        AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=device.type == "cpu", timeout=_patience())
    if device.index is not None:
        if state.num_processes > 1:
            raise UserError(f"--device {device} is one GPU, but each process has its own: give --device {device.type}.")
        state.device = device
        torch.accelerator.set_device_index(device.index)
    if recipe.processes not in (None, 1, state.num_processes):
        raise UserError(
            "--processes works only with the command `dmformer train`, which starts them: leave it out under torchrun "
            "and in your own program."
        )
    return state


def _patience() -> timedelta:
    """How long a process waits for the others before it takes them for lost; half an hour by default."""
    text = os.environ.get(TIMEOUT, "1800")
    try:
        if (patience := timedelta(seconds=float(text))) > timedelta(0):
            return patience
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{TIMEOUT} is '{text}': give a number of seconds above 0.")


class Trainer:
    """One run: what it needs, built once, and the loop over epochs and iterations.

    Args:
        recipe: The run's recipe, with the name of its folder.
        data, watch, largest_batch, runs: See `train`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Any = None,
        watch: Watch | None = None,
        largest_batch: bool = False,
        runs: int = 1,
    ) -> None:
        whole = with_normalisation(with_pretrained(recipe))
        anew = recipe.pretrained == "auto" and whole.weights is None and not recipe.resume
        self.notes = [no_pretrained_note(recipe)] if anew else []
        self.recipe = recipe = whole.of_one_process()
        self.folder = Path(recipe.out) / str(recipe.name)
        self.started = time.perf_counter()
        self.stop: list[int] = []
        self.watch = watch
        self.progress = Progress()
        AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
        self.accelerator = Accelerator(
            cpu=find_device(recipe.device).type == "cpu",
            mixed_precision=recipe.precision,
            gradient_accumulation_steps=recipe.accumulate,
            log_with=_tracker(recipe),
            project_dir=self.folder,
            step_scheduler_with_optimizer=False,
        )
        self.world = self.accelerator.num_processes
        self.job = open_job(recipe, data)
        self.data = data_of(self.job)
        if recipe.resume:
            check_same_data(self.folder, Progress.read(self.folder / "last").data, self.data)
        set_seed(recipe.seed)
        self._build_model()
        if largest_batch:
            whole = self._fitted_to_memory(whole)
        else:
            self._open_loaders()
        if recipe.minutes is not None:
            whole = self._fitted_to_minutes(whole)
        if runs > 1:
            self._foretell(whole, runs)
        self._start_or_resume(whole)

    def _build_model(self) -> None:
        """Build the model, its moving average and its optimiser."""
        recipe, accelerator = self.recipe, self.accelerator
        self.bare, self.frozen = self.job.build_model()
        if recipe.sync_batchnorm and self.world > 1:
            if accelerator.device.type != "cuda":
                raise UserError("--sync-batchnorm works on GPUs only: give --no-sync-batchnorm here.")
            frozen = [name for name, part in self.bare.named_modules() if part in self.frozen]
            self.bare = convert_sync_batchnorm(self.bare)  # timm's own norms keep their activations
            self.frozen = [self.bare.get_submodule(name) for name in frozen]  # the conversion replaced the norms
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.bare.to(accelerator.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.whole: nn.Module | None = None
        if recipe.shard and self.world > 1:
            check_divisible(recipe.compile, recipe.precision)
            self.bare = accelerator.prepare_model(self.bare, evaluation_mode=True)  # not as data parallel
            self.whole = copy.deepcopy(self.bare)  # for validation, where the processes have unequal numbers of images
            divide(self.bare, accelerator.device)
        self.lr_scale = recipe.batch_size * recipe.accumulate * self.world / recipe.lr_batch
        fused: dict[str, Any] = {"fused": True} if recipe.optimizer in ("adam", "adamw") else {}
        optimizer = create_optimizer_v2(
            self.bare,
            opt=recipe.optimizer,
            lr=recipe.lr * self.lr_scale,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            param_group_fn=self.job.param_groups,
            **fused,
        )
        optimizer.register_load_state_dict_pre_hook(fit_moments)
        if self.whole is None:
            model = torch.compile(self.bare) if recipe.compile else self.bare
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        else:
            self.model, self.optimizer = self.bare, accelerator.prepare_optimizer(optimizer)
            save_whole(accelerator, optimizer)
        if isinstance(self.model, DistributedDataParallel):  # buffers are synchronised later: see _evaluated
            self.model.broadcast_buffers = False
        self.ema = None
        if recipe.ema:
            if accelerator.distributed_type == DistributedType.FSDP:
                raise UserError("--ema does not work with FSDP: give --ema none.")
            copied = self.bare if self.whole is None else self.whole
            self.ema = ModelEmaV3(copied, decay=recipe.ema, use_warmup=True, foreach=self.whole is None)
            if self.whole is not None:
                divide(self.ema.module, accelerator.device)

    def _open_loaders(self) -> None:
        """Open the loaders, and derive the schedule from their length."""
        recipe, job = self.recipe, self.job
        place = (self.accelerator.process_index, self.world, self.accelerator.device.type == "cuda")
        self.loader, self.val_loader = job.train_loader(*place), job.val_loader(*place)
        self.steps = len(self.loader) // recipe.accumulate * recipe.accumulate
        if self.steps == 0:
            raise UserError(f"{job.images[0]} training images are too few for one batch: lower --batch-size.")
        if job.images[1] < self.world:
            raise UserError(f"{job.images[1]} validation images are too few for {self.world} processes: add some.")
        self.updates = self.steps // recipe.accumulate
        self.scheduler: Any = create_scheduler_v2(
            self.optimizer,
            warmup_lr=0.0,
            min_lr=recipe.lr_min * self.lr_scale,
            step_on_epochs=False,
            updates_per_epoch=self.updates,
            **job.schedule(),
        )[0]

    def _fitted_to_memory(self, whole: Recipe) -> Recipe:
        """The recipe with the largest batch size, a power of two per process, that fits into memory, and that the
        training images are enough for; the model is built anew after the steps that are tried."""
        if self.world > 1 and whole.processes is None:
            raise UserError("--batch-size auto tries one process only: under torchrun, give a number.")
        most = self.job.images[0] // (FEWEST_STEPS * whole.accumulate * self.world)
        if self.accelerator.device.type == "cpu":
            held, free = self._of_all(psutil.Process().memory_info().rss), available_memory()
            free = broadcast_object_list([free])[0]
            size = largest_foretold(
                lambda images: self._of_all(peak_memory(lambda: self._try(images))), held, free, most
            )
        else:
            size = largest_tried(self._try, most)
        whole = replace(whole, batch_size=size * (whole.processes or 1))
        why = "fits into memory" if 2 * size <= most else f"leaves {FEWEST_STEPS} steps or more in an epoch"
        self.notes.append(f"--batch-size auto: {whole.batch_size} images per step, the largest power of two that {why}")
        self._start_anew(whole)
        return whole

    def _try(self, images: int) -> None:
        """Run steps of so many images: one more than up to a weight update, which allocates the optimiser's state."""
        self.recipe = self.job.recipe = replace(self.recipe, batch_size=images, workers=0)
        self._open_loaders()
        self._train_mode()
        try:
            for update, (inputs, targets, _) in enumerate(islice(self.loader, self.recipe.accumulate + 1)):
                self._step(inputs, targets, update)
        finally:
            self.optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)
            return_freed_memory()

    def _of_all(self, number: int) -> float:
        """The sum of a number over all processes."""
        return self.accelerator.gather(torch.tensor([float(number)])).sum().item()  # type: ignore[union-attr]

    def _start_anew(self, whole: Recipe) -> None:
        """Forget the steps that were tried."""
        self.recipe = self.job.recipe = whole.of_one_process()
        self.accelerator.free_memory()
        set_seed(self.recipe.seed)
        self._build_model()
        self._open_loaders()

    def _fitted_to_minutes(self, whole: Recipe) -> Recipe:
        """The recipe with as many epochs as fit into its minutes; the model is built anew after the measurement, so
        that the run equals one with that number of epochs."""
        assert whole.minutes is not None
        job, maximum = self.job, self.job.epochs
        epoch, rest = self._measured(60 * whole.minutes)
        left = 60 * whole.minutes - (time.perf_counter() - self.started) - rest
        shared = [max(1, min(maximum, int(left / epoch)))]
        job.epochs = broadcast_object_list(shared)[0]
        told = f"--minutes {whole.minutes:g}: one {job.unit} takes about {epoch:,.1f} s with its validation"
        told += f", more than the {max(left, 0):,.0f} s that are left" if left < epoch else ""
        few = ", the maximum" if job.epochs == maximum else ""
        self.notes.append(f"{told}; training for {job.epochs} {job.unit}{'s' * (job.epochs > 1)}{few}")
        whole = replace(whole.lasting(job.epochs), minutes=None)
        self._start_anew(whole)
        return whole

    def _foretell(self, whole: Recipe, runs: int) -> None:
        """Note how long so many runs like this one take; the model is built anew after the measurement."""
        epoch, rest = self._measured(FORETELLING)
        one = self.job.epochs * epoch + rest
        few = " at most" if whole.patience else ""
        told = f"{runs} models are trained, one after another, for {self.job.epochs} {self.job.unit}s each"
        self.notes.append(f"{told}: about {duration(one)}{few} for one, {duration(runs * one)}{few} for all")
        self._start_anew(whole)

    def _measured(self, budget: float) -> tuple[float, float]:
        """Seconds of an epoch with its validation and its checkpoint, and of the scoring at the end of the run.

        Epochs at the start, in the middle and at the end are measured, because images may get larger.
        """
        self._first_steps(0, WARM_UP, budget)
        epochs = self.job.epochs
        training = [self._first_steps(epoch, MEASURED, budget) for epoch in (0, epochs // 2, epochs - 1)]
        clock = time.perf_counter()
        self.job.validate(self._evaluated(), self.val_loader, self.accelerator.device, self.accelerator.gather)
        validation, clock = time.perf_counter() - clock, time.perf_counter()
        part = self.folder / "last.part"
        with self._writing():
            try:
                self.accelerator.save_state(str(part))
                self.accelerator.wait_for_everyone()
            finally:
                if self.accelerator.is_main_process:
                    shutil.rmtree(part, ignore_errors=True)
        saving = time.perf_counter() - clock
        _, val, test = self.job.images
        return sum(training) / len(training) + validation + saving, validation * (test or val) / val

    def _first_steps(self, epoch: int, number: int, budget: float) -> float:
        """Run the first steps of an epoch, for at most a fiftieth of the budget; returns the seconds that all of its
        steps would take."""
        self._train_mode()
        if isinstance(self.loader.batch_sampler, StepSampler):
            self.loader.batch_sampler.epoch, self.loader.batch_sampler.start = epoch, 0
        clocks = [time.perf_counter()]
        for step, (inputs, targets, _) in enumerate(islice(self.loader, min(number, self.steps))):
            self._step(inputs, targets, epoch * self.updates + step // self.recipe.accumulate)
            clocks.append(time.perf_counter())
            late = torch.tensor([step > 0 and clocks[-1] - clocks[0] > budget / 50], device=self.accelerator.device)
            if self.accelerator.gather(late).any():  # type: ignore[union-attr]
                break
        first, steps = clocks[1] - clocks[0], len(clocks) - 1  # the first waits for the readers to start
        return first + (clocks[-1] - clocks[1]) / max(steps - 1, 1) * (self.steps - 1)

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _start_or_resume(self, whole: Recipe) -> None:
        """Load the saved state, or clear the folder; then write the recipe for all processes together to it."""
        accelerator = self.accelerator
        averages = [self.ema if self.whole is None else Whole(self.ema)] if self.ema else []
        accelerator.register_for_checkpointing(self.progress, *averages)
        if whole.resume:
            last = self.folder / "last"
            try:
                accelerator.load_state(str(last))
            except (RuntimeError, ValueError) as error:  # a state of an earlier version does not name its data
                reason = " ".join(str(error).split()[:40])
                raise UserError(f"{last} does not fit the recipe and the data: {reason}") from None
            self.job.check_resumed(self.progress, self.updates)
            self._check_within_epoch(whole)
            accelerator.wait_for_everyone()  # all compare with the recipe that the first is about to replace
        elif accelerator.is_main_process:
            clear(self.folder)
        self.progress.updates, self.progress.steps, self.progress.data = self.updates, self.steps, self.data
        self.progress.images = self.recipe.batch_size * self.world
        with self._writing():
            if accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(self.folder / "recipe.yaml", whole.to_yaml())
        try:
            accelerator.init_trackers("dmformer", init_kwargs={"wandb": {"name": self.folder.name}})
        except OSError as error:  # a tracker's other errors are not about the folder
            raise UserError(f"--tracker {self.recipe.tracker} cannot write to {self.folder}: {error}.") from None

    def _check_within_epoch(self, whole: Recipe) -> None:
        """Raise UserError if the rest of an epoch would have other batches than its beginning."""
        if self.progress.step == 0:
            return
        before, images = self.progress.images, self.recipe.batch_size * self.world
        if before == images:  # divided among another number of processes, perhaps
            whole = replace(whole, batch_size=read_recipe(self.folder / "recipe.yaml").batch_size)
        check_unchanged(self.folder, whole, PER_EPOCH, " within an epoch")
        if before not in (0, images):
            fitting = before // (1 if self.recipe.processes else self.world)
            raise UserError(
                f"{self.folder} stopped within an epoch of {before} images a step, which are {images} now: give "
                f"--batch-size {fitting}."
            )
        if self.progress.steps not in (0, self.steps):
            raise UserError(
                f"{self.folder} stopped within an epoch of {self.progress.steps} iterations, which are {self.steps} "
                "now: resume it with the number of processes that it was started with."
            )

    def _writing(self) -> AbstractContextManager[None]:
        """Report a failure to write to the run's folder in one line."""
        saved = (self.folder / "last").exists()
        return writing_to(self.folder, f"free some space and {'continue with --resume' if saved else 'start again'}")

    @contextmanager
    def others_told(self) -> Iterator[None]:
        """Report in one line that another process does not answer any more."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not any(sign in str(error) for sign in SIGNS_OF_LOSS):
                raise
            reason = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).partition(". ")[0]
            saved = (self.folder / "last").exists()
            raise LostError(
                f"{LOST} ({reason}). {'Continue with' if saved else 'Nothing was saved yet: start'} the same command"
                f"{f' and --resume --out {self.recipe.out} --name {self.folder.name}' if saved else ' again'}."
            ) from error

    def record(self, event: str, command: str = "") -> None:
        """Add a line to the run's history."""
        with self._writing():
            record(self.folder, event, command)

    def write_check(self) -> None:
        """Write the page on the data."""
        if (view := view_of(self.recipe, self.job)) is not None:
            with self._writing():
                write_check(self.folder / CHECK, Check(str(self.recipe.data), view), used=True)

    def conclude(self) -> tuple[Any, str]:
        """Score the best weights and write the report; returns the scores and the name of the split."""
        recipe, job, progress = self.recipe, self.job, self.progress
        device, told = self.accelerator.device, history(self.folder)
        facts = run_facts(recipe, job.images, progress, device, told, self._early_stop())
        try:
            return job.conclude(self.folder, progress, facts)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                f"the report cannot be written to {self.folder}: {error.strerror}; best/ and last/ are whole. Free "
                "some space and continue with --resume."
            ) from error

    def end(self, disconnect: bool) -> None:
        """Finish the trackers, and the connection with the other processes."""
        if disconnect:
            self.accelerator.end_training()
            return
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def fit(self, display: Display) -> None:
        """Run the remaining epochs."""
        device, gather = self.accelerator.device, self.accelerator.gather
        for note in [*self.notes, *self.job.notes]:
            display.say(f"note: {note}")
        display.say(self._summary())
        while self.progress.epoch < self.job.epochs and not self._early_stop():
            row = self._epoch(display)
            row.update(self.job.validate(self._evaluated(), self.val_loader, device, gather))
            self.progress.history.append(row)
            self._keep_best(row)
            self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
            self.progress.sums = {}
            self._save()
            self.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=self.progress.epoch)
            display.say(self.job.line(row))
            if self._stop_agreed():
                self._stop_now()
            if self.watch is not None:
                self.watch(list(self.validation))
        if early := self._early_stop():
            display.say(f"stopped early, {early}")

    @property
    def validation(self) -> tuple[float, ...]:
        """The score of every validation so far."""
        return tuple(row[self.job.headline] for row in self.progress.history)

    def _early_stop(self) -> str:
        """Why training ends before its last epoch; empty if it does not."""
        progress, since = self.progress, self.progress.since_best(self.job.headline)
        if self.recipe.patience is None or since < self.recipe.patience or progress.epoch >= self.job.epochs:
            return ""
        without = f"{since} validation{'s' * (since > 1)} without a better score"
        done, unit = progress.epoch, self.job.unit
        return f"after {unit} {done} of {self.job.epochs}: {without}; the best was {unit} {done - since}"

    def _epoch(self, display: Display) -> dict[str, float]:
        """Run the remaining steps of an epoch; returns a row of metrics.csv."""
        recipe, progress, accelerator, epochs = self.recipe, self.progress, self.accelerator, self.job.epochs
        self._train_mode()
        if progress.step == 0:
            set_seed(int(np.random.SeedSequence((recipe.seed, progress.epoch)).generate_state(1)[0]), True)
        if isinstance(self.loader.batch_sampler, StepSampler):
            self.loader.batch_sampler.epoch, self.loader.batch_sampler.start = progress.epoch, progress.step
        batches = iter(self.loader)
        images, waited, started, memory = 0, 0.0, time.perf_counter(), 0.0
        for step in range(progress.step, self.steps):
            clock = time.perf_counter()
            inputs, targets, positions = next(batches)
            waited += time.perf_counter() - clock
            if (positions < 0).any():
                progress.broken = sorted({*progress.broken, *(~positions[positions < 0]).tolist()})
                self.job.check_broken(progress.broken)
            progress.add(self._step(inputs, targets, progress.epoch * self.updates + step // recipe.accumulate))
            images += len(positions) * self.world
            rate = images / (time.perf_counter() - started)
            if step % 16 == 0:  # the system takes milliseconds to count it
                memory = max(memory, memory_gb(accelerator.device))
            means = "  ".join(f"{name} {progress.mean(name):.3f}" for name in progress.sums)
            display.step(
                f"{self.job.unit} {progress.epoch + 1}/{epochs}",
                progress.epoch * self.steps + step + 1,
                epochs * self.steps,
                f"{means}  {rate:.0f} images/s  {memory:.1f} GB",
            )
            if (step + 1) % recipe.accumulate == 0 and step + 1 < self.steps:
                stopped = self._stop_agreed()
                if stopped or (recipe.save_every and (step + 1) % recipe.save_every == 0):
                    self._save()
                if stopped:
                    self._stop_now()
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        memory = max(memory, memory_gb(accelerator.device))
        if accelerator.device.type == "cpu":  # processes of one machine, as the command starts them, share its memory
            memory = accelerator.gather(torch.tensor([memory])).sum().item()  # type: ignore[union-attr]
            return_freed_memory()
        return {
            "epoch": progress.epoch + 1,
            "iteration": (progress.epoch + 1) * self.updates,
            "lr": self.optimizer.param_groups[-1]["lr"],
            **{f"train_{name}": progress.mean(name) for name in progress.sums},
            "images_per_second": images / seconds,
            "wait_share": waited / seconds,
            "memory_gb": memory,
            "seconds": progress.seconds,
        }

    def _step(self, inputs: Any, targets: Any, update: int) -> dict[str, float]:
        """One batch forward and backward; the weights are updated after every `accumulate` batches. Returns the loss
        and other figures."""
        accelerator = self.accelerator
        if isinstance(inputs, Tensor):
            inputs = inputs.to(memory_format=self.layout)
        inputs, targets = send_to_device((inputs, targets), accelerator.device, non_blocking=True)
        self.scheduler.step_update(update)
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                loss, figures = self._loss(inputs, targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients and self.recipe.clip_grad:
                accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
            # Read together, once all work is queued on the GPU and before a loss of nan can update the weights.
            values = torch.stack([loss.detach().float(), *(v.detach().float() for v in figures.values())]).tolist()
            if not np.isfinite(values[0]):
                self._not_finite(values[0])
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema and accelerator.sync_gradients:
                self.ema.update(self.bare, step=update)
        return dict(zip(("loss", *figures), values, strict=True))

    def _loss(self, inputs: Any, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            return self.job.loss(self.model, inputs, targets)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # as BatchNorm says it
                raise
            raise UserError(
                f"--batch-size {self.recipe.batch_size} and images of {self.job.size} leave BatchNorm a single value "
                "per channel: give a larger --batch-size, or larger images."
            ) from None

    def _evaluated(self) -> nn.Module:
        """The model to validate and keep, with the first process's running statistics, which are the ones saved.

        Synchronising them at every step, as DistributedDataParallel does, would make the processes wait twice per step.
        """
        model: nn.Module = self.ema.module if self.ema else self.model
        if self.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.whole is None:
            return model
        self.whole.load_state_dict(Whole(model).state_dict())
        return self.whole

    def _keep_best(self, row: dict[str, float]) -> None:
        """Write best/ if validation is at its best so far; on a tie, the later weights win."""
        if row[self.job.headline] < self.progress.best:
            return
        self.progress.best = row[self.job.headline]
        kept = self.whole if self.whole is not None else self.ema.module if self.ema else None
        state: Any = self.accelerator.get_state_dict(self.model) if kept is None else kept.state_dict()
        if self.accelerator.is_main_process:
            state = {name.removeprefix("_orig_mod."): value for name, value in state.items()}
            with self._writing():
                self.job.save(self.folder / "best", self.bare, state)

    def _save(self) -> None:
        """Save the state to resume from, atomically, and metrics.csv."""
        part = self.folder / "last.part"
        with self._writing():
            try:
                self.accelerator.save_state(str(part))
                self.accelerator.wait_for_everyone()
                if self.accelerator.is_main_process:
                    replace_folder(part, self.folder / "last")
                    write_whole(self.folder / "metrics.csv", csv_text(self.progress.history))
            finally:
                if self.accelerator.is_main_process:
                    shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _stop_agreed(self) -> int:
        """The stop signal, if any process has received one."""
        asked = self.stop[0] if self.stop else 0
        if self.world > 1:
            everyone: Any = self.accelerator.gather(torch.tensor([asked], device=self.accelerator.device))
            asked = int(everyone.max())
        return asked

    def _stop_now(self) -> None:
        raise Stopped(
            f"stopped in {self.job.unit} {self.progress.epoch + 1} of {self.job.epochs}, state saved; continue with: "
            + shlex.join(["dmformer", "train", "--resume", "--out", self.recipe.out, "--name", self.folder.name]),
            self.stop[0] if self.stop else signal.SIGTERM,
        )

    def _not_finite(self, loss: float) -> None:
        progress, last = self.progress, self.folder / "last"
        saved = f"; the last saved state is in {last}" if last.exists() else ""
        if progress.updates and self.world == 1 and all(torch.isfinite(p).all() for p in self.bare.parameters()):
            self._save()
            saved = f"; the state before this iteration is in {last}"
        raise UserError(
            f"the loss is {loss} at iteration {progress.step + 1} of {self.job.unit} {progress.epoch + 1}, "
            f"learning rate {self.optimizer.param_groups[-1]['lr']:.2g}{saved}. "
            "Try a lower --lr, --clip-grad 1, a longer warm-up, or --precision no."
        )

    def _summary(self) -> str:
        recipe, job = self.recipe, self.job
        train, val, test = job.images
        parameters = sum(p.numel() for p in self.bare.parameters() if p.requires_grad) / 1e6
        held_out = f", {test} held out for the report" if test else ""
        return (
            f"{recipe.model}, {parameters:.2f} M trained parameters, on {train} images of "
            f"{len(job.class_names)} classes at {job.size} ({val} to validate{held_out}); "
            f"{job.epochs} {job.unit}s of {self.steps} iterations on {self.accelerator.device.type}"
            f"{f' x {self.world}' if self.world > 1 else ''}; writing {self.folder}"
        )


def memory_gb(device: torch.device) -> float:
    """Memory in use, in GB: the GPU's peak, else that of this process and its readers."""
    bytes_held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_of_processes()
    return bytes_held / 2**30


def _tracker(recipe: Recipe) -> str | None:
    if recipe.tracker == "none":
        return None
    try:
        __import__(recipe.tracker)
    except ImportError:
        if recipe.tracker == "tensorboard":  # the default: not a reason to refuse training
            return None
        message = f"--tracker {recipe.tracker} needs the extra 'tracking': pip install 'dmformer[tracking]'."
        raise UserError(message) from None
    return recipe.tracker


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and the first Ctrl-C in a list instead of dying; a second Ctrl-C acts as usual."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        asked.append(number)
        print("stopping after this iteration; the state will be saved", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: the caller handles signals
            break
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
