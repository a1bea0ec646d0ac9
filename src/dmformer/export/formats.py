"""Write a model to a file: ONNX, OpenVINO, PyTorch's exported program, or a program compiled ahead of time.

All start from a `torch.export` trace of plain operators, with free batch, height and width.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pad_sequence

from ..runtimes.sessions import METADATA, openvino_core
from ..tasks.detection.frameworks.dense import DenseDetector
from ..tasks.detection.frameworks.regions import RegionDetector
from ..utils.errors import first_line

OPSET = 20
"""ONNX opset: the first with GELU as a single operator."""

OUTPUT, CANDIDATES = "logits", "candidates"


class Graph(nn.Module):
    """Preprocessing and model in one module: raw images (B, H, W, 3), uint8, -> logits."""

    def __init__(self, preprocessing: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model

    def forward(self, photos: Tensor) -> Tensor:
        return self.model(self.preprocessing(photos))


class Candidates(nn.Module):
    """A detector without object selection: images (B, 3, H, W) -> (B, N, 4 + K), with masks also these.

    The sides of a dense detector's images are multiples of 32.
    """

    def __init__(self, detector: DenseDetector | RegionDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.candidates(images)


class Unsuppressed(Candidates):
    """The candidates, followed by all objects before suppression, whose masks are not numbers: not for export.

    Images (B, 3, H, W) -> (B, N + M, 4 + K), with masks also these; images with fewer than M objects are filled up with
    zeros.
    """

    detector: RegionDetector

    def forward(self, images: Tensor) -> Tensor:
        own = super().forward(images)
        every = pad_sequence(self.detector.unsuppressed(images), batch_first=True)
        return torch.cat([own, F.pad(every, (0, own.shape[-1] - every.shape[-1]), value=float("nan"))], 1)


def example_of(model: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """A batch of two example inputs: `torch.export` would treat a batch of 1 as constant."""
    if isinstance(model, Graph):
        return torch.zeros(2, *image_size, 3, dtype=torch.uint8)
    return torch.zeros(2, 3, *image_size)


def free_dimensions(model: nn.Module, dynamic_size: bool) -> tuple[dict[int, Any]]:
    """The input's free dimensions, for `torch.export`."""
    height, width = (1, 2) if isinstance(model, Graph) else (2, 3)
    return ({0: "batch", **({height: Dim.AUTO, width: Dim.AUTO} if dynamic_size else {})},)


def takes_one_size(model: nn.Module) -> bool:
    """Whether a model is built for a fixed image size."""
    if isinstance(model, Graph):
        return model.preprocessing.size is None and takes_one_size(model.model)
    if getattr(model, "made_for", None) is not None:  # a segmenter
        return True
    return bool(getattr(getattr(model, "pretrained_cfg", None), "get", {}.get)("fixed_input_size", False))


def export_onnx(
    model: nn.Module,
    path: Path,
    image_size: int | tuple[int, int] = 224,
    dynamic_size: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an ONNX file that maps "images" (B, 3, H, W) to "logits" (B, K), for any B, or to "candidates" for
    `Candidates`.

    torch's exporter simplifies the graph: it folds constants and removes dead code.

    Args:
        model: In evaluation mode, float32, on the CPU; preferably fused by `dmformer.fuse`. The input of a `Graph` is
            "photos" (B, H, W, 3), uint8.
        image_size: Height and width of the example that the model is traced with.
        dynamic_size: Also leave height and width free, unless the model is built for a fixed size. The graph grows if
            shapes enter the arithmetic, as in windows.

    Raises:
        RuntimeError: The model cannot be exported; the message contains the root cause.
    """
    _check_mode(model)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        program = torch.onnx.export(
            model,
            (example_of(model, size),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["photos" if isinstance(model, Graph) else "images"],
            output_names=[CANDIDATES if isinstance(model, Candidates) else OUTPUT],
            dynamic_shapes=free_dimensions(model, dynamic_size and not takes_one_size(model)),
            custom_translation_table={torch.ops.dmformer.suppressed.default: _suppressed},
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise RuntimeError(f"torch cannot export it: {first_line(Exception(str(cause)))}") from error
    assert program is not None  # always with dynamo
    program.model.metadata_props.update(metadata or {})
    program.save(str(path))
    return path


def _suppressed(boxes: Any, scores: Any, iou: float, threshold: float) -> Any:
    """`suppressed` as an ONNX graph: boxes (G, n, 4), scores (G, n) -> (G, n), bool."""
    from onnxscript import opset20

    op: Any = opset20  # its types allow no numbers
    most = op.Shape(scores, start=1, end=2)
    scored = op.Unsqueeze(scores, [1])
    chosen = op.NonMaxSuppression(boxes, scored, most, [iou], [threshold])  # rows of group, 0, box
    places = op.Gather(chosen, [0, 2], axis=1)
    ones = op.Expand(1.0, op.Shape(places, start=0, end=1))
    none = op.Expand(0.0, op.Shape(scores))
    return op.Greater(op.ScatterND(none, places, ones), 0.0)


def export_openvino(onnx: Path, path: Path, metadata: Mapping[str, str]) -> Path:
    """Convert an ONNX file to OpenVINO's .xml and .bin; weights stay in 32 bits."""
    import openvino

    model = openvino_core().read_model(str(onnx))
    for key, value in metadata.items():
        model.set_rt_info(value, [METADATA, key])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def export_program(
    model: nn.Module, image_size: tuple[int, int], dynamic_size: bool = True
) -> torch.export.ExportedProgram:
    """Trace a model with `torch.export`, for any batch size.

    Args:
        model, image_size, dynamic_size: See `export_onnx`.

    Raises:
        RuntimeError: The model cannot be exported; the message contains the cause.
    """
    _check_mode(model)
    free = free_dimensions(model, dynamic_size and not takes_one_size(model))
    shapes = ({**free[0], 0: Dim("batch")},)
    try:
        with torch.no_grad():
            return torch.export.export(model, (example_of(model, image_size),), dynamic_shapes=shapes)
    except Exception as error:  # tracing raises arbitrary errors
        raise RuntimeError(f"torch cannot export it: {first_line(error)}") from error


def export_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write a .pt2 file that `torch.export.load` reads, with the metadata as extra files."""
    torch.export.save(program, path, extra_files=dict(metadata))
    return path


def export_aoti(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> Path:
    """Compile for this machine's CPU type and write a .pt2 file that `torch._inductor.aoti_load_package` reads.

    Needs a C++ compiler.

    Raises:
        RuntimeError: The program cannot be compiled here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the compiler itself
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(metadata)}
            )
        except Exception as error:  # the compiler raises arbitrary errors
            raise RuntimeError(f"it cannot be compiled here: {first_line(error)}") from error
    return path


def _check_mode(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError("only a model in evaluation mode can be exported: call model.eval() first")
