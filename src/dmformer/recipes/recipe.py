"""The `Recipe` dataclass: everything that decides a training run, and its checks."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import UserError


@dataclass(frozen=True)
class Recipe:
    """Train an image classifier. Every field is an option; the effective recipe is saved with the run."""

    model: str = "dmformer_n"
    """Model: any of `dmformer models`, or any other name that timm knows."""
    model_args: tuple[str, ...] = ()
    """Arguments of the model as name=value, e.g. gate=False expand_ratio=2 levels=[[3,1],[5,2]]."""
    weights: str | None = None
    """Weights to start from: a run's best/ folder, a .safetensors or .pth file, or hf-hub:owner/name."""
    head: Literal["drop", "keep", "imagenet1k"] = "drop"
    """Classifier of those weights: drop it for other classes, keep it, or take the rows of ImageNet-1K's classes from
    ImageNet-22K's."""
    freeze: int = 0
    """Stages kept as they are while fine-tuning, counted from the stem (4 trains the classifier alone)."""

    data: str = "elpv"
    """elpv; a folder of class folders (or of train, val, test with class folders); a .tar of the same.
    Or a set that timm knows: torch/cifar10, hfds/NAME, hfids/NAME (streamed), wds/NAME (shards), tfds/NAME."""
    data_root: str | None = None
    """Where a named set lies or is cached (torch/, hfds/, hfids/, wds/, tfds/)."""
    val_data: str | None = None
    """Validation photos, if they are not beside the training photos: a folder or a .tar."""
    test_data: str | None = None
    """Test photos, likewise."""
    train_split: str = "train"
    """Split of a named set to train on."""
    val_split: str = "validation"
    """Split of a named set to validate on."""
    num_classes: int | None = None
    """Number of classes of a named set that does not say it (shards)."""
    val_share: float = 0.15
    """Share of each class split off for validation where the data has no validation split."""
    test_share: float = 0.15
    """Share of each class held out for the report where the data has neither a validation nor a test split."""
    max_broken: float = 0.05
    """Share of unreadable images above which the run stops with their list."""
    download: bool = False
    """Allow timm to download a named set into data_root."""

    image_size: int = 224
    """Height and width of the images in pixels, 32 or more."""
    crop_pct: float = 0.9
    """Share of the resized image that validation looks at."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling when images are resized."""
    mean: tuple[float, float, float] | None = None
    """Mean of the red, green and blue values, 0 to 1, subtracted from the images; by default that of the weights to
    start from, or the one that the model was published with."""
    std: tuple[float, float, float] | None = None
    """Standard deviation the images are divided by; likewise."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as shares of the image."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width over height of the random crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; only without auto_augment."""
    auto_augment: str | None = None
    """timm's augmentation policy, e.g. rand-m9-mstd0.5-inc1 (RandAugment); none for none."""
    erasing: float = 0.0
    """Probability of erasing a random rectangle."""
    mixup: float = 0.0
    """Mixup alpha, 0 for none."""
    cutmix: float = 0.0
    """CutMix alpha, 0 for none."""
    label_smoothing: float = 0.0
    """Probability mass spread over the other classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its number of photos."""

    epochs: int = 100
    """Passes over the training photos."""
    batch_size: int = 32
    """Photos a step on each process."""
    accumulate: int = 1
    """Steps whose gradients are added before the weights move."""
    optimizer: str = "adamw"
    """Any optimiser that timm knows by name."""
    lr: float = 1e-3
    """Learning rate for a batch of lr_batch photos; it follows the global batch in proportion."""
    lr_batch: int = 1024
    """The batch that lr is stated for."""
    lr_min: float = 1e-6
    """Learning rate at the end of the cosine, before the same scaling."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    cooldown_epochs: int = 0
    """Of the epochs, the last so many at the lowest learning rate."""
    weight_decay: float = 0.05
    """Weight decay, of matrices and kernels only."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before it; none for none."""
    clip_grad: float | None = None
    """Largest norm of the gradient; none for no clipping."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth at the last block, growing linearly from 0."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then what is evaluated and kept; none for none."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; no computes in float32."""
    channels_last: bool = True
    """Keep tensors in channels_last memory format, faster for convolutions."""
    compile: bool = False
    """Compile the model with torch.compile."""
    grad_checkpointing: bool = False
    """Save memory by computing activations again in the backward pass."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all processes instead of each its own."""
    workers: int | None = None
    """Processes that read images; by default as many as there are cores, at most 8."""
    seed: int = 0
    """Seed of the split, the weights, the order and the augmentation."""

    out: str = "runs"
    """Folder of the runs."""
    name: str | None = None
    """Name of the run's folder; by default data, model and a number."""
    overwrite: bool = False
    """Replace a run folder of this name."""
    resume: bool = False
    """Go on with the run of this name from where it stopped."""
    save_every: int | None = None
    """Also save the state to resume from every so many steps; by default after each epoch only."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where the curves go besides metrics.csv."""

    def check(self) -> None:
        """Raise UserError, in one line that says what to do, for a value that cannot be meant."""
        if self.image_size < 32:
            raise UserError(f"--image-size is {self.image_size}: the models need 32 pixels or more.")
        for name in ("epochs", "batch_size", "accumulate", "lr_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be 1 or more.")
        for name in (
            "lr",
            "lr_min",
            "warmup_epochs",
            "weight_decay",
            "mixup",
            "cutmix",
            "color_jitter",
            "freeze",
            "cooldown_epochs",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it cannot be negative.")
        shares = ("val_share", "test_share", "max_broken", "hflip", "vflip", "erasing", "label_smoothing", "drop_rate")
        for name in (*shares, "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1 + (name in ("hflip", "vflip", "erasing", "max_broken")):
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it is a share from 0 to 1.")
        for name in ("layer_decay", "ema", "clip_grad", "save_every"):
            value = getattr(self, name)
            if value is not None and (value <= 0 or (name in ("layer_decay", "ema") and value > 1)):
                raise UserError(f"--{name.replace('_', '-')} is {value}: it must be above 0, and a decay at most 1.")
        if self.val_share + self.test_share >= 1:
            raise UserError("--val-share and --test-share leave nothing to train on: their sum must be below 1.")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"--crop-pct is {self.crop_pct}: it is a share above 0 and at most 1.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError("--crop-scale takes two shares of the image, the smaller first, e.g. 0.5 1.0.")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers is {self.workers}: it cannot be negative.")
        if self.head != "drop" and not self.weights:
            raise UserError(f"--head {self.head} is a head of the weights to start from: name them with --weights.")
        self.parsed_model_args()

    def parsed_model_args(self) -> dict[str, Any]:
        """`model_args` with their values read as YAML: ("gate=False",) -> {"gate": False}."""
        parsed = {}
        for item in self.model_args:
            name, sep, value = item.partition("=")
            if not sep or not name.isidentifier():
                raise UserError(f"--model-args takes name=value, e.g. gate=False, not {item!r}.")
            try:
                parsed[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"--model-args: the value of {item!r} cannot be read.") from None
        return parsed

    def to_yaml(self) -> str:
        """The recipe as YAML, one field a line."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path) -> "Recipe":
        """Read what `to_yaml` wrote; UserError for anything else."""
        try:
            values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            kept: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
            return cls(**kept)
        except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
            raise UserError(f"{path} is not a recipe that this command wrote.") from None
