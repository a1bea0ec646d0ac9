"""What every family shares: the published figures of a variant, timm's configurations made from them, and creation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from ..nn.backbone import HierarchicalBackbone
from .key_layouts import recognise

Model = TypeVar("Model", bound=HierarchicalBackbone)


@dataclass(frozen=True)
class Weights:
    """Weights that the authors published, or the figure that a paper gives for weights that were not.

    Attributes:
        tag: timm's tag: "in1k", "in22k", "in22k_ft_in1k", "in22k_ft_in1k_384".
        top1: ImageNet-1K top-1 in %, None for weights with the 21,841 classes of ImageNet-22K.
        files: Names of the published files.
        note: What else is to be known of them.
        crop_pct: Share of the resized image that they are evaluated on, None for the family's.
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
    """The published size of a variant and its weights, the default first.

    Attributes:
        parameters: Millions, None where the paper gives none.
        gflops: 10^9 multiply-adds of an image of 224 x 224, likewise.
        weights: What was published.
    """

    parameters: float | None
    gflops: float | None
    weights: tuple[Weights, ...]

    @property
    def top1(self) -> float | None:
        """Trained on ImageNet-1K alone where that is published, else the first figure there is."""
        return next((w.top1 for w in self.weights if w.top1 is not None), None)

    @property
    def trained_on(self) -> str | None:
        """What the weights of `top1` were trained on, as timm's tags have it."""
        return next((w.tag for w in self.weights if w.top1 is not None), None)


def make_cfgs(published: Mapping[str, Published], stride: int = 32, **common: Any) -> Mapping[str, Any]:
    """timm's default configurations of a family, {"variant.tag": cfg}, preprocessing included.

    Args:
        published: By variant.
        stride: Of the last map.
        common: What differs from ImageNet's mean and deviation, bicubic, crop 0.9 at 224 px, for the whole family.
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
            cfgs[f"{variant}.{weights.tag}"] = {**cfg, "notes": tuple(notes)}
    return generate_default_cfgs(cfgs)


def create(
    cls: type[Model], variant: str, pretrained: bool, args: Mapping[str, Any], given: Mapping[str, Any]
) -> Model:
    """Build a model of stages through timm.

    Args:
        cls: Class of the model.
        variant: Name of its configuration.
        pretrained: Whether to load weights that the configuration names.
        args: The variant's own arguments.
        given: The caller's, which go before those.
    """
    stages = tuple(range(len(args["dims"])))
    return build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=to_our_names,
        feature_cfg=dict(out_indices=stages, flatten_sequential=True),
        **{**args, **given},
    )


def to_our_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm calls on weights that it loads: published layouts get our names, the rest stays for timm to refuse.

    `create_model(..., pretrained=True, pretrained_cfg_overlay={"file": "van_b0.pth"})` so takes the authors' file.
    """
    found = recognise(state_dict)
    if found is None:
        return state_dict
    _, renamed, unknown = found
    return {**renamed, **{key: state_dict[key] for key in unknown}}
