"""A model in every form: plain, eager, compiled, fused and in two runtimes, each bound to images."""

import contextlib
import copy
import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..export.formats import export_onnx
from ..export.quantise import quantise
from ..models.catalogue import count_gmacs
from ..models.create import SEED, random_model, settled_on_noise, size_argument
from ..nn.fuse import fuse
from ..nn.kernels.depthwise import plain_kernels
from ..runtimes.sessions import to_onnxruntime, to_openvino
from ..tasks.opening import open_trained
from ..tasks.segmentation.model import HEADS, segmentation_loss, segmentation_model
from ..tasks.table import TASKS
from ..utils.errors import UserError, unknown
from ..utils.machine import resident_mb

ADE20K_CLASSES = 150

LOSSES: dict[str, Callable[[Any, Tensor, Sequence[int]], Tensor]] = {
    "labels": lambda outputs, labels, size: F.cross_entropy(outputs, labels),
    "tags": lambda outputs, labels, size: F.binary_cross_entropy_with_logits(
        outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    ),
    "masks": lambda outputs, labels, size: segmentation_loss(outputs, labels[:, None, None].expand(-1, *size)),
}
"""Training losses of the kinds of model that are measured, by the `answer` of a `Task`.

From the outputs for a batch, a class per image (B), and the images' height and width."""


@dataclass(frozen=True)
class Call:
    """A model bound to a batch.

    Attributes:
        run: Runs one inference, which returns the logits, or one training step; waits for the device.
        release: Frees the memory that is kept for the next call.
    """

    run: Callable[[], Any]
    release: Callable[[], None]


class Forms:
    """One model and its images, and the forms made from it.

    Args:
        images: (B, 3, H, W) in float32 on the CPU, as many as the largest batch.
        classes: Number of classes of a model given by name; by default its own.

    Attributes:
        parameters: Millions.
        gmacs: 10^9 multiply-adds per image.
    """

    def __init__(
        self,
        source: str,
        images: Tensor,
        device: torch.device,
        channels_last: bool,
        threads: int,
        folder: Path,
        training: bool = False,
        classes: int | None = None,
    ) -> None:
        self.model, answer = open_model(source, images.shape[-1], classes)
        self.loss = LOSSES[answer]
        self.images, self.device, self.threads, self.training = images, device, threads, training
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.onnx = folder / f"{source.replace('/', '_')}.onnx"
        self.made: dict[tuple[str, str], Any] = {}
        self.parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.gmacs = count_gmacs(self.model, images.shape[-1])
        self.reference = None if training else self._infer("plain", "float32", len(images)).run().float().cpu()

    def bind(self, form: str, dtype: str, batch_size: int) -> Call:
        """The model in a form and dtype, bound to the first `batch_size` images and run once.

        The runtimes also have the dtype "int8": the graph quantised on the images.
        """
        if self.training:
            call = self._train(form, dtype, batch_size)
        elif form in ("onnxruntime", "openvino"):
            call = self._infer_in_runtime(form, dtype, batch_size)
        else:
            call = self._infer(form, dtype, batch_size)
        call.run()
        return call

    def difference(self, call: Call, batch_size: int) -> float | None:
        """Largest difference from the plain float32 model's logits, relative to their largest; None in training."""
        if self.reference is None:
            return None
        reference, logits = self.reference[:batch_size], call.run()
        logits = (logits if isinstance(logits, Tensor) else torch.from_numpy(np.array(logits))).float().cpu()
        return float((logits - reference).abs().max() / reference.abs().max())

    def _infer(self, form: str, dtype: str, batch_size: int) -> Call:
        module, images = self._module(form, dtype), self._on_device(self.images[:batch_size], getattr(torch, dtype))

        def run() -> Tensor:
            with torch.inference_mode(), _kernels(form):
                logits = module(images)
            self._wait()
            return logits

        return Call(run, self._release)

    def graph(self, dtype: str) -> Path:
        """The ONNX file that the runtimes run: in "int8", or in float32 for every other dtype."""
        if not self.onnx.exists():
            export_onnx(fuse(self.model), self.onnx, self.images.shape[-1], dynamic_size=False)
        if dtype != "int8":
            return self.onnx
        small = self.onnx.with_suffix(".int8.onnx")
        return small if small.exists() else quantise(self.onnx, small, [self.images.numpy()], {})

    def _infer_in_runtime(self, form: str, dtype: str, batch_size: int) -> Call:
        graph = self.graph(dtype)
        images = np.ascontiguousarray(self.images[:batch_size].numpy())
        if form == "openvino":
            session = to_openvino(graph, self.threads, "float32" if dtype == "int8" else dtype, images.shape)
        else:
            session = self.made.get((form, dtype)) or to_onnxruntime(graph, self.threads)
            self.made[form, dtype] = session
        return Call(lambda: session.run(images), session.release)

    def _train(self, form: str, dtype: str, batch_size: int) -> Call:
        module, images = self._module(form, "float32").train(), self._on_device(self.images[:batch_size], torch.float32)
        # A learning rate of 0 costs the same as any other, and makes every step the same work.
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        labels = torch.arange(batch_size, device=self.device) % 2
        mixed = dtype != "float32"

        def run() -> None:
            with _kernels(form):
                with torch.autocast(self.device.type, getattr(torch, dtype), enabled=mixed):
                    loss = self.loss(module(images), labels, images.shape[-2:])
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self._wait()

        return Call(run, self._release)

    def _module(self, form: str, dtype: str) -> Any:
        if (form, dtype) not in self.made:
            module = fuse(self.model) if form == "fused" else copy.deepcopy(self.model)
            module = self._on_device(module, getattr(torch, dtype))
            self.made[form, dtype] = torch.compile(module, dynamic=False) if form == "compiled" else module
        return self.made[form, dtype]

    def _on_device(self, thing: Any, dtype: torch.dtype) -> Any:
        return thing.to(self.device, dtype, memory_format=self.layout)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _kernels(form: str) -> Any:
    return plain_kernels() if form == "plain" else contextlib.nullcontext()


def open_model(source: str, image_size: int, classes: int | None = None) -> tuple[nn.Module, str]:
    """A model in evaluation mode on the CPU, and the `answer` of its task, a key of `LOSSES`.

    Args:
        source: A model name, for reproducible random weights; NAME+fpn or NAME+upernet for a segmenter with 150 classes
            on that backbone; a run's best/ folder; or hf-hub:owner/name.
        image_size: Image size of models built for a fixed size.
        classes: Number of classes of a classifier given by name; by default its own.

    With random weights, BatchNorm statistics are computed from noise, so that folding them is not trivial.
    """
    if source.startswith("hf-hub:") or Path(source).is_dir():
        trained = open_trained(source)
        task = TASKS[trained.task]
        if task.answer not in LOSSES:
            raise UserError(f"{source} is a {task.model}: `dmformer bench` measures classifiers and segmenters.")
        return trained.model, task.answer
    name, plus, head = source.partition("+")
    if not plus:
        return random_model(name, image_size, classes), "labels"
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    arguments: dict[str, Any] = dict(size_argument(name, image_size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = segmentation_model(name, ADE20K_CLASSES, HEADS[head], backbone_args=arguments)
        return settled_on_noise(model, image_size), "masks"


@contextlib.contextmanager
def set_threads(threads: int | None) -> Iterator[int]:
    """Let PyTorch use this many CPU threads inside the context (None: its default); yields their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    # All models are compiled through the same few functions: each needs an entry in their compile cache.
    with torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10000):
        try:
            yield threads or before
        finally:
            torch.set_num_threads(before)


def memory_over_rest(call: Call, device: torch.device) -> float | None:
    """Peak memory in MB (2^20 bytes) of one call beyond what is held between calls, such as weights.

    On a GPU, memory of PyTorch's tensors; on a CPU, memory of the process (Linux only); else None.
    """
    call.release()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        rest = torch.cuda.memory_allocated(device)
        call.run()
        return (torch.cuda.max_memory_allocated(device) - rest) / 2**20
    with contextlib.suppress(OSError, AttributeError):  # not Linux, not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        rest = resident_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        call.run()
        return resident_mb("VmHWM") - rest
    except OSError:
        return None
