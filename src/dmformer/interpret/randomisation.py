"""Does a map of class activation depend on what was learnt? The same map of the model with weights drawn anew.

"Sanity Checks for Saliency Maps" (Adebayo et al., NeurIPS 2018, arXiv 1810.03292, section 3): a map that hardly changes
shows the photo, its edges for one, and not what the model has learnt of it.
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
"""No small number, with which a training may have begun: the same numbers would give its first weights again."""

ALIKE = 0.5
"""Mean rank correlation from which maps are said to stay the same; a reconstruction, the paper draws no line."""


def randomised(subject: Subject, images: Sequence[Tensor]) -> Subject:
    """A copy of the subject with all weights drawn anew, the same ones every time.

    Modules draw as they do when they are made (`reset_parameters`), the backbones here as they do before training. What
    has no such rule, class tokens, positions and the like, has its values shuffled (reconstruction). BatchNorms get the
    statistics of the images, as otherwise nothing might come through them (reconstruction).

    Args:
        subject: Left as it is.
        images: Some, each (3, H, W), as the subject prepares them.
    """
    model = copy.deepcopy(subject.model)
    _draw(model)
    _settle(model, list(_norms(model).values()), images)
    return replace(subject, model=model, trained=False)


def cascade(subject: Subject, images: Sequence[Tensor]) -> Iterator[tuple[str, Subject]]:
    """The subject with more and more of it drawn anew, from the head down, each with the name of what came last.

    One model changes from step to step; in the end it is that of `randomised`.

    Args:
        subject: Left as it is.
        images: As for `randomised`.
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
    """Spearman's rank correlation of two maps of one size, from -1 to 1; None where one is the same everywhere."""
    # torchmetrics' takes a pass over the map for every value that occurs twice.
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, the mean rank where values are equal."""
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
    """Bring BatchNorms' statistics to those of the images; one alone has its mirror image beside it, for two values."""
    same = len({image.shape for image in images}) == 1
    batches = [torch.stack(list(images))] if same else [image[None] for image in images]
    settle_norms(model, norms, [b if len(b) > 1 else torch.cat([b, b.flip(-1)]) for b in batches])


def _parts(subject: Subject) -> list[tuple[str, list[str]]]:
    """Names of the tensors by part, from the head down: what lies up to the end of a stage goes with that stage."""
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
