"""The skeleton shared by all models: blocks of (norm, token mixer, norm, MLP), stages of blocks, a pyramid of stages.

    image -> Stage 1 (stride 4) -> Stage 2 (8) -> Stage 3 (16) -> Stage 4 (32) -> norm -> pooling -> classifier

ViTAE has three stages.

What differs between families is passed in: the token mixer, the MLP and the downsampling are callables or modules,
never names. All maps are NCHW.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, LayerScale2d, get_device_dtype
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from .layers import dilate


class Block(nn.Module):
    """x + s1 * mixer(norm(x)), then x + s2 * mlp(norm(x)): (B, C, H, W) -> (B, C, H, W).

    Args:
        mixer: Makes the token mixer from the number of channels.
        mlp: Makes the MLP from the number of channels.
        norm: Makes the norms from the number of channels.
        layer_scale: Initial value of the scales s1 and s2, or None for no layer scale.
    """

    def __init__(
        self,
        dim: int,
        mixer: Callable[[int], nn.Module],
        mlp: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        layer_scale: float | None = 1e-2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.mixer = mixer(dim)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale2d(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = mlp(dim)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale2d(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.scale1(self.mixer(self.norm1(x))))
        x = x + self.drop_path2(self.scale2(self.mlp(self.norm2(x))))
        return x


class Stage(nn.Module):
    """Downsampling, blocks and an optional final norm: (B, C', H', W') -> (B, C, H, W).

    Args:
        dim: Channels out, C.
        downsample: Maps (B, C', H', W') to (B, C, H, W); the stem in the first stage.
    """

    def __init__(self, dim: int, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.dim = dim
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class HierarchicalBackbone(nn.Module):
    """Stages at strides 4, 8, 16, 32 with a classifier, with the interface that timm expects of a model.

    (B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up.

    Args:
        stages: The pyramid; the first stage includes the stem.
        output_stride: 8, 16 or 32: the stages beyond this stride keep it, dilated. Their downsampling begins with its
            strided convolution. As in timm's ResNet and ConvNeXt, that convolution has the dilation of the stage
            before, so that a convolutional network gives the undilated one's values at the positions of the latter.
        norm: Final norm, before the head's pooling.
        in_chans: Channels of the images, which the stem was built for.
        num_classes: Number of classes; with 0 the model returns the pooled features.
        global_pool: timm's pooling name; with "" the model returns the feature map.
        head: Pooling and classifier, with the interface of timm's `ClassifierHead` (the default).
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        norm: nn.Module | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        head: nn.Module | None = None,
        output_stride: int = 32,
    ) -> None:
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = stages[-1].dim
        self.feature_info = [
            dict(num_chs=stage.dim, reduction=min(4 * 2**i, output_stride), module=f"stages.{i}")
            for i, stage in enumerate(stages)
        ]
        for i, stage in enumerate(stages):
            if (dilation := 4 * 2**i // output_stride) > 1:
                stage.downsample[0].stride = (1, 1)  # type: ignore[index]
                dilate(stage.downsample, dilation // 2)
                dilate(stage.blocks, dilation)
        self.stages = nn.Sequential(*stages)
        self.norm = norm or nn.Identity()
        self.head: Any = head or ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        init_weights(self)

    @torch.jit.ignore  # type: ignore[arg-type]
    def no_weight_decay(self) -> set[str]:
        """Class tokens and positions get no weight decay; timm's optimisers already exempt vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    @torch.jit.ignore  # type: ignore[arg-type]
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups by depth, for layer-wise learning rates."""
        if coarse:
            return dict(stem=r"^stages\.0\.downsample", blocks=r"^stages\.(\d+)")
        return dict(
            stem=r"^stages\.0\.downsample",
            blocks=[
                (r"^stages\.(\d+)\.(?:downsample|cls_token)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
                (r"^norm", (99999,)),
            ],
        )

    @torch.jit.ignore  # type: ignore[arg-type]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: store only the blocks' inputs and recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore  # type: ignore[arg-type]
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; `num_classes=0` removes it, `global_pool=""` also removes the pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, **get_device_dtype(self))  # type: ignore[arg-type]
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Final features, and those of the chosen stages, each (B, C_i, H/s_i, W/s_i) at the strides s_i.

        Args:
            indices: The last n stages if int, all if None, else these stages.
            norm: Apply the final norm to the last stage's features.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, not {output_fmt}")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop, in place, what the chosen stages do not need; return their indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if shortened:
            self.num_features = self.stages[-1].dim  # type: ignore[assignment]
        if prune_head or shortened:
            self.num_classes = 0
            self.head.reset(0, pool_type="", in_features=self.num_features)  # type: ignore[arg-type]
            self.head_hidden_size = self.head.num_features
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, C, H/s, W/s) at the stride s of the last stage, 32 for four stages."""
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H/s, W/s) -> (B, num_classes), or (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def init_weights(module: nn.Module) -> None:
    """Initialise a whole model: He-normal by fan-out for convolutions, std 0.02 for linear layers, zero biases.

    From the training set-up in VAN's code; DMFormer does not state its own (reconstruction).
    """
    for m in module.modules():
        if not isinstance(m, nn.Conv2d | nn.Linear) or m.weight.is_meta:  # which has no values, yet takes long to fill
            continue
        if isinstance(m, nn.Conv2d):
            fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            nn.init.normal_(m.weight, 0.0, math.sqrt(2.0 / fan_out))
        else:
            nn.init.trunc_normal_(m.weight, std=0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


@contextmanager
def building_on(device: torch.device | str | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Create modules inside the context on this device with this dtype; None keeps the current default."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype or previous)
    try:
        with torch.device(device if device is not None else torch.get_default_device()):
            yield
    finally:
        torch.set_default_dtype(previous)
