"""Shared by every family: published figures of variants, timm configurations made from them, and model creation."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from ..nn.backbone import HierarchicalBackbone
from ..utils.pretrained import CHECKSUMS, FOLDER, check_file, class_names, no_weights
from .key_layouts import recognise

Model = TypeVar("Model", bound=HierarchicalBackbone)


@dataclass(frozen=True)
class Weights:
    """Weights that the authors published or that this package holds, or a paper's figure for unpublished weights.

    Attributes:
        tag: timm's tag: "in1k", "in22k", "in22k_ft_in1k", "in22k_ft_in1k_384".
        top1: ImageNet-1K top-1 in %, None for weights with the 21,841 classes of ImageNet-22K.
        files: Names of the published files.
        crop_pct: Fraction of the resized image that is evaluated; None for the family's default.
    """

    tag: str = "in1k"
    top1: float | None = None
    files: tuple[str, ...] = ()
    note: str = ""
    crop_pct: float | None = None

    @property
    def image_size(self) -> int:
        return 384 if self.tag.endswith("_384") else 224

    @property
    def num_classes(self) -> int:
        return 21841 if self.tag == "in22k" else 1000


@dataclass(frozen=True)
class Published:
    """Published size and weights of a variant, the default weights first.

    Attributes:
        parameters: Millions; None if the paper does not state them.
        gflops: 10^9 multiply-adds for a 224 x 224 image; None if the paper does not state them.
    """

    parameters: float | None
    gflops: float | None
    weights: tuple[Weights, ...]

    @property
    def top1(self) -> float | None:
        """The figure for training on ImageNet-1K only, if published, else the first available figure."""
        return next((w.top1 for w in self.weights if w.top1 is not None), None)

    @property
    def trained_on(self) -> str | None:
        """Training data of the weights behind `top1`, as a timm tag."""
        return next((w.tag for w in self.weights if w.top1 is not None), None)


def make_cfgs(published: Mapping[str, Published], stride: int = 32, **common: Any) -> Mapping[str, Any]:
    """timm's default configurations of a family, {"variant.tag": cfg}, preprocessing included.

    Args:
        stride: Stride of the last feature map.
        common: The family's deviations from the default: ImageNet's mean and std, bicubic, crop 0.9 at 224 px.
    """
    cfgs = {}
    for variant, entry in published.items():
        for weights in entry.weights:
            size = weights.image_size
            cfg = {
                "num_classes": weights.num_classes,
                "input_size": (3, size, size),
                "pool_size": (size // stride, size // stride),
                "crop_pct": 0.9,
                "interpolation": "bicubic",
                "mean": IMAGENET_DEFAULT_MEAN,
                "std": IMAGENET_DEFAULT_STD,
                "classifier": "head.fc",
                **common,
            }
            notes = [f"published as {', '.join(weights.files)}"] if weights.files else []
            notes += [f"published ImageNet-1K top-1 {weights.top1} %"] if weights.top1 is not None else []
            notes += [weights.note] if weights.note else []
            if weights.crop_pct is not None:
                cfg["crop_pct"] = weights.crop_pct
            name = f"{variant}.{weights.tag}"
            if name in CHECKSUMS:
                cfg["file"] = str(FOLDER / name / "model.safetensors")
            cfgs[name] = {**cfg, "notes": tuple(notes)}
    return generate_default_cfgs(cfgs)


def create(
    cls: type[Model], variant: str, pretrained: bool, args: Mapping[str, Any], given: Mapping[str, Any]
) -> Model:
    """Build a staged model through timm.

    Args:
        pretrained: Whether to load the weights named by the configuration.
        given: Arguments of the caller, which override `args`.

    Raises:
        UserError: `pretrained`, but there are no such weights, or this package's file is missing or damaged.
        ValueError: `output_stride` for a family that cannot be dilated.
    """
    if "output_stride" in given and "output_stride" not in signature(cls).parameters:
        raise ValueError(f"{variant} has a fixed output stride: its reduction cells cannot be dilated")
    if pretrained:
        given = with_source(variant, given)
    stages = tuple(range(len(args["dims"])))
    return build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=to_our_names,
        feature_cfg=dict(out_indices=stages, flatten_sequential=True),
        **{**args, **given},
    )


def with_source(variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's arguments of a pretrained model, with the class names of this package's weights.

    Raises:
        UserError: There are no such weights, or this package's file is missing or damaged.
    """
    overlay = given.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, given.get("pretrained_cfg"), overlay)
    if cfg.file and Path(cfg.file).parent.parent == FOLDER:
        check_file(Path(cfg.file))
        overlay = {"label_names": class_names(Path(cfg.file).parent), **overlay}
    elif not (cfg.has_weights or cfg.state_dict):
        raise no_weights(variant, cfg.tag or "")
    return {**given, "pretrained_cfg_overlay": overlay}


def to_our_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's filter for weights on loading: rename the keys of published layouts; leave others for timm to reject.

    This lets `create_model(..., pretrained=True, pretrained_cfg_overlay={"file": "van_b0.pth"})` load authors' files.
    """
    found = recognise(state_dict)
    if found is None:
        return state_dict
    _, renamed, unknown = found
    return {**renamed, **{key: state_dict[key] for key in unknown}}
