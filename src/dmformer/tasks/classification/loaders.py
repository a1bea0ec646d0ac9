"""Loaders in which every image depends only on the seed, the epoch and the image.

The number of worker processes, training processes and interruptions makes no difference.
"""

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ...data.decode import BrokenImageError, decode
from ..sampling import StepSampler, loader_options, next_readable, seeded
from .datasets import Split
from .image_recipe import ImageRecipe

Transform = Callable[[Image.Image], Tensor]

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, 3, H, W), targets (B) and positions in the split (B); position ~i means that image i was broken.

In training, a broken image is replaced by the next readable one; in evaluation it has target -1.
"""


class ImageSet(Dataset):
    """A split, decoded and transformed: `images[epoch, i] -> (image, target, position)`."""

    def __init__(self, split: Split, transform: Transform, at_least: int, training: bool, seed: int) -> None:
        self.split, self.transform, self.at_least = split, transform, at_least
        self.training, self.seed = training, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, position = key
        try:
            image, target = self._read(position)
        except BrokenImageError:
            if not self.training:
                return torch.zeros_like(self.transform(Image.new("RGB", (64, 64)))), -1, ~position
            image, target = next_readable(self._read, position, len(self), "image")
            position = ~position
        with seeded(self.seed, epoch, position):
            return self.transform(image), target, position

    def reason(self, position: int) -> str:
        """Why an image is broken."""
        try:
            self._read(position)
        except BrokenImageError as error:
            return str(error)
        return "could not be read at the time"

    def picture(self, position: int):
        """An image of the split as people see it."""
        return self._read(position)[0]

    def _read(self, position: int):
        assert self.split.indices is not None
        index = int(self.split.indices[position])
        try:
            source, target = self.split.reader[index]
        except OSError as error:
            raise BrokenImageError(str(error)) from error
        try:
            return decode(source, self.at_least, self.split.reading), int(target)
        finally:
            if hasattr(source, "close"):
                source.close()


class StreamSet(IterableDataset):
    """A timm stream as `(image, target, position)`; timm's reader divides it among workers and processes."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.stream = split.reader
        self.stream.transform = transform

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        for i, (image, target) in enumerate(self.stream):
            yield image, int(target), i

    def __len__(self) -> int:
        return len(self.stream)


def train_transform(recipe: ImageRecipe) -> Transform:
    """timm's training transform: a PIL image to a normalised tensor (3, H, W)."""
    return create_transform(  # type: ignore[return-value]
        recipe.image_size,
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        color_jitter=recipe.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=recipe.auto_augment,
        re_prob=recipe.erasing,
        re_mode="pixel",
        interpolation=recipe.interpolation,
        mean=recipe.mean or IMAGENET_DEFAULT_MEAN,
        std=recipe.std or IMAGENET_DEFAULT_STD,
    )


def eval_transform(recipe: ImageRecipe, crop_pct: float) -> Transform:
    """timm's evaluation transform: a PIL image to a normalised tensor (3, H, W)."""
    return create_transform(  # type: ignore[return-value]
        recipe.image_size,
        crop_pct=crop_pct,
        interpolation=recipe.interpolation,
        mean=recipe.mean or IMAGENET_DEFAULT_MEAN,
        std=recipe.std or IMAGENET_DEFAULT_STD,
    )


def train_loader(
    split: Split, recipe: ImageRecipe, rank: int = 0, world: int = 1, pin_memory: bool = False
) -> DataLoader:
    """A loader of shuffled, augmented batches; its `batch_sampler` is a `StepSampler` unless the split is a stream."""
    transform = train_transform(recipe)
    # For the smallest crop to be as large as the model's input.
    at_least = round(recipe.image_size / recipe.crop_scale[0] ** 0.5)
    options = loader_options(recipe.workers, pin_memory)
    if split.is_stream:
        split.reader.set_loader_cfg(num_workers=options["num_workers"])
        return DataLoader(StreamSet(split, transform), batch_size=recipe.batch_size, drop_last=True, **options)
    sampler = StepSampler(len(split), recipe.batch_size, rank, world, recipe.seed)
    images = ImageSet(split, transform, at_least, training=True, seed=recipe.seed)
    return DataLoader(images, batch_sampler=sampler, **options)


def eval_loader(
    split: Split,
    transform: Transform,
    at_least: int,
    batch_size: int,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of a whole split, in order; images are repeated so that every process gets the same number."""
    options = loader_options(workers, pin_memory)
    if split.is_stream:
        split.reader.set_loader_cfg(num_workers=options["num_workers"])
        return DataLoader(StreamSet(split, transform), batch_size=batch_size, **options)
    sampler = StepSampler(len(split), batch_size, rank, world)
    return DataLoader(ImageSet(split, transform, at_least, training=False, seed=0), batch_sampler=sampler, **options)


def validation_loader(
    split: Split, recipe: ImageRecipe, crop_pct: float, rank: int, world: int, pin_memory: bool
) -> DataLoader:
    """`eval_loader` of the images that a recipe validates on during training."""
    transform, at_least = eval_transform(recipe, crop_pct), round(recipe.image_size / crop_pct)
    return eval_loader(split, transform, at_least, recipe.batch_size, recipe.workers, rank, world, pin_memory)
