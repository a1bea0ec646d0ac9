"""The inference form of a model: norms, layer scales, biases and residuals folded into the convolutions beside them.

In evaluation mode, BatchNorm is x -> a x + b with fixed a and b per channel. It can be folded into a preceding
convolution, or into a following 1x1 convolution (which has no padding, so borders stay exact). A layer scale folds into
the preceding linear map, and a residual around a depth-wise convolution into its centre tap. Any other consumer of a
folded norm, such as a residual inside the mixer, applies a and b itself.
"""

import copy
import logging
from collections import Counter
from itertools import pairwise

import torch
from timm.layers import ConvMlp, LayerScale2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Block
from .fused import (
    FusedBlock,
    FusedConv,
    FusedDMA,
    FusedGate,
    FusedLKA,
    FusedMlp,
    FusedSAM,
    FusedSum,
    Residual,
)
from .kernels.onednn import Activation
from .layers import GELU, DepthwiseConv, DepthwiseMlp, DepthwiseSum
from .mixers.dma import DMA
from .mixers.lka import LKA
from .mixers.sam import SAM

log = logging.getLogger(__name__)

ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.GELU: "gelu", GELU: "gelu", nn.SiLU: "silu"}
"""Activations that a convolution can apply in the same pass; for GELU, only the exact form."""


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Build an equivalent model for inference: BatchNorms, layer scales and biases folded, drop path removed.

    Each convolution also applies the sum, product or activation that follows it, in one pass on a CPU with oneDNN
    (`fused`). In float32, outputs agree to about 1e-6 of the largest value. Convert to bfloat16 after fusing, so that
    the weights are rounded only once. The parameter names differ from the original model's, so save the original.

    Args:
        model: One of our models in evaluation mode, complete or from `features_only`. In other models, only BatchNorms
            that follow a convolution in a sequence are folded.
        inplace: Change the model itself instead of a copy.

    Returns:
        The model, without gradients. Its attribute `folded` counts what was folded by kind; the counts are also logged.

    Raises:
        ValueError: The model is in training mode, where norms use batch statistics and cannot be folded.
    """
    if any(m.training for m in model.modules()):
        raise ValueError("only a model in evaluation mode can be fused: call model.eval() first")
    if not inplace:
        model = copy.deepcopy(model)
    folded: Counter[str] = Counter()
    with torch.no_grad():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Block):
                    setattr(module, name, _fuse_block(child, folded))
        for module in list(model.modules()):
            if isinstance(module, nn.Sequential):
                _fold_norms(module, folded)
        for module in list(model.modules()):
            if type(module).__module__.startswith("dmformer."):
                _fuse_convolutions(module)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()  # the new parts too
    model.folded = dict(folded)  # type: ignore[assignment]
    log.info("folded %s", ", ".join(f"{n} {what}" for what, n in folded.items()) or "nothing")
    return model


def _fuse_block(block: Block, folded: Counter[str]) -> nn.Module:
    """A block with its BatchNorms, layer scales and residuals folded into its other layers."""
    folded["layer scales"] += isinstance(block.scale1, LayerScale2d) + isinstance(block.scale2, LayerScale2d)
    return FusedBlock(_fuse_mixer(block, folded), _fuse_mlp(block, folded))


def _fuse_mixer(block: Block, folded: Counter[str]) -> nn.Module:
    norm, mixer = block.norm1, block.mixer
    before = norm if isinstance(norm, nn.BatchNorm2d) else None
    foldable = before is not None or isinstance(norm, nn.Identity)
    if isinstance(mixer, DMA) and foldable:
        folded["norms"] += 1 + (before is not None)
        return _fuse_dma(mixer, before, block.scale1)
    if isinstance(mixer, LKA) and foldable:
        folded["norms"] += before is not None
        return _fuse_lka(mixer, before, block.scale1)
    if isinstance(mixer, SAM):
        if before is not None:
            a, b = _affine(before, before.num_features)
            mixer.s, mixer.v, norm = _after_norm(mixer.s, a, b), _after_norm(mixer.v, a, b), nn.Identity()
        saa = mixer.saa
        saa.proj0 = FusedConv(fuse_conv_bn_eval(saa.proj0, saa.norm), "gelu")
        saa.norm = saa.act = nn.Identity()  # type: ignore[assignment]
        saa.proj1 = FusedConv(saa.proj1, combination="mul")
        mixer.proj = FusedConv(_scaled(mixer.proj, _gamma(block.scale1, mixer.proj.out_channels)))
        folded["norms"] += 1 + (before is not None)
        return FusedSAM(norm, mixer)
    if isinstance(getattr(mixer, "proj", None), nn.Conv2d):
        mixer.proj = _scaled(mixer.proj, _gamma(block.scale1, mixer.proj.out_channels))  # type: ignore[arg-type, union-attr]
        block.scale1 = nn.Identity()
    return Residual(norm, mixer, block.scale1)


def _fuse_dma(dma: DMA, before: nn.BatchNorm2d | None, scale: nn.Module) -> FusedDMA:
    gamma = _gamma(scale, dma.proj.out_channels)
    a, b = _affine(before, len(gamma))
    expand = _after_norm(dma.expand, a, b) if isinstance(dma.expand, nn.Conv2d) else _per_channel(a, b, dma.proj.weight)
    (w2, b2), (w3, b3) = _matrix(dma.reduce), _matrix(dma.proj)
    w3, b3 = gamma[:, None] * w3, gamma * b3
    direct = _pointwise(w3 * a, b3 + w3 @ (b + b2), dma.proj)
    reduced = _pointwise(w3 @ w2, None, dma.proj)
    gate = None
    if dma.gate is not None:
        (w1, b1), second = _matrix(dma.gate.fc1), _matrix(dma.gate.fc2)
        like = dma.gate.fc1.weight
        gate = FusedGate(*[(w.to(like), b.to(like)) for w, b in ((w1 * a, b1 + w1 @ b), second)])
    return FusedDMA(FusedConv(expand), _fuse_levels(dma.levels, dma.norm), FusedConv(direct), FusedConv(reduced), gate)


def _fuse_levels(levels: DepthwiseSum, norm: nn.BatchNorm2d) -> FusedSum:
    a, b = _affine(norm, norm.num_features)
    convs = []
    for i, conv in enumerate(levels.convs):
        conv = copy.deepcopy(conv)
        conv.weight.copy_(conv.weight.double() * a[:, None, None, None])  # type: ignore[union-attr, operator]
        conv.bias = nn.Parameter(b.to(conv.weight)) if i == 0 else None  # type: ignore[arg-type]
        convs.append(conv)
    return FusedSum(convs)


def _fuse_lka(lka: LKA, before: nn.BatchNorm2d | None, scale: nn.Module) -> FusedLKA:
    gamma = _gamma(scale, lka.proj2.out_channels)
    a, b = _affine(before, len(gamma))
    w2, b2 = _matrix(lka.proj2)
    return FusedLKA(
        FusedConv(_after_norm(lka.proj1, a, b), "gelu"),
        FusedConv(lka.kernel.local),
        FusedConv(lka.kernel.dilated),
        FusedConv(lka.kernel.point, combination="mul"),
        FusedConv(_pointwise(gamma[:, None] * w2, gamma * (b2 + b), lka.proj2)),
        (1 + gamma * a)[:, None, None].to(lka.proj2.weight),
    )


def _fuse_mlp(block: Block, folded: Counter[str]) -> nn.Module:
    norm, mlp = block.norm2, block.mlp
    if not isinstance(mlp, ConvMlp | DepthwiseMlp) or not _is_fusable(mlp.act):
        return Residual(norm, mlp, block.scale2)
    fc1, activation = mlp.fc1, ACTIVATIONS[type(mlp.act)]
    if isinstance(norm, nn.BatchNorm2d):
        fc1, norm = _after_norm(fc1, *_affine(norm, norm.num_features)), nn.Identity()
        folded["norms"] += 1
    fc2 = FusedConv(_scaled(mlp.fc2, _gamma(block.scale2, mlp.fc2.out_channels)))
    if isinstance(mlp, ConvMlp):
        return FusedMlp(norm, FusedConv(fc1, activation), nn.Identity(), fc2)
    conv = copy.deepcopy(mlp.conv)
    if mlp.residual:
        conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += 1
    return FusedMlp(norm, FusedConv(fc1), FusedConv(conv, activation), fc2)


def _fold_norms(sequence: nn.Sequential, folded: Counter[str]) -> None:
    """Fold each BatchNorm in a sequence into the convolution that it follows."""
    names = list(sequence._modules)
    for name, following in pairwise(names):
        conv, norm = sequence._modules[name], sequence._modules[following]
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            sequence._modules[name] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[following] = nn.Identity()
            folded["norms"] += 1


def _fuse_convolutions(module: nn.Module) -> None:
    """Replace a module's convolutions by fused ones, each with the activation that follows it in a sequence."""
    if isinstance(module, nn.Sequential):
        kept = [name for name, child in module.named_children() if not isinstance(child, nn.Identity)]
        for name, following in pairwise(kept):
            conv, act = module._modules[name], module._modules[following]
            if type(conv) is nn.Conv2d and _is_fusable(act):
                module._modules[name] = FusedConv(conv, ACTIVATIONS[type(act)])
                module._modules[following] = nn.Identity()
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ModuleList):
            _fuse_convolutions(child)
        elif type(child) is nn.Conv2d or (type(child) is DepthwiseConv and not child.uneven):
            module._modules[name] = FusedConv(child)


def _is_fusable(act: nn.Module | None) -> bool:
    return type(act) in ACTIVATIONS and getattr(act, "approximate", "none") == "none"


def _affine(norm: nn.BatchNorm2d | None, dim: int) -> tuple[Tensor, Tensor]:
    """a and b in float64 of a norm in evaluation mode, a x + b; 1 and 0 if there is no norm."""
    if norm is None:
        return torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    a = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    return a, norm.bias.double() - norm.running_mean.double() * a  # type: ignore[union-attr]


def _gamma(scale: nn.Module, dim: int) -> Tensor:
    """The factors of a layer scale in float64; ones if there is no layer scale."""
    return scale.gamma.double() if isinstance(scale, LayerScale2d) else torch.ones(dim, dtype=torch.float64)


def _matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a 1x1 convolution in float64."""
    weight = conv.weight.double().flatten(1)
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()


def _pointwise(weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution from a matrix (out, in), with the dtype and device of another."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None).to(like.weight)
    conv.weight.copy_(weight[:, :, None, None])
    if bias is not None:
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.eval()


def _after_norm(conv: nn.Conv2d, a: Tensor, b: Tensor) -> nn.Conv2d:
    """Fold a x + b into the 1x1 convolution that follows it."""
    weight, bias = _matrix(conv)
    return _pointwise(weight * a, bias + weight @ b, conv)


def _scaled(conv: nn.Conv2d, gamma: Tensor) -> nn.Conv2d:
    """Fold a layer scale into the 1x1 convolution that precedes it."""
    weight, bias = _matrix(conv)
    return _pointwise(gamma[:, None] * weight, gamma * bias, conv)


def _per_channel(a: Tensor, b: Tensor, like: Tensor) -> nn.Conv2d:
    """a x + b as a convolution."""
    conv = nn.Conv2d(len(a), len(a), 1, groups=len(a)).to(like)
    conv.weight.copy_(a[:, None, None, None])
    conv.bias.copy_(b)  # type: ignore[union-attr]
    return conv.eval()
