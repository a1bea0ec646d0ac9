"""Export models to files for other runtimes and check them against PyTorch; `runtimes` reads them without PyTorch.

`formats`, `preprocessing` (optional first part of the graph), `check`, `quantise`, and `write`, which combines them.
"""

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "pt2": (),
    "aoti": (),
}
"""Packages that each format needs."""
