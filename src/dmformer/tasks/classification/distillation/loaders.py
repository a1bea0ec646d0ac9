"""Loaders of views: student and teacher see the same crop of an image."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from ....data.decode import BrokenImageError
from ....utils.errors import UserError
from ...sampling import StepSampler, loader_options, seeded
from .cache import Cache, teacher_pixels
from .recipe import TaughtRecipe
from .views import Photos, Views

Item = tuple[Tensor, dict[str, Tensor], int]


class ViewSet(Dataset):
    """Views of images: `views[epoch, i] -> (image (3, H, W), targets, position)`.

    Targets are "label", the class or -1, and "source", the number of its data set; also, for a teacher that runs at
    every step, its "view" (3, S, S) uint8, or, with a cache, the output of `Cache.answers`.

    In training, an unreadable image is replaced by the next one; in evaluation it has label and source -1. Its position
    is then ~i. The same applies to an image that differs from the one the teacher saw; `reason` tells them apart.

    Args:
        labels, sources: (N).
        views: How views are drawn if there is no cache.
        sizes: H = W in pixels of each epoch's images; later epochs use the last one.
        appearance: Maps the view (PIL) to the image, without changing its size.
        teacher: (S, interpolation) of a teacher that runs at every step.
        training: Whether broken images are replaced.
    """

    def __init__(
        self,
        photos: Photos,
        indices: np.ndarray,
        labels: np.ndarray,
        sources: np.ndarray,
        views: Views,
        sizes: Sequence[int],
        appearance: Callable[[Image.Image], Tensor],
        interpolation: str,
        cache: Cache | None = None,
        teacher: tuple[int, str] | None = None,
        training: bool = True,
        seed: int = 0,
    ) -> None:
        self.photos, self.indices, self.labels, self.sources = photos, indices, labels, sources
        self.views, self.sizes, self.appearance, self.interpolation = views, sizes, appearance, interpolation
        self.cache, self.teacher, self.training, self.seed = cache, teacher, training, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, position = key
        for step in range(len(self) if self.training else 1):
            place = (position + step) % len(self)
            try:
                image, targets = self._view(epoch, place)
            except BrokenImageError:
                continue
            return image, targets, position if step == 0 else ~position
        if self.training:
            raise BrokenImageError("no photo of the set can be read")
        image, targets = self._seen(epoch, position, Image.new("RGB", (64, 64)))
        return image, {**targets, "label": torch.tensor(-1), "source": torch.tensor(-1)}, ~position

    def size(self, epoch: int) -> int:
        """H = W in pixels of an epoch's images."""
        return self.sizes[min(epoch, len(self.sizes) - 1)]

    def reason(self, position: int) -> str:
        """Why an image is broken; UserError if it differs from the one the teacher saw."""
        index = int(self.indices[position])
        try:
            _, crc = self.photos.read(index)
        except BrokenImageError as error:
            return str(error)
        if self.cache is not None:
            self.cache.check(index, crc)
        return "could not be read at the time"

    def name(self, position: int) -> str:
        """SET/NAME of an image."""
        return self.photos.name(int(self.indices[position]))

    def _view(self, epoch: int, position: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = int(self.indices[position])
        largest = max(self.size(epoch), self.teacher[0] if self.teacher else 0)
        image, crc = self.photos.read(index, round(largest / self.views.scale[0] ** 0.5))
        if self.cache is not None:
            try:
                self.cache.check(index, crc)
            except UserError as error:  # raised in a reader's process it would come with its traceback: see `reason`
                raise BrokenImageError(str(error)) from None
        return self._seen(epoch, position, image)

    def _seen(self, epoch: int, position: int, image: Image.Image) -> tuple[Tensor, dict[str, Tensor]]:
        index = int(self.indices[position])
        targets = {"label": torch.tensor(self.labels[position]), "source": torch.tensor(self.sources[position])}
        if self.cache is None:
            view = self.views.draw(epoch, index, *image.size)
        else:
            number = epoch % self.cache.views
            view = self.cache.view(number, index)
            targets |= self.cache.answers(number, index)
        if self.teacher is not None:
            targets["view"] = teacher_pixels(view, image, *self.teacher)
        with seeded(self.seed, epoch, position):
            return self.appearance(view.of(image, self.size(epoch), self.interpolation)), targets


def train_appearance(recipe: TaughtRecipe) -> Callable[[Image.Image], Tensor]:
    """What training does to a view besides resizing it: colours, RandAugment, normalisation, erasing; as in timm."""
    _, colours, last = create_transform(  # type: ignore[misc]
        recipe.image_size,
        is_training=True,
        color_jitter=recipe.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=recipe.auto_augment,
        re_prob=recipe.erasing,
        re_mode="pixel",
        mean=recipe.mean or IMAGENET_DEFAULT_MEAN,
        std=recipe.std or IMAGENET_DEFAULT_STD,
        separate=True,
    )
    return Compose([colours, last])


def eval_appearance(recipe: TaughtRecipe) -> Callable[[Image.Image], Tensor]:
    """Only normalisation."""
    normalise = Normalize(recipe.mean or IMAGENET_DEFAULT_MEAN, recipe.std or IMAGENET_DEFAULT_STD)
    return Compose([ToTensor(), normalise])


def views_loader(
    views: ViewSet,
    batch_size: int,
    workers: int | None,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    seed: int | None = None,
) -> DataLoader:
    """A loader of views: shuffled by `seed`, or all in order; its `batch_sampler` is a `StepSampler`."""
    sampler = StepSampler(len(views), batch_size, rank, world, seed)
    return DataLoader(views, batch_sampler=sampler, **loader_options(workers, pin_memory))
