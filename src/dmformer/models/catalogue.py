"""A table of our models with their sizes and published figures."""

import copy
import fnmatch
from dataclasses import dataclass
from typing import Any

from ..utils.model_names import model_names


@dataclass(frozen=True)
class Entry:
    """A model: parameters in millions, 10^9 multiply-adds at 224 x 224, published ImageNet-1K top-1 in % or None, the
    training data of that figure, and the paper's number."""

    name: str
    parameters: float
    gmacs: float
    published_top1: float | None
    trained_on: str | None
    arxiv: str


def catalogue(pattern: str = "*") -> list[Entry]:
    """Our models whose name matches a shell pattern or contains it; sizes are computed without creating weights."""
    import timm

    from . import PUBLISHED

    entries = []
    for name in model_names():
        if not fnmatch.fnmatch(name, pattern) and pattern not in name:
            continue
        model: Any = timm.create_model(name, device="meta").eval()
        entries.append(
            Entry(
                name,
                sum(p.numel() for p in model.parameters()) / 1e6,
                count_gmacs(model, 224),
                PUBLISHED[name].top1,
                PUBLISHED[name].trained_on,
                (model.pretrained_cfg.get("paper_ids") or "").removeprefix("arXiv:"),
            )
        )
    return entries


def count_gmacs(model: Any, height: int, width: int | None = None, device: str = "meta") -> float:
    """10^9 multiply-adds of a module's convolutions and matrix products for one RGB image.

    Args:
        device: "meta" does not run the module; "cpu" runs it, if its work depends on the values.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted = copy.deepcopy(model).to(device).requires_grad_(False)  # the counter fails on parameters as arguments
        counted(torch.zeros(1, 3, height, width or height, device=device))
    return counter.get_total_flops() / 2e9
