"""Measure how good a model's features are without training the model: a linear probe and nearest neighbours."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidate weight decays for the probe; validation picks one."""
NEIGHBOURS = 20
"""Neighbours in k-nearest-neighbour classification, as DINO's (arXiv 2104.14294, section 3.2) on small sets."""
HEAT = 0.07
"""Temperature of the neighbours' votes; same source."""


@dataclass(frozen=True)
class Features:
    """(N, D) features of N images with their labels (N) and positions in their split (N)."""

    values: Tensor
    labels: Tensor
    positions: Tensor


@torch.no_grad()
def pooled_features(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Features:
    """Pooled features of a timm classifier for an `eval_loader`, without broken images.

    Args:
        model: Has `forward_features` and `forward_head`; in evaluation mode.
        loader: Images (B, 3, H, W), labels (B), positions (B), negative for broken images.
        progress: Wraps the loader, to show how far it has got.
    """
    net: Any = model
    parts: list[list[Tensor]] = []
    for images, labels, positions in progress(loader):
        images = images.to(device, memory_format=torch.channels_last)
        pooled = net.forward_head(net.forward_features(images), pre_logits=True).float().cpu()
        good = positions >= 0
        parts.append([pooled[good], labels[good], positions[good]])
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


def linear_probe(train: Features, val: Features, test: Features, num_classes: int) -> Tensor:
    """Predictions (N) for `test` by a linear classifier on frozen features.

    Multinomial logistic regression on features scaled to mean 0 and standard deviation 1, fitted by L-BFGS on `train`;
    its weight decay is the value in `DECAYS` that scores best on `val`.
    """
    mean, std = train.values.mean(0), train.values.std(0).clamp(min=1e-6)
    x, x_val, x_test = ((part.values - mean) / std for part in (train, val, test))
    best, chosen = -1.0, None
    for decay in DECAYS:
        weight, bias = fit_linear(x, train.labels, num_classes, decay)
        right = float(((x_val @ weight + bias).argmax(1) == val.labels).float().mean())
        if right > best:
            best, chosen = right, (weight, bias)
    assert chosen is not None
    return (x_test @ chosen[0] + chosen[1]).argmax(1)


def fit_linear(x: Tensor, labels: Tensor, num_classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Weights (D, K) and biases (K) of multinomial logistic regression on features (N, D), by L-BFGS."""
    weight = torch.zeros(x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def out_of_fold(values: Tensor, labels: Tensor, num_classes: int, folds: int = 5, seed: int = 0) -> Tensor:
    """Probabilities (N, K) of images by linear probes that were fitted on the other folds' images.

    Each class is spread over all folds, at random. The weight decay is the one in `DECAYS` with the highest accuracy.
    """
    x = (values - values.mean(0)) / values.std(0).clamp(min=1e-6)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.long)
    fold[order] = torch.arange(len(labels)) % folds
    found = []
    for decay in DECAYS:
        logits = torch.empty(len(labels), num_classes)
        for k in range(folds):
            if (fold == k).any():
                weight, bias = fit_linear(x[fold != k], labels[fold != k], num_classes, decay)
                logits[fold == k] = x[fold == k] @ weight + bias
        found.append(logits.softmax(1))
    return max(found, key=lambda each: float((each.argmax(1) == labels).float().mean()))


def nearest(queries: Tensor, gallery: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines (N, count) between the queries (N, D) and their nearest in a gallery (M, D), and the positions of
    those."""
    found = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    top = found.topk(min(count, gallery.shape[0]), dim=1)
    return top.values, top.indices


def knn(train: Features, test: Features, num_classes: int) -> Tensor:
    """Predictions (N) for `test` by a vote of its nearest neighbours in `train`, each weighted by exp(cosine /
    0.07)."""
    cosines, places = nearest(test.values, train.values, NEIGHBOURS)
    votes = torch.zeros(len(test.values), num_classes)
    return votes.scatter_add_(1, train.labels[places], (cosines / HEAT).exp()).argmax(1)
