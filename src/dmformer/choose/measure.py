"""What candidates need on this machine: sizes without building them, then latency, file, memory and energy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..bench.variants import Call, Forms, set_threads
from ..export.formats import export_openvino
from ..models.catalogue import count_gmacs
from ..models.create import size_argument
from ..utils.errors import first_line
from ..utils.machine import energy_joules
from ..utils.timing import interleave, summarise, turn
from .candidates import FORMS, Candidate, Entrant
from .limits import Limits
from .process import memory_of_process

ROUNDS, SECONDS = 5, 0.3
"""Turns of each form after the first, and the minimum length of a turn, as in an export's measurement of speed."""
PRODUCT, PRODUCTS = 512, 60
"""Side of the square matrices whose product shows how fast the machine computes, and the number of products. Each takes
a few milliseconds, so that some of them are undisturbed by other work on the machine."""
CPU = torch.device("cpu")

Figures = dict[str, Any]


def cost(entrant: Entrant, classes: int) -> dict[str, float]:
    """Parameters in millions and GMACs of an entrant, without creating its weights."""
    import timm

    arguments: dict[str, Any] = {"num_classes": classes, **size_argument(entrant.model, entrant.image_size)}
    with torch.device("meta"):
        model: Any = timm.create_model(entrant.model, **arguments).eval()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return {"parameters_m": parameters, "gmacs": count_gmacs(model, entrant.image_size)}


def gmacs_per_second(threads: int) -> float:
    """10^9 multiply-adds per second of a large product of float32 matrices, the fastest of several."""
    left = torch.randn(PRODUCT, PRODUCT)
    with set_threads(threads):
        return PRODUCT**3 / 1e9 / min(turn(lambda: left @ left, 0.0) for _ in range(PRODUCTS))


def measure(
    entrant: Entrant,
    candidates: Sequence[Candidate],
    classes: int,
    batch_size: int,
    limits: Limits,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Figures]:
    """Figures of an entrant's candidates by name: those of `Limits`, `latency_low` and `latency_high` (the middle half
    of the turns) and `energy_j` per call, each None if unknown; or "failed" with the reason.

    Latencies are measured in turns first. Only candidates within the limits on latency and file are started in a
    process of their own; without a limit on memory, only the fastest of them.

    Args:
        folder: For the files, which stay there.
    """
    found: dict[str, Figures] = {}
    shape = (batch_size, 3, entrant.image_size, entrant.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for threads in dict.fromkeys(candidate.threads for candidate in candidates):
        own = [candidate for candidate in candidates if candidate.threads == threads]
        with set_threads(threads):
            try:
                ready = Forms(entrant.model, images, CPU, True, threads, folder, classes=classes)
            except Exception as error:  # timm's models raise their own errors, e.g. for an image size
                found |= {candidate.name: {"failed": first_line(error)} for candidate in own}
                continue
            calls: dict[str, Call] = {}
            for candidate in own:
                form, dtype, _ = FORMS[candidate.form]
                try:
                    calls[candidate.name] = ready.bind(form, dtype, batch_size)
                    file, size = _file(ready, candidate, folder)
                    found[candidate.name] = {"file": str(file) if file else None, "disk_mb": size}
                except Exception as error:  # from an exporter or a runtime
                    calls.pop(candidate.name, None)
                    found[candidate.name] = {"failed": first_line(error)}
                    say(f"{candidate.name} cannot be measured: {first_line(error)}")
            turns = [lambda run=call.run: turn(run, SECONDS) for call in calls.values()]
            times = interleave(turns, ROUNDS, lambda *_: None)
            for (name, call), seconds in zip(calls.items(), times, strict=True):
                row = summarise(batch_size, seconds, None)
                found[name] |= {
                    "latency_ms": row["latency_ms"],
                    "latency_low": 1e3 * batch_size / row["high"],
                    "latency_high": 1e3 * batch_size / row["low"],
                    "memory_mb": None,
                    "energy_j": _energy(call),
                }
    _measure_memory(entrant, candidates, classes, shape, limits, found)
    return found


def image_seconds(entrant: Entrant, classes: int, batch_size: int) -> float:
    """Seconds per image of a training step: forward, backward and update; the second of two steps."""
    images = torch.randn(batch_size, 3, entrant.image_size, entrant.image_size)
    threads = torch.get_num_threads()
    ready = Forms(entrant.model, images, CPU, True, threads, Path(), training=True, classes=classes)
    return turn(ready.bind("eager", "float32", batch_size).run, 0.0) / batch_size


def _file(ready: Forms, candidate: Candidate, folder: Path) -> tuple[Path | None, float]:
    """The file that a candidate runs, None for PyTorch, and its size in MB; for PyTorch, of the weights."""
    form, dtype, _ = FORMS[candidate.form]
    if form == "fused":
        tensors = ready.model.state_dict().values()
        return None, sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    path = ready.graph(dtype)
    parts = [path]
    if form == "openvino":
        path = export_openvino(path, folder / f"{path.stem}.xml", {})
        parts = [path, path.with_suffix(".bin")]
    return path, sum(part.stat().st_size for part in parts) / 2**20


def _energy(call: Call) -> float | None:
    """Joules per call of the whole processor, idle cores included."""
    before = energy_joules()
    if before is None:
        return None
    calls = 0

    def counted() -> None:
        nonlocal calls
        call.run()
        calls += 1

    turn(counted, SECONDS)
    used = (energy_joules() or before) - before
    return used / calls if used > 0 else None


def _measure_memory(
    entrant: Entrant,
    candidates: Sequence[Candidate],
    classes: int,
    shape: tuple[int, int, int, int],
    limits: Limits,
    found: dict[str, Figures],
) -> None:
    """Add the peak memory of a process of its own to those figures that are within the other limits."""
    ready = [c for c in candidates if "failed" not in found[c.name] and not limits.exceeded(found[c.name])]
    ready.sort(key=lambda candidate: found[candidate.name]["latency_ms"])
    for candidate in ready if limits.memory_mb is not None else ready[:1]:
        figures, form = found[candidate.name], FORMS[candidate.form][0]
        file = Path(figures["file"]) if figures["file"] else None
        try:
            figures["memory_mb"] = memory_of_process(form, file, entrant.model, classes, shape, candidate.threads)
        except Exception as error:  # the process failed or hung
            found[candidate.name] = {"failed": first_line(error)}
