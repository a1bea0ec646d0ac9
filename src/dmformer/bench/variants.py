"""A model in every form: plain, eager, compiled, fused and in two runtimes, each bound to images."""

import contextlib
import copy
import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.detections import select
from ..export.formats import Candidates, export_onnx
from ..export.quantise import quantise
from ..models.catalogue import count_gmacs
from ..models.create import SEED, random_model, settled_on_noise, size_argument
from ..nn.fuse import fuse
from ..nn.kernels.depthwise import plain_kernels
from ..runtimes.sessions import to_onnxruntime, to_openvino
from ..tasks.detection.frameworks.base import MULTIPLE, DetectionModel
from ..tasks.detection.frameworks.dense import DenseDetector
from ..tasks.detection.model import FRAMEWORKS, detection_model
from ..tasks.opening import open_trained
from ..tasks.segmentation.model import HEADS, segmentation_loss, segmentation_model
from ..tasks.table import TASKS
from ..utils.errors import UserError, unknown
from ..utils.machine import energy_joules, gpu_joules, resident_mb
from ..utils.pretrained import CHECKSUMS

ADE20K_CLASSES, COCO_CLASSES = 150, 80
"""Number of classes of a segmenter and of a detector that is given by name."""
SURE = 0.5
"""Score from which a measured detector selects objects. With random weights, every place exceeds the usual threshold,
and the selection would take longer than on any photo."""


@dataclass(frozen=True)
class Kind:
    """How a kind of model is measured.

    Attributes:
        loss: From the outputs for a batch, a class per image (B), and the images' height and width; None for models
            whose training is not measured.
        traced: The part that is exported.
        rest: What follows in a program that runs the exported part: maps the model, and the images' height and width,
            to a function of the part's output.
        multiple: Height and width of the images must be multiples of this.
    """

    loss: Callable[[Any, Tensor, Sequence[int]], Tensor] | None
    traced: Callable[[Any], nn.Module] = lambda model: model
    rest: Callable[[Any, tuple[int, int]], Callable[[np.ndarray], Any]] = lambda model, size: lambda output: output
    multiple: int = 1


def _selection(model: Any, size: tuple[int, int]) -> Callable[[np.ndarray], Any]:
    levels, columns = model.levels(*size), 4 + model.num_classes
    return lambda found: [select(each[:, :columns], levels, size, size, model.selection) for each in found]


KINDS: dict[str, Kind] = {
    "labels": Kind(lambda outputs, labels, size: F.cross_entropy(outputs, labels)),
    "tags": Kind(
        lambda outputs, labels, size: F.binary_cross_entropy_with_logits(
            outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        )
    ),
    "masks": Kind(lambda outputs, labels, size: segmentation_loss(outputs, labels[:, None, None].expand(-1, *size))),
    "boxes": Kind(None, Candidates, _selection, MULTIPLE),
}
"""The kinds of model that are measured, by the `answer` of a `Task`."""


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """Reads the joules that a GPU, or for other devices the processor, has used so far; None if that is unknown."""
    if device.type != "cuda":
        return energy_joules
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # NVML's numbers of GPUs may differ from CUDA's
    return lambda: gpu_joules(uuid)


@dataclass(frozen=True)
class Call:
    """A model bound to a batch.

    Attributes:
        run: Runs one inference, which returns the logits or the objects, or one training step; waits for the device.
        release: Frees the memory that is kept for the next call.
    """

    run: Callable[[], Any]
    release: Callable[[], None]


class Forms:
    """One model and its images, and the forms made from it.

    Args:
        images: (B, 3, H, W) in float32 on the CPU, as many as the largest batch.
        folder: An empty folder for the exported files.
        free_size: Leave the height and width of the exported files free.

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
        free_size: bool = False,
    ) -> None:
        size = images.shape[-2], images.shape[-1]
        self.model, answer = open_model(source, size[0])
        self.kind = KINDS[answer]
        if training and self.kind.loss is None:
            raise UserError(f"{source}: the training of detectors is not measured; leave out --mode training.")
        if any(side % self.kind.multiple for side in size):
            raise UserError(f"{source}: --image-size must be a multiple of {self.kind.multiple}.")
        self.images, self.device, self.threads, self.training = images, device, threads, training
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.onnx, self.free_size = folder / "model.onnx", free_size
        self.made: dict[tuple[str, str], Any] = {}
        self.parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.gmacs = gmacs_of(self.model, *size)
        outputs = None if training else self._infer("plain", "float32", len(images)).run()
        self.reference = outputs.float().cpu() if isinstance(outputs, Tensor) else None

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
        """Largest difference from the plain float32 model's logits, relative to their largest; None in training and for
        detectors."""
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
            traced = self.kind.traced(fuse(self.model)).eval()
            export_onnx(traced, self.onnx, (self.images.shape[-2], self.images.shape[-1]), self.free_size)
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
        rest = self.kind.rest(self.model, (images.shape[2], images.shape[3]))
        return Call(lambda: rest(session.run(images)), session.release)

    def _train(self, form: str, dtype: str, batch_size: int) -> Call:
        loss_of = self.kind.loss
        assert loss_of is not None
        module, images = self._module(form, "float32").train(), self._on_device(self.images[:batch_size], torch.float32)
        # A learning rate of 0 costs the same as any other, and makes every step the same work.
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        labels = torch.arange(batch_size, device=self.device) % 2
        mixed = dtype != "float32"

        def run() -> None:
            with _kernels(form):
                with torch.autocast(self.device.type, getattr(torch, dtype), enabled=mixed):
                    loss = loss_of(module(images), labels, images.shape[-2:])
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


def open_model(source: str, image_size: int) -> tuple[nn.Module, str]:
    """A model in evaluation mode on the CPU, and the `answer` of its task, a key of `KINDS`.

    Args:
        source: A model name, for reproducible random weights; NAME+HEAD for a segmenter with 150 classes or a detector
            with 80 on that backbone; a run's best/ folder; this package's weights with their tag; or
            hf-hub:owner/name.
        image_size: Image size of models built for a fixed size.

    With random weights, BatchNorm statistics are computed from noise, so that folding them is not trivial.
    """
    if source.startswith("hf-hub:") or source in CHECKSUMS or Path(source).is_dir():
        trained = open_trained(source)
        task = TASKS[trained.task]
        if task.answer not in KINDS:
            told = "`dmformer bench` measures classifiers, segmenters and detectors"
            raise UserError(f"{source} is a {task.model}: {told}.")
        return _selecting_few(trained.model), task.answer
    name, plus, head = source.partition("+")
    if not plus:
        return random_model(name, image_size), "labels"
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    if head not in {**HEADS, **FRAMEWORKS}:
        raise unknown("head", head, [*HEADS, *FRAMEWORKS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if head in FRAMEWORKS:
            detector = detection_model(name, COCO_CLASSES, FRAMEWORKS[head])
            return settled_on_noise(_selecting_few(detector), image_size), "boxes"
        arguments: dict[str, Any] = dict(size_argument(name, image_size))
        model = segmentation_model(name, ADE20K_CLASSES, HEADS[head], backbone_args=arguments)
        return settled_on_noise(model, image_size), "masks"


def _selecting_few(model: Any) -> Any:
    """The model; a dense detector selects objects of the score `SURE`."""
    if isinstance(model, DenseDetector):
        model.selection = replace(model.selection, threshold=SURE)
    return model


def gmacs_of(model: nn.Module, height: int, width: int) -> float:
    """10^9 multiply-adds for one image; of a detector whose work depends on the image, for an empty one."""
    if isinstance(model, DetectionModel) and not isinstance(model, DenseDetector):
        return count_gmacs(model, height, width, "cpu")
    return count_gmacs(Candidates(model) if isinstance(model, DenseDetector) else model, height, width)


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
