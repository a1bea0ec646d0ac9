"""Does a class activation map depend on the learnt weights? Compare it with the map of a randomised model.

"Sanity Checks for Saliency Maps" (Adebayo et al., NeurIPS 2018, arXiv 1810.03292, section 3): a map that hardly changes
shows the image, for example its edges, rather than what the model has learnt.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..models.create import settle_norms
from ..nn.backbone import HierarchicalBackbone, init_weights
from .subject import Subject

SEED = 1810_03292
"""Not a small number: training may have used that seed, which would reproduce its initial weights."""

ALIKE = 0.5
"""Mean rank correlation above which maps count as unchanged; a reconstruction, the paper gives no threshold."""


def randomised(subject: Subject, images: Sequence[Tensor]) -> Subject:
    """A copy of the subject with all weights randomised, reproducibly.

    Modules are initialised as on creation (`reset_parameters`), our backbones as before training. Parameters without an
    initialisation rule, such as class tokens and positions, are shuffled (reconstruction). BatchNorms get the
    statistics of the images, because otherwise their output might vanish (reconstruction).

    Args:
        images: Some images (3, H, W), as prepared by the subject.
    """
    model = copy.deepcopy(subject.model)
    _draw(model)
    _settle(model, list(_norms(model).values()), images)
    return replace(subject, model=model, trained=False)


def cascade(subject: Subject, images: Sequence[Tensor]) -> Iterator[tuple[str, Subject]]:
    """The subject with its weights progressively randomised, from the head down, with the name of the latest part.

    One model is modified from step to step; the last step equals `randomised`.
    """
    drawn = copy.deepcopy(subject.model)
    _draw(drawn)
    values = {**dict(drawn.named_parameters()), **dict(drawn.named_buffers())}
    model = copy.deepcopy(subject.model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    norms = _norms(model)
    changed: set[str] = set()
    for part, names in _parts(subject):
        changed.update(names)
        with torch.no_grad():
            for name in names:
                tensors[name].copy_(values[name])
        _settle(model, [norm for name, norm in norms.items() if f"{name}.running_mean" in changed], images)
        yield part, replace(subject, model=model, trained=False)


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's rank correlation of two maps of equal size, from -1 to 1; None if one map is constant."""
    # torchmetrics' implementation makes a pass over the map for every repeated value.
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values get their mean rank."""
    _, place, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def _draw(model: nn.Module) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for module in model.modules():
            if isinstance(module, HierarchicalBackbone):
                init_weights(module)
        for name, parameter in model.named_parameters():
            if torch.equal(parameter, before[name]):
                parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


def _norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def _settle(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], images: Sequence[Tensor]) -> None:
    """Set the BatchNorms' statistics to those of the images; a single image is joined by its mirror image."""
    same = len({image.shape for image in images}) == 1
    batches = [torch.stack(list(images))] if same else [image[None] for image in images]
    settle_norms(model, norms, [b if len(b) > 1 else torch.cat([b, b.flip(-1)]) for b in batches])


def _parts(subject: Subject) -> list[tuple[str, list[str]]]:
    """Names of the tensors by part, from the head down; tensors before the end of a stage belong to that stage."""
    names = [name for name, _ in subject.model.named_parameters()] + [name for name, _ in subject.model.named_buffers()]
    order = {name: i for i, name in enumerate(dict(subject.model.named_modules()))}
    stages = sorted((stage for stage in subject.stages if stage in order), key=lambda stage: order[stage])
    parts: list[tuple[str, list[str]]] = [(f"stage {i}", []) for i in range(1, len(stages) + 1)]
    parts.append(("head", []))
    ends = [max(place for module, place in order.items() if f"{module}.".startswith(f"{s}.")) for s in stages]
    for name in names:
        place = order[name.rpartition(".")[0]]
        parts[next((i for i, end in enumerate(ends) if place <= end), len(stages))][1].append(name)
    return [part for part in reversed(parts) if part[1]]
