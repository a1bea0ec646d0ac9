"""What candidates need on this machine: sizes first, then latency, file, memory and energy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..bench.variants import Call, Forms, gmacs_of, set_threads
from ..export.formats import export_openvino
from ..tasks.job import Job
from ..tasks.task import Contest
from ..utils.errors import first_line
from ..utils.machine import energy_joules
from ..utils.timing import interleave, joules, summarise, turn
from .candidates import FORMS, Candidate
from .limits import Limits
from .process import memory_of_process

ROUNDS, SECONDS = 5, 0.3
"""Turns of each form after the first, and the minimum length of a turn, as in an export's measurement of speed."""
PRODUCT, PRODUCTS = 512, 60
"""Side of the square matrices whose product shows how fast the machine computes, and the number of products. Each takes
a few milliseconds, so that some of them are undisturbed by other work on the machine."""
CPU = torch.device("cpu")

Figures = dict[str, Any]
Shape = tuple[int, int, int, int]


def cost(job: Job, height: int, width: int) -> dict[str, float]:
    """Parameters in millions, and GMACs for an image of this size, of a job's model."""
    model = job.build_model()[0].eval()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return {"parameters_m": parameters, "gmacs": gmacs_of(model, height, width)}


def size_of_photo(job: Job, multiple: int) -> tuple[int, int]:
    """Height and width of the first validation photo as the job's model receives it."""
    inputs = next(iter(job.val_loader(0, 1, False)))[0]
    height, width = inputs[0].shape[-2:]
    return height + -height % multiple, width + -width % multiple


def gmacs_per_second(threads: int) -> float:
    """10^9 multiply-adds per second of a large product of float32 matrices, the fastest of several."""
    left = torch.randn(PRODUCT, PRODUCT)
    with set_threads(threads):
        return PRODUCT**3 / 1e9 / min(turn(lambda: left @ left, 0.0) for _ in range(PRODUCTS))


def measure(
    job: Job,
    contest: Contest,
    candidates: Sequence[Candidate],
    shape: Shape,
    limits: Limits,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Figures]:
    """Figures of the candidates of one entrant by name: those of `Limits`, `latency_low` and `latency_high` (the middle
    half of the turns), energy and operations per call, each None if unknown; or "failed" with the reason.

    Latencies are measured in turns first. Only candidates within the limits on latency, file and energy are started in
    a process of their own; without a limit on memory, only the fastest of them.

    Args:
        job: Of the entrant; its model has random weights.
        shape: Of the images of a call, (B, 3, H, W).
        folder: For the files, which stay there.
    """
    found: dict[str, Figures] = {}
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    source = folder / "model"
    model, _ = job.build_model()
    job.save(source, model, model.state_dict())
    for threads in dict.fromkeys(candidate.threads for candidate in candidates):
        own = [candidate for candidate in candidates if candidate.threads == threads]
        files = folder / str(threads)
        files.mkdir()
        with set_threads(threads):
            try:
                ready = Forms(str(source), images, CPU, True, threads, files, free_size=contest.free_size)
            except Exception as error:  # timm's models raise their own errors, e.g. for an image size
                found |= {candidate.name: {"failed": first_line(error)} for candidate in own}
                continue
            calls: dict[str, Call] = {}
            for candidate in own:
                form, dtype, _ = FORMS[candidate.form]
                try:
                    calls[candidate.name] = ready.bind(form, dtype, shape[0])
                    file, size = _file(ready, candidate, source)
                    found[candidate.name] = {"file": str(file), "disk_mb": size, "gmacs": ready.gmacs * shape[0]}
                except Exception as error:  # from an exporter or a runtime
                    calls.pop(candidate.name, None)
                    found[candidate.name] = {"failed": first_line(error)}
                    say(f"{candidate.name} cannot be measured: {first_line(error)}")
            turns = [lambda run=call.run: turn(run, SECONDS) for call in calls.values()]
            times = interleave(turns, ROUNDS, lambda *_: None)
            for (name, call), seconds in zip(calls.items(), times, strict=True):
                row = summarise(shape[0], seconds, None)
                found[name] |= {
                    "latency_ms": row["latency_ms"],
                    "latency_low": 1e3 * shape[0] / row["high"],
                    "latency_high": 1e3 * shape[0] / row["low"],
                    "memory_mb": None,
                    "energy_j": joules(call.run, SECONDS, energy_joules),
                }
    _measure_memory(candidates, shape, limits, found)
    return found


def image_seconds(job: Job, batch_size: int) -> float:
    """Seconds per image of a training step: forward, backward and update; the second of two steps on one batch."""
    model: Any = job.build_model()[0].train()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    inputs, targets, _ = next(iter(job.train_loader(0, 1, False)))

    def step() -> None:
        job.loss(model, inputs, targets)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return turn(step, 0.0) / batch_size


def _file(ready: Forms, candidate: Candidate, source: Path) -> tuple[Path, float]:
    """What a candidate runs, the model's folder for PyTorch, and the size of its file in MB."""
    form, dtype, _ = FORMS[candidate.form]
    if form == "fused":
        return source, (source / "model.safetensors").stat().st_size / 2**20
    path = ready.graph(dtype)
    parts = [path]
    if form == "openvino":
        path = export_openvino(path, path.with_suffix(".xml"), {})
        parts = [path, path.with_suffix(".bin")]
    return path, sum(part.stat().st_size for part in parts) / 2**20


def _measure_memory(candidates: Sequence[Candidate], shape: Shape, limits: Limits, found: dict[str, Figures]) -> None:
    """Add the peak memory of a process of its own to those figures that are within the other limits."""
    ready = [c for c in candidates if "failed" not in found[c.name] and not limits.exceeded(found[c.name])]
    ready.sort(key=lambda candidate: found[candidate.name]["latency_ms"])
    for candidate in ready if limits.memory_mb is not None else ready[:1]:
        figures, form = found[candidate.name], FORMS[candidate.form][0]
        try:
            figures["memory_mb"] = memory_of_process(form, Path(figures["file"]), shape, candidate.threads)
        except Exception as error:  # the process failed or hung
            found[candidate.name] = {"failed": first_line(error)}
