"""Several machines, kills at random moments, containers, and the page on them."""

import copy
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from dmformer.cli import main
from dmformer.cli.main import COMMANDS
from dmformer.cli.parsing import parse
from dmformer.cli.shards import ShardsOptions
from dmformer.cli.train import _goes_on
from dmformer.tasks.progress import Progress
from dmformer.tasks.recipes import RECIPES
from dmformer.train.loop import LostError, Stopped, Trainer, train
from dmformer.train.sharding import divide, fit_moments, save_whole
from dmformer.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")


def script(name: str, *arguments: str) -> str:
    """What a script in benchmarks/ prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout


@pytest.fixture
def costs(monkeypatch):
    """The module benchmarks/data_parallel.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import data_parallel

    return data_parallel


def may_make_namespaces() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "dmformer-test"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "delete", "dmformer-test"], capture_output=True)
    return made


@pytest.mark.slow
@pytest.mark.long
def test_a_lost_host_ends_the_other_and_the_run_resumes_with_one_process():
    """On two network namespaces; where they are not allowed, with two torchrun agents on one address."""
    place = [] if may_make_namespaces() else ["--loopback"]
    told = script("two_hosts", "--tasks", "classification", "--lose", "host", "--no-record", *place)
    found = re.search(r"'seconds': '([\d.]+)', 'difference': '([\d.e+-]+)', 'line': (.*)}", told)
    assert found, told
    assert float(found[1]) < 60
    assert float(found[2]) < 1e-5
    assert "another process of this run has ended, or its host cannot be reached" in found[3]
    assert "--resume --out runs --name classification-host" in found[3]


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_with_the_same_weights():
    assert "2 kills, 0 in runs whose final weights differ" in script("kills", "--kills", "2", "--no-record")


@pytest.mark.slow
def test_a_run_resumes_within_an_epoch_in_another_number_of_processes(recipe, two_processes, monkeypatch):
    step = Trainer._step

    def stopping(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    recipe = replace(recipe, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(Stopped):
            train(recipe)
    last = Path(recipe.out) / "run" / "last"
    assert (Progress.read(last).step, Progress.read(last).images) == (1, 8)
    two_processes(train, replace(recipe, resume=True, batch_size=4))
    done = Progress.read(last)
    assert (done.epoch, done.steps, done.images) == (1, 3, 8)


def stopped(recipe, step: int) -> None:
    """Train until SIGTERM arrives at a step of the run."""
    whole, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == step:
            self.stop.append(signal.SIGTERM)
        return whole(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(Stopped):
            train(recipe)


def figures(folder: Path) -> list[float]:
    """What validation measured in every row of metrics.csv; the losses of training are those of the first process."""
    with (folder / "metrics.csv").open() as file:
        return [float(v) for row in csv.DictReader(file) for k, v in row.items() if k.startswith("val_")]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_sharded_run_is_that_of_one_process(task, recipe, mask_recipe, two_processes):
    """Or of two that are not sharded, for a segmenter, whose loss is the mean of the labelled pixels of a process.

    Without BatchNorm, whose statistics are those of a process. It stops and goes on undivided, and the other way round.
    """
    tiny = {"model": "convnext_atto", "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]"), "drop_path_rate": 0.0}
    if task == "classification":
        base = replace(recipe, **tiny, epochs=3, ema=0.9, mixup=0.0, clip_grad=1.0)
        half, stop = replace(base, batch_size=4, shard=True), 5
    else:
        base = replace(mask_recipe, **tiny, iterations=6, validate_every=3, ema=0.9, batch_size=2)
        half, stop = replace(base, shard=True), 4
    out = Path(base.out)

    def undivided(function, *arguments):
        return function(*arguments) if task == "classification" else two_processes(function, *arguments)

    undivided(train, replace(base, name="one"))
    two_processes(train, replace(half, name="two"))
    two_processes(stopped, replace(half, name="joined"), stop)
    undivided(train, replace(base, name="joined", resume=True))
    undivided(stopped, replace(base, name="divided"), stop)
    two_processes(train, replace(half, name="divided", resume=True))
    expected, weights = figures(out / "one"), load_file(out / "one" / "best" / "model.safetensors")
    assert len(expected) > 6
    for name in ("two", "joined", "divided"):
        assert figures(out / name) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        own = load_file(out / name / "best" / "model.safetensors")
        assert own.keys() == weights.keys()
        for key, value in own.items():
            torch.testing.assert_close(value, weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_divided_model_learns_and_is_saved_as_a_whole_one(tmp_path):
    """In one process, whose part is everything: the states are exchanged between a divided and a whole model."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        whole = timm.create_model("dmformer_n", dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_classes=3)
        whole.double().to(memory_format=torch.channels_last)  # a divided model cannot be
        divided = copy.deepcopy(whole)
        divide(divided, torch.device("cpu"))
        assert all(isinstance(parameter, DTensor) for parameter in divided.parameters())
        models = (whole, divided)
        optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01, fused=True) for model in models]
        hooks: list = []
        stand_in: Any = SimpleNamespace(
            register_save_state_pre_hook=hooks.append, register_load_state_pre_hook=hooks.append
        )
        save_whole(stand_in, optimizers[1])
        for optimizer in optimizers:
            optimizer.register_load_state_dict_pre_hook(fit_moments)
        save, load = hooks
        images = torch.randn(3, 3, 32, 32, dtype=torch.float64)

        def step() -> list[float]:
            losses = []
            for model, optimizer in zip(models, optimizers, strict=True):
                loss = F.cross_entropy(model(images), torch.arange(3))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            return losses

        first, again = step(), step()
        assert first[0] == pytest.approx(first[1], abs=1e-6) != again[0] == pytest.approx(again[1], abs=1e-6)
        weights: list[dict] = [{}]
        save([divided], weights, "")
        assert not any(isinstance(value, DTensor) for value in weights[0].values())
        torch.testing.assert_close(weights[0], dict(whole.state_dict()))
        moments = [optimizer.state_dict() for optimizer in optimizers]
        torch.testing.assert_close(moments[1]["state"], moments[0]["state"])
        whole.load_state_dict(weights[0])
        save_file({name: value.contiguous() for name, value in weights[0].items()}, tmp_path / "model.safetensors")
        torch.nn.init.zeros_(next(divided.parameters()))
        load([divided], tmp_path)
        for optimizer, other in zip(optimizers, reversed(moments), strict=True):
            optimizer.load_state_dict(other)
        step()
        last = step()
        assert last[0] == pytest.approx(last[1], abs=1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_another_number_of_images_a_step_is_refused_within_an_epoch(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    progress = Progress(step=1, steps=3, images=8)
    trainer = SimpleNamespace(folder=tmp_path, recipe=recipe, world=2, steps=3, progress=progress)
    with pytest.raises(UserError, match="within an epoch of 8 images a step, which are 16 now: give --batch-size 4"):
        Trainer._check_within_epoch(trainer, recipe)  # type: ignore[arg-type]
    trainer.recipe = replace(recipe, batch_size=4)
    Trainer._check_within_epoch(trainer, trainer.recipe)  # type: ignore[arg-type]


def test_an_error_of_the_connection_is_told_in_a_line(tmp_path):
    trainer = SimpleNamespace(world=2, folder=tmp_path / "run", recipe=SimpleNamespace(out=str(tmp_path)))

    def fail(message: str) -> None:
        with Trainer.others_told(trainer):  # type: ignore[arg-type]
            raise RuntimeError(message)

    gloo = "[/src/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:1: Connection reset by peer. This is\ntypical."
    with pytest.raises(
        LostError, match=r"reached \(Read error \[10.0.0.2\]:1: Connection reset by peer\)\. Nothing was"
    ):
        fail(gloo)
    (tmp_path / "run" / "last").mkdir(parents=True)
    with pytest.raises(LostError, match=f"and --resume --out {tmp_path} --name run"):
        fail("Timed out waiting 20000ms for recv operation to complete")
    with pytest.raises(RuntimeError, match="shape"):
        fail("shape mismatch")
    trainer.world = 1
    with pytest.raises(RuntimeError) as error:
        fail(gloo)
    assert not isinstance(error.value, UserError)


def test_a_run_that_torchrun_may_start_again_resumes(tmp_path, monkeypatch, capsys):
    options, recipe = ["--out", str(tmp_path), "--name", "run"], RECIPES["scratch"]()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("RANK", "0")
    assert not _goes_on(recipe, options)  # nothing was saved: from the beginning
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in capsys.readouterr().err
    (tmp_path / "run" / "last").mkdir(parents=True)
    assert _goes_on(recipe, options)
    assert not _goes_on(recipe, options[:2])
    assert not _goes_on(recipe, [*options, "--resume"])
    with pytest.raises(UserError, match="--overwrite would delete the run"):
        _goes_on(recipe, [*options, "--overwrite"])
    (tmp_path / "run" / "commands.jsonl").write_text('{"event": "finished"}')
    assert not _goes_on(recipe, options)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert not _goes_on(recipe, [*options, "--overwrite"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("DataLoader worker (pid 5) is killed by signal: Bus error. It is possible", "--shm-size 8g or --ipc host"),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nTraceback:\nRuntimeError: unable to write to "
            "file </torch_1>: No space left on device (28)",
            "dmformer: unable to write to file </torch_1>: No space left on device (28) /dev/shm, through which",
        ),
        ("DataLoader worker (pid 5) is killed by signal: Killed. ", "fewer --workers"),
    ],
)
def test_a_reader_without_memory_is_told_with_the_remedy(error, told, monkeypatch, capsys):
    def fail(_: list[str]) -> None:
        raise RuntimeError(error)

    monkeypatch.setitem(COMMANDS, "models", fail)
    with pytest.raises(SystemExit) as stop:
        main(["models"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert told in said
    assert said.count("\n") == 1
    error = "Caught ValueError in DataLoader worker process 0.\nValueError: a mistake of ours"
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["models"])


def test_the_tables_of_costs_are_those_of_the_script(costs):
    assert costs.costs() in PAGE
    assert costs.fixed_batch() in PAGE
    models = (ROOT / "docs" / "models.md").read_text("utf-8")
    for name, (parameters, gmacs) in costs.MODELS.items():
        assert f"| `{name}` | {parameters:,} | {gmacs:.3f} |" in models


def test_the_costs_of_a_step_by_hand(costs):
    """64 GPUs in 8 nodes at 100 Gbit/s, 80 % of it usable: 10 GB/s."""
    seconds, sent = costs.all_reduce(1e9, 64, 10e9)
    assert sent == pytest.approx(2 * 7 / 8 * 1e9)
    assert seconds == pytest.approx(2 * 7 / 8 * 1e9 * (1 / 200e9 + 1 / 10e9) + 14 * 5e-6 + 14 * 20e-6)
    assert costs.all_reduce(1e9, 8, 10e9)[1] == 0
    one = costs.step("dmformer_s", 1, 128, 100, images_per_second=1000)
    assert (one.seconds, one.sent, one.efficiency) == (0.128, 0, 1)
    assert costs.step("dmformer_s", 1, 2, 100).seconds == costs.SHORTEST
    hidden = costs.step("dmformer_s", 64, 128, 100, images_per_second=1000)
    last = costs.all_reduce(costs.BUCKET, 64, 10e9)[0] + costs.all_reduce(8, 64, 10e9)[0]
    assert hidden.seconds == pytest.approx(0.128 + last)  # the other buckets are sent during the backward pass


def test_the_commands_of_the_page_can_be_parsed():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    commands = [line.partition("dmformer train ")[2] for line in blocks.splitlines() if "dmformer train " in line]
    assert len(commands) == 4
    for command in commands:
        name, *options = shlex.split(command, comments=True)
        parse(type(RECIPES[name]()), options, "train", "", RECIPES[name]())
    for command in re.findall(r"```bash\ndmformer shards (.*)", (ROOT / "docs" / "data.md").read_text("utf-8")):
        assert parse(ShardsOptions, shlex.split(command), "shards").out == "shards/"


def test_the_batch_script_is_correct_bash():
    subprocess.run(["bash", "-n", str(ROOT / "examples" / "train.sbatch")], check=True)
