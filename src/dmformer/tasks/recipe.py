"""The `Recipe` dataclass: everything that determines a training run of any kind, and its checks."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from ..data.limits import MAX_PIXELS
from ..utils.device import check_device
from ..utils.errors import UserError
from ..utils.machine import available_cores
from ..utils.pretrained import no_weights, tags

FIXED = {"resume": "fixed"}
"""Metadata of a field that a resumed run keeps: its saved state or its images would not fit another value."""
PER_EPOCH = {"resume": "per epoch"}
"""Metadata of a field that may change when a run is resumed between two epochs, but not within one."""
FREE = {"resume": "free"}
"""Metadata of a field that may change whenever a run is resumed. Paths may, because data can be moved: the loop
compares what they lead to."""
READ = {"read": True}
"""Metadata, beside one of these, of a field that decides which images are read, or with which labels or checks."""

LONGEST = 10
"""With --minutes alone, a run has at most so many times the epochs of its recipe."""

MAY_BE_ONE = ("hflip", "vflip", "erasing", "max_broken")
"""Fractions that may be 1."""


@dataclass(frozen=True)
class Recipe:
    """Options shared by all kinds of training. Every field is an option; the effective recipe is saved with the run.

    The metadata of a field says whether a resumed run may change it, FIXED, PER_EPOCH or FREE, and whether data must be
    opened again with another value, READ.
    """

    task: ClassVar[str] = ""
    """The kind of training."""
    length: ClassVar[str] = "epochs"
    """The field that says how long the training is."""

    model: str = field(default="dmformer_n", metadata=FIXED)
    """Model: any name listed by `dmformer models`, or any other timm model."""
    model_args: tuple[str, ...] = field(default=(), metadata=FIXED)
    """Arguments for the model as name=value, e.g. gate=False expand_ratio=2 levels=[[3,1],[5,2]]."""
    weights: str | None = field(default=None, metadata=FIXED)
    """Weights to start from: a run's best/ folder, a .safetensors or .pth file, or hf-hub:owner/name."""
    pretrained: str = field(default="none", metadata=FIXED)
    """Weights of this package to start from, unless --weights names others: auto (where the model has them),
    a tag, e.g. dist_lite0, or none."""
    freeze: int = field(default=0, metadata=FIXED)
    """Number of stages to freeze while fine-tuning, counted from the stem (4 trains only the head)."""

    data: str | tuple[str, ...] = field(default="", metadata=FREE | READ)
    """Location of the images."""
    val_share: float = field(default=0.15, metadata=FIXED | READ)
    """Fraction held out for validation if the data has no validation split."""
    test_share: float = field(default=0.15, metadata=FIXED | READ)
    """Fraction held out for the report if the data has neither a validation nor a test split."""
    max_broken: float = field(default=0.05, metadata=FREE | READ)
    """Maximum fraction of unreadable images; above it, the run stops and lists them."""

    max_pixels: int = field(default=MAX_PIXELS, metadata=FREE | READ)
    """Maximum number of pixels of a photo; larger ones count as unreadable."""
    allow_leaks: bool = field(default=False, metadata=FREE | READ)
    """Train although photos of one split are also in another one; the report says so."""
    near_duplicates: bool = field(default=False, metadata=FIXED | READ)
    """Also look for photos that look alike, and keep them together when photos are split at random."""

    image_size: int = field(default=224, metadata=FIXED)
    """Height and width of the images in pixels, 32 or more."""
    mean: tuple[float, float, float] | None = field(default=None, metadata=FIXED)
    """Mean of the red, green and blue values, 0 to 1, subtracted from the images;
    by default that of the starting weights, or the one the model was published with."""
    std: tuple[float, float, float] | None = field(default=None, metadata=FIXED)
    """Standard deviation that the images are divided by; same default."""
    hflip: float = field(default=0.5, metadata=FREE)
    """Probability of a horizontal flip."""

    batch_size: int = field(default=32, metadata=PER_EPOCH | READ)
    """Photos per step; under torchrun, per process. auto: the largest power of two that fits into memory."""
    accumulate: int = field(default=1, metadata=PER_EPOCH)
    """Steps whose gradients are accumulated before each weight update."""
    optimizer: str = field(default="adamw", metadata=FIXED)
    """Name of any optimiser in timm."""
    lr: float = field(default=1e-3, metadata=FREE)
    """Learning rate for a batch of lr_batch photos; scaled in proportion to the global batch size."""
    lr_batch: int = field(default=1024, metadata=FREE)
    """Batch size that lr refers to."""
    lr_min: float = field(default=1e-6, metadata=FREE)
    """Final learning rate, before the same scaling."""
    weight_decay: float = field(default=0.05, metadata=FIXED)
    """Weight decay, applied only to matrices and kernels."""
    layer_decay: float | None = field(default=None, metadata=FIXED)
    """Learning rate factor from each layer to the one before it; none disables it."""
    clip_grad: float | None = field(default=None, metadata=FREE)
    """Maximum norm of the gradient; none disables clipping."""
    drop_path_rate: float = field(default=0.0, metadata=FREE)
    """Stochastic depth rate of the last block, rising linearly from 0."""
    ema: float | None = field(default=None, metadata=FIXED)
    """Decay of the moving average of the weights, which is then evaluated and kept; none disables it."""

    precision: Literal["auto", "no", "bf16", "fp16"] = field(default="auto", metadata=FIXED)
    """Mixed precision: no computes in float32; auto is bf16 where that is faster, on recent processors and GPUs."""
    channels_last: bool = field(default=True, metadata=FREE)
    """Keep tensors in channels_last memory format, which makes convolutions faster."""
    compile: bool = field(default=False, metadata=FIXED)
    """Compile the model with torch.compile."""
    grad_checkpointing: bool = field(default=False, metadata=FREE)
    """Save memory by recomputing activations in the backward pass."""
    shard: bool = field(default=False, metadata=FREE)
    """Divide weights, gradients, the optimiser's state and the moving average among the processes (FSDP2): saves memory
    for more communication."""
    sync_batchnorm: bool = field(default=False, metadata=FREE)
    """Compute BatchNorm statistics over all processes instead of per process."""
    workers: int | None = field(default=None, metadata=FREE)
    """Processes that read images; by default one per core, at most 8."""
    device: str = field(default="auto", metadata=FREE)
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto:
    a GPU if there is one."""
    threads: int | None = field(default=None, metadata=FREE)
    """Threads that PyTorch uses on a CPU, over all processes; by default one per core."""
    processes: int | None = field(default=None, metadata=FREE)
    """Processes on a CPU, each with an equal part of a step's images and of the threads; `dmformer train` starts them.
    By default one for every 16 images of a step, up to the number of threads; a resumed run keeps its number."""
    seed: int = field(default=0, metadata=FIXED | READ)
    """Seed for the split, the weights, the order and the augmentation."""
    split_seed: int | None = field(default=None, metadata=FIXED | READ)
    """Seed for the split alone, so that runs with other seeds keep it; by default that of the run."""

    minutes: float | None = field(default=None, metadata=FREE)
    """Minutes that the run may take: the speed of the first steps sets the number of epochs (of iterations for a
    segmenter). If that number is given too, it is the maximum; else the maximum is 10 times the recipe's."""
    patience: int | None = field(default=None, metadata=FREE)
    """Stop early after this number of validations without a better score; none trains to the end.
    The best weights are kept in any case."""

    out: str = field(default="runs", metadata=FREE)
    """Folder that holds the runs."""
    name: str | None = field(default=None, metadata=FREE)
    """Name of the run's folder; by default data, model and a number."""
    overwrite: bool = field(default=False, metadata=FREE)
    """Replace an existing run folder of this name."""
    resume: bool = field(default=False, metadata=FREE)
    """Continue the run of this name from where it stopped."""
    save_every: int | None = field(default=None, metadata=FREE)
    """Also save the state to resume from at this interval, in steps; by default only after each epoch."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = field(default="tensorboard", metadata=FREE)
    """Where to log the curves, besides metrics.csv."""
    export: tuple[Literal["onnx", "openvino", "pt2", "aoti"], ...] = field(default=(), metadata=FREE)
    """Formats in which `dmformer train` also writes the best model into the run's folder at the end, checked as
    `dmformer export` does, e.g. onnx openvino."""

    def check(self) -> None:
        """Raise UserError for an invalid value, in one line that says what to do."""
        check_device(self.device)
        if self.image_size < 32:
            raise UserError(f"--image-size is {self.image_size}: the models need 32 pixels or more.")
        self._check_counts("batch_size", "accumulate", "lr_batch", "max_pixels")
        self._check_not_negative("lr", "lr_min", "weight_decay", "freeze")
        self._check_shares("val_share", "test_share", "max_broken", "hflip", "drop_path_rate")
        for name in ("layer_decay", "ema", "clip_grad", "save_every", "minutes", "patience"):
            value = getattr(self, name)
            at_most = 1 if name in ("layer_decay", "ema") else float("inf")
            if value is not None and not 0 < value <= at_most:
                raise UserError(
                    f"{_option(name)} is {value}: it must be above 0{' and at most 1' if at_most == 1 else ''}."
                )
        if self.minutes is not None and self.resume:
            raise UserError(
                f"--minutes is for the start of a run, which sets its {self.length}: resume it with "
                f"{_option(self.length)} to train longer."
            )
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

    def completed(self, start: Self, given: Collection[str]) -> Self:
        """The recipe with the fields that follow from those that the command line names.

        Args:
            start: The recipe before the command line changed it.
            given: Names of the fields that it sets.
        """
        recipe = self
        other = self.model.partition("_")[0] != start.model.partition("_")[0]
        if other and "model" in given and "model_args" not in given:  # those of the recipe are for its own model
            recipe = replace(recipe, model_args=())
        if self.minutes is not None and self.length not in given:
            recipe = recipe.lasting(LONGEST * recipe.validations)
        return recipe

    @property
    def in_folds(self) -> bool:
        """Whether it stands for several runs, one for each fold of the data."""
        return False

    @property
    def validations(self) -> int:
        """Number of validations, one at the end of each epoch of the loop."""
        return getattr(self, self.length)

    def lasting(self, validations: int) -> Self:
        """The recipe with this number of validations, and a schedule that is adapted to it."""
        length: Any = {self.length: validations}
        return replace(self, **length)

    def alone(self) -> Self:
        """The recipe with the same photos and classes, learnt from the labels alone."""
        return self

    def of_one_process(self) -> Self:
        """The recipe for one of the processes: an equal part of the images, the threads and the readers."""
        n = self.processes or 1
        if n == 1:
            return self
        threads = None if self.threads is None else max(1, self.threads // n)
        workers = max(1, min(available_cores(), 8) // n) if self.workers is None else -(-self.workers // n)
        return replace(self, batch_size=self.batch_size // n, threads=threads, workers=workers)

    @property
    def seed_of_split(self) -> int:
        """The seed by which data without splits is split."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def starting_weights(self) -> str | None:
        """The weights to load before training; a resumed run has its own."""
        return None if self.resume else self.weights

    def changes(self, other: "Recipe", kind: Mapping[str, str]) -> list[str]:
        """Names of the fields of a kind (FIXED, PER_EPOCH or FREE) that differ from another recipe's of this class."""
        return [
            f.name
            for f in fields(self)
            if f.metadata.get("resume", "fixed") == kind["resume"] and getattr(self, f.name) != getattr(other, f.name)
        ]

    def reads_as(self, other: Self) -> bool:
        """Whether data opened for another recipe are this one's: its options marked READ have the same values."""
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.metadata.get("read"))

    def spelled(self, names: Iterable[str]) -> str:
        """Fields as options of the command: "--model dmformer_s --no-compile"."""
        return " ".join(_spelled(name, getattr(self, name)) for name in names)

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

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Self:
        """The recipe that `to_yaml` wrote as these values; fields of other versions are ignored."""
        known = {f.name for f in fields(cls)}
        kept: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**kept)

    def to_yaml(self) -> str:
        """The recipe as YAML, its task first, then one field per line."""
        import yaml

        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump({"task": self.task, **values}, sort_keys=False, allow_unicode=True)


def _spelled(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _option(name if value else f"no_{name}")
    values = value if isinstance(value, tuple) else ["none" if value is None else value]
    return " ".join([_option(name), *(shlex.quote(str(each)) for each in values)])


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def recipe_of(kind: type[AnyRecipe], folder: Path) -> AnyRecipe | None:
    """The recipe of this kind of the run that a best/ folder belongs to; None if there is none, as for converted
    weights."""
    import yaml  # here, because not every command needs it

    try:
        values: Any = yaml.safe_load((folder.resolve().parent / "recipe.yaml").read_text("utf-8"))
        if values.get("task", kind.task) != kind.task:
            return None
        return kind.of_values(values)
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
