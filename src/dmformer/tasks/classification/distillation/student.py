"""The student: a classifier with linear layers that only its training needs, and its losses with a teacher.

"Distilling the Knowledge in a Neural Network", arXiv 1503.02531; "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237, where student and teacher see the same crops.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from ....utils.errors import UserError
from .teacher import Answers

CLASSES = "classes"
"""Name of the model's own classifier among a student's outputs."""


class Student(nn.Module):
    """A timm model with additional linear layers on its pooled features.

    In evaluation it returns the model's output: (B, 3, H, W) -> (B, K). In training, or with `heads`, it returns a
    dictionary: "classes" (B, K), and (B, n) for every additional layer.

    Args:
        heads: Sizes n of the additional layers, by name.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.model: Any = model
        features = getattr(model, "head_hidden_size", None) or model.num_features
        self.heads = nn.ModuleDict({name: nn.Linear(features, size) for name, size in heads.items()})  # type: ignore[arg-type]
        for head in self.heads.values():
            nn.init.trunc_normal_(head.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, heads: bool | None = None) -> Any:
        if not (self.training if heads is None else heads):
            return self.model(images)
        maps = self.model.forward_features(images)
        pooled = self.model.forward_head(maps, pre_logits=True)
        return {CLASSES: self.model.forward_head(maps), **{name: head(pooled) for name, head in self.heads.items()}}

    def no_weight_decay(self) -> set[str]:
        """The model's own exemptions."""
        spared = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        return {f"model.{name}" for name in spared}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The model's groups by depth, for layer-wise learning rates; the additional layers belong to the
        classifier."""
        return _below(self.model.group_matcher(coarse=coarse))


def _below(pattern: Any) -> Any:
    """Prefix regular expressions for the model's names with "model."."""
    if isinstance(pattern, str):
        return pattern.replace("^", r"^model\.", 1)
    if isinstance(pattern, dict):
        return {key: _below(value) for key, value in pattern.items()}
    return type(pattern)(_below(part) for part in pattern) if isinstance(pattern, list | tuple) else pattern


def own_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a student's state dict, under the model's names."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


class Mixing(Mixup):
    """timm's mixup and CutMix; `own_share` is the fraction of each image that the last mixing kept."""

    own_share = 1.0

    def _mix_batch(self, x: Tensor) -> float:
        self.own_share = super()._mix_batch(x)
        return self.own_share

    def mixed(self, answers: Answers) -> Answers:
        """A teacher's outputs for the last mixed batch, mixed in the same way."""

        def mix(values: Tensor) -> Tensor:
            return self.own_share * values + (1 - self.own_share) * values.flip(0)

        features = None if answers.features is None else mix(answers.features)
        return Answers(mix(answers.probabilities), features)


def whole_distribution(classes: Tensor, probabilities: Tensor, num_classes: int) -> Tensor:
    """Probabilities (B, C) from the k largest of each row (B, k): the rest of the mass is spread over the other
    classes.

    Args:
        classes: (B, k), the classes of the probabilities.
        probabilities: (B, k).
    """
    probabilities = probabilities.float()
    kept = probabilities.shape[1]
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp(min=0)
    even = rest / max(num_classes - kept, 1)
    whole = even.expand(-1, num_classes).scatter(1, classes, probabilities)
    return whole / whole.sum(1, keepdim=True)


def soft_label_loss(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p^(1/T) || softmax(logits / T)), averaged over the batch (arXiv 1503.02531, section 2).

    Args:
        logits: (B, C), the student's.
        probabilities: (B, C), the teacher's; p^(1/T) is normalised to sum to 1.
    """
    wanted = (probabilities.clamp(min=1e-12).log() / temperature).log_softmax(1)
    found = (logits.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def feature_loss(found: Tensor, wanted: Tensor, kind: Literal["cosine", "mse"]) -> Tensor:
    """1 - cosine, or the mean squared difference, of features (B, D), averaged over the batch."""
    if kind == "cosine":
        return (1 - F.cosine_similarity(found.float(), wanted.float(), dim=1)).mean()
    return F.mse_loss(found.float(), wanted.float())


def check_teachable(model: nn.Module, name: str) -> None:
    """Raise UserError if a model's pooled features are not available."""
    if not hasattr(model, "forward_head") or not hasattr(model, "forward_features"):
        raise UserError(f"{name} cannot learn from a teacher: it has no pooled features apart from its classifier.")
