"""Measure the speed and memory of several models: result rows, and the rounds that fill them.

All candidates are prepared first. Then every candidate has one turn per round, in a new random order each round. Other
load on the machine thus affects all candidates alike, and candidates are compared within a round.
"""

import csv
import datetime
import io
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..utils.device import find_device
from ..utils.errors import UserError, first_line, unknown
from ..utils.machine import processor
from ..utils.timing import interleave, joules, summarise, turn

log = logging.getLogger(__name__)

FORMS = ("plain", "eager", "compiled", "fused", "onnxruntime", "openvino")

RUNTIMES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""The forms outside PyTorch, with the packages that they need."""

DTYPES = ("float32", "bfloat16", "float16")

PEERS = (
    "dmformer_s",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b2",
    "poolformer_s36",
    "inception_next_tiny",
    "mambaout_tiny",
    "resnet50",
)
"""DMFormer-S, timm models of its size, and the best-known baseline."""

PEERS_TOP1 = {
    "convnext_tiny": 82.1,
    "swin_tiny_patch4_window7_224": 81.3,
    "pvt_v2_b2": 82.0,
    "poolformer_s36": 81.4,
    "inception_next_tiny": 82.5,
    "focalnet_tiny_srf": 82.1,
    "mambaout_tiny": 82.7,
    "caformer_s18": 83.7,
}
"""ImageNet-1K top-1 in % at 224 px, trained on ImageNet-1K only, as stated in the papers of these models."""


@dataclass(frozen=True)
class Row:
    """Measurements of one candidate: a model in a form, a dtype and a batch size."""

    model: str
    form: str
    dtype: str
    batch_size: int
    images_per_second: float
    """Median over the rounds."""
    low: float
    """The 25th percentile of images_per_second over the rounds."""
    high: float
    """The 75th percentile."""
    latency_ms: float
    """Time of a call with the whole batch, median over the rounds."""
    ratio: float | None
    """Speed relative to the baseline's: median of the ratios within rounds; None if the baseline lacks this batch."""
    baseline: str | None
    """Model/form/dtype of the baseline."""
    memory_mb: float | None
    """Peak memory of a call beyond what is held between calls (such as weights), in 2^20 bytes; None if unknown."""
    energy_j: float | None
    """Joules per image that the whole GPU uses, or the whole processor, idle cores included; None if unknown."""
    difference: float | None
    """Largest difference from the plain float32 model's logits, relative to their largest; None in training and for
    detectors."""
    parameters_m: float
    """Millions, before fusing."""
    gmacs: float
    """10^9 multiply-adds per image, before fusing."""
    top1: float | None
    """Published ImageNet-1K top-1 in %; None if not published or unknown."""
    mode: str
    image_size: int
    device: str
    layout: str
    """Memory format of the PyTorch forms; the runtimes choose their own."""
    rounds: int
    seconds: float
    """Minimum length of a turn."""
    machine: str
    threads: int
    kernels: str
    """The environment variable DMFORMER_KERNELS."""
    torch: str
    timm: str
    onnxruntime: str
    openvino: str
    dmformer: str
    python: str
    date: str


@dataclass(frozen=True)
class _Candidate:
    """A participant of the rounds: a model in a form and a dtype, bound to a batch, with known facts."""

    label: str
    run: Callable[[], Any]
    batch_size: int
    facts: dict[str, Any]


def bench(
    models: Sequence[str] = ("dmformer_s",),
    *,
    forms: Sequence[str] = ("eager", "fused"),
    dtypes: Sequence[str] = ("float32",),
    mode: str = "inference",
    batch_sizes: Sequence[int] = (1, 8),
    image_size: int = 224,
    device: str | None = None,
    layout: str = "channels_last",
    threads: int | None = None,
    rounds: int = 7,
    seconds: float = 0.5,
    baseline: str | None = None,
    say: Callable[[str], None] = log.warning,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Measure every model in every form, dtype and batch size, in interleaved rounds.

    Args:
        models: Model names, ours or timm's (reproducible random weights), with +fpn or +upernet for a segmenter with
            150 classes, or +retinanet and so on for a detector with 80, on that backbone; runs' best/ folders;
            hf-hub:owner/name.
        forms: Among FORMS. "plain" is "eager" with PyTorch's own depth-wise convolutions; "fused" is the result of
            `dmformer.fuse`; the runtimes run the exported fused model.
        dtypes: Among DTYPES: weights and images of the PyTorch forms, autocast in training, OpenVINO's arithmetic.
        mode: "inference", or "training": forward, cross-entropy, backward and an AdamW step.
        device: "cpu" or "cuda"; None for CUDA if available.
        layout: "channels_last" or "contiguous", for the PyTorch forms.
        threads: CPU threads; None for PyTorch's default.
        rounds: Turns per candidate, after one warm-up turn.
        seconds: Minimum length of a turn; calls are repeated until then.
        baseline: MODEL, MODEL/FORM or MODEL/FORM/DTYPE, whose speed is 1; None for the first.
        say: Called with a remark on everything that was skipped.
        progress: Called with a description, the number of completed steps and their total.

    Raises:
        UserError: An invalid argument, a missing package, or nothing that could be measured.
    """
    _check(forms, dtypes, mode, batch_sizes, device, layout, threads, rounds, seconds)

    import torch

    from . import variants as prepared

    where = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models, batch_sizes = list(dict.fromkeys(models)), sorted(set(batch_sizes))
    kinds = []
    for form, dtype in dict.fromkeys((form, dtype) for form in forms for dtype in dtypes):
        reason = why_not(form, dtype, mode, where.type)
        if reason is None:
            kinds.append((form, dtype))
        else:
            say(f"{form} in {dtype} is skipped: {reason}")
    if not kinds:
        raise UserError("there is no form to measure: see the remarks above.")
    labels = ["/".join((model, *kind)) for model in models for kind in kinds]
    if baseline is not None and not any(_is_under(label, baseline) for label in labels):
        raise unknown("baseline", baseline, [*models, *labels])
    with prepared.set_threads(threads) as threads, tempfile.TemporaryDirectory() as folder:
        candidates: list[_Candidate] = []
        images = torch.randn(batch_sizes[-1], 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        for i, model in enumerate(models):
            progress(f"preparing {model}", i, len(models))
            try:
                files = Path(folder, str(i))
                files.mkdir()
                ready = prepared.Forms(
                    model, images, where, layout == "channels_last", threads, files, mode == "training"
                )
            except UserError:
                raise
            except Exception as error:  # timm models raise arbitrary errors, e.g. for unsupported image sizes
                say(f"{model} is skipped: {first_line(error)}")
                continue
            for kind in kinds:
                progress(f"preparing {'/'.join((model, *kind))}", i, len(models))
                candidates += _prepare(ready, model, kind, batch_sizes, say)
        if not candidates:
            raise UserError("nothing could be measured: every model was skipped.")
        times = interleave(
            [lambda run=c.run: turn(run, seconds) for c in candidates],
            rounds,
            lambda i, done, total: progress(f"timing {candidates[i].label}", done, total),
        )
        counter = prepared.energy_counter(where)
        energies = [joules(c.run, seconds, counter) for c in candidates]
    first = next((c.label for c in candidates if baseline is None or _is_under(c.label, baseline)), None)
    if first is None:
        say(f"the baseline {baseline} could not be measured, so there are no ratios")
    bases = {c.batch_size: t for c, t in zip(candidates, times, strict=True) if c.label == first}
    common = {
        "baseline": first,
        "mode": mode,
        "image_size": image_size,
        "device": where.type,
        "layout": layout,
        "rounds": rounds,
        "seconds": seconds,
        **_circumstances(where, threads),
    }
    return [
        Row(
            **c.facts,
            energy_j=None if energy is None else energy / c.batch_size,
            **summarise(c.batch_size, t, bases.get(c.batch_size)),
            **common,
        )
        for c, t, energy in zip(candidates, times, energies, strict=True)
    ]


def _prepare(
    ready: Any, model: str, kind: tuple[str, str], batch_sizes: Sequence[int], say: Callable[[str], None]
) -> list[_Candidate]:
    """A model's candidates of one form and dtype, up to the batch size at which it fails."""
    from .variants import memory_over_rest

    label = "/".join((model, *kind))
    found = []
    for batch_size in batch_sizes:
        try:
            call = ready.bind(*kind, batch_size)
            facts = {
                "model": model,
                "form": kind[0],
                "dtype": kind[1],
                "batch_size": batch_size,
                "memory_mb": memory_over_rest(call, ready.device),
                "difference": ready.difference(call, batch_size),
                "parameters_m": ready.parameters,
                "gmacs": ready.gmacs,
                "top1": published_top1(model),
            }
        except Exception as error:  # from the compiler, exporter, runtime, or lack of memory
            say(f"{label} is skipped from batch {batch_size} on: {first_line(error)}")
            break
        found.append(_Candidate(label, call.run, batch_size, facts))
    return found


def why_not(form: str, dtype: str, mode: str, device: str) -> str | None:
    """Why a form does not support a dtype, mode or device; None if it does."""
    if mode == "training" and form not in ("plain", "eager", "compiled"):
        return "only the plain, eager and compiled forms can be trained"
    if mode == "training" and dtype == "float16":
        return "training in float16 needs loss scaling, which is not supported"
    if form in RUNTIMES and device == "cuda":
        return "it is only measured on CPUs"
    if form == "onnxruntime" and dtype != "float32":
        return "ONNX Runtime only computes in float32 on a CPU"
    return None


def published_top1(model: str) -> float | None:
    """The ImageNet-1K top-1 in % from a model's paper, if this package knows it."""
    from ..models import PUBLISHED

    return PUBLISHED[model].top1 if model in PUBLISHED else PEERS_TOP1.get(model)


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header line; figures to 5 digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return text.getvalue()


def _check(
    forms: Sequence[str],
    dtypes: Sequence[str],
    mode: str,
    batch_sizes: Sequence[int],
    device: str | None,
    layout: str,
    threads: int | None,
    rounds: int,
    seconds: float,
) -> None:
    for what, names, known in (
        ("form", forms, FORMS),
        ("dtype", dtypes, DTYPES),
        ("mode", [mode], ("inference", "training")),
        ("device", [device or "cpu"], ("cpu", "cuda")),
        ("layout", [layout], ("channels_last", "contiguous")),
    ):
        for name in names:
            if name not in known:
                raise unknown(what, name, known)
    if not forms or not dtypes or not batch_sizes:
        raise UserError("at least one form, one dtype and one batch size are needed.")
    if min(batch_sizes) < 1 or rounds < 1 or (threads is not None and threads < 1):
        raise UserError("--batch-sizes, --rounds and --threads must be 1 or more.")
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds}: it must be more than 0.")
    for form in RUNTIMES.keys() & set(forms):
        for package in RUNTIMES[form]:
            if find_spec(package) is None:
                raise UserError(f"the form {form} needs the package {package}: pip install 'dmformer[export]'.")


def _is_under(label: str, name: str) -> bool:
    return label == name or label.startswith(f"{name}/")


def _circumstances(device: Any, threads: int) -> dict[str, Any]:
    """Machine, threads, versions and date."""
    import torch

    from ..utils.version import __version__

    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ("timm", "onnxruntime", "openvino")
    return {
        "machine": f"{processor()}{gpu}",
        "threads": threads,
        "kernels": os.environ.get("DMFORMER_KERNELS", "auto"),
        "torch": torch.__version__,
        **{package: version(package) if find_spec(package) else "" for package in packages},
        "dmformer": __version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
