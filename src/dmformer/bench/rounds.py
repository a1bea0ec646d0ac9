"""How fast models are, and how much memory they take, beside one another: rows, and the rounds that fill them.

All candidates are prepared first. Then come rounds, in each of which every candidate has one turn, in an order that is
drawn anew: what the machine does besides falls on all alike, and candidates are compared within a round.
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

from ..utils.errors import UserError, first_line, unknown
from ..utils.machine import processor
from ..utils.timing import interleave, summarise, turn

log = logging.getLogger(__name__)

FORMS = ("plain", "eager", "compiled", "fused", "onnxruntime", "openvino")

RUNTIMES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""The forms that are not PyTorch's, with the packages that they need."""

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
"""DMFormer-S and models of timm of its size, and the one that everybody knows."""

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
"""ImageNet-1K top-1 in % at 224 px, trained on ImageNet-1K alone, as the papers of these models give it."""


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate: a model in a form, a type and a batch size."""

    model: str
    form: str
    dtype: str
    batch_size: int
    images_per_second: float
    """Median of the rounds."""
    low: float
    """The 25th percentile of images_per_second over the rounds."""
    high: float
    """The 75th."""
    latency_ms: float
    """Of a call with the whole batch, median of the rounds."""
    ratio: float | None
    """Speed by the baseline's: median of the ratios within each round; None where the baseline has no such batch."""
    baseline: str | None
    """Its model/form/dtype."""
    memory_mb: float | None
    """The most that a call needs besides what is held between calls (weights are), in 2^20 bytes; None: not known."""
    difference: float | None
    """Largest difference of the logits from the plain float32 model's, by the largest of those; None in training."""
    parameters_m: float
    """Millions, before anything is fused."""
    gmacs: float
    """10^9 multiply-adds an image, likewise."""
    top1: float | None
    """Published ImageNet-1K top-1 in %; None: not published or not known here."""
    mode: str
    image_size: int
    device: str
    layout: str
    """Of PyTorch's forms; the runtimes choose their own."""
    rounds: int
    seconds: float
    """Least length of a turn."""
    machine: str
    threads: int
    kernels: str
    """The environment's DMFORMER_KERNELS."""
    torch: str
    timm: str
    onnxruntime: str
    openvino: str
    dmformer: str
    python: str
    date: str


@dataclass(frozen=True)
class _Candidate:
    """What has a turn in each round: a model in a form and a type, bound to a batch, with what is known of it."""

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
    """Measure every model in every form, type and batch size, in interleaved rounds.

    Args:
        models: Names of ours or of timm's (random weights, always the same), with +fpn or +upernet for a segmenter of
            150 classes over them; runs' best/ folders; hf-hub:owner/name.
        forms: Of FORMS. "plain" is "eager" with the framework's own depth-wise convolutions; "fused" is what
            `dmformer.fuse` returns; the runtimes take the fused model, exported.
        dtypes: Of DTYPES: weights and images of PyTorch's forms, autocast in training, the arithmetic inside OpenVINO.
        mode: "inference", or "training": forward, cross entropy, backward and a step of AdamW.
        batch_sizes: Images a call.
        image_size: Height and width.
        device: "cpu" or "cuda"; None for CUDA where there is one.
        layout: "channels_last" or "contiguous", of PyTorch's forms.
        threads: Of the CPU; None for as many as PyTorch takes.
        rounds: Turns a candidate, after one that does not count.
        seconds: Least length of a turn; calls are repeated until then.
        baseline: MODEL, MODEL/FORM or MODEL/FORM/DTYPE, whose speed is 1; None for the first.
        say: Told what was left out and why.
        progress: Told what is going on, and how many steps of how many are done.

    Raises:
        UserError: Arguments that make no sense, a missing package, or nothing that could be measured.
    """
    _check(forms, dtypes, mode, batch_sizes, device, layout, threads, rounds, seconds)

    import torch

    from . import variants as prepared

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no such device here; leave the option out to measure the CPU.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models, batch_sizes = list(dict.fromkeys(models)), sorted(set(batch_sizes))
    kinds = []
    for form, dtype in dict.fromkeys((form, dtype) for form in forms for dtype in dtypes):
        reason = why_not(form, dtype, mode, where.type)
        if reason is None:
            kinds.append((form, dtype))
        else:
            say(f"{form} in {dtype} is left out: {reason}")
    if not kinds:
        raise UserError("no form is left to measure: see the remarks above.")
    labels = ["/".join((model, *kind)) for model in models for kind in kinds]
    if baseline is not None and not any(_is_under(label, baseline) for label in labels):
        raise unknown("baseline", baseline, [*models, *labels])
    with prepared.set_threads(threads) as threads, tempfile.TemporaryDirectory() as folder:
        candidates: list[_Candidate] = []
        images = torch.randn(batch_sizes[-1], 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        for i, model in enumerate(models):
            progress(f"preparing {model}", i, len(models))
            try:
                ready = prepared.Forms(
                    model, images, where, layout == "channels_last", threads, Path(folder), mode == "training"
                )
            except UserError:
                raise
            except Exception as error:  # whatever a model of others may raise, at an image size that it cannot take
                say(f"{model} is left out: {first_line(error)}")
                continue
            for kind in kinds:
                progress(f"preparing {'/'.join((model, *kind))}", i, len(models))
                candidates += _prepare(ready, model, kind, batch_sizes, say)
        if not candidates:
            raise UserError("nothing could be measured: every model was left out.")
        times = interleave(
            [lambda run=c.run: turn(run, seconds) for c in candidates],
            rounds,
            lambda i, done, total: progress(f"timing {candidates[i].label}", done, total),
        )
    first = next((c.label for c in candidates if baseline is None or _is_under(c.label, baseline)), None)
    if first is None:
        say(f"the baseline {baseline} could not be measured: there are no ratios")
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
        Row(**c.facts, **summarise(c.batch_size, t, bases.get(c.batch_size)), **common)
        for c, t in zip(candidates, times, strict=True)
    ]


def _prepare(
    ready: Any, model: str, kind: tuple[str, str], batch_sizes: Sequence[int], say: Callable[[str], None]
) -> list[_Candidate]:
    """A model's candidates of one form and type, up to the batch size at which it fails."""
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
        except Exception as error:  # whatever a compiler, an exporter, a runtime or a full memory may raise
            say(f"{label} is left out from batch {batch_size} on: {first_line(error)}")
            break
        found.append(_Candidate(label, call.run, batch_size, facts))
    return found


def why_not(form: str, dtype: str, mode: str, device: str) -> str | None:
    """Why a form does not exist in a type, or None where it does."""
    if mode == "training" and form not in ("plain", "eager", "compiled"):
        return "only the plain, the eager and the compiled form can be trained"
    if mode == "training" and dtype == "float16":
        return "training in it needs its loss scaled, which is not done here"
    if form in RUNTIMES and device == "cuda":
        return "it is measured on CPUs only"
    if form == "onnxruntime" and dtype != "float32":
        return "ONNX Runtime computes in float32 on a CPU"
    return None


def published_top1(model: str) -> float | None:
    """The ImageNet-1K top-1 in % that a model's paper gives, where this package knows it."""
    from ..models import PUBLISHED

    return PUBLISHED[model].top1 if model in PUBLISHED else PEERS_TOP1.get(model)


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as text, a line each under the names of their fields; figures to 5 digits."""
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
