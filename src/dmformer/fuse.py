"""The inference form of a model: norms, layer scales and biases folded into the convolutions beside them.

In evaluation BatchNorm is x -> a x + b with fixed a and b a channel, so it disappears into a convolution before it, or
into a 1x1 convolution after it (which has no padding, so borders stay right); a layer scale disappears into the linear
map before it. What reads a folded norm besides, such as a residual inside the mixer, gets a and b itself.
"""

import copy
import logging
from collections import Counter
from itertools import pairwise

import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Block
from .layers import DepthwiseSum
from .mixers.dma import DMA
from .mixers.lka import LKA
from .mixers.sam import SAA

log = logging.getLogger(__name__)


class FusedDMA(nn.Module):
    """DMA with the norm before it, its own, and the layer scale after it folded: (B, C, H, W) -> (B, C, H, W).

        z   = ReLU(levels'(W1' x))
        out = sigmoid(F2 ReLU(F1' GAP(x))) * (W' x + W'' z)

    with W' = s W3 a and W'' = s W3 W2 for the norm a x + b before it and the layer scale s; constants go to the biases.
    """

    def __init__(self, dma: DMA, before: nn.BatchNorm2d | None, scale: Tensor) -> None:
        super().__init__()
        a, b = _affine(before, len(scale))
        self.expand = (
            _after_norm(dma.expand, a, b) if isinstance(dma.expand, nn.Conv2d) else _per_channel(a, b, dma.proj.weight)
        )
        self.levels = _levels_with_norm(dma.levels, dma.norm)
        self.act = nn.ReLU(inplace=True)
        (w2, b2), (w3, b3) = _matrix(dma.reduce), _matrix(dma.proj)
        w3, b3 = scale[:, None] * w3, scale * b3
        self.direct = _pointwise(w3 * a, b3 + w3 @ (b + b2), dma.proj)
        self.reduced = _pointwise(w3 @ w2, None, dma.proj)
        self.gate = dma.gate
        if self.gate is not None:
            self.gate.fc1 = _after_norm(self.gate.fc1, a, b)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.levels(self.expand(x)))
        out = self.direct(x) + self.reduced(z)
        return out if self.gate is None else self.gate(x) * out


class FusedLKA(nn.Module):
    """LKA with the norm before it and the layer scale after it folded: (B, C, H, W) -> (B, C, H, W).

        out = s a x + W2' LargeKernel(GELU(W1' x))

    for the norm a x + b before it and the layer scale s; s b is in the bias of W2'.
    """

    def __init__(self, lka: LKA, before: nn.BatchNorm2d | None, scale: Tensor) -> None:
        super().__init__()
        a, b = _affine(before, len(scale))
        self.proj1 = _after_norm(lka.proj1, a, b)
        self.act = lka.act
        self.kernel = lka.kernel
        w2, b2 = _matrix(lka.proj2)
        self.proj2 = _pointwise(scale[:, None] * w2, scale * (b2 + b), lka.proj2)
        self.skip = nn.Parameter((scale * a)[:, None, None].to(lka.proj2.weight))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.proj2(self.kernel(self.act(self.proj1(x)))), x, self.skip)


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """An equal model for inference: BatchNorms, layer scales and biases folded, drop path gone.

    Args:
        model: Any of ours, whole or as `features_only` gives it, in evaluation mode; of others, the BatchNorms that
            follow convolutions in a sequence are folded.
        inplace: Change the model itself instead of a copy.

    Returns:
        The model, with `folded`, a count of what was folded by kind; it is also logged.

    Raises:
        ValueError: The model is in training mode, where norms follow the batch and cannot be folded.
    """
    if any(m.training for m in model.modules()):
        raise ValueError("only a model in evaluation mode can be fused: call model.eval() first")
    if not inplace:
        model = copy.deepcopy(model)
    folded: Counter[str] = Counter()
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, Block):
                _fuse_block(module, folded)
            elif isinstance(module, SAA):
                module.proj0 = fuse_conv_bn_eval(module.proj0, module.norm)
                module.norm = nn.Identity()  # type: ignore[assignment]
                folded["norms"] += 1
        for module in list(model.modules()):
            if isinstance(module, nn.Sequential):
                _fuse_sequence(module, folded)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.folded = dict(folded)  # type: ignore[assignment]
    log.info("folded %s", ", ".join(f"{n} {what}" for what, n in folded.items()) or "nothing")
    return model


def _fuse_block(block: Block, folded: Counter[str]) -> None:
    """Fold a block's norms where they are BatchNorms, and its layer scales; drop path is nothing in evaluation."""
    norm, mixer, mlp = block.norm1, block.mixer, block.mlp
    if isinstance(mixer, DMA | LKA):
        before = norm if isinstance(norm, nn.BatchNorm2d) else None
        gamma = _gamma(block.scale1, (mixer.proj if isinstance(mixer, DMA) else mixer.proj2).out_channels)
        block.mixer = FusedDMA(mixer, before, gamma) if isinstance(mixer, DMA) else FusedLKA(mixer, before, gamma)
        folded["norms"] += (before is not None) + isinstance(mixer, DMA)
        folded["layer scales"] += isinstance(block.scale1, LayerScale2d)
        block.norm1 = norm if before is None else nn.Identity()
        block.scale1 = nn.Identity()
    elif isinstance(block.scale1, LayerScale2d) and isinstance(getattr(mixer, "proj", None), nn.Conv2d):
        mixer.proj = _before_scale(mixer.proj, block.scale1)  # type: ignore[arg-type]
        block.scale1 = nn.Identity()
        folded["layer scales"] += 1
    if isinstance(block.norm2, nn.BatchNorm2d):
        mlp.fc1 = _after_norm(mlp.fc1, *_affine(block.norm2, block.norm2.num_features))  # type: ignore[arg-type]
        block.norm2 = nn.Identity()
        folded["norms"] += 1
    if isinstance(block.scale2, LayerScale2d):
        mlp.fc2 = _before_scale(mlp.fc2, block.scale2)  # type: ignore[arg-type]
        block.scale2 = nn.Identity()
        folded["layer scales"] += 1
    block.drop_path1 = block.drop_path2 = nn.Identity()


def _fuse_sequence(sequence: nn.Sequential, folded: Counter[str]) -> None:
    """Fold each BatchNorm that follows a convolution in a sequence into it."""
    names = list(sequence._modules)
    for name, following in pairwise(names):
        conv, norm = sequence._modules[name], sequence._modules[following]
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            sequence._modules[name] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[following] = nn.Identity()
            folded["norms"] += 1


def _affine(norm: nn.BatchNorm2d | None, dim: int) -> tuple[Tensor, Tensor]:
    """a and b of a norm in evaluation, a x + b, in float64; 1 and 0 for none."""
    if norm is None:
        return torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    a = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    return a, norm.bias.double() - norm.running_mean.double() * a  # type: ignore[union-attr]


def _gamma(scale: nn.Module, dim: int) -> Tensor:
    """The factors of a layer scale in float64; ones for none."""
    return scale.gamma.double() if isinstance(scale, LayerScale2d) else torch.ones(dim, dtype=torch.float64)


def _matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a 1x1 convolution in float64."""
    weight = conv.weight.double().flatten(1)
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()


def _pointwise(weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution of a matrix (out, in), with the type and the place of another."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None).to(like.weight)
    conv.weight.copy_(weight[:, :, None, None])
    if bias is not None:
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.eval()


def _after_norm(conv: nn.Conv2d, a: Tensor, b: Tensor) -> nn.Conv2d:
    """A 1x1 convolution of a x + b as one of x."""
    weight, bias = _matrix(conv)
    return _pointwise(weight * a, bias + weight @ b, conv)


def _before_scale(conv: nn.Conv2d, scale: LayerScale2d) -> nn.Conv2d:
    """A 1x1 convolution with a layer scale after it as one."""
    weight, bias = _matrix(conv)
    gamma = scale.gamma.double()
    return _pointwise(gamma[:, None] * weight, gamma * bias, conv)


def _per_channel(a: Tensor, b: Tensor, like: Tensor) -> nn.Conv2d:
    """a x + b as a convolution."""
    conv = nn.Conv2d(len(a), len(a), 1, groups=len(a)).to(like)
    conv.weight.copy_(a[:, None, None, None])
    conv.bias.copy_(b)  # type: ignore[union-attr]
    return conv.eval()


def _levels_with_norm(levels: DepthwiseSum, norm: nn.BatchNorm2d) -> DepthwiseSum:
    """A sum of depth-wise convolutions and the norm after it as one."""
    a, b = _affine(norm, norm.num_features)
    shapes = [(conv.kernel_size[0], conv.dilation[0]) for conv in levels.convs]  # type: ignore[index]
    fused = DepthwiseSum(norm.num_features, shapes, bias=True).to(norm.weight)
    for conv, old in zip(fused.convs, levels.convs, strict=True):  # type: ignore[arg-type]
        conv.weight.copy_(old.weight.double() * a[:, None, None, None])  # type: ignore[operator]
    fused.convs[0].bias.copy_(b)  # type: ignore[operator]
    return fused.eval()
