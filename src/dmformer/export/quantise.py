"""Static quantisation of an ONNX file to 8-bit weights and activations."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


def quantise(source: Path, path: Path, images: Iterable[np.ndarray], metadata: Mapping[str, str]) -> Path:
    """Write an ONNX file whose convolutions and products with weights compute in 8 bits.

    Weights have one scale per output channel; activations have the range observed on the images. Products of two
    activations, as in attention, stay in float, and so do inputs and outputs.

    Args:
        source: An ONNX file in float32.
        images: Calibration batches in the file's input format, (B, 3, H, W) or (B, H, W, 3).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray]:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}  # type: ignore[return-value]

    model = onnx.load(source)
    name = model.graph.input[0].name
    weights = {tensor.name for tensor in model.graph.initializer}
    products = [n.name for n in model.graph.node if n.op_type == "MatMul" and not weights.intersection(n.input)]
    ready = path.with_name(f"{path.stem}.ready.onnx")
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    level = logging.root.level
    quantize_static(
        ready,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=products,
    )
    logging.root.setLevel(level)
    ready.unlink()
    quantised = onnx.load(path)
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, dict(metadata))
    onnx.save(quantised, path)
    return path
