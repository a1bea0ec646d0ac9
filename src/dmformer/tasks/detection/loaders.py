"""Images and their objects as used in training and evaluation: transforms, dataset, sampler and loaders."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import get_size

from ...data.decode import BrokenImageError, decode, fitted_size
from ..sampling import ShareSampler, StepSampler, loader_options, next_readable, seeded
from .datasets import BoxSet

BoxTarget = dict[str, Tensor]
"""Boxes (n, 4), float32, left, upper, right and lower edge in pixels; labels (n), int64; and, for data with masks,
masks (n, H, W), uint8."""

TrainTransform = Callable[[Image.Image, BoxTarget], tuple[Tensor, BoxTarget]]

EvalTransform = Callable[[Image.Image], Tensor]

BoxBatch = tuple[list[Tensor], list[BoxTarget], Tensor]
"""Images (3, H, W), the objects in each, and positions (B); position ~i means that image i was broken and replaced."""


class RandomSide(v2.RandomShortestSize):
    """torchvision's `RandomShortestSize`, but each side of a very thin image keeps at least one pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Choose the (height, width)."""
        return _one_pixel(super().make_params(flat_inputs))


class RandomScale(v2.ScaleJitter):
    """torchvision's `ScaleJitter`, with the same guarantee."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Choose the (height, width)."""
        return _one_pixel(super().make_params(flat_inputs))


class CropWithin(v2.Transform):
    """A random crop of `side` pixels, in the directions in which the image is larger."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Choose the region."""
        height, width = get_size(flat_inputs[0])
        top, left = (int(torch.randint(max(side - self.side, 0) + 1, ())) for side in (height, width))
        return {"top": top, "left": left, "height": min(height, self.side), "width": min(width, self.side)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image, masks or boxes."""
        return self._call_kernel(functional.crop, inpt, **params)


class BoxesOfMasks(v2.Transform):
    """Redraw boxes around what a crop left of the masks; if nothing is left, they have no area."""

    def forward(self, image: Image.Image, target: BoxTarget) -> tuple[Image.Image, BoxTarget]:
        """Leave a target without masks unchanged."""
        if "masks" not in target:
            return image, target
        masks, boxes = target["masks"].as_subclass(Tensor), target["boxes"].clone()
        seen = masks.flatten(1).amax(1) > 0
        boxes[~seen] = 0
        if seen.any():
            boxes[seen] = masks_to_boxes(masks[seen]) + torch.tensor([0, 0, 1, 1])  # it returns the last pixels inside
        return image, {**target, "boxes": boxes}


def train_transform(
    sides: Sequence[int],
    max_side: int,
    hflip: float,
    jitter: Literal["multiscale", "large"],
    photometric: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> TrainTransform:
    """Random size, crop, flip and colours: image and target (tv_tensors) to a tensor (3, H, W) and plain tensors.

    multiscale resizes the shorter side to one of `sides`, unless the longer side would exceed `max_side` (DETR, section
    A.4, as in the recipes of VAN, SMT and ViTAEv2). large is large-scale jitter (Simple Copy-Paste, section 3): the
    longer side becomes 0.1 to 2 times the largest of `sides`, then a square of that side is cropped; smaller images
    stay smaller, because batches are padded anyway. Boxes of objects with masks are then redrawn around the cropped
    mask.

    Objects of less than a pixel are left out.

    Args:
        photometric: Random brightness, contrast, saturation, hue and channel order (SSD's).
        mean, std: Of the red, green and blue values, 0 to 1.
    """
    if jitter == "large":
        side = max(sides)
        sized = [RandomScale((side, side)), CropWithin(side), BoxesOfMasks()]
    else:
        sized = [RandomSide(list(sides), max_side)]
    return v2.Compose(
        [
            *sized,
            v2.RandomHorizontalFlip(hflip),
            *([v2.RandomPhotometricDistort()] if photometric else []),
            v2.ToImage(),
            v2.ClampBoundingBoxes(),  # rounding can put an edge outside the image, and the object would be lost
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(mean), list(std)),
            v2.ToPureTensor(),
        ]
    )


def eval_transform(side: int, max_side: int, mean: Sequence[float], std: Sequence[float]) -> EvalTransform:
    """An image of any size -> (3, H', W') of `fitted_size`, by antialiased bilinear interpolation.

    Pillow resizes, as in training: it is faster than torch on 8 bits, and an exported model runs without torch.
    """
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])

    def transform(image: Image.Image) -> Tensor:
        height, width = fitted_size(image.height, image.width, side, max_side)
        return to_tensor(image.resize((width, height), Image.Resampling.BILINEAR)).as_subclass(Tensor)

    return transform


class BoxDataset(Dataset):
    """Images, read and transformed, determined by seed, epoch and position.

    In training `boxes[epoch, i] -> (image, target, position)`, without crowds; an image that is broken in spite of
    `check_boxes` is replaced by the next readable one. In evaluation `boxes[epoch, i] -> (image, position)`.

    Args:
        transform: From `train_transform` in training, else from `eval_transform`.

    Raises:
        BrokenImageError: In evaluation, for a broken image; in training, if none can be read.
    """

    def __init__(
        self, boxes: BoxSet, transform: Callable[..., Any], training: bool, seed: int = 0, masks: bool = False
    ) -> None:
        self.boxes, self.transform, self.training = boxes, transform, training
        self.seed, self.masks = seed, masks

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        epoch, position = key
        if not self.training:
            return self.transform(self.picture(position)), position
        try:
            image, target = self._read(position)
        except BrokenImageError:
            image, target = next_readable(self._read, position, len(self), "photo")
            position = ~position
        with seeded(self.seed, epoch, position):
            return *self.transform(image, target), position

    def picture(self, position: int) -> Image.Image:
        """The RGB image as people see it."""
        path, name = self.boxes.images[position], self.boxes.name(position)
        try:
            with open(path, "rb") as file:
                image = decode(file, reading=self.boxes.reading)
        except (OSError, BrokenImageError) as error:
            raise BrokenImageError(f"{name}: {error}") from error
        height, width = self.boxes.sizes[position].tolist()
        if image.size != (width, height):
            raise BrokenImageError(f"{name}: is {image.width}x{image.height}, its boxes are of {width}x{height}")
        return image

    def _read(self, position: int) -> tuple[Image.Image, BoxTarget]:
        image, objects = self.picture(position), self.boxes.annotations[position].single()
        size = (image.height, image.width)
        format_ = tv_tensors.BoundingBoxFormat.XYXY
        # Copies, because the arrays are shared by all images of the set.
        target: BoxTarget = {
            "boxes": tv_tensors.BoundingBoxes(torch.tensor(objects.boxes), format=format_, canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.tensor(objects.labels),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(objects.masks(*size)))
        return image, target


class GroupedSampler(StepSampler):
    """Batches of (pass, position) of images that are all wide or all tall, so that little padding is needed.

    A pass shuffles all images, divides the wide and the tall ones into complete batches over all processes, shuffles
    those, and ends with batches of the remaining images of both kinds; an incomplete last batch is left out. Step k has
    the same images for any number of processes, as long as `batch_size` times `world` is the same.

    Args:
        sizes: (N, 2), height and width of the images.
        batch_size, rank, world, seed: See `StepSampler`.
        passes: Passes over the images per epoch of the loop.
    """

    def __init__(
        self, sizes: np.ndarray, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0, passes: int = 1
    ) -> None:
        super().__init__(len(sizes), batch_size, rank, world, seed)
        self.wide = sizes[:, 1] >= sizes[:, 0]
        self.passes, self.pass_seed = passes, seed

    def __len__(self) -> int:
        return self.passes * (self.length // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, self.start = self.start, 0
        steps = len(self) // self.passes
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for number in range(self.passes):
            if start >= (number + 1) * steps:
                continue
            epoch = self.epoch * self.passes + number
            for batch in self.batches(epoch)[max(start - number * steps, 0) :]:
                yield [(epoch, int(i)) for i in batch[share]]

    def batches(self, epoch: int) -> np.ndarray:
        """Images of each batch of all processes in a pass, (batches, batch_size * world)."""
        generator, size = np.random.default_rng((self.pass_seed, epoch)), self.batch_size * self.world
        order = generator.permutation(self.length)
        groups = [order[self.wide[order]], order[~self.wide[order]]]
        whole = [group[: len(group) // size * size].reshape(-1, size) for group in groups]
        rest = generator.permutation(np.concatenate([group[len(group) // size * size :] for group in groups]))
        mixed = rest[: len(rest) // size * size].reshape(-1, size)
        return np.concatenate([generator.permutation(np.concatenate(whole)), mixed])


def train_boxes_loader(
    boxes: BoxSet,
    transform: TrainTransform,
    sampler: Sampler[list[tuple[int, int]]],
    workers: int | None = None,
    seed: int = 0,
    pin_memory: bool = False,
    masks: bool = False,
) -> DataLoader:
    """`BoxBatch`es in the order of a sampler of (epoch, position)."""
    dataset = BoxDataset(boxes, transform, training=True, seed=seed, masks=masks)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_train_batch, **loader_options(workers, pin_memory))


def eval_boxes_loader(
    boxes: BoxSet,
    transform: EvalTransform,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """A list of one image and its position (1); process `rank` of `world` gets every `world`-th, none twice."""
    dataset = BoxDataset(boxes, transform, training=False)
    sampler = ShareSampler(len(boxes), rank, world)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_eval_batch, **loader_options(workers, pin_memory))


def _train_batch(items: Sequence[tuple[Tensor, BoxTarget, int]]) -> BoxBatch:
    images, targets, positions = zip(*items, strict=True)
    return list(images), list(targets), torch.tensor(positions)


def _eval_batch(items: Sequence[tuple[Tensor, int]]) -> tuple[list[Tensor], Tensor]:
    images, positions = zip(*items, strict=True)
    return list(images), torch.tensor(positions)


def _one_pixel(params: dict[str, Any]) -> dict[str, Any]:
    return {"size": tuple(max(side, 1) for side in params["size"])}
