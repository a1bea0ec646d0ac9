"""Folding norms and layer scales into the convolutions beside them: `fused_branch` and what its rules share.

In evaluation mode, BatchNorm is x -> a x + b with fixed a and b per channel. It can be folded into a preceding
convolution, or into a following 1x1 convolution (which has no padding, so borders stay exact). A layer scale folds into
the preceding linear map, and a residual around a depth-wise convolution into its centre tap. Any other consumer of a
folded norm, such as a residual inside the mixer, applies a and b itself.
"""

from functools import singledispatch

import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn

from .fused import FusedConv, FusedMlp, Residual
from .kernels.onednn import Activation

ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}
"""Activations that a convolution can apply in the same pass; for GELU, only the exact form."""


@singledispatch
def fused_branch(layer: nn.Module, norm: nn.Module, scale: nn.Module) -> nn.Module:
    """x + scale(layer(norm(x))) for inference: (B, C, H, W) -> (B, C, H, W), for a mixer or an MLP.

    Each mixer or MLP registers its rule beside its class; a rule may reuse and change the layer. Layers without a rule
    stay as they are.
    """
    return Residual(norm, layer, scale)


def activation_of(act: nn.Module | None) -> Activation | None:
    """The activation of `FusedConv` that equals a module, if there is one."""
    if getattr(act, "approximate", "none") != "none":
        return None
    return next((name for kind, name in ACTIVATIONS.items() if isinstance(act, kind)), None)


def is_affine(norm: nn.Module) -> bool:
    """Whether `affine` accepts a norm."""
    return type(norm) in (nn.BatchNorm2d, nn.Identity)


def affine(norm: nn.Module, dim: int) -> tuple[Tensor, Tensor]:
    """a and b in float64 of a BatchNorm in evaluation mode, a x + b; 1 and 0 if there is no norm."""
    if not isinstance(norm, nn.BatchNorm2d):
        return torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    a = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    return a, norm.bias.double() - norm.running_mean.double() * a  # type: ignore[union-attr]


def gamma_of(scale: nn.Module, dim: int) -> Tensor:
    """The factors of a layer scale in float64; ones if there is no layer scale."""
    return scale.gamma.double() if isinstance(scale, LayerScale2d) else torch.ones(dim, dtype=torch.float64)


def matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of a 1x1 convolution in float64."""
    weight = conv.weight.double().flatten(1)
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()


def pointwise(weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution from a matrix (out, in), with the dtype and device of another."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None).to(like.weight)
    conv.weight.copy_(weight[:, :, None, None])
    if bias is not None:
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv.eval()


def after_norm(conv: nn.Conv2d, a: Tensor, b: Tensor) -> nn.Conv2d:
    """Fold a x + b into the 1x1 convolution that follows it."""
    weight, bias = matrix(conv)
    return pointwise(weight * a, bias + weight @ b, conv)


def after_norms(norm: nn.Module, *convs: nn.Conv2d) -> tuple[nn.Module, *tuple[nn.Conv2d, ...]]:
    """Fold a norm, if it is a BatchNorm, into the 1x1 convolutions that follow it; the norm that is left, and they."""
    if type(norm) is not nn.BatchNorm2d:
        return norm, *convs
    a, b = affine(norm, norm.num_features)
    return nn.Identity(), *(after_norm(conv, a, b) for conv in convs)


def scaled(conv: nn.Conv2d, scale: nn.Module) -> nn.Conv2d:
    """Fold a layer scale into the 1x1 convolution that precedes it."""
    (weight, bias), gamma = matrix(conv), gamma_of(scale, conv.out_channels)
    return pointwise(gamma[:, None] * weight, gamma * bias, conv)


def fused_mlp(mlp: nn.Module, conv: nn.Conv2d | None, norm: nn.Module, scale: nn.Module) -> nn.Module:
    """x + scale(fc2(act(conv(fc1(norm(x)))))) for an MLP with `fc1`, `act` and `fc2`, and a convolution if given."""
    activation = activation_of(mlp.act)  # type: ignore[arg-type]
    if activation is None:
        return Residual(norm, mlp, scale)
    norm, fc1 = after_norms(norm, mlp.fc1)  # type: ignore[arg-type]
    fc2 = FusedConv(scaled(mlp.fc2, scale))  # type: ignore[arg-type]
    if conv is None:
        return FusedMlp(norm, FusedConv(fc1, activation), nn.Identity(), fc2)
    return FusedMlp(norm, FusedConv(fc1), FusedConv(conv, activation), fc2)
