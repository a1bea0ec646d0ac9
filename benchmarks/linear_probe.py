"""Linear probe of frozen features on 5 to 30 images per class at 128 px: pretrained models, random weights, teachers.

python benchmarks/linear_probe.py DATA [MODEL...]      # the folder with clothing/ and tiny_imagenet/

A model is a best/ folder, the name of the package's weights, efficientnet-lite0, 1 or 2, or "random"; by default
dmformer_n, random, efficientnet-lite0 and efficientnet-lite2. The probe's weight decay is chosen on other images of the
training split.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor, nn

from dmformer.models.create import random_model
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.datasets import Split, open_splits
from dmformer.tasks.classification.distillation.teacher import open_teacher
from dmformer.tasks.classification.loaders import eval_loader
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.pretraining.probing import Features, knn, linear_probe, pooled_features

PER_CLASS, HELD_OUT, SIZE = (5, 10, 20, 30), 10, 128
"""Images per class for fitting, further ones for choosing the weight decay, and their size in pixels."""
MODELS = ("dmformer_n", "random", "efficientnet-lite0", "efficientnet-lite2")


class Pooled(nn.Module):
    """A teacher with the interface that `pooled_features` expects; images are 0 to 1."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.module = teacher.module

    def forward_features(self, images: Tensor) -> Tensor:
        return self.module(images)[1]

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return features


def opened(name: str) -> tuple[nn.Module, Any]:
    """A model in evaluation mode, and the mean and standard deviation that it expects."""
    if name == "random":
        return random_model("dmformer_n", SIZE), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if name.startswith("efficientnet-lite"):
        return Pooled(open_teacher(name, SIZE)).eval(), ((0.0,) * 3, (1.0,) * 3)
    classifier = open_classifier(name)
    return classifier.model, (classifier.data_config["mean"], classifier.data_config["std"])


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1], "clothing").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA [MODEL...], the folder with clothing/ and tiny_imagenet/")
    root = Path(sys.argv[1])
    place = root / "tiny_imagenet"
    tiny: dict[str, Any] = {"data": str(place / "train_20k.tar"), "test_data": str(place / "val_4k.tar")}
    tiny["allow_leaks"] = True  # one photo is in both
    sets: dict[str, dict[str, Any]] = {
        "solar cells": {"data": "elpv"},
        "clothing": {"data": str(root / "clothing")},
        "tiny_imagenet": tiny,
    }
    for model_name in sys.argv[2:] or MODELS:
        model, (mean, std) = opened(model_name)
        transform: Any = create_transform(SIZE, crop_pct=1.0, interpolation="bicubic", mean=mean, std=std)
        for name, arguments in sets.items():
            splits = open_splits(ClassificationRecipe(**arguments, seed=0))
            test = splits.test
            assert test is not None
            chosen, told = (
                features(model, part, transform) for part in (taken(splits.train, HELD_OUT, max(PER_CLASS)), test)
            )
            for per_class in PER_CLASS:
                fit = features(model, taken(splits.train, per_class, 0), transform)
                K = len(splits.class_names)
                linear, near = linear_probe(fit, chosen, told, K), knn(fit, told, K)
                row = {"data": name, "classes": K, "model": model_name, "per_class": per_class, "pixels": SIZE}
                row["test_images"] = len(told.labels)
                for probe, predictions in (("linear", linear), ("knn", near)):
                    right = (predictions == told.labels).float()
                    each = [float(right[told.labels == k].mean()) for k in range(K)]
                    row |= {probe: f"{right.mean():.4f}", f"{probe}_balanced": f"{np.mean(each):.4f}"}
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
