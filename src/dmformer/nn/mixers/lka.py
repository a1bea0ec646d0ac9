"""Large Kernel Attention, the token mixer of VAN ("Visual Attention Network", arXiv 2202.09741, section 3)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..folding import affine, after_norm, fused_branch, gamma_of, is_affine, matrix, pointwise
from ..fused import FusedConv, Residual
from ..layers import GELU, DepthwiseConv


def decompose(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Sides of the depth-wise and the dilated depth-wise kernel that replace a kernel_size x kernel_size kernel.

    (2 d - 1, ceil(K / d)): (5, 7) for K = 21, d = 3 (VAN, section 3).

    Raises:
        ValueError: A size or dilation below 1, or a dilation above the size.
    """
    if not 1 <= dilation <= kernel_size:
        raise ValueError(f"dilation must lie between 1 and kernel_size = {kernel_size}, not be {dilation}")
    return 2 * dilation - 1, -(-kernel_size // dilation)


@dataclass(frozen=True)
class Cost:
    """Parameters, and floating-point operations per image (a multiply-add counts as two)."""

    parameters: int
    flops: int


def decomposed_cost(kernel_size: int, dilation: int, dim: int, height: int = 1, width: int = 1) -> Cost:
    """Cost of the decomposition, without biases: ((2 d - 1)^2 + ceil(K / d)^2) C + C^2 (VAN, equations 4 and 5)."""
    local, dilated = decompose(kernel_size, dilation)
    return _cost((local**2 + dilated**2) * dim + dim**2, height * width)


def plain_cost(kernel_size: int, dim: int, height: int = 1, width: int = 1) -> Cost:
    """Cost of the K x K convolution from C to C channels that the decomposition replaces, without bias: K^2 C^2."""
    return _cost(kernel_size**2 * dim**2, height * width)


def _cost(parameters: int, pixels: int) -> Cost:
    return Cost(parameters, 2 * parameters * pixels)


class LargeKernel(nn.Module):
    """A decomposed K x K convolution that gates its input: (B, C, H, W) -> (B, C, H, W).

        out = u * W DW_d(DW(u))

    with a depth-wise (2 d - 1)-kernel, a depth-wise ceil(K / d)-kernel of dilation d, and a 1x1 convolution W; no
    sigmoid (VAN, section 3).

    Args:
        kernel_size: Side K of the kernel that is decomposed.
    """

    def __init__(self, dim: int, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__()
        local, dilated = decompose(kernel_size, dilation)
        self.local = DepthwiseConv(dim, local)
        self.dilated = DepthwiseConv(dim, dilated, dilation)
        self.point = nn.Conv2d(dim, dim, 1)

    def forward(self, u: Tensor) -> Tensor:
        return u * self.point(self.dilated(self.local(u)))


class LKA(nn.Module):
    """VAN's attention around the large kernel: (B, C, H, W) -> (B, C, H, W).

        out = x + W2 LargeKernel(GELU(W1 x))

    The residual is inside, on the normalised input, as in the authors' code.

    Args:
        kernel_size, dilation: Of `LargeKernel`.
    """

    def __init__(self, dim: int, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(dim, dim, 1)
        self.act = GELU()
        self.kernel = LargeKernel(dim, kernel_size, dilation)
        self.proj2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj2(self.kernel(self.act(self.proj1(x))))


class FusedLKA(nn.Module):
    """x + s LKA(norm(x)) for a folded norm a x + b and layer scale s: (B, C, H, W) -> (B, C, H, W).

        u   = GELU(W1' x)
        out = (1 + s a) x + W2' (u * W DW_d(DW(u)))

    s b is in the bias of W2'.

    Args:
        proj1, local, dilated, point, proj2: The convolutions; `point` multiplies.
        skip: 1 + s a, (C, 1, 1).
    """

    def __init__(
        self, proj1: FusedConv, local: FusedConv, dilated: FusedConv, point: FusedConv, proj2: FusedConv, skip: Tensor
    ) -> None:
        super().__init__()
        self.proj1 = proj1
        self.local = local
        self.dilated = dilated
        self.point = point
        self.proj2 = proj2
        self.skip = nn.Parameter(skip)

    def forward(self, x: Tensor) -> Tensor:
        u = self.proj1(x)
        return self.proj2(self.point(self.dilated(self.local(u)), u), x * self.skip, inplace=True)


@fused_branch.register
def _(lka: LKA, norm: nn.Module, scale: nn.Module) -> nn.Module:
    if not is_affine(norm) or lka.kernel.dilated.uneven:  # FusedConv pads both sides alike
        return Residual(norm, lka, scale)
    gamma = gamma_of(scale, lka.proj2.out_channels)
    a, b = affine(norm, len(gamma))
    w2, b2 = matrix(lka.proj2)
    return FusedLKA(
        FusedConv(after_norm(lka.proj1, a, b), "gelu"),
        FusedConv(lka.kernel.local),
        FusedConv(lka.kernel.dilated),
        FusedConv(lka.kernel.point, combination="mul"),
        FusedConv(pointwise(gamma[:, None] * w2, gamma * (b2 + b), lka.proj2)),
        (1 + gamma * a)[:, None, None].to(lka.proj2.weight),
    )
