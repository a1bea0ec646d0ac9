"""Recipes for several labels per photo. `dmformer train tag` runs one; every field can be overridden."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...utils.errors import UserError
from ..classification.image_recipe import ClassifierRecipe
from ..recipe import FREE, READ


@dataclass(frozen=True)
class MultiLabelRecipe(ClassifierRecipe):
    """Train a multi-label classifier. Every field is an option; the effective recipe is saved with the run."""

    task: ClassVar[str] = "multilabel"

    data: str = field(default="", metadata=FREE | READ)
    """A .csv, .tsv or .jsonl table of paths and labels, with one column of labels or a 0/1 column for each class;
    or class folders or an archive of them, in which the same photo may be in several classes."""
    val_data: str | None = field(default=None, metadata=FREE | READ)
    """Table, folder or archive of validation photos, if they are not in the training data."""
    test_data: str | None = field(default=None, metadata=FREE | READ)
    """Table, folder or archive of test photos, if they are not in the training data."""
    label_separator: str | None = field(default=None, metadata=FREE | READ)
    """What separates the labels in a cell of a table; by default the one of ; | and , that most cells contain."""
    label_columns: tuple[str, ...] = field(default=(), metadata=FREE | READ)
    """Columns of a table that are classes, with 1 for photos of the class; by default all that hold only 0 and 1."""

    loss: Literal["bce", "asymmetric"] = field(default="bce", metadata=FREE)
    """bce is binary cross-entropy; asymmetric (arXiv 2009.14119) gives less weight to easy negatives."""
    class_weights: Literal["none", "balanced"] = field(default="none", metadata=FREE)
    """balanced weights the positives of each class by its negatives per positive, at most 20; for bce."""

    def check(self) -> None:
        super().check()
        if not self.data:
            raise UserError("name the photos: --data TABLE.csv with paths and labels, or a folder of class folders.")
        if self.label_separator == "":
            raise UserError("--label-separator is empty: give the characters between two labels, e.g. ';'.")
        if self.class_weights == "balanced" and self.loss != "bce":
            raise UserError("--class-weights balanced is for --loss bce: omit one of them.")


def tag() -> MultiLabelRecipe:
    """Your photos with several labels each, from the weights in this package."""
    return MultiLabelRecipe(
        model="dmformer_n",
        model_args=("layer_scale=1.0",),
        pretrained="auto",
        image_size=128,
        crop_scale=(0.35, 1.0),
        color_jitter=0.3,
        epochs=20,
        batch_size=32,
        lr=1e-3,
        lr_batch=32,
        warmup_epochs=2.0,
        clip_grad=5.0,
        ema=0.99,
    )
