"""Tensor-only kernels: the same arithmetic as the framework's operators, arranged to run faster."""

import os

MODES = ("auto", "plain", "triton")


def chosen_mode() -> str:
    """How the environment's DMFORMER_KERNELS wants depth-wise convolutions computed; ValueError for what is unknown."""
    mode = os.environ.get("DMFORMER_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"the environment's DMFORMER_KERNELS must be one of {', '.join(MODES)}, not {mode!r}")
    return mode
