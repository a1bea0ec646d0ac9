"""The `Recipe` dataclass: everything that determines a training run of any kind, and its checks."""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

from ..data.limits import MAX_PIXELS
from ..utils.errors import UserError
from ..utils.machine import available_cores
from ..utils.pretrained import no_weights, tags

MAY_BE_ONE = ("hflip", "vflip", "erasing", "max_broken")
"""Fractions that may be 1."""


@dataclass(frozen=True)
class Recipe:
    """Options shared by all kinds of training. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = ""
    """The kind of training."""

    model: str = "dmformer_n"
    """Model: any name listed by `dmformer models`, or any other timm model."""
    model_args: tuple[str, ...] = ()
    """Arguments for the model as name=value, e.g. gate=False expand_ratio=2 levels=[[3,1],[5,2]]."""
    weights: str | None = None
    """Weights to start from: a run's best/ folder, a .safetensors or .pth file, or hf-hub:owner/name."""
    pretrained: str = "none"
    """Weights of this package to start from, unless --weights names others: auto (where the model has them),
    a tag, e.g. dist_lite0, or none."""
    freeze: int = 0
    """Number of stages to freeze while fine-tuning, counted from the stem (4 trains only the head)."""

    data: str | tuple[str, ...] = ""
    """Location of the images."""
    val_share: float = 0.15
    """Fraction held out for validation if the data has no validation split."""
    test_share: float = 0.15
    """Fraction held out for the report if the data has neither a validation nor a test split."""
    max_broken: float = 0.05
    """Maximum fraction of unreadable images; above it, the run stops and lists them."""

    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of a photo; larger ones count as unreadable."""

    image_size: int = 224
    """Height and width of the images in pixels, 32 or more."""
    mean: tuple[float, float, float] | None = None
    """Mean of the red, green and blue values, 0 to 1, subtracted from the images;
    by default that of the starting weights, or the one the model was published with."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that the images are divided by; same default."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""

    batch_size: int = 32
    """Photos per step; under torchrun, per process."""
    accumulate: int = 1
    """Steps whose gradients are accumulated before each weight update."""
    optimizer: str = "adamw"
    """Name of any optimiser in timm."""
    lr: float = 1e-3
    """Learning rate for a batch of lr_batch photos; scaled in proportion to the global batch size."""
    lr_batch: int = 1024
    """Batch size that lr refers to."""
    lr_min: float = 1e-6
    """Final learning rate, before the same scaling."""
    weight_decay: float = 0.05
    """Weight decay, applied only to matrices and kernels."""
    layer_decay: float | None = None
    """Learning rate factor from each layer to the one before it; none disables it."""
    clip_grad: float | None = None
    """Maximum norm of the gradient; none disables clipping."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block, rising linearly from 0."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then evaluated and kept; none disables it."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; no computes in float32."""
    channels_last: bool = True
    """Keep tensors in channels_last memory format, which makes convolutions faster."""
    compile: bool = False
    """Compile the model with torch.compile."""
    grad_checkpointing: bool = False
    """Save memory by recomputing activations in the backward pass."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over all processes instead of per process."""
    workers: int | None = None
    """Processes that read images; by default one per core, at most 8."""
    threads: int | None = None
    """Threads that PyTorch uses on a CPU, over all processes; by default one per core."""
    processes: int | None = None
    """Processes on a CPU, each with an equal part of a step's images and of the threads; `dmformer train` starts them.
    By default one for every 16 images of a step, up to the number of threads; a resumed run keeps its number."""
    seed: int = 0
    """Seed for the split, the weights, the order and the augmentation."""

    out: str = "runs"
    """Folder that holds the runs."""
    name: str | None = None
    """Name of the run's folder; by default data, model and a number."""
    overwrite: bool = False
    """Replace an existing run folder of this name."""
    resume: bool = False
    """Continue the run of this name from where it stopped."""
    save_every: int | None = None
    """Also save the state to resume from at this interval, in steps; by default only after each epoch."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where to log the curves, besides metrics.csv."""

    def check(self) -> None:
        """Raise UserError for an invalid value, in one line that says what to do."""
        if self.image_size < 32:
            raise UserError(f"--image-size is {self.image_size}: the models need 32 pixels or more.")
        self._check_counts("batch_size", "accumulate", "lr_batch", "max_pixels")
        self._check_not_negative("lr", "lr_min", "weight_decay", "freeze")
        self._check_shares("val_share", "test_share", "max_broken", "hflip", "drop_path_rate")
        for name in ("layer_decay", "ema", "clip_grad", "save_every"):
            value = getattr(self, name)
            if value is not None and (value <= 0 or (name in ("layer_decay", "ema") and value > 1)):
                raise UserError(f"{_option(name)} is {value}: it must be above 0, and a decay at most 1.")
        if self.val_share + self.test_share >= 1:
            raise UserError("--val-share and --test-share leave nothing to train on: their sum must be below 1.")
        for name in ("threads", "processes"):
            if getattr(self, name) is not None:
                self._check_counts(name)
        if self.batch_size % (self.processes or 1):
            raise UserError(f"--batch-size {self.batch_size} cannot be divided among --processes {self.processes}.")
        if self.workers is not None:
            self._check_not_negative("workers")
        if self.pretrained not in ("none", "auto", *tags(self.model)):
            raise no_weights(self.model, self.pretrained)
        self.parsed_model_args()

    def of_one_process(self) -> Self:
        """The recipe for one of the processes: an equal part of the images, the threads and the readers."""
        n = self.processes or 1
        if n == 1:
            return self
        threads = None if self.threads is None else max(1, self.threads // n)
        workers = max(1, min(available_cores(), 8) // n) if self.workers is None else -(-self.workers // n)
        return replace(self, batch_size=self.batch_size // n, threads=threads, workers=workers)

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"{_option(name)} is {getattr(self, name)}: it must be 1 or more.")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 0:
                raise UserError(f"{_option(name)} is {getattr(self, name)}: it cannot be negative.")

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1 + (name in MAY_BE_ONE):
                raise UserError(f"{_option(name)} is {getattr(self, name)}: it must be a fraction from 0 to 1.")

    def parsed_model_args(self) -> dict[str, Any]:
        """`model_args` with their values parsed as YAML: ("gate=False",) -> {"gate": False}."""
        import yaml  # here, because not every command needs it

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
        """The recipe as YAML, its task first, then one field per line."""
        import yaml

        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump({"task": self.task, **values}, sort_keys=False, allow_unicode=True)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
