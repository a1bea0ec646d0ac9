"""Linear probe of frozen features on 30 images per class at 128 px: a pretrained model, random weights, a teacher.

python benchmarks/linear_probe.py DATA [BEST...]      # the folder with clothing/ and tiny_imagenet/; best/ folders

The probe's weight decay is chosen on other images of the training split.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from timm.data import create_transform
from torch import Tensor, nn

from dmformer.models.create import random_model
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.datasets import Split, open_splits
from dmformer.tasks.classification.distillation.teacher import open_teacher
from dmformer.tasks.classification.loaders import eval_loader
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.pretraining.probing import Features, knn, linear_probe, pooled_features

PER_CLASS, HELD_OUT, SIZE = 30, 10, 128
"""Images per class for fitting, further ones for choosing the weight decay, and their size in pixels."""


class Pooled(nn.Module):
    """A teacher with the interface that `pooled_features` expects; images are 0 to 1."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.module = teacher.module

    def forward_features(self, images: Tensor) -> Tensor:
        return self.module(images)[1]

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return features


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1], "clothing").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA [BEST...], the folder with clothing/ and tiny_imagenet/")
    root = Path(sys.argv[1])
    tiny = {"data": str(root / "tiny_imagenet" / "train_20k.tar"), "test_data": str(root / "tiny_imagenet/val_4k.tar")}
    sets = {"clothing": {"data": str(root / "clothing")}, "tiny_imagenet": tiny}
    plain, imagenet = ((0.0,) * 3, (1.0,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    models: dict[str, tuple[nn.Module, Any]] = {
        "dmformer_n, random weights": (random_model("dmformer_n", SIZE), imagenet),
        "efficientnet-lite0": (Pooled(open_teacher("efficientnet-lite0", SIZE)), plain),
    }
    for source in sys.argv[2:]:
        classifier = open_classifier(source)
        models[source] = (classifier.model, (classifier.data_config["mean"], classifier.data_config["std"]))
    for name, arguments in sets.items():
        splits = open_splits(ClassificationRecipe(**arguments, seed=0))
        test = splits.test
        assert test is not None
        for model_name, (model, (mean, std)) in models.items():
            transform: Any = create_transform(SIZE, crop_pct=1.0, interpolation="bicubic", mean=mean, std=std)
            fit, chosen = taken(splits.train, PER_CLASS, 0), taken(splits.train, HELD_OUT, PER_CLASS)
            parts = [features(model.eval(), part, transform) for part in (fit, chosen, test)]
            K = len(splits.class_names)
            linear = (linear_probe(*parts, K) == parts[2].labels).float().mean()
            near = (knn(parts[0], parts[2], K) == parts[2].labels).float().mean()
            row = {"data": name, "classes": K, "model": model_name, "per_class": PER_CLASS, "pixels": SIZE}
            row |= {"test_images": len(parts[2].labels), "linear": f"{linear:.4f}", "knn": f"{near:.4f}"}
            record("linear_probe", [row])


def taken(split: Split, count: int, after: int) -> Split:
    """`count` images per class, drawn with a fixed seed, after skipping `after`."""
    assert split.indices is not None
    assert split.targets is not None
    order = np.random.default_rng(0).permutation(len(split))
    chosen = [order[split.targets[order] == k][after : after + count] for k in np.unique(split.targets)]
    places = np.sort(np.concatenate(chosen))
    return Split(split.reader, split.indices[places], split.targets[places])


def features(model: nn.Module, split: Split, transform: Any) -> Features:
    return pooled_features(model, eval_loader(split, transform, SIZE, 64, 1), torch.device("cpu"))


if __name__ == "__main__":
    main()
