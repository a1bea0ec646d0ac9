"""The peak memory of a process that only runs one candidate: started by `measure`, prints MB.

Imports torch only for the PyTorch form, because an exported file runs without it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import UserError
from ..utils.machine import resident_mb

CALLS = 3
SECONDS = 600
"""After this time, the process counts as hanging."""

START = "import dmformer_command; from dmformer.choose.process import main; main()"
"""The first import keeps torch out, see `dmformer_command`."""


def memory_of_process(form: str, source: Path, shape: tuple[int, int, int, int], threads: int) -> float | None:
    """Peak memory in MB of a process of its own that opens a model and runs it; None if the system does not tell.

    Args:
        form: "fused", "onnxruntime" or "openvino".
        source: The exported file, .onnx or .xml; for "fused", a trained model's folder.
        shape: Of the images, (B, 3, H, W).

    Raises:
        UserError: The process failed.
    """
    task = {"form": form, "source": str(source), "shape": shape, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-c", START, json.dumps(task)], capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"it fails in a process of its own: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the candidate that the first argument describes."""
    task = json.loads(sys.argv[1])
    run = _torch(task) if task["form"] == "fused" else _runtime(task)
    images = np.zeros(task["shape"], np.float32)
    for _ in range(CALLS):
        run(images)
    try:
        print(json.dumps(resident_mb("VmHWM")))
    except OSError:
        print("null")


def _runtime(task: dict[str, Any]) -> Any:
    from ..runtimes.sessions import to_onnxruntime, to_openvino

    path = Path(task["source"])
    if task["form"] == "openvino":
        return to_openvino(path, task["threads"], shape=task["shape"]).run
    return to_onnxruntime(path, task["threads"]).run


def _torch(task: dict[str, Any]) -> Any:
    import torch

    from ..tasks.opening import open_trained

    torch.set_num_threads(task["threads"])
    model = open_trained(task["source"]).for_inference("cpu").model

    @torch.inference_mode()
    def run(images: np.ndarray) -> Any:
        return model(torch.from_numpy(images).contiguous(memory_format=torch.channels_last))

    return run
