"""What may go into a graph before the model: photos as they were decoded in, normalised images out."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..utils.errors import UserError


class Preprocessing(nn.Module):
    """Photos (B, H, W, 3), uint8, -> images (B, 3, *size), float32: resized, cropped, normalised.

    What Pillow and timm's evaluation do: two passes with a filter that is widened where the photo is made smaller, the
    first along the width, each rounded to 8 bits. Each pass is a product with a matrix that is made from the photo's
    size, so that a graph with free sizes has plain operators alone; only the rows and columns that the crop keeps are
    computed. Equal to Pillow but for single steps of 8 bits in less than five pixels of a thousand, where its weights
    of 22 bits round otherwise; "squash" of photos whose proportions change much has a few steps more, for Pillow then
    takes the height first.

    Args:
        size: Height and width of the result; None only normalises.
        mean, std: Of the red, green and blue values, 0 to 1.
        crop_pct: Share of the resized photo that is kept.
        crop_mode: "center", for square sizes, or "squash".
        interpolation: "bilinear" or "bicubic".
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
            raise UserError(f"photos resized by '{interpolation}' cannot go into the graph: {', '.join(FILTERS)} can.")
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
        """The matrix (size[axis], count) of one pass; `length` and `other` are the photo's sides."""
        assert self.size is not None
        assert self.resized is not None
        kept, side = self.size[axis], torch.scalar_tensor(self.resized[axis], dtype=torch.float32)
        new = side if self.squash else torch.where(length <= other, side, torch.floor(side * length / other))
        scale = length / new
        first = torch.round((new - kept) / 2)  # half to even, as Python's round
        centre = (first + torch.arange(kept, dtype=torch.float32) + 0.5) * scale
        place = torch.arange(count, dtype=torch.float32) + 0.5
        width = scale.clamp(min=1.0)
        distance = (place[None] - centre[:, None]) / width
        reach, kernel = FILTERS[self.interpolation]
        # Pillow takes the pixels from round(centre - reach) to round(centre + reach), halves upwards
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
"""How far each reaches in pixels of the result, and its weights by distance."""
