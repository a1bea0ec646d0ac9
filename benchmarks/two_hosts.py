"""Train on two hosts that are network namespaces of this machine, joined by a virtual cable, and lose one of them.

    python benchmarks/two_hosts.py                      # as root, on Linux, with `ip`
    python benchmarks/two_hosts.py --tasks detection --lose cable process

For each task, with tiny data and one run folder for both hosts:

1. A whole run by `torchrun --nnodes 2 … -m dmformer train …`, as docs/scale.md has it.
2. The same run, in which the second host is lost within an epoch: its processes are killed (`--lose host`), or its
   cable is pulled (`cable`). The first host must end by itself, with a line that says what happened. Then `--resume`
   with one process, and as many images a step.
3. With `--lose process`, only the training process of the second host is killed, and torchrun's `--max-restarts` starts
   both again, which must resume by themselves.

results/two_hosts.csv has the seconds from the loss to the end of the first host, its line, and the largest difference
of the final weights from those of the whole run. The backbones are frozen, so without BatchNorm in the head only the
order of summation differs between one process and two. A segmenter's head has BatchNorm, whose statistics are those of
a process.
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
from performance_tables import table
from PIL import Image
from record import record, replace_tables
from record import rows as recorded
from safetensors.numpy import load_file

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
HOSTS = ("dmformer-a", "dmformer-b")
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
INTERFACES = ["cable0", "cable1"]
ENTER = [["ip", "netns", "exec", host] for host in HOSTS]
"""What starts a command on a host."""
PATIENCE = 20
"""Seconds after which a host that does not answer counts as lost; half an hour unless it is given."""

TINY = "--model-args dims=[8,16,24,32] depths=[1,1,1,1] --image-size 32 --workers 0 --tracker none --freeze 4 --seed 0"
TASKS = {
    "classification": "scratch --data photos --epochs 3 --save-every 2 --ema none --optimizer sgd --lr .1 --lr-batch 8 "
    + TINY,
    "segmentation": "segment --data scenes --classes sky ground --pretrained none --iterations 12 --validate-every 6 "
    f"--save-every 2 --ema none --optimizer sgd {TINY}",
    "detection": "detect --data shapes --framework retinanet --pretrained none --epochs 3 "
    "--save-every 2 --ema none --optimizer sgd --image-size 64 --sides 64 --max-side 96 "
    + TINY.replace("--image-size 32 ", ""),
}


def command(*words: str) -> None:
    subprocess.run(words, check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces, each with one end of a cable."""
    try:
        for host in HOSTS:
            command("ip", "netns", "add", host)
        command("ip", "link", "add", "cable0", "netns", HOSTS[0], "type", "veth", "peer", "cable1", "netns", HOSTS[1])
        for number, (host, address) in enumerate(zip(HOSTS, ADDRESSES, strict=True)):
            command("ip", "-n", host, "address", "add", f"{address}/24", "dev", f"cable{number}")
            command("ip", "-n", host, "link", "set", "lo", "up")
            command("ip", "-n", host, "link", "set", f"cable{number}", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], stderr=subprocess.DEVNULL)


def start(number: int, port: int, arguments: Sequence[str], log: Path, restarts: int = 0) -> subprocess.Popen:
    """Start one host's part of a run, as docs/scale.md has it."""
    if restarts:
        join = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{port}", "--rdzv-id", str(port)]
        join += ["--rdzv-conf", f"is_host={number == 0}"]  # a namespace does not know its address by its name
        join += ["--local-addr", ADDRESSES[number], "--max-restarts", str(restarts)]
    else:
        join = ["--node-rank", str(number), "--master-addr", ADDRESSES[0], "--master-port", str(port)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *join]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*ENTER[number], *launcher, "-m", "dmformer", "train", *arguments],
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "GLOO_SOCKET_IFNAME": INTERFACES[number],
                "OMP_NUM_THREADS": "1",
                "DMFORMER_TIMEOUT": str(PATIENCE),
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarted processes find the old addresses
            },
            stdout=file,
            stderr=file,
        )


def both(port: int, arguments: Sequence[str], folder: Path, restarts: int = 0) -> list[subprocess.Popen]:
    return [start(number, port, arguments, folder / f"{HOSTS[number]}.log", restarts) for number in range(2)]


def processes(host: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a host: torchrun, and the one that trains."""
    try:
        torchrun = psutil.Process(host.pid)
        return [torchrun, *torchrun.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(host: subprocess.Popen) -> None:
    """Kill all processes of a host, as a power cut does."""
    for process in processes(host):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    host.wait()


def log_of(folder: Path) -> str:
    return "\n".join((folder / f"{host}.log").read_text(errors="replace")[-3000:] for host in HOSTS)


def whole_run(port: int, arguments: Sequence[str], folder: Path) -> None:
    codes = [host.wait() for host in both(port, arguments, folder)]
    if any(codes):
        raise SystemExit(f"exit codes {codes}: {log_of(folder)}")


def lose(how: str, port: int, arguments: Sequence[str], folder: Path, run: Path) -> tuple[float, str]:
    """Lose the second host of a run, or its process, once the run has saved its state within an epoch.

    Returns:
        The seconds until the first host ended, and the line that it printed.
    """
    first, second = both(port, arguments, folder, restarts=3 if how == "process" else 0)
    try:
        while not (run / "last").is_dir():
            if first.poll() is not None:
                raise SystemExit(log_of(folder))
            time.sleep(0.02)
        began = time.monotonic()
        if how == "cable":
            command("ip", "-n", HOSTS[1], "link", "set", "cable1", "down")
        elif how == "process":
            processes(second)[-1].kill()
        else:
            end(second)
        code = first.wait()
        seconds = time.monotonic() - began
        said = (folder / f"{HOSTS[0]}.log").read_text(errors="replace").splitlines()
        lines = [line for line in said if line.startswith("dmformer: ")]
        if how == "process" and code:
            raise SystemExit(log_of(folder))
        return seconds, lines[-1] if lines else f"no line, exit code {code}"
    finally:
        end(first)
        end(second)
        if how == "cable":
            command("ip", "-n", HOSTS[1], "link", "set", "cable1", "up")


def resume(arguments: Sequence[str]) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dmformer", "train", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def difference(a: Path, b: Path) -> float:
    """The largest difference between the final weights of two runs."""
    one, other = (load_file(run / "last" / "model.safetensors") for run in (a, b))
    return max(float(np.abs(one[name].astype(float) - other[name]).max()) for name in one)


def draw(folder: Path) -> None:
    """Tiny data for each task: photos of a colour, scenes of sky and ground, boxes on grey."""
    generator = np.random.default_rng(0)

    def save(path: Path, colours: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((colours + generator.normal(0, 12, colours.shape)).clip(0, 255).astype(np.uint8)).save(path)

    for name, colour in {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 210)}.items():
        for i in range(24):
            save(folder / "photos" / name / f"{i}.png", np.full((40, 48, 3), colour))
    for split, count in (("training", 16), ("validation", 4)):
        for i in range(count):
            ids = np.zeros((48, 64), np.uint8)
            ids[16 + i :] = 1
            save(folder / "scenes" / "images" / split / f"{i}.png", np.array([(90, 140, 230), (60, 160, 60)])[ids])
            (folder / "scenes" / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(folder / "scenes" / "annotations" / split / f"{i}.png")
    for split, count in (("train", 16), ("val", 4)):
        images, boxes = [], []
        for i in range(count):
            photo = np.full((64, 80, 3), 120)
            photo[10 + i : 30 + i, 20:50] = (210, 40, 40)
            save(folder / "shapes" / split / f"{i}.png", photo)
            images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 64})
            boxes.append(
                {"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10 + i, 30, 20], "area": 600, "iscrowd": 0}
            )
        told = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "box"}]}
        (folder / "shapes" / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "shapes" / "annotations" / f"{split}.json").write_text(json.dumps(told))


def shown() -> str:
    """The results as a table."""
    header = ["task", "lost", "seconds until the other ended", "largest difference of the final weights"]
    return table(header, [[r["task"], r["lost"], r["seconds"], r["difference"]] for r in recorded("two_hosts")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--lose", nargs="+", choices=("host", "cable", "process"), default=["host"])
    parser.add_argument("--loopback", action="store_true", help="both hosts on one address, without namespaces")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if options.loopback:
        ADDRESSES[:], INTERFACES[:], ENTER[:] = ["127.0.0.1"] * 2, ["lo"] * 2, [[], []]
    with tempfile.TemporaryDirectory() as name, nullcontext() if options.loopback else two_hosts():
        folder = Path(name)
        draw(folder)
        os.chdir(folder)
        port = 29500
        for task in options.tasks:
            arguments = [*shlex.split(TASKS[task]), "--out", "runs", "--batch-size", "4"]
            whole, port = f"{task}-whole", port + 1
            whole_run(port, [*arguments, "--name", whole], folder)
            for how in options.lose:
                lost, port = f"{task}-{how}", port + 1
                run = Path("runs") / lost
                seconds, line = lose(how, port, [*arguments, "--name", lost], folder, run)
                if how != "process":
                    resume(["--resume", "--out", "runs", "--name", lost, "--batch-size", "8", "--processes", "1"])
                row: dict[str, object] = {
                    "task": task,
                    "lost": how,
                    "seconds": f"{seconds:.1f}",
                    "difference": f"{difference(Path('runs') / whole, run):.1e}",
                    "line": line,
                }
                print(row, flush=True)
                if options.record:
                    record("two_hosts", [row])
                    replace_tables(PAGE, {"two hosts": shown()})


if __name__ == "__main__":
    main()
