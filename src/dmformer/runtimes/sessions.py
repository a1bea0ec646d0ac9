"""Exported models in their runtimes, ONNX Runtime and OpenVINO, without PyTorch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

METADATA = "dmformer"
"""Name under which OpenVINO's files store their metadata."""


@dataclass(frozen=True)
class Session:
    """A model in a runtime: batch of images -> logits (B, K) or (B, K, H, W), or candidates (B, N, 4 + K).

    Attributes:
        run: Runs one batch; the returned array is valid until the next call.
        release: Frees the memory that the runtime keeps between calls.
        classes: K, if the file states it; for candidates with masks, plus the number of a mask's values.
    """

    run: Callable[[np.ndarray], np.ndarray]
    release: Callable[[], None]
    metadata: Mapping[str, str] = field(default_factory=dict)
    classes: int | None = None


def to_onnxruntime(path: Path, threads: int) -> Session:
    """An ONNX Runtime session on the CPU with `threads` threads that do not spin between calls.

    Fixing the batch and the image size beforehand changes little here: 0 to 5 % on van_b0 and swin_tiny.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised, and reported by us
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shrink = onnxruntime.RunOptions()
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    (taken,), (given, *_) = session.get_inputs(), session.get_outputs()
    last: dict[str, np.ndarray] = {}

    def run(images: np.ndarray) -> np.ndarray:
        last[taken.name] = images
        return session.run([given.name], last)[0]  # type: ignore[return-value]

    def release() -> None:
        if last:
            session.run([given.name], last, shrink)

    told = [size if isinstance(size, int) else None for size in given.shape]
    return Session(run, release, session.get_modelmeta().custom_metadata_map, _classes(told))


def to_openvino(path: Path, threads: int, dtype: str = "float32", shape: Sequence[int] | None = None) -> Session:
    """An OpenVINO model on the CPU.

    Args:
        dtype: "float32", "bfloat16" or "float16" for the internal arithmetic; images and logits are float32.
        shape: Fixed shape of all images, for which OpenVINO then optimises: 0 to 7 % faster on van_b0 and swin_tiny
            than with a free batch. None keeps the file's free dimensions.

    Raises:
        RuntimeError: The machine does not support this dtype.
    """
    core = openvino_core()
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape({model.input(0).get_any_name(): list(shape)})
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

    metadata = model.get_rt_info(METADATA).value if model.has_rt_info(METADATA) else {}
    told = [size.get_length() if size.is_static else None for size in model.output(0).partial_shape]
    return Session(run, compiled.release_memory, metadata, _classes(told))


def _classes(told: Sequence[int | None]) -> int | None:
    """K from an output's shape, if known; for candidates, the last size minus the box's four numbers."""
    if len(told) == 3:
        return None if told[2] is None else told[2] - 4
    return told[1] if len(told) > 1 else None


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's core: a single one, kept until the process ends.

    Each core replaces the process's signal stack and restores the previous one when it is destroyed. If two cores are
    destroyed in the order of their creation, the second restores the first one's stack, whose memory is already freed:
    the next signal (an interrupt, or the end of a child process) would then crash the process.
    """
    import openvino

    return openvino.Core()
