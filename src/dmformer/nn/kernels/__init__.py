"""Kernels on plain tensors: the same arithmetic as PyTorch's operators, arranged to run faster."""

import os

MODES = ("auto", "plain", "triton")


def chosen_mode() -> str:
    """The mode of depth-wise convolutions, from the environment variable DMFORMER_KERNELS; ValueError if unknown."""
    mode = os.environ.get("DMFORMER_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"the environment variable DMFORMER_KERNELS must be one of {', '.join(MODES)}, not {mode!r}")
    return mode
