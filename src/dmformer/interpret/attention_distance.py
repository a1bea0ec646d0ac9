"""Mean attention distance: pixels between a query and the keys that it attends to, per layer and head."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.mixers.attention import Attention, ValueConvAttention
from ..nn.mixers.performer import Performer
from ..nn.mixers.window import WindowAttention
from ..nn.vitae_cells import to_tokens
from .hooks import recording
from .subject import Subject

AT_ONCE = 2**24
"""Attention weights held at a time: 64 MB. All weights of 3,136 tokens would take 39 MB per head and image."""


@dataclass(frozen=True)
class Weights:
    """Inputs of a batch's attention weights, by head: B images of W windows (one for global attention).

    Attributes:
        queries, keys, values: (B * W, heads, N, d).
        places: Row and column of each token in its window, (N, 2); -1 for tokens before the map's.
        real: Which tokens are positions of the map, (W, N); excludes a class token and padding.
        linear: Whether queries and keys are features phi whose products are the weights, instead of a softmax.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    places: Tensor
    real: Tensor
    linear: bool = False

    def rows(self, tokens: slice = slice(None)) -> Tensor:
        """The weights of these queries over all keys, (B * W, heads, n, N); each row sums to 1."""
        products = self.queries[:, :, tokens] @ self.keys.transpose(2, 3)
        if self.linear:
            return products / products.sum(-1, keepdim=True)
        return (products / self.queries.shape[-1] ** 0.5).softmax(-1)


@dataclass(frozen=True)
class LayerDistance:
    """Distances of one layer.

    Attributes:
        stage: Number of the stage, from 1.
        stride: Stride of its map in pixels.
        pixels: Distances by image and head, (images, heads).
        uniform: Distance for equal weights, in pixels.
    """

    name: str
    kind: str
    stage: int
    stride: int
    pixels: Tensor
    uniform: float


def attentions(subject: Subject) -> list[tuple[str, nn.Module, int, int]]:
    """Name, module, stage (from 1) and stride of every supported attention: SMT's, ViTAE's and ViTAEv2's."""
    found = []
    for name, module in subject.model.named_modules():
        if isinstance(module, ValueConvAttention | Attention | Performer):
            places = zip(subject.stages, subject.strides, strict=True)
            found += [(name, module, i, d) for i, (stage, d) in enumerate(places, 1) if name.startswith(f"{stage}.")]
    return found


@torch.no_grad()
def attention_distances(subject: Subject, batches: Iterable[Tensor]) -> list[LayerDistance]:
    """Mean attention distance of every layer and head ("An Image is Worth 16x16 Words", appendix D.7).

        distance = mean over queries q of sum_k A[q, k] |centre(q) - centre(k)|

    with the attention weights A and the Euclidean distance between the centres of positions, in pixels of the image.
    Tokens that are not positions of the map, such as a class token or a window's padding, count neither as queries nor
    as keys, and each row of A is renormalised (reconstruction). For linear attention, A is phi(q) phi(k)^T divided by
    its row sums, without the 1e-8 (reconstruction).
    """
    layers = attentions(subject)
    found: dict[str, list[Tensor]] = {name: [] for name, *_ in layers}
    uniform: dict[str, float] = {}
    for images in batches:
        with recording(subject, found) as calls:
            subject.backbone(images)
        for name, module, _, _ in layers:
            weights = weights_of(module, calls[name].args)
            found[name].append(mean_distances(weights))
            if name not in uniform:
                uniform[name] = uniform_distance(weights)
    return [
        LayerDistance(name, _kind(module), stage, stride, stride * torch.cat(found[name]), stride * uniform[name])
        for name, module, stage, stride in layers
    ]


def mean_distances(weights: Weights) -> Tensor:
    """The distance in positions, (B, heads); processes some queries at a time to bound memory."""
    windows, tokens = weights.real.shape
    count, heads = weights.queries.shape[:2]
    real = weights.real.repeat(count // windows, 1)  # (B * W, N)
    total = weights.queries.new_zeros(count, heads)
    step = max(AT_ONCE // (count * heads * tokens), 1)
    for part in (slice(start, start + step) for start in range(0, tokens, step)):
        rows = weights.rows(part) * real[:, None, None]
        apart = torch.cdist(weights.places[part], weights.places, compute_mode="donot_use_mm_for_euclid_dist")
        # a row may put all its weight on the class token, which leaves nothing to divide by
        mean = (rows * apart).sum(-1) / rows.sum(-1).clamp(min=1e-30)
        total += (mean * real[:, None, part]).sum(-1)
    return total.reshape(-1, windows, heads).sum(1) / weights.real.sum()


def uniform_distance(weights: Weights) -> float:
    """The same for equal weights; depends only on the map and its windows."""
    windows = weights.real.shape[0]
    one = replace(
        weights,
        queries=torch.zeros_like(weights.queries[:windows, :1]),
        keys=torch.zeros_like(weights.keys[:windows, :1]),
        linear=False,
    )
    return mean_distances(one).item()


def weights_of(module: nn.Module, inputs: tuple[Any, ...]) -> Weights:
    """Queries, keys and values by head of an attention module called with these inputs.

    Args:
        module: `ValueConvAttention`, `Attention`, `WindowAttention` or `Performer`.
        inputs: A map (B, C, H, W), or tokens (B, P + H * W, C) and (H, W).
    """
    if isinstance(module, ValueConvAttention):
        x = inputs[0]
        q, k, v = (_by_head(to_tokens(t), module.heads) for t in (module.q(x), *module.kv(x).chunk(2, 1)))
        return Weights(q, k, v, *_places(x.shape[2] * x.shape[3], (x.shape[2], x.shape[3])))
    tokens, size = inputs
    if isinstance(module, WindowAttention):
        side = module.window
        q, k, v = (_by_head(t, module.heads) for t in module.qkv(_windows(tokens, size, side)).chunk(3, -1))
        real = _windows(tokens.new_ones(1, size[0] * size[1], 1), size, side)[..., 0] > 0
        return Weights(q, k, v, _places(side * side, (side, side))[0], real)
    if isinstance(module, Performer):
        k, q, v = module.kqv(tokens).chunk(3, -1)
        q, k, v = (_by_head(t, 1) for t in (*_features(q, k, module.w), v))
        return Weights(q, k, v, *_places(tokens.shape[1], size), linear=True)
    assert isinstance(module, Attention)
    q, k, v = (_by_head(t, module.heads) for t in module.qkv(tokens).chunk(3, -1))
    return Weights(q, k, v, *_places(tokens.shape[1], size))


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _places(tokens: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns (N, 2), and which tokens are real (1, N), of a map's tokens preceded by others."""
    before = tokens - size[0] * size[1]
    grid = torch.cartesian_prod(torch.arange(float(size[0])), torch.arange(float(size[1])))
    return F.pad(grid, (0, 0, before, 0), value=-1.0), (torch.arange(tokens) >= before)[None]


def _windows(x: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """(B, H * W, C) -> (B * windows, side * side, C), padded with zeros on both sides as `WindowAttention` does."""
    padding = []
    for length in (size[1], size[0]):
        missing = -length % side
        padding += [missing // 2, missing - missing // 2]
    x = F.pad(x.transpose(1, 2).unflatten(2, size), padding)
    x = x.unfold(2, side, side).unfold(3, side, side)  # (B, C, rows, columns, side, side)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(0, 2)


def _features(queries: Tensor, keys: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Positive features of the Performer, (B, N, m), with exponents shifted to avoid overflow.

    The shift is a factor of a whole row of A, so the row sums cancel it.
    """
    logs = [F.linear(x, w) - x.square().sum(-1, keepdim=True) / 2 for x in (queries, keys)]
    top = logs[1].amax(1, keepdim=True)
    raised = logs[0] + top
    return torch.exp(raised - raised.amax(-1, keepdim=True)), torch.exp(logs[1] - top)


def _kind(module: nn.Module) -> str:
    if isinstance(module, Performer):
        return "linear attention"
    return "window attention" if isinstance(module, WindowAttention) else "attention"
