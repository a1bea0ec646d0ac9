"""Optional preprocessing in the graph before the model: decoded images in, normalised images out."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..utils.errors import UserError


class Preprocessing(nn.Module):
    """Images (B, H, W, 3), uint8, -> (B, 3, *size), float32: resized, cropped, normalised.

    Same algorithm as Pillow and timm's evaluation: two passes, first along the width, with a filter that is widened for
    downscaling, each rounded to 8 bits. Each pass is a product with a matrix computed from the image size, so that a
    graph with free sizes has only plain operators; only the rows and columns inside the crop are computed. Results
    equal Pillow's except for steps of 1/255 in fewer than five pixels per thousand, where its 22-bit weights round
    differently. "squash" has a few more such steps if the aspect ratio changes a lot, because Pillow then starts with
    the height.

    Args:
        size: Height and width of the result; None only normalises.
        mean, std: Mean and standard deviation of the red, green and blue values, 0 to 1.
        crop_pct: Fraction of the resized image that is kept.
        crop_mode: "center", for square sizes, or "squash".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: Sequence[int] | None,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 1.0,
        crop_mode: str = "center",
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        if size is not None and interpolation not in FILTERS:
            raise UserError(f"the graph cannot resize photos by '{interpolation}', only by {', '.join(FILTERS)}.")
        self.size = None if size is None else (size[0], size[1])
        self.resized = None if size is None else tuple(math.floor(side / crop_pct) for side in size)
        self.squash, self.interpolation = crop_mode == "squash", interpolation
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, photos: Tensor) -> Tensor:
        x = photos.permute(0, 3, 1, 2).float()
        if self.size is not None:
            height, width = (torch.scalar_tensor(side, dtype=torch.float32) for side in x.shape[-2:])
            rows = self._weights(height, width, x.shape[-2], axis=0)
            columns = self._weights(width, height, x.shape[-1], axis=1)
            x = _rounded(x @ columns.transpose(0, 1))
            x = _rounded(rows @ x)
        return (x / 255 - self.mean) / self.std

    def _weights(self, length: Tensor, other: Tensor, count: int, axis: int) -> Tensor:
        """The matrix (size[axis], count) of one pass; `length` and `other` are the image's sides."""
        assert self.size is not None
        assert self.resized is not None
        kept, side = self.size[axis], torch.scalar_tensor(self.resized[axis], dtype=torch.float32)
        new = side if self.squash else torch.where(length <= other, side, torch.floor(side * length / other))
        scale = length / new
        first = torch.round((new - kept) / 2)  # half to even, like Python's round
        centre = (first + torch.arange(kept, dtype=torch.float32) + 0.5) * scale
        place = torch.arange(count, dtype=torch.float32) + 0.5
        width = scale.clamp(min=1.0)
        distance = (place[None] - centre[:, None]) / width
        reach, kernel = FILTERS[self.interpolation]
        # Pillow uses the pixels from round(centre - reach) to round(centre + reach), rounding half up
        low = torch.floor(centre - reach * width + 0.5)[:, None]
        high = torch.floor(centre + reach * width + 0.5)[:, None]
        taken = (place[None] > low) & (place[None] < high)
        weights = torch.where(taken, kernel(distance.abs()), 0.0)
        return weights / weights.sum(1, keepdim=True)


def _rounded(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp(0, 255)


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _bicubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' kernel with Pillow's a."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
}
"""Radius of each filter in pixels of the result, and its weights by distance."""
