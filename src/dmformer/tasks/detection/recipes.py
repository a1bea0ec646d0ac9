"""Recipes for detection. `dmformer train RECIPE --data DATA` runs one; every field can be overridden."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...utils.errors import UserError
from ..recipe import Recipe

Framework = Literal["mask_rcnn", "cascade_rcnn", "retinanet", "atss", "sparse_rcnn", "dino"]

OWN = {
    "width": ("retinanet", "atss"),
    "samples": ("mask_rcnn", "cascade_rcnn"),
    "queries": ("mask_rcnn", "cascade_rcnn", "sparse_rcnn", "dino"),
}
"""Options that only some frameworks have."""


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """Train a detector. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "detection"

    framework: Framework = "retinanet"
    """Mask R-CNN and Cascade Mask R-CNN give masks where the data have them, the others boxes; over any model with maps
    at strides 4, 8, 16 and 32."""
    width: int | None = None
    """Channels of the pyramid and the heads of retinanet and atss; by default 256."""
    samples: int | None = None
    """Regions of a photo that mask_rcnn and cascade_rcnn learn from; by default 512."""
    queries: int | None = None
    """Regions of a photo that are looked at: by default 1000 of mask_rcnn and cascade_rcnn, 300 of sparse_rcnn, 900 of
    dino."""

    data: str = ""
    """A folder: COCO (annotations/instances_train2017.json and train2017/, or Roboflow's), Pascal VOC, YOLO
    (data.yaml); or one COCO JSON with its photos in --images."""
    images: str | None = None
    """Folder of the photos, where --data is a JSON file; by default the file's own."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their ids, or one text file with a name a line; needed where the layout does
    not tell them (YOLO without data.yaml and classes.txt)."""
    max_broken: float = 0.02
    """Share of faulty objects and photos above which the run stops with the first of them; below, they are left out."""

    image_size: int = 800
    """Shorter side in pixels of the photos when they are predicted."""
    max_side: int = 1333
    """Most of their longer side, in training too; the shorter one is then less."""
    sides: tuple[int, ...] = tuple(range(480, 801, 32))
    """Shorter sides in training, one of which is drawn for each photo."""
    jitter: Literal["multiscale", "large"] = "multiscale"
    """large is large-scale jitter: factors of 0.1 to 2 of the largest of --sides, and a crop to it."""
    photometric: bool = False
    """Random brightness, contrast, saturation and hue."""

    epochs: int = 12
    """Passes over the photos."""
    validate_every: int = 1
    """Passes from one validation to the next; the state is saved as often."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps divides the learning rate by 10 at each of --drops."""
    drops: tuple[int, ...] = (8, 11)
    """Passes after which the learning rate drops."""
    warmup_iterations: int = 500
    """Steps of linear warm-up; at most a tenth of all."""
    backbone_lr: float = 1.0
    """Factor on the backbone's learning rate."""
    norm_statistics: Literal["trained", "kept"] = "trained"
    """kept leaves the means and deviations of the backbone's BatchNorms as in --weights, for small batches."""

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError("name the photos and their boxes: --data FOLDER.")
        self._check_counts("epochs", "validate_every")
        self._check_not_negative("warmup_iterations", "backbone_lr")
        if self.epochs % min(self.validate_every, self.epochs):
            raise UserError(f"--epochs {self.epochs} is no multiple of --validate-every {self.validate_every}.")
        if not self.sides or min(self.sides) < 32:
            raise UserError("--sides takes sides in pixels, 32 or more, e.g. 480 640 800.")
        if self.max_side < max(self.image_size, *self.sides):
            raise UserError(f"--max-side {self.max_side} is less than --image-size or one of --sides.")
        if any(drop < 1 for drop in self.drops) or sorted(set(self.drops)) != list(self.drops):
            raise UserError("--drops takes passes in rising order, e.g. 8 11.")
        if self.schedule == "steps" and self.drops and self.drops[-1] >= self.epochs:
            raise UserError(f"--drops {self.drops[-1]} is never reached in {self.epochs} epochs: give earlier ones.")
        for name, frameworks in OWN.items():
            if getattr(self, name) is not None:
                self._check_counts(name)
                if self.framework not in frameworks:
                    raise UserError(f"--{name} is for {', '.join(frameworks)}; this is {self.framework}.")
        if self.width is not None and (self.width % 32 or self.width < 64):
            raise UserError(f"--width is {self.width}: it must be a multiple of 32 from 64 on, for the norms' groups.")
        if self.norm_statistics == "kept" and self.weights is None:
            raise UserError("--norm-statistics kept needs --weights, whose statistics are to be kept.")
        if self.layer_decay is not None:
            raise UserError("--layer-decay is for classification: give --lr and --freeze here.")


def bccd() -> DetectionRecipe:
    """dmformer train bccd --data bccd/: blood cells of 3 kinds, from scratch on a CPU in half an hour."""
    return DetectionRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        framework="atss",
        width=96,
        image_size=256,
        sides=(224, 256, 288, 320),
        max_side=512,
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


def detect() -> DetectionRecipe:
    """dmformer train detect --data photos/ --weights van_b2/ --model van_b2: own photos, from trained weights."""
    return DetectionRecipe(
        model="dmformer_s",
        framework="atss",
        image_size=640,
        sides=tuple(range(384, 641, 32)),
        max_side=1066,
        photometric=True,
        epochs=36,
        schedule="cosine",
        batch_size=4,
        lr=1e-4,
        lr_batch=16,
        clip_grad=5.0,
        drop_path_rate=0.1,
    )
