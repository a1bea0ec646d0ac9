"""The inference form of a model: norms, layer scales, biases and residuals folded into the convolutions beside them."""

import copy
import logging
from collections import Counter
from itertools import pairwise

import torch
from timm.layers import ConvMlp, LayerScale2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Block
from .folding import activation_of, fused_branch, fused_mlp
from .fused import FusedBlock, FusedConv
from .layers import DepthwiseConv

log = logging.getLogger(__name__)


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Build an equivalent model for inference: BatchNorms, layer scales and biases folded, drop path removed.

    Each convolution also applies the sum, product or activation that follows it, in one pass on a CPU with oneDNN
    (`fused`). In float32, outputs agree to about 1e-6 of the largest value. Convert to bfloat16 after fusing, so that
    the weights are rounded only once. The parameter names differ from the original model's, so save the original.

    Args:
        model: One of our models in evaluation mode, complete or from `features_only`. In other models, only BatchNorms
            that follow a convolution in a sequence are folded.

    Returns:
        The model, without gradients. Its attribute `folded` counts what was folded by kind; the counts are also logged.

    Raises:
        ValueError: The model is in training mode, where norms use batch statistics and cannot be folded.
    """
    if any(m.training for m in model.modules()):
        raise ValueError("only a model in evaluation mode can be fused: call model.eval() first")
    if not inplace:
        model = copy.deepcopy(model)
    before = _foldable(model)
    with torch.no_grad():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Block):
                    mixer = fused_branch(child.mixer, child.norm1, child.scale1)
                    setattr(module, name, FusedBlock(mixer, fused_branch(child.mlp, child.norm2, child.scale2)))
        for module in list(model.modules()):
            if isinstance(module, nn.Sequential):
                _fold_norms(module)
        for module in list(model.modules()):
            if type(module).__module__.startswith("dmformer."):
                _fuse_convolutions(module)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()  # the new parts too
    folded = before - _foldable(model)
    model.folded = dict(folded)  # type: ignore[assignment]
    log.info("folded %s", ", ".join(f"{n} {what}" for what, n in folded.items()) or "nothing")
    return model


@fused_branch.register
def _(mlp: ConvMlp, norm: nn.Module, scale: nn.Module) -> nn.Module:
    return fused_mlp(mlp, None, norm, scale)


def _foldable(model: nn.Module) -> Counter[str]:
    kinds = {nn.BatchNorm2d: "norms", LayerScale2d: "layer scales"}
    return Counter(kinds[type(m)] for m in model.modules() if type(m) in kinds)


def _fold_norms(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm in a sequence into the convolution that it follows."""
    names = list(sequence._modules)
    for name, following in pairwise(names):
        conv, norm = sequence._modules[name], sequence._modules[following]
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            sequence._modules[name] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[following] = nn.Identity()


def _fuse_convolutions(module: nn.Module) -> None:
    """Replace a module's convolutions by fused ones, each with the activation that follows it in a sequence."""
    if isinstance(module, nn.Sequential):
        kept = [name for name, child in module.named_children() if not isinstance(child, nn.Identity)]
        for name, following in pairwise(kept):
            conv, act = module._modules[name], module._modules[following]
            if type(conv) is nn.Conv2d and (activation := activation_of(act)) is not None:
                module._modules[name] = FusedConv(conv, activation)
                module._modules[following] = nn.Identity()
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ModuleList):
            _fuse_convolutions(child)
        elif type(child) is nn.Conv2d or (type(child) is DepthwiseConv and not child.uneven):
            module._modules[name] = FusedConv(child)
