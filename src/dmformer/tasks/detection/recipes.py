"""Recipes for detection. `dmformer train RECIPE --data DATA` runs one; every field can be overridden."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from ...utils.errors import UserError
from ..recipe import FIXED, FREE, READ, Recipe

Framework = Literal["mask_rcnn", "cascade_rcnn", "retinanet", "atss", "sparse_rcnn", "dino"]

WITH_MASKS = ("mask_rcnn", "cascade_rcnn")
"""Detectors that learn masks too, if the data has them."""

WITH_TRANSFORMERS = ("sparse_rcnn", "dino")
"""Detectors that use parts of transformers."""

OWN = {
    "width": ("retinanet", "atss"),
    "samples": ("mask_rcnn", "cascade_rcnn"),
    "queries": ("mask_rcnn", "cascade_rcnn", "sparse_rcnn", "dino"),
}
"""Options that only some detectors have."""


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """Train a detector. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "detection"

    framework: Framework = field(default="retinanet", metadata=FIXED | READ)
    """Detector architecture, over any model with maps at strides 4, 8, 16 and 32.
    mask_rcnn and cascade_rcnn also predict masks if the data has them; the others predict only boxes."""
    width: int | None = field(default=None, metadata=FIXED)
    """Channels of the pyramid and the heads, for retinanet and atss; by default 256."""
    samples: int | None = field(default=None, metadata=FREE)
    """Regions per photo that mask_rcnn and cascade_rcnn learn from; by default 512."""
    queries: int | None = field(default=None, metadata=FIXED)
    """Regions per photo that the detector examines;
    by default 1000 for mask_rcnn and cascade_rcnn, 300 for sparse_rcnn, 900 for dino."""

    data: str = field(default="", metadata=FREE | READ)
    """A folder: COCO (annotations/instances_train2017.json and train2017/, or Roboflow's), Pascal VOC,
    YOLO (data.yaml); or one COCO JSON with its photos in --images."""
    images: str | None = field(default=None, metadata=FREE | READ)
    """Folder of the photos, if --data is a JSON file; by default they are found beside it."""
    classes: tuple[str, ...] = field(default=(), metadata=FREE | READ)
    """Class names in the order of their ids, or one text file with one name per line;
    needed if the layout does not give them (YOLO without data.yaml and classes.txt)."""
    max_broken: float = field(default=0.02, metadata=FREE | READ)
    """Maximum fraction of faulty objects and photos.
    Above it, the run stops and shows the first of them; otherwise it leaves them out."""

    image_size: int = field(default=800, metadata=FIXED)
    """Shorter side of the photos in pixels for prediction;
    the command scales --sides and --max-side with it unless they are given too."""
    max_side: int = field(default=1333, metadata=FIXED)
    """Maximum longer side in pixels, in training too; if it applies, the shorter side gets smaller."""
    sides: tuple[int, ...] = field(default=tuple(range(480, 801, 32)), metadata=FREE)
    """Shorter sides in training; one is drawn for each photo."""
    jitter: Literal["multiscale", "large"] = field(default="multiscale", metadata=FREE)
    """large is large-scale jitter: scale to 0.1 to 2 times the largest of --sides, then crop to that size."""
    photometric: bool = field(default=False, metadata=FREE)
    """Randomly change brightness, contrast, saturation and hue."""

    epochs: int = field(default=12, metadata=FREE)
    """Number of epochs."""
    validate_every: int = field(default=1, metadata=FREE)
    """Epochs between validations; the state is saved at each."""
    schedule: Literal["steps", "cosine"] = field(default="steps", metadata=FREE)
    """steps divides the learning rate by 10 at each of --drops."""
    drops: tuple[int, ...] = field(default=(8, 11), metadata=FREE)
    """Epochs after which the learning rate drops."""
    warmup_iterations: int = field(default=500, metadata=FREE)
    """Iterations of linear warm-up; at most a tenth of all iterations."""
    backbone_lr: float = field(default=1.0, metadata=FIXED)
    """Factor on the backbone's learning rate."""
    norm_statistics: Literal["trained", "kept"] = field(default="trained", metadata=FIXED)
    """kept leaves the means and deviations of the backbone's BatchNorms as in --weights, for small batches."""

    @property
    def learns_masks(self) -> bool:
        """Whether the detector learns masks if the data has them."""
        return self.framework in WITH_MASKS

    @property
    def interval(self) -> int:
        """Epochs from one validation to the next."""
        return min(self.validate_every, self.epochs)

    @property
    def validations(self) -> int:
        return self.epochs // self.interval

    def lasting(self, validations: int) -> Self:
        epochs = validations * self.interval
        drops = {max(1, drop * epochs // self.epochs) for drop in self.drops}
        kept = tuple(sorted(drop for drop in drops if drop < epochs))
        return replace(self, epochs=epochs, validate_every=self.interval, drops=kept)

    def completed(self, start: Self, given: Collection[str]) -> Self:
        """With another --image-size, the sizes in training follow, in multiples of 32 px, unless they are given; with
        another --framework, options that it lacks are dropped."""
        recipe = super().completed(start, given)
        lacking = [name for name, of in OWN.items() if recipe.framework not in of and name not in given]
        recipe = replace(recipe, **dict.fromkeys(lacking))
        if "image_size" not in given or recipe.image_size == start.image_size:
            return recipe
        factor = recipe.image_size / start.image_size
        sides = sorted({max(32, 32 * round(side * factor / 32)) for side in start.sides})
        longest = max(round(start.max_side * factor), recipe.image_size, *sides)
        return replace(
            recipe,
            sides=recipe.sides if "sides" in given else tuple(sides),
            max_side=recipe.max_side if "max_side" in given else longest,
        )

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError(
                "name your photos and their boxes: --data FOLDER in the layout of YOLO, COCO, Pascal VOC or LabelMe."
            )
        if self.shard:
            raise UserError("--shard is for classifiers and segmenters: leave it out.")
        self._check_counts("epochs", "validate_every")
        self._check_not_negative("warmup_iterations", "backbone_lr")
        if self.epochs % self.interval:
            raise UserError(f"--epochs {self.epochs} is not a multiple of --validate-every {self.validate_every}.")
        if not self.sides or min(self.sides) < 32:
            raise UserError("--sides takes sides in pixels, 32 or more, e.g. 480 640 800.")
        if self.max_side < max(self.image_size, *self.sides):
            raise UserError(f"--max-side {self.max_side} is less than --image-size or one of --sides.")
        if any(drop < 1 for drop in self.drops) or sorted(set(self.drops)) != list(self.drops):
            raise UserError("--drops takes epochs in ascending order, e.g. 8 11.")
        if self.schedule == "steps" and self.drops and self.drops[-1] >= self.epochs:
            raise UserError(f"--drops {self.drops[-1]} is never reached in {self.epochs} epochs: give earlier ones.")
        for name, frameworks in OWN.items():
            if getattr(self, name) is not None:
                self._check_counts(name)
                if self.framework not in frameworks:
                    raise UserError(f"--{name} is for {', '.join(frameworks)}; this is {self.framework}.")
        if self.width is not None and (self.width % 32 or self.width < 64):
            raise UserError(f"--width is {self.width}: the group norms need a multiple of 32, 64 or more.")
        if self.norm_statistics == "kept" and self.weights is None and self.pretrained == "none":
            raise UserError("--norm-statistics kept needs --weights: it keeps their statistics.")
        if self.layer_decay is not None:
            raise UserError("--layer-decay is for classification: use --lr and --freeze here.")


def bccd() -> DetectionRecipe:
    """Three kinds of blood cells, --data bccd/: on a CPU in half an hour."""
    return replace(detect(), image_size=256, sides=(224, 256, 288, 320), max_side=512)


def detect() -> DetectionRecipe:
    """Your photos with boxes, from the weights in this package."""
    return DetectionRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        pretrained="auto",
        framework="atss",
        width=96,
        image_size=320,
        sides=(256, 288, 320, 352, 384),
        max_side=640,
        photometric=True,
        epochs=40,
        validate_every=5,
        schedule="cosine",
        warmup_iterations=100,
        batch_size=4,
        lr=1e-3,
        lr_batch=4,
        clip_grad=5.0,
        ema=0.99,
    )
