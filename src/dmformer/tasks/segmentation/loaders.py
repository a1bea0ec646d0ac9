"""Images and their masks as used in training and evaluation: transforms, dataset and loaders.

A transform takes an RGB image and its training ids, a `tv_tensors.Mask` (H, W) of uint8 with `IGNORE`, and returns a
normalised float32 tensor (3, H', W') and an int64 tensor of ids.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ...data.decode import BrokenImageError, decode
from ...data.orientation import as_shown
from ..sampling import ShareSampler, loader_options, next_readable, seeded
from .datasets import Pairs
from .masks import IGNORE, StrangeLabelError
from .recipes import SegmentationRecipe

PairTransform = Callable[[Image.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]

PairBatch = tuple[Tensor, Tensor, Tensor]
"""Images (B, 3, H, W), ids (B, H, W) and positions (B); position ~i means that pair i was broken and replaced."""

TRIES = 10
"""Maximum number of crops tried to find one in which no class covers too much."""


class ScaledCrop(v2.Transform):
    """Resize by a random factor and crop in one step: only the visible part of the image is computed.

    Equal to resizing the whole (the image with antialiased bilinear interpolation, the mask with nearest neighbour) and
    then cropping. If the resized image is smaller than the crop in one direction, all of it is kept in that direction.

    Args:
        resize: Shorter side of the image at factor 1; None is its own.
        scale: Range of the factor, drawn uniformly.
        largest_share: Maximum fraction of the labelled pixels that one class may cover; after `TRIES` the last crop is
            used.
    """

    def __init__(self, crop: int, resize: int | None, scale: tuple[float, float], largest_share: float) -> None:
        super().__init__()
        self.crop, self.resize, self.scale, self.largest_share = crop, resize, scale, largest_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Choose the region of the image (left, upper, right, lower) and its output (width, height)."""
        mask = Image.fromarray(next(item for item in flat_inputs if isinstance(item, tv_tensors.Mask)).numpy())
        factor = float(torch.empty(()).uniform_(*self.scale)) * (self.resize or min(mask.size)) / min(mask.size)
        full = [max(round(side * factor), 1) for side in mask.size]
        width, height = (min(side, self.crop) for side in full)
        for _ in range(TRIES):
            left, upper = (int(torch.randint(side - self.crop + 1, ())) if side > self.crop else 0 for side in full)
            x, y = mask.width / full[0], mask.height / full[1]
            box = (left * x, upper * y, min((left + width) * x, mask.width), min((upper + height) * y, mask.height))
            if self.largest_share >= 1 or _share(_resized(mask, (width, height), box)) <= self.largest_share:
                break
        return {"size": (width, height), "box": box}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image or its mask to the region, and resize it."""
        if isinstance(inpt, tv_tensors.Mask):
            region = _resized(Image.fromarray(inpt.numpy()), params["size"], params["box"])
            return tv_tensors.Mask(functional.pil_to_tensor(region)[0])
        return inpt.resize(params["size"], Image.Resampling.BILINEAR, params["box"])


class ResizedImage(v2.Transform):
    """Resize the image, but not its mask, so that its shorter side is `side`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image, leave a mask unchanged."""
        return inpt if isinstance(inpt, tv_tensors.Mask) else functional.resize(inpt, [self.side])


def train_transform(recipe: SegmentationRecipe, mean: Sequence[float], std: Sequence[float]) -> PairTransform:
    """Random scale, crop, flip and colours: image and ids to tensors (3, S, S) and (S, S), S the recipe's image size.

    A small image is padded, on any side, with the mean colour, and its ids with `IGNORE`. The aspect ratio is kept. The
    random colours are SSD's: brightness, contrast, saturation, hue and channel order.

    Args:
        mean, std: Of the red, green and blue values, 0 to 1.
    """
    crop = recipe.image_size
    # Padding comes last, when the mean colour is 0 and colours no longer change.
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}
    return v2.Compose(
        [
            ScaledCrop(crop, recipe.resize, recipe.scale, recipe.largest_share),
            v2.RandomHorizontalFlip(recipe.hflip),
            *([v2.RandomPhotometricDistort()] if recipe.photometric else []),
            *_to_tensors(mean, std),
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),  # type: ignore[arg-type]
            v2.ToPureTensor(),
        ]
    )


def eval_transform(mean: Sequence[float], std: Sequence[float], resize: int | None = None) -> PairTransform:
    """The whole image, with its shorter side resized to `resize` if given: tensors (3, H', W') and ids (H, W).

    The ids keep their size, because predictions are resized to it.
    """
    first = [] if resize is None else [ResizedImage(resize)]
    return v2.Compose([*first, *_to_tensors(mean, std), v2.ToPureTensor()])


class PairSet(Dataset):
    """Pairs, read and transformed: `pairs[epoch, i] -> (image, ids, position)`, determined by seed, epoch and position.

    In training, a pair that is broken in spite of `check_pairs` is replaced by the next readable one.

    Raises:
        BrokenImageError: In evaluation, for such a pair; in training, if no pair can be read.
    """

    def __init__(self, pairs: Pairs, transform: PairTransform, training: bool, seed: int) -> None:
        self.pairs, self.transform, self.training, self.seed = pairs, transform, training, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, position = key
        try:
            image, ids = self.picture(position)
        except BrokenImageError:
            if not self.training:
                raise
            image, ids = next_readable(self.picture, position, len(self), "pair")
            position = ~position
        with seeded(self.seed, epoch, position):
            return *self.transform(image, tv_tensors.Mask(torch.from_numpy(ids))), position

    def picture(self, position: int):
        """The RGB image of a pair as people see it, and its training ids (H, W), uint8."""
        path, name = self.pairs.images[position], self.pairs.name(position)
        try:
            with open(path, "rb") as file:
                image = decode(file, reading=self.pairs.reading)
            stored = self.pairs.labels.stored(self.pairs.masks[position])
            ids = self.pairs.labels(as_shown(stored, path, image.size))
        except (OSError, BrokenImageError, StrangeLabelError) as error:
            raise BrokenImageError(f"{name}: {error}") from error
        if ids.shape != image.size[::-1]:
            raise BrokenImageError(
                f"{name}: is {image.size[0]}x{image.size[1]}, its mask {ids.shape[1]}x{ids.shape[0]}"
            )
        return image, ids


def train_pairs_loader(
    pairs: Pairs,
    transform: PairTransform,
    sampler: Sampler[list[tuple[int, int]]],
    workers: int | None = None,
    seed: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of images, ids and positions, in the order of a sampler of (epoch, position)."""
    dataset = PairSet(pairs, transform, training=True, seed=seed)
    return DataLoader(dataset, batch_sampler=sampler, **loader_options(workers, pin_memory))


def eval_pairs_loader(
    pairs: Pairs,
    transform: PairTransform,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of one image, its ids and its position; process `rank` of `world` gets every `world`-th, none twice."""
    dataset = PairSet(pairs, transform, training=False, seed=0)
    return DataLoader(
        dataset, batch_sampler=ShareSampler(len(pairs), rank, world), **loader_options(workers, pin_memory)
    )


def _to_tensors(mean: Sequence[float], std: Sequence[float]) -> Sequence[v2.Transform]:
    dtypes: dict[type | str, torch.dtype | None] = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
    return [v2.ToImage(), v2.ToDtype(dtypes, scale=True), v2.Normalize(list(mean), list(std))]


def _resized(mask: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    return mask.resize(size, Image.Resampling.NEAREST, box)


def _share(mask: Image.Image) -> float:
    """The largest fraction of the labelled pixels that one class covers; 1 if none is labelled."""
    counts = mask.histogram()
    counts[IGNORE] = 0
    return max(counts) / sum(counts) if any(counts) else 1.0
