"""What features tell about a set of photos: a map, near-duplicates, atypical photos, likely wrong labels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.pretraining.probing import nearest, out_of_fold

AROUND = 10
"""Neighbours that tell how typical a photo is."""
CHUNK = 1024
"""Photos that are compared with all others at a time."""


@dataclass(frozen=True)
class Pair:
    """Two photos and the cosine of their features."""

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class Suspect:
    """A photo whose label is likely wrong: the probabilities of its label and of the likelier one."""

    photo: int
    given: int
    likely: int
    of_given: float
    of_likely: float


def centred(values: np.ndarray) -> Tensor:
    """(N, D) features minus their mean: the cosines of what is left tell photos of one set better apart."""
    found = torch.from_numpy(values).float()
    return found - found.mean(0)


def pca(values: Tensor) -> tuple[np.ndarray, list[float]]:
    """Centred features (N, D) -> the first two principal components (N, 2), and their fractions of the variance."""
    if min(values.shape) < 2:
        return np.zeros((len(values), 2), np.float32), [0.0, 0.0]
    _, sizes, axes = torch.linalg.svd(values, full_matrices=False)
    variance = sizes.square() / sizes.square().sum().clamp(min=1e-12)
    return (values @ axes[:2].T).numpy(), variance[:2].tolist()


def umap(values: Tensor) -> np.ndarray | None:
    """Features (N, D) -> (N, 2) by UMAP, with a fixed seed; None if umap-learn is not installed or photos are few."""
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    if len(values) <= AROUND + 5:
        return None
    return UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(values.numpy())


def neighbours(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines (N, count) and positions of the nearest other photos of each, the nearest first."""
    count = min(count, len(values) - 1)
    cosines, places = [], []
    for start in range(0, len(values), CHUNK):
        found = F.normalize(values[start : start + CHUNK], dim=1) @ F.normalize(values, dim=1).T
        own = torch.arange(len(found))
        found[own, own + start] = -torch.inf
        top = found.topk(count, dim=1)
        cosines.append(top.values)
        places.append(top.indices)
    return torch.cat(cosines), torch.cat(places)


def near_duplicates(cosines: Tensor, places: Tensor, least: float) -> list[Pair]:
    """Pairs of photos whose cosine is at least this, the most alike first, from what `neighbours` found."""
    pairs = {}
    for i, k in (cosines >= least).nonzero().tolist():
        j = int(places[i, k])
        pairs[min(i, j), max(i, j)] = float(cosines[i, k])
    return [Pair(i, j, cosine) for (i, j), cosine in sorted(pairs.items(), key=lambda item: -item[1])]


def wrong_labels(values: Tensor, targets: Tensor, num_classes: int) -> tuple[list[Suspect], float]:
    """Photos whose labels are likely wrong, the clearest first, by confident learning (arXiv 1911.00068).

    The other value returned is the fraction of labels that the probe agrees with: where it is low, the features are too
    weak for the set, and many of these labels are right.

    A linear probe, fitted on other photos, gives every photo its probabilities. A photo counts for the likeliest class
    that has at least the probability that it has on average on its own photos; how often that is another class than the
    label estimates the number of wrong labels. That many photos are returned, those in which another class leads most.

    Args:
        values: (N, D).
        targets: (N), class numbers.
    """
    probabilities = out_of_fold(values, targets, num_classes)
    usual = torch.stack([probabilities[targets == k, k].mean() for k in range(num_classes)])
    confident, chosen = torch.where(probabilities >= usual, probabilities, -1.0).max(1)
    counts = torch.zeros(num_classes, num_classes)
    counts.index_put_((targets[confident >= 0], chosen[confident >= 0]), torch.tensor(1.0), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    wrong = float(((1 - shares.diagonal()) * (counts.sum(1) > 0) * targets.bincount(minlength=num_classes)).sum())

    given = probabilities.gather(1, targets[:, None])[:, 0]
    likelier, other = probabilities.scatter(1, targets[:, None], -1.0).max(1)
    order = (given - likelier).argsort(stable=True)[: round(wrong)].tolist()
    suspects = [
        Suspect(i, int(targets[i]), int(other[i]), float(given[i]), float(likelier[i]))
        for i in order
        if likelier[i] > given[i]
    ]
    return suspects, float((given >= likelier).float().mean())


def near(query: np.ndarray, values: np.ndarray, count: int) -> tuple[list[float], list[int]]:
    """Cosines and positions of the photos nearest to features (D), the nearest first; centred like the set."""
    mean = torch.from_numpy(values).mean(0)
    cosines, places = nearest(torch.from_numpy(query)[None] - mean, torch.from_numpy(values) - mean, count)
    return cosines[0].tolist(), places[0].tolist()
