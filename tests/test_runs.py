"""Run folders: who may write to them, what a resumed run may change, and how a run ends when it is told to."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from dmformer.cli import main
from dmformer.models.weights import unwrapped
from dmformer.runtimes.card import SUFFIXES
from dmformer.tasks.recipe import FIXED, FREE, PER_EPOCH
from dmformer.tasks.table import TASKS
from dmformer.train.loop import Stopped, Trainer, train
from dmformer.train.run_folder import check_folder, clear, find_run, history, open_folder
from dmformer.utils import lock
from dmformer.utils.errors import UserError
from dmformer.utils.lock import LOCK, holder, locked


def stop_at(monkeypatch, iteration: int) -> None:
    """Have SIGTERM arrive at an iteration, counted from 1 over all runs of the test."""
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == iteration:
            self.stop.append(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)


def events(folder: Path) -> list[str]:
    return [line["event"] for line in history(folder)]


def test_every_option_says_whether_a_resumed_run_may_change_it():
    kinds = [kind["resume"] for kind in (FIXED, FREE, PER_EPOCH)]
    for task in TASKS.values():
        undecided = [f.name for f in fields(task.recipe) if f.metadata.get("resume") not in kinds]
        assert undecided == [], task.name


@pytest.mark.slow
def test_a_run_is_resumed_only_with_what_fits_its_state_and_its_data(recipe, photos, tmp_path, monkeypatch):
    stop_at(monkeypatch, 4)  # of three iterations an epoch
    with pytest.raises(Stopped):
        train(recipe, "dmformer train first")
    folder = tmp_path / "runs" / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}
    fewer, renamed, others = (Path(shutil.copytree(photos, tmp_path / n / "photos")) for n in ("a", "b", "c"))
    (fewer / "red car" / "0.png").unlink()
    (renamed / "red car" / "0.png").rename(renamed / "red car" / "zero.png")
    (others / "red car").rename(others / "red bus")
    started = "it was started with"
    for change, told in (
        ({"model": "van_b0"}, f"with --model van_b0: {started} --model dmformer_n."),
        ({"compile": True, "seed": 1}, f"with --compile --seed 1: {started} --no-compile --seed 0."),
        ({"mean": (0.5, 0.5, 0.5)}, f"with --mean 0.5 0.5 0.5: {started} --mean 0.485 0.456 0.406."),
        ({"ema": None, "freeze": 1}, f"with --freeze 1 --ema none: {started} --freeze 0 --ema 0.9."),
        ({"batch_size": 4}, f"within an epoch with --batch-size 4: {started} --batch-size 8."),
        ({"data": str(others)}, "the classes grünes Haus, red bus, 蓝天 instead of grünes Haus, red car, 蓝天"),
        ({"data": str(fewer)}, "25 training, 5 validation and 5 test photos instead of 26, 5 and 5"),
        ({"data": str(renamed)}, "photos of other names, or with other labels"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            train(replace(recipe, resume=True, **change))
    assert before == {path: path.read_bytes() for path in before}

    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(photos, moved)
    shutil.rmtree(photos)
    may_change = replace(recipe, data=str(moved), epochs=3, lr=1e-3, label_smoothing=0.1, save_every=1)
    run = train(replace(may_change, resume=True), "dmformer train second")
    assert [float(row.split(",")[0]) for row in (folder / "metrics.csv").read_text().splitlines()[1:]] == [1, 2, 3]
    assert events(folder) == ["started", "resumed", "finished"]
    page = run.report.read_text(encoding="utf-8")
    assert "dmformer train first" in page
    assert re.search(r"resumed 1</th><td>\d{4}-\d\d-\d\d \d\d:\d\d UTC on \S+: dmformer train second<", page)
    train(replace(may_change, resume=True, epochs=4, batch_size=4))  # between epochs, it may


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_starting_weights(recipe, tmp_path):
    first = train(replace(recipe, epochs=1))
    tuned = replace(recipe, name="tuned", weights=str(first.folder / "best"), epochs=1)
    train(tuned)
    shutil.rmtree(first.folder)
    assert train(replace(tuned, epochs=2, resume=True)).folder.name == "tuned"


def test_a_stopped_run_is_resumed_rather_than_a_finished_or_a_running_one(recipe, tmp_path):
    for number, (name, last) in enumerate((("a", "started"), ("b", "resumed"), ("c", "started"), ("d", "finished"))):
        run = tmp_path / "runs" / name
        (run / "last").mkdir(parents=True)
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        (run / "commands.jsonl").write_text(
            json.dumps({"event": "finished"}) + '\n{"ev\n' + json.dumps({"event": last})
        )
        os.utime(run, (number, number))
    unnamed = replace(recipe, name=None, resume=True)
    with locked(tmp_path / "runs" / "c"):
        assert find_run(unnamed).name == "b"
        assert find_run(replace(unnamed, name="d")).name == "d"
    for name in "abc":
        shutil.rmtree(tmp_path / "runs" / name)
    with pytest.raises(UserError, match=r"no unfinished run.*--name d"):
        find_run(unnamed)
    (tmp_path / "runs" / "d" / "commands.jsonl").unlink()  # as an earlier version left it
    (tmp_path / "runs" / "d" / "report.html").touch()
    with pytest.raises(UserError, match="no unfinished run"):
        find_run(unnamed)
    os.utime(tmp_path / "runs" / "d" / "report.html", (1, 1))
    assert find_run(unnamed).name == "d"


@pytest.mark.slow
def test_the_command_refuses_to_resume_another_kind_of_run(recipe, capsys):
    train(replace(recipe, epochs=1))
    check_folder(replace(recipe, precision="auto", resume=True))  # the run's own
    with pytest.raises(UserError, match=r"with --precision bf16: it was started with --precision no\."):
        check_folder(replace(recipe, precision="bf16", resume=True))
    capsys.readouterr()
    for arguments, told in (
        (["--model", "van_b0"], "cannot be resumed with --model van_b0: it was started with --model dmformer_n."),
        (["segment"], "is a run of classification, but segment is a recipe for segmentation."),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments, "--resume", "--out", recipe.out, "--name", "run"])
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert told in printed
        assert printed.count("\n") == 1


@pytest.mark.slow
def test_one_command_at_a_time_writes_to_a_run_and_a_crash_releases_it(recipe, tmp_path):
    folder = train(replace(recipe, epochs=1)).folder
    hold = (
        "import os, sys, time, dmformer_command; from pathlib import Path; from dmformer.utils.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    reader = os.fork()\n"
        "    if reader: print(reader, flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        reader = int(other.stdout.readline())
        for change in ({"resume": True, "epochs": 2}, {"overwrite": True}):
            with pytest.raises(
                UserError, match=rf"run is in use by a running command \(host \S+, process {other.pid}\)"
            ):
                train(replace(recipe, **change))
        other.kill()
        other.wait()
        assert holder(folder) is None  # although the process that it forked is still there
        os.kill(reader, signal.SIGKILL)
    assert train(replace(recipe, epochs=2, resume=True)).folder == folder


def test_the_lock_on_windows(tmp_path, monkeypatch):
    """By a stand-in for msvcrt, whose locked bytes nobody else can read."""
    places: dict[tuple[int, int], int] = {}

    def locking(descriptor: int, mode: str, count: int) -> None:
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert count == 1
        assert place[1] > 10**6  # behind the text
        if mode == "lock" and place in places:
            raise PermissionError(13, "Permission denied")
        if mode == "unlock":
            assert places.pop(place) == descriptor
        else:
            places[place] = descriptor

    stand_in = SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
    monkeypatch.setitem(sys.modules, "msvcrt", stand_in)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("dmformer.utils.windows_lock", lock.__file__)
    windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(windows)
    (tmp_path / LOCK).write_text("an earlier holder")
    assert windows.holder(tmp_path) is None
    for _ in range(2):
        with windows.locked(tmp_path):
            assert windows.holder(tmp_path).endswith(f"process {os.getpid()}")
            with (
                pytest.raises(UserError, match=rf"in use by a running command \(host \S+, process {os.getpid()}\)"),
                windows.locked(tmp_path),
            ):
                pass
        assert not places


@pytest.mark.parametrize("name", ["run", None])
@pytest.mark.slow
def test_commands_that_start_at_once_get_a_folder_each_or_an_error(recipe, name):
    together = threading.Barrier(6)

    def start(results: list[str]) -> None:
        together.wait()
        try:
            with open_folder(replace(recipe, name=name)) as opened:
                results.append(str(opened.name))
                together.wait()
        except UserError as error:
            results.append(str(error))
            together.wait()

    for _ in range(20):
        results: list[str] = []
        threads = [threading.Thread(target=start, args=(results,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if name is None:
            assert sorted(results) == [f"photos-dmformer_n-{i}" for i in range(1, 7)]
        else:
            assert results.count("run") == 1
            assert sum("in use by a running command" in result for result in results) == 5
        assert list(Path(recipe.out).iterdir()) == []  # nothing was trained


@pytest.mark.slow
def test_a_run_that_fails_before_it_saved_anything_leaves_nothing_in_the_way(recipe, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("dmformer.train.loop.write_whole", full)
        with pytest.raises(UserError, match=r"No space left on device; free some space and start again"):
            train(recipe)
    with monkeypatch.context() as disk:
        disk.setattr("pathlib.Path.mkdir", full)
        with pytest.raises(UserError, match="No space left on device"):
            train(recipe)
    with monkeypatch.context() as disk:
        disk.setattr("dmformer.train.loop.write_check", full)
        with pytest.raises(UserError, match="No space left on device"):
            train(recipe)
    with monkeypatch.context() as disk:
        disk.setattr("accelerate.Accelerator.save_state", full)  # best/ is written then
        with pytest.raises(UserError, match="No space left on device; free some space and start again"):
            train(replace(recipe, epochs=1))
    with pytest.raises(UserError, match=r"--batch-size 1 and images of 32 px leave BatchNorm a single value"):
        train(replace(recipe, batch_size=1, mixup=0.0))
    assert list(Path(recipe.out).iterdir()) == []
    (Path(recipe.out) / "run").mkdir()  # as a command that is killed at its start leaves it
    (Path(recipe.out) / "run" / "run.lock").touch()
    with monkeypatch.context() as disk:
        disk.setattr("dmformer.tasks.classification.kind.write_report", full)
        with pytest.raises(UserError, match=r"the report cannot be written to .* best/ and last/ are whole"):
            train(replace(recipe, epochs=1))
    resumed = train(replace(recipe, epochs=1, name="run", resume=True))
    assert (resumed.folder.name, resumed.report.is_file()) == ("run", True)


def test_prefixes_of_compiled_and_wrapped_models_are_taken_off():
    one = torch.ones(1)
    for prefix in ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."):
        state = {f"{prefix}head.weight": one, f"{prefix}stem.module.bias": one}
        assert list(unwrapped({"state_dict": state}, "w.pth")) == ["head.weight", "stem.module.bias"]


@pytest.mark.slow
def test_names_that_are_no_utf_8_are_shown_with_question_marks(recipe, photos, capfd, tmp_path):
    folder = photos / os.fsdecode(b"caf\xe9")
    (photos / "red car").rename(folder)
    for i in range(12):
        (folder / f"{i}.png").rename(folder / os.fsdecode(b"\xff%d.png" % i))
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    run = train(replace(recipe, epochs=1, max_broken=0.5)).folder
    assert "caf?" in (run / "report.html").read_text(encoding="utf-8")
    main(["eval", str(run), "--data", str(photos), "--workers", "0", "--json", str(tmp_path / "scores.json")])
    assert "caf?" in (tmp_path / "scores.json").read_text(encoding="utf-8")
    for format in ("csv", "json", "table"):
        capfd.readouterr()
        main(["predict", str(run), str(photos), "--format", format])
        assert "caf?" in capfd.readouterr().out


def everyone(process: psutil.Process) -> Sequence[psutil.Process]:
    return [process, *process.children(recursive=True)]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.slow
def test_sigterm_to_every_process_of_a_command_saves_and_ends_it(recipe, processes, tmp_path):
    """As systemd and Slurm send it, to the readers too."""
    options = ["--data", recipe.data, "--out", recipe.out, "--name", "run", "--model-args", *recipe.model_args]
    options += ["--image-size", "32", "--batch-size", "8", "--tracker", "none", "--workers", "2", "--epochs", "1000"]
    command = [sys.executable, "-m", "dmformer", "train", "scratch", *options, "--processes", str(processes)]
    with (tmp_path / "printed").open("w+") as printed:
        started = subprocess.Popen(command, stderr=printed, start_new_session=True)
        try:
            while "epoch 1 of" not in (tmp_path / "printed").read_text():
                assert started.poll() is None
                time.sleep(0.1)
            if processes == 1:
                os.killpg(started.pid, signal.SIGTERM)
            else:
                for process in everyone(psutil.Process(started.pid)):
                    process.send_signal(signal.SIGTERM)
            assert started.wait(60) == 128 + signal.SIGTERM
        finally:
            started.kill()
    told = (tmp_path / "printed").read_text()
    assert "Traceback" not in told
    stopped = re.search(r"stopped in epoch (\d+) of 1000, state saved; continue with: dmformer train --resume", told)
    assert stopped is not None, told
    epochs = str(int(stopped[1]) + 1)
    main(["train", "--resume", "--out", recipe.out, "--epochs", epochs, "--processes", "1", "--workers", "0"])
    assert events(tmp_path / "runs" / "run") == ["started", "resumed", "finished"]
    assert (tmp_path / "runs" / "run" / "metrics.csv").read_text().splitlines()[-1].startswith(f"{epochs},")


def test_a_run_is_cleared_of_what_it_and_exports_of_it_wrote(tmp_path):
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    exported = [f"run{suffix}" for suffixes in SUFFIXES.values() for suffix in suffixes]
    assert exported == ["run.onnx", "run.xml", "run.bin", "run.pt2", "run.aoti.pt2"]
    for name in (*exported, "metrics.csv", "soup.json", "mine.onnx", "notes.txt"):
        (run / name).touch()
    clear(run)
    assert sorted(path.name for path in run.iterdir()) == ["mine.onnx", "notes.txt"]
