"""Similarity of two models' layers: linear centred kernel alignment (CKA) with the unbiased HSIC, by minibatches."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .hooks import blocks, recording
from .subject import Subject

LEAST = 4
"""Minimum batch size of the unbiased estimate."""


@torch.no_grad()
def cka(first: Subject, second: Subject, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """CKA of every block of one model with every block of another, (blocks of first, blocks of second).

    Each block's output counts as one vector per image. See `Alignment`.

    Args:
        first, second: Two models, or the same model twice.
        batches: The same images as prepared for each model, (B, 3, H, W) each; at least 4 per batch.
    """
    alignment = Alignment()
    for images in batches:
        grams = _grams(first, images[0])
        alignment.add(grams, grams if second is first else _grams(second, images[1]))
    return alignment.result()


class Alignment:
    """Linear CKA from minibatches.

        CKA = sum HSIC1(K, L) / sqrt(sum HSIC1(K, K) * sum HSIC1(L, L))

    with sums over batches, K = X X^T, L = Y Y^T ("Similarity of Neural Network Representations Revisited", 2019) and
    the unbiased HSIC1 ("Do Wide and Deep Networks Learn the Same Things?", 2021, section 2).
    """

    def __init__(self) -> None:
        self.cross = self.first = self.second = torch.zeros(())

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch: the outputs of `centred_gram` for every layer of both models."""
        n = len(first[0])
        x, y = (torch.stack(list(grams)).flatten(1) for grams in (first, second))
        self.cross = self.cross + x @ y.T / (n * (n - 3))
        self.first = self.first + x.square().sum(1) / (n * (n - 3))
        self.second = self.second + y.square().sum(1) / (n * (n - 3))

    def result(self) -> Tensor:
        """(layers of the first, layers of the second)."""
        return self.cross / (self.first[:, None] * self.second).sqrt()


def centred_gram(features: Tensor) -> Tensor:
    """Inner products of all pairs of examples, without the diagonal, centred such that HSIC1 is a sum of products.

    (n, ...) -> (n, n), float64: HSIC1(K, L) = sum_ij K'_ij L'_ij / (n (n - 3)) for these K', L' (the U-centring of
    "Partial Distance Correlation with Methods for Dissimilarities", 2014).

    Raises:
        ValueError: There are fewer than four examples.
    """
    n = len(features)
    if n < LEAST:
        raise ValueError(f"the unbiased estimate needs {LEAST} examples, not {n}")
    x = features.flatten(1).double()
    x = x - x.mean(0)  # only improves rounding
    gram = (x @ x.T).fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows[:, None] - rows + rows.sum() / (n - 1)
    return gram.fill_diagonal_(0)


def _grams(subject: Subject, images: Tensor) -> list[Tensor]:
    places = blocks(subject)
    with recording(subject, [place.name for place in places]) as calls:
        subject.backbone(images)
    return [centred_gram(calls[place.name].output) for place in places]
