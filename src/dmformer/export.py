"""Models in other runtimes: an ONNX file of plain operators, and what ONNX Runtime and OpenVINO make of it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from .errors import first_line

OPSET = 20
"""Of ONNX: the first with GELU as one operator."""


@dataclass(frozen=True)
class Session:
    """A model in a runtime: float32 images (B, 3, H, W) -> logits (B, K).

    Attributes:
        run: Answers for one batch; what it returns holds until the next call.
        release: Give back the memory that the runtime keeps between calls.
    """

    run: Callable[[np.ndarray], np.ndarray]
    release: Callable[[], None]


def export_onnx(
    model: nn.Module,
    path: Path,
    image_size: int = 224,
    in_chans: int = 3,
    dynamic_size: bool = True,
    opset: int = OPSET,
) -> Path:
    """Write an ONNX file that maps "images" (B, in_chans, H, W) to "logits" (B, K), for any B.

    Args:
        model: In evaluation mode, float32, on the CPU; best as `dmformer.fuse` returns it.
        path: File to write.
        image_size: Height and width of the example that the model is traced with.
        in_chans: Channels of an image.
        dynamic_size: Let height and width vary too, as far as the model allows; one that is made for a fixed size keeps
            it. The graph is larger for it where shapes enter the arithmetic, as in windows.
        opset: Version of ONNX's operators.

    Raises:
        RuntimeError: The model cannot be exported, with the first cause.
    """
    if model.training:
        raise ValueError("only a model in evaluation mode can be exported: call model.eval() first")
    fixed = getattr(getattr(model, "pretrained_cfg", None), "get", {}.get)("fixed_input_size", False)
    sizes = {2: Dim.AUTO, 3: Dim.AUTO} if dynamic_size and not fixed else {}
    example = torch.zeros(2, in_chans, image_size, image_size)  # a batch of 1 would be taken for a constant
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch", **sizes},),
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise RuntimeError(f"torch cannot export it: {first_line(Exception(str(cause)))}") from error
    assert program is not None  # with dynamo
    program.save(str(path))
    return path


def to_onnxruntime(path: Path, threads: int) -> Session:
    """A session of ONNX Runtime on the CPU, float32, with `threads` threads that stand still between calls.

    Fixing the batch and the image size beforehand changes little here: 0 to 5 % on van_b0 and swin_tiny.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shrink = onnxruntime.RunOptions()
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    last: dict[str, np.ndarray] = {}

    def run(images: np.ndarray) -> np.ndarray:
        last["images"] = images
        return session.run(["logits"], last)[0]  # type: ignore[return-value]

    def release() -> None:
        if last:
            session.run(["logits"], last, shrink)

    return Session(run, release)


def to_openvino(path: Path, threads: int, dtype: str = "float32", shape: Sequence[int] | None = None) -> Session:
    """A model of OpenVINO on the CPU.

    Args:
        path: An ONNX file.
        threads: Of one inference.
        dtype: "float32", "bfloat16" or "float16", of the arithmetic inside; images and logits are float32.
        shape: Of all images that will come, which OpenVINO then plans for: 0 to 7 % faster on van_b0 and swin_tiny
            than with a free batch. None leaves free what the file leaves free.

    Raises:
        RuntimeError: The machine does not compute in this type.
    """
    core = _openvino()
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape({"images": list(shape)})
    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != hint:
        raise RuntimeError(f"OpenVINO computes in {taken} on this machine when asked for {hint}")
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> np.ndarray:
        return request.infer({0: images}, share_inputs=True, share_outputs=True)[0]

    return Session(run, compiled.release_memory)


@functools.cache
def _openvino() -> Any:
    """OpenVINO's core: one, to the end of the process.

    Each core replaces the stack on which the process handles signals, and when it goes puts back the one that it found.
    Of two cores that go in the order in which they came, the second puts back the first's, whose memory is freed: the
    next signal that Python handles, an interrupt or the end of a child process, would end the process.
    """
    import openvino

    return openvino.Core()
