"""Layers of a fused model: convolutions that add, multiply and activate in one pass, and blocks built from them.

Built by `fuse`; for inference only. The fused mixers are beside the mixers. State dicts, exported and compiled graphs
see plain convolutions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from .kernels import cpu, onednn
from .kernels.depthwise import depthwise_sum, is_fast_path, way

HIDDEN_BYTES = 8 * 2**20
"""An MLP splits its batch so that its hidden map stays below this size, and so in the processor's cache."""


class FusedConv(nn.Conv2d):
    """act(conv(x)), act(conv(x) + other) or act(conv(x) * other): (B, C, H, W) -> (B, C', H', W').

    On a CPU with oneDNN it runs in one pass, with packed weights and without the taps that see only padding. Elsewhere,
    and in traced, compiled and exported graphs, it runs as separate operators.

    Args:
        conv: The convolution to replace; its parameters are reused.
        activation: "none", "relu", "gelu" or "silu", applied last; with `other`, only "none" or "relu".
        combination: How to combine with `other`, "add" or "mul".
    """

    def __init__(
        self, conv: nn.Conv2d, activation: onednn.Activation = "none", combination: onednn.Combination = "add"
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.activation: onednn.Activation = activation
        self.combination: onednn.Combination = combination
        d, sides = self.dilation[0], self.kernel_size
        self.is_depthwise = (
            self.groups == self.in_channels == self.out_channels
            and self.stride == (1, 1)
            and all(side % 2 for side in sides)
            and self.padding == tuple(d * (side // 2) for side in sides)
        )
        self.gains = self.is_depthwise and (max(sides) > 3 or d > 1)
        self._packed: dict[Any, tuple[Tensor, Sequence[int], int]] = {}

    def forward(self, x: Tensor, other: Tensor | None = None, inplace: bool = False) -> Tensor:
        """`inplace` allows writing the sum into `other`."""
        if not self.is_one_pass(x):
            if self.gains and is_fast_path(x):
                out = depthwise_sum(x, [self.weight], [self.dilation[0]], self.bias)
            else:
                out = super().forward(x)
            if other is not None:
                out = out + other if self.combination == "add" else out * other
            return _ACTIVATIONS[self.activation](out)
        x = x.contiguous(memory_format=torch.channels_last)
        weight, padding, margin = self._weight_for(x)
        if margin:
            x = cpu.pad_width(x, margin)
        if other is not None:
            other = other.contiguous(memory_format=torch.channels_last)
        inplace = inplace and self.combination == "add"
        return onednn.convolve(
            x,
            weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.activation,
            other,
            self.combination,
            inplace,
        )

    def is_one_pass(self, x: Tensor) -> bool:
        """Whether `x` is computed in one pass, without gradients, with sums in place if requested."""
        return (
            way(x) == "cpu"
            and x.numel() > 0
            and x.dim() == 4
            and x.dtype == self.weight.dtype
            and onednn.serves(x.dtype)
            and not isinstance(self.padding, str)
            and not (x.dtype == torch.bfloat16 and self.gains and self.kernel_size[1] > cpu.WIDEST_BFLOAT16)
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        )

    def _weight_for(self, x: Tensor) -> tuple[Tensor, Sequence[int], int]:
        """The weight packed for inputs like `x`, the convolution's padding, and the number of zeros to write."""
        key, packed = (x.shape, x.dtype), self._packed  # the packed order depends on both
        if key not in packed:
            # Keep two, because the last batch may be smaller. Replace the dict: another thread may be reading it.
            latest = dict(list(packed.items())[-1:])
            self._packed = packed = latest | {key: self._pack(x.shape)}
        return packed[key]

    def _pack(self, shape: torch.Size) -> tuple[Tensor, Sequence[int], int]:
        weight, padding, margin = self.weight.detach(), [int(p) for p in self.padding], 0
        if self.is_depthwise:
            weight, padding, margin = cpu.fit(weight, self.dilation[0], shape[-2], shape[-1])
        shape = torch.Size((*shape[:-1], shape[-1] + 2 * margin))
        return onednn.pack(weight, shape, self.stride, padding, self.dilation, self.groups), padding, margin

    # Saving, copying, moving or loading drops the packed weights; they are repacked on the next call.

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}

    def _apply(self, *args: Any, **kwargs: Any) -> "FusedConv":
        self._packed = {}
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = {}
        super()._load_from_state_dict(*args, **kwargs)


_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class FusedSum(nn.Module):
    """ReLU of a sum of depth-wise convolutions of one input: (B, C, H, W) -> (B, C, H, W).

    Args:
        convs: Convolutions of equal channels, stride 1 and "same" padding; the first has the bias.
    """

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            FusedConv(conv, "relu" if i == len(convs) - 1 else "none") for i, conv in enumerate(convs)
        )
        self.dilations = [conv.dilation[0] for conv in convs]

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.convs
        if way(x) == "triton":
            weights = [conv.weight for conv in self.convs]
            return depthwise_sum(x, weights, self.dilations, first.bias, relu=True)  # type: ignore[arg-type]
        out = first(x)
        for conv in rest:
            out = conv(x, out, inplace=True)
        return out


class Residual(nn.Module):
    """x + scale(layer(norm(x))), for layers without a fused form: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, norm: nn.Module, layer: nn.Module, scale: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.layer(self.norm(x)))


class FusedBlock(nn.Module):
    """A block whose mixer and MLP include their residuals: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, mixer: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x)
        return self.mlp(y, inplace=y is not x) if isinstance(self.mlp, FusedMlp) else self.mlp(y)


class FusedMlp(nn.Module):
    """x + fc2(act(conv(fc1(x)))): (B, C, H, W) -> (B, C, H, W); on a CPU, a few images at a time.

    Args:
        fc1, conv, fc2: Convolutions with activations, norms and scales folded in; `conv` is depth-wise.
        norm: Norm of x before fc1, if it could not be folded.
    """

    def __init__(self, norm: nn.Module, fc1: FusedConv, conv: nn.Module, fc2: FusedConv) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.conv = conv
        self.fc2 = fc2

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """`inplace` allows writing the result into `x`."""
        if not self.fc1.is_one_pass(x):
            return self.fc2(self.conv(self.fc1(self.norm(x))), x)
        out = x.contiguous(memory_format=torch.channels_last)
        if out is x and not inplace:
            out = x.clone(memory_format=torch.channels_last)
        hidden = self.fc1.out_channels * x.shape[-2] * x.shape[-1] * x.element_size()
        for part in out.split(max(1, HIDDEN_BYTES // hidden)):
            self.fc2(self.conv(self.fc1(self.norm(part))), part, inplace=True)
        return out


for _module in (FusedConv, FusedSum):  # a decorator would hide their types
    register_notrace_module(_module)
