"""Linear attention by positive random features (Performer), in the reduction cells of ViTAE."""

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn


class Performer(nn.Module):
    """Single-head linear attention over tokens: (B, N, C) -> (B, N, C').

        out = v + Dropout(proj(phi(q) (phi(k)^T v) / (phi(q) . sum_n phi(k_n) + 1e-8)))
        phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)

    with m = C' / 2 random features `w`, frozen, part of the weights (ViTAE, section 3; T2T-ViT).

    Args:
        in_dim: Channels in, C.
        dim: Channels of queries, keys, values and out, C'.

    Reconstruction: the random features start orthogonal, of length sqrt(m).
    """

    def __init__(self, in_dim: int, dim: int, drop: float = 0.1) -> None:
        super().__init__()
        features = dim // 2
        self.w = nn.Parameter(torch.empty(features, dim), requires_grad=False)
        self.w.grad = torch.zeros_like(self.w)  # timm reads every parameter's gradient, including a frozen one's
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)
        nn.init.orthogonal_(self.w, gain=math.sqrt(features))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size`, the height and width of the map that the tokens are of, is not used here."""
        k, q, v = self.kqv(x).chunk(3, -1)
        return v + self.drop(self.proj(linear_attention(q, k, v, self.w)))


@torch.fx.wrap
@register_notrace_function
def linear_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + 1e-8), all (B, N, d), in float32 under any precision.

    exp overflows float16 at 11 and float32 at 88, which the features pass easily. So the keys' exponents are lowered by
    the largest of each feature, the queries' raised by as much, and these lowered by the largest of each query: every
    exponent is then 0 or less, every denominator 1 or more. The fraction cancels it all but for 1e-8, which is scaled
    with the rest, so the result is the formula's.
    """
    if not torch.jit.is_scripting():
        if not q.is_meta and torch.is_autocast_enabled(q.device.type):
            with torch.autocast(q.device.type, enabled=False):
                return _linear_attention(q, k, v, w)
    return _linear_attention(q, k, v, w)


def _linear_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    dtype = v.dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v, w = q.to(exact), k.to(exact), v.to(exact), w.to(exact)
    m = w.shape[0]
    log_q = F.linear(q, w) - q.square().sum(-1, keepdim=True) / 2  # (B, N, m)
    log_k = F.linear(k, w) - k.square().sum(-1, keepdim=True) / 2
    top_k = log_k.detach().amax(-2, keepdim=True)  # (B, 1, m): one a feature
    log_q = log_q + top_k
    top_q = log_q.detach().amax(-1, keepdim=True)  # (B, N, 1): one a query
    phi_q, phi_k = torch.exp(log_q - top_q), torch.exp(log_k - top_k)
    numerator = phi_q @ (phi_k.transpose(-2, -1) @ v)
    denominator = (phi_q * phi_k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    # phi carries 1 / sqrt(m) twice, so the fraction is multiplied by m; above e^80 the answer is 0 in any case
    eps = 1e-8 * m * torch.exp((-top_q).clamp(max=80.0))
    return (numerator / (denominator + eps)).to(dtype)
