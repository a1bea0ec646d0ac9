"""A complete `dmformer train` as a user runs it: wall time, peak memory, scores on the held-out images.

python benchmarks/train_job.py                                     # the main job
python benchmarks/train_job.py scratch --data photos/ --name mine  # any other job: the arguments of `dmformer train`
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from record import record


def peak_memory(process: psutil.Process, stop: threading.Event, peak: list[float]) -> None:
    """Peak of the total proportional memory of a process and its children, in GB, sampled twice per second."""
    while not stop.wait(0.5):
        total = 0
        for p in (process, *process.children(recursive=True)):
            try:
                total += p.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total / 2**30)


def main() -> None:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out:
        command = [shutil.which("dmformer") or "dmformer", "train", *arguments, "--out", out, "--name", "job"]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        stop, peak = threading.Event(), [0.0]
        watcher = threading.Thread(target=peak_memory, args=(psutil.Process(process.pid), stop, peak))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        stop.set()
        watcher.join()
        if code:
            raise SystemExit(code)
        with (Path(out) / "job" / "metrics.csv").open() as file:
            epochs = list(csv.DictReader(file))
        scores = json.loads((Path(out) / "job" / "scores.json").read_text())
    record(
        "train_job",
        [
            {
                "command": " ".join(["dmformer train", *arguments]),
                "minutes": f"{seconds / 60:.2f}",
                "peak_gb": f"{peak[0]:.2f}",
                "images": scores["count"],
                "top1": f"{scores['top1']['value']:.4f}",
                "top1_low": f"{scores['top1']['low']:.4f}",
                "top1_high": f"{scores['top1']['high']:.4f}",
                "balanced_accuracy": f"{scores['balanced_accuracy']['value']:.4f}",
                "macro_f1": f"{scores['macro_f1']['value']:.4f}",
                "auroc": "" if scores["auroc"] is None else f"{scores['auroc']:.4f}",
                "images_per_second": sorted(float(e["images_per_second"]) for e in epochs)[len(epochs) // 2],
                "wait_share": max(float(e["wait_share"]) for e in epochs),
            }
        ],
    )


if __name__ == "__main__":
    main()
