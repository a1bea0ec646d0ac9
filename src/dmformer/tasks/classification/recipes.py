"""Recipes for classification. `dmformer train RECIPE` runs one; every field can be overridden."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from ...utils.errors import UserError
from ..recipe import FIXED, FREE, READ
from .distillation.recipe import TaughtRecipe
from .image_recipe import ClassifierRecipe


@dataclass(frozen=True)
class ClassificationRecipe(TaughtRecipe, ClassifierRecipe):
    """Train an image classifier. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "classification"

    data: str = field(default="", metadata=FREE | READ)
    """A folder of class folders (or of train, val, test with class folders); a .tar, .tar.gz or .zip of the same;
    a .csv or .jsonl table of paths and labels;
    shards that dmformer shards wrote, as their folder or as wds/URL;
    or a timm data set: torch/cifar10, hfds/NAME, hfids/NAME (streamed), wds/NAME (shards), tfds/NAME;
    or elpv, the demo."""
    data_root: str | None = field(default=None, metadata=FREE | READ)
    """Where a named data set is stored or cached (torch/, hfds/, hfids/, wds/, tfds/)."""
    val_data: str | None = field(default=None, metadata=FREE | READ)
    """Folder, archive or table of validation photos, if they are not beside the training photos."""
    test_data: str | None = field(default=None, metadata=FREE | READ)
    """Folder, archive or table of test photos, if they are not beside the training photos."""
    train_split: str = field(default="train", metadata=FIXED | READ)
    """Split of a named data set to train on."""
    val_split: str = field(default="validation", metadata=FIXED | READ)
    """Split of a named data set to validate on."""
    num_classes: int | None = field(default=None, metadata=FIXED | READ)
    """Number of classes, for a named data set that does not state it (shards)."""
    download: bool = field(default=False, metadata=FREE | READ)
    """Allow timm to download a named data set into data_root."""

    mixup: float = field(default=0.0, metadata=FREE)
    """Mixup alpha; 0 disables it."""
    cutmix: float = field(default=0.0, metadata=FREE)
    """CutMix alpha; 0 disables it."""
    label_smoothing: float = field(default=0.0, metadata=FREE)
    """Probability mass spread over the other classes."""
    class_weights: Literal["none", "balanced"] = field(default="none", metadata=FREE)
    """balanced weights each class by the inverse of its number of photos."""

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError(
                "name your photos: --data FOLDER, with a folder for each class in it, e.g. photos/cat/1.jpg and "
                "photos/dog/1.jpg; `dmformer train` alone runs the demo."
            )
        self._check_not_negative("mixup", "cutmix")
        self._check_shares("label_smoothing")
        if self.teacher is None and self.feature_loss != "none":
            raise UserError("--feature-loss compares with a teacher: name one with --teacher.")


def elpv() -> ClassificationRecipe:
    """Solar cells, sound or defective: on a CPU in minutes."""
    return ClassificationRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        pretrained="auto",
        data="elpv",
        image_size=160,
        crop_pct=1.0,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        crop_scale=(0.7, 1.0),
        crop_ratio=(0.9, 1.1),
        vflip=0.5,
        color_jitter=0.2,
        label_smoothing=0.05,
        epochs=15,
        batch_size=32,
        lr=1e-3,
        lr_batch=32,
        warmup_epochs=1.0,
        clip_grad=5.0,
        ema=0.99,
    )


def classify() -> ClassificationRecipe:
    """Your photos in folders of classes, from the weights in this package."""
    return replace(scratch(), pretrained="auto", epochs=20)


def scratch() -> ClassificationRecipe:
    """Your photos in folders of classes, a few thousand of them, from random weights."""
    return ClassificationRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        image_size=128,
        crop_scale=(0.35, 1.0),
        color_jitter=0.3,
        label_smoothing=0.1,
        epochs=30,
        batch_size=32,
        lr=1e-3,
        lr_batch=32,
        warmup_epochs=2.0,
        clip_grad=5.0,
        ema=0.99,
    )


def finetune() -> ClassificationRecipe:
    """Your photos in folders of classes, from the weights of a larger model, --weights best/."""
    return ClassificationRecipe(
        model="dmformer_s",
        pretrained="auto",
        crop_scale=(0.35, 1.0),
        color_jitter=0.3,
        label_smoothing=0.1,
        epochs=20,
        batch_size=32,
        lr=5e-4,
        lr_batch=256,
        warmup_epochs=1.0,
        layer_decay=0.8,
        clip_grad=5.0,
        drop_path_rate=0.1,
        ema=0.998,
    )
