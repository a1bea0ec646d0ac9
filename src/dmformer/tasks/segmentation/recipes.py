"""Recipes for semantic segmentation. `dmformer train RECIPE --data DATA` runs one; every field can be overridden."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from ...utils.errors import UserError
from ..recipe import FIXED, FREE, READ, Recipe

HEAD_NAMES = {"fpn": "Semantic FPN", "upernet": "UperNet"}


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """Train a semantic segmenter. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "segmentation"
    length: ClassVar[str] = "iterations"

    head: Literal["fpn", "upernet"] = field(default="fpn", metadata=FIXED)
    """Semantic FPN, or UperNet with an auxiliary FCN head; over any model with maps at strides 4, 8, 16 and 32."""
    width: int | None = field(default=None, metadata=FIXED)
    """Channels of the head; by default 256 for fpn (half of it after the pyramid) and 512 for upernet."""
    dropout: float = field(default=0.1, metadata=FREE)
    """Rate of channel dropout before the head's last convolution."""
    auxiliary_weight: float = field(default=0.4, metadata=FREE)
    """Weight of upernet's auxiliary loss."""

    data: str = field(default="", metadata=FREE | READ)
    """A folder: ADE20K's layout (images/ and annotations/ with training and validation), Cityscapes, Pascal VOC,
    CamVid, Roboflow, LabelMe, or only images, with their masks in --masks."""
    masks: str | None = field(default=None, metadata=FREE | READ)
    """Folder of the masks, if --data is a folder of images; masks are matched by name."""
    classes: tuple[str, ...] = field(default=(), metadata=FREE | READ)
    """Class names in the order of their ids, or one text file with one name per line;
    needed if neither the layout nor a file beside the masks gives them."""
    colours: tuple[str, ...] = field(default=(), metadata=FIXED | READ)
    """Colours of the classes as RRGGBB for masks that hold colours, in the order of --classes, or one file with them;
    by default from labelmap.txt, class_dict.csv, label_colors.txt or classes.json beside the masks.
    ids takes the indices of palette masks as ids, even if their palettes differ."""
    max_broken: float = field(default=0.0, metadata=FREE | READ)
    """Maximum fraction of images without a valid mask.
    Above it, the run stops and lists them; otherwise it leaves them out."""
    reduce_zero_label: bool = field(default=False, metadata=FIXED | READ)
    """Id 0 in the masks means unlabelled and class k is stored as k + 1 (ADE20K)."""
    ignore_index: tuple[int, ...] = field(default=(255,), metadata=FIXED | READ)
    """Ids in the masks that mean unlabelled."""

    image_size: int = field(default=512, metadata=FIXED | READ)
    """Height and width in pixels of the training crops, 32 or more."""
    save_every: int | None = field(default=None, metadata=FREE)
    """Also save the state to resume from at this interval, in iterations; by default only after each validation."""
    resize: int | None = field(default=None, metadata=FIXED)
    """Shorter side in pixels to which images are resized for training and prediction; none keeps their size."""
    scale: tuple[float, float] = field(default=(0.5, 2.0), metadata=FREE)
    """Range of the random scale factor, applied before the crop of --image-size."""
    largest_share: float = field(default=0.75, metadata=FREE)
    """Maximum fraction of a crop that one class may cover; up to ten crops are tried."""
    class_weights: Literal["none", "balanced"] = field(default="none", metadata=FREE)
    """balanced weights a class that is the fraction p of the training pixels by 1 / ln(1.02 + p), as ENet does."""
    photometric: bool = field(default=True, metadata=FREE)
    """Randomly change brightness, contrast, saturation and hue."""
    window: int | None = field(default=None, metadata=FIXED)
    """Side in pixels of the sliding window for prediction; none predicts whole images."""

    iterations: int = field(default=40_000, metadata=FREE)
    """Number of training iterations."""
    validate_every: int = field(default=4_000, metadata=FREE)
    """Iterations between validations; the state is saved at each."""
    warmup_iterations: int = field(default=0, metadata=FREE)
    """Iterations of linear warm-up."""
    power: float = field(default=0.9, metadata=FREE)
    """Power of the learning rate's polynomial decay; 1 is linear."""

    @property
    def interval(self) -> int:
        """Iterations from one validation to the next."""
        return min(self.validate_every, self.iterations)

    @property
    def validations(self) -> int:
        return self.iterations // self.interval

    def lasting(self, validations: int) -> Self:
        return replace(self, iterations=validations * self.interval, validate_every=self.interval)

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError(
                "name your images and their masks: --data FOLDER with images/ and masks/ in it, "
                "or --data IMAGES --masks MASKS."
            )
        self._check_counts("iterations", "validate_every")
        self._check_not_negative("warmup_iterations", "power", "auxiliary_weight")
        self._check_shares("dropout", "largest_share")
        if self.iterations % self.interval:
            raise UserError(
                f"--iterations {self.iterations} is not a multiple of --validate-every {self.validate_every}."
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError("--scale takes two factors, the smaller first, e.g. 0.5 2.0.")
        for name in ("width", "resize", "window"):
            value = getattr(self, name)
            if value is not None and value < 32:
                raise UserError(f"--{name} is {value}: it must be 32 or more.")
        if self.width is not None and self.width % 64:
            raise UserError(f"--width is {self.width}: the group norms need a multiple of 64.")
        if self.layer_decay is not None:
            raise UserError("--layer-decay is for classification: use --lr and --freeze here.")


def camvid() -> SegmentationRecipe:
    """Street scenes, 11 classes, --data camvid/: on a CPU in half an hour."""
    return replace(
        segment(),
        classes=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("sign", "fence", "car", "pedestrian", "bicyclist"),
        ),
        ignore_index=(11,),
        resize=None,
    )


def segment() -> SegmentationRecipe:
    """Your images with masks, from the weights in this package."""
    return SegmentationRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        pretrained="auto",
        width=128,
        image_size=256,
        resize=320,
        scale=(0.75, 1.5),
        class_weights="balanced",
        batch_size=8,
        lr=2e-3,
        lr_batch=8,
        iterations=2_000,
        validate_every=200,
        warmup_iterations=100,
        clip_grad=5.0,
        ema=0.99,
    )
