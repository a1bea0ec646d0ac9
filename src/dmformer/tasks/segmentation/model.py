"""Semantic segmentation: Semantic FPN and UperNet over any backbone with maps at strides 4, 8, 16 and 32.

The heads come from segmentation_models_pytorch and transformers; this module joins them to timm's backbones.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.windows import default_step, starts
from ...models.features import last_maps, open_backbone, undecayed
from ...utils.errors import UserError
from ...utils.extras import needs
from .masks import IGNORE

AT_ONCE = 2**26
"""Maximum number of probabilities of an image that are resized at once: 256 MB."""


class SegmentationModel(nn.Module):
    """A backbone and a head: (B, 3, H, W) -> logits (B, K, H, W), for images of any size.

    In training mode with an auxiliary head it returns (logits, auxiliary logits), of the same shape.

    Args:
        backbone: Returns maps at strides 4, 8, 16 and 32, as the last ones in its list.
        head: The maps -> logits at stride 4.
        auxiliary: Likewise, at any stride.
        multiple: Height and width are padded to a multiple of this, with zeros at the right and the bottom.
        at_least: Minimum height and width after padding.
        made_for: The only height and width that the backbone accepts, if it is limited to one size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary: nn.Module | None = None,
        multiple: int = 1,
        at_least: tuple[int, int] = (32, 32),
        made_for: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary
        self.multiple, self.at_least, self.made_for = multiple, at_least, made_for

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        x = self.padded(x)
        maps = last_maps(self.backbone, x)
        padded = x.shape[-2:]
        logits = resized(self.head(maps), padded)[..., :height, :width]
        if self.training and self.auxiliary is not None:
            return logits, resized(self.auxiliary(maps), padded)[..., :height, :width]
        return logits

    def padded(self, x: Tensor) -> Tensor:
        """Pad images with the zeros that the backbone and the head need: (B, 3, H', W')."""
        height, width = x.shape[-2:]
        right = torch.sym_max(-width % self.multiple, self.at_least[1] - width)
        below = torch.sym_max(-height % self.multiple, self.at_least[0] - height)
        if torch.compiler.is_exporting() or right or below:  # a graph must not depend on the example's size
            return F.pad(x, (0, right, 0, below))  # type: ignore[arg-type]
        return x

    def no_weight_decay(self) -> set[str]:
        """Parameters exempt from weight decay; timm calls this."""
        return undecayed(self)


def semantic_fpn(
    backbone: nn.Module, channels: Sequence[int], num_classes: int, width: int = 256, dropout: float = 0.1
) -> SegmentationModel:
    """Semantic FPN (Panoptic Feature Pyramid Networks, section 3.1), segmentation_models_pytorch's `FPN` decoder.

    Args:
        width: Channels of the pyramid (256 in the paper); the segmentation branch has half as many.
        dropout: Rate of channel dropout before the last convolution (a reconstruction: 0.1, as UperNet's).
    """
    with needs("seg", "Semantic FPN"):
        from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
    decoder = FPNDecoder(
        encoder_channels=list(channels),
        encoder_depth=4,
        pyramid_channels=width,
        segmentation_channels=width // 2,
        dropout=dropout,
    )
    # The decoder doubles each map to match the next finer one, so each must be half the size of that one.
    head = nn.Sequential(decoder, nn.Conv2d(decoder.out_channels, num_classes, kernel_size=1))
    return SegmentationModel(backbone, head, multiple=32, at_least=(64, 64))  # its norms need more than one position


def upernet(
    backbone: nn.Module, channels: Sequence[int], num_classes: int, width: int = 512, dropout: float = 0.1
) -> SegmentationModel:
    """UperNet (Unified Perceptual Parsing, section 3.1) with an auxiliary FCN head on stride 16: transformers' heads.

    Args:
        width: Channels of the head; the auxiliary head has 256.
        dropout: Rate of channel dropout before the last convolutions, which transformers leaves out.
    """
    with needs("seg", "UperNet"):
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetFCNHead, UperNetHead
    sizes: dict[str, Any] = {"hidden_size": width, "num_labels": num_classes, "auxiliary_in_channels": channels[2]}
    config = UperNetConfig(**sizes)
    head, auxiliary = UperNetHead(config, list(channels)), UperNetFCNHead(config, list(channels))
    for part in (head, auxiliary):
        part.classifier = nn.Sequential(nn.Dropout2d(dropout), part.classifier)  # type: ignore[assignment]
        for name, module in list(part.named_modules()):
            if isinstance(module, UperNetConvModule):  # as a sequence, under the same names, its norm can be folded
                part.set_submodule(name, nn.Sequential(OrderedDict(module.named_children())))
    for block in head.psp_modules.blocks:
        pool, *_ = block.children()
        block.add_module("0", AdaptivePool(pool.output_size))
        block.layers = list(block.children())  # its forward uses a list of its own
    return SegmentationModel(backbone, head, auxiliary)


class AdaptivePool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling: (B, C, H, W) -> (B, C, *output_size).

    Exported as two matrix products whose matrices depend on the map's size, because ONNX has no operator for free
    sizes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x)
        rows, columns = (_bins(out, side, x) for out, side in zip(_pair(self.output_size), x.shape[-2:], strict=True))
        return rows @ x @ columns.transpose(0, 1)


def _bins(out: int, side: int, like: Tensor) -> Tensor:
    """The matrix (out, side) that averages each bin, from floor(i side / out) to ceil((i + 1) side / out)."""
    length = torch.scalar_tensor(side, dtype=torch.int64)
    place, i = torch.arange(side)[None], torch.arange(out)[:, None]
    inside = (place >= i * length // out) & (place < -(-(i + 1) * length // out))
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


HEADS: dict[str, Callable[..., SegmentationModel]] = {"fpn": semantic_fpn, "upernet": upernet}


def segmentation_model(
    name: str,
    num_classes: int,
    head: Callable[..., SegmentationModel] = semantic_fpn,
    weights: dict[str, Tensor] | None = None,
    backbone_args: dict[str, Any] | None = None,
    width: int | None = None,
    dropout: float = 0.1,
) -> SegmentationModel:
    """A backbone from dmformer or timm with a head on it.

    Args:
        weights: Weights of the backbone as a classifier, under the names of its `state_dict`; its head is not needed.
        width: Width of the head; None is the head's default.

    Raises:
        UserError: The backbone lacks maps at strides 4, 8, 16 and 32, or does not accept these arguments.
    """
    backbone, channels = open_backbone(name, "a segmenter", weights, backbone_args)
    sizes = {} if width is None else {"width": width}
    model = head(backbone, channels, num_classes, dropout=dropout, **sizes)
    if (made_for := (backbone_args or {}).get("img_size")) is not None:
        model.at_least = model.made_for = _pair(made_for)
        if any(side % 32 for side in model.made_for):
            raise UserError(f"{name} is made for one size: an --image-size that is a multiple of 32 is needed.")
    return model


def segmentation_loss(
    outputs: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    auxiliary_weight: float = 0.4,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy, averaged over the labelled pixels (weighted by class, if weights are given), plus the auxiliary
    loss.

    Args:
        outputs: Logits (B, K, H, W), or a pair of logits and auxiliary logits.
        targets: (B, H, W), ids, `IGNORE` for unlabelled pixels. A batch without a labelled pixel has loss 0.
        auxiliary_weight: Weight of the auxiliary loss; 0.4 in the papers of VAN, SMT and ViTAEv2.
        class_weights: (K), None for equal weights.
    """
    logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    labelled = targets != IGNORE
    total = labelled.sum() if class_weights is None else class_weights[targets.where(labelled, 0)][labelled].sum()

    def loss(logits: Tensor) -> Tensor:
        summed = F.cross_entropy(logits.float(), targets, class_weights, ignore_index=IGNORE, reduction="sum")
        return summed / total.clamp(min=1e-6)

    return loss(logits) + sum(auxiliary_weight * loss(other) for other in others)


@torch.inference_mode()
def predict_probabilities(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities of every pixel of one image (1, 3, H, W) -> (1, K, H, W).

    Args:
        window: Side of the sliding window; logits are averaged where windows overlap. None predicts the whole image,
            and one window that covers the image gives the same result. For a backbone that accepts a single image size,
            the window has that size.
        stride: Stride of the window; by default two thirds of it.
        scales: Scale factors of the image; the probabilities are averaged (0.5 to 1.75 in the papers' multi-scale
            testing).
        flip: Also average with the mirrored image.
    """
    size, made_for = image.shape[-2:], getattr(model, "made_for", None)
    if made_for is not None:
        window = min(window or made_for[0], *made_for)
    total: Tensor | None = None
    for scale in scales:
        scaled = image if scale == 1 else resized(image, [max(round(side * scale), 32) for side in size])
        for mirrored in (False, True) if flip else (False,):
            logits = _windows(model, scaled.flip(-1) if mirrored else scaled, window, stride)
            logits = resized(logits.flip(-1) if mirrored else logits, size)
            probabilities = logits.float().softmax(1)
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(scales) * (1 + flip))


def likeliest(
    probabilities: Tensor, size: Sequence[int], targets: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Resize probabilities (1, K, h, w) and return the most likely class (1, H, W) of every pixel.

    Works on a few classes at a time: all of ADE20K's for a photo of 12 megapixels would take 7 GB.

    Args:
        targets: (1, H, W), ids of classes whose probability (1, H, W) is returned too.
    """
    step = max(AT_ONCE // (size[0] * size[1]), 1)
    best, ids, wanted = torch.zeros(()), torch.zeros((), dtype=torch.int64), None
    for first, part in zip(range(0, probabilities.shape[1], step), probabilities.split(step, 1), strict=True):
        part = resized(part, size)
        value, place = part.max(1)
        ids = torch.where(value > best, place + first, ids) if first else place
        best = torch.maximum(value, best) if first else value
        if targets is not None:
            inside = (targets >= first) & (targets < first + part.shape[1])
            found = part.gather(1, (targets - first).where(inside, 0)[:, None])[:, 0]
            wanted = found if wanted is None else found.where(inside, wanted)
    return ids, wanted


def _windows(model: Callable[[Tensor], Tensor], image: Tensor, window: int | None, stride: int | None) -> Tensor:
    """Logits of an image (1, 3, H, W) by windows; the last window of each row and column ends at the image's edge."""
    height, width = image.shape[-2:]
    if window is None or (height <= window and width <= window):
        return model(image)
    step = stride or default_step(window)
    if step > window:
        raise ValueError(f"windows of {window} px, {step} px apart, leave gaps")
    total = count = torch.zeros(())
    for top in starts(height, window, step):
        for left in starts(width, window, step):
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = model(image[place])
            if total.dim() == 0:
                total = logits.new_zeros(1, logits.shape[1], height, width)
                count = logits.new_zeros(1, 1, height, width)
            total[place] += logits
            count[place] += 1
    return total.div_(count)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear without aligned corners, as in the authors' code."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
