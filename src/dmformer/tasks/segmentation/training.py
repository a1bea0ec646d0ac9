"""Training a semantic segmenter."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...models.create import size_argument
from ...models.features import freeze_maps
from ...utils.display import track
from ...utils.errors import UserError
from ...utils.extras import needs
from ..build import check_names, classifier_weights, continued
from ..config import TrainedFolder, trained_for
from ..folders import Fault, check_broken
from ..progress import Progress
from ..results import reported_split, write_scores
from ..sampling import StepSampler
from .checks import open_checked
from .datasets import PairSplits, class_pixels
from .evaluate import count_pixels
from .loaders import PairSet, eval_pairs_loader, eval_transform, train_pairs_loader, train_transform
from .masks import IGNORE
from .metrics import SegmentationScores, class_counts, image_ious, score_masks
from .model import SegmentationModel, segmentation_loss
from .recipes import HEAD_NAMES, SegmentationRecipe
from .report import SegmentationReport, write_segmentation_report
from .segmenter import TASK, SegmenterConfig, open_segmenter, save_segmenter, segmenter_config


class SegmentationJob:
    """See `Job`."""

    headline, unit = "val_miou", "validation interval"
    param_groups = None

    def __init__(self, recipe: SegmentationRecipe, data: tuple[PairSplits, list[Fault]] | None = None) -> None:
        check_names(recipe)
        with needs("seg", HEAD_NAMES[recipe.head]):  # before the masks are read, which can take minutes
            import_module("segmentation_models_pytorch" if recipe.head == "fpn" else "transformers")
        if recipe.head == "upernet" and recipe.batch_size == 1 and not recipe.sync_batchnorm:
            raise UserError("upernet needs --batch-size 2 or more: with 1, its norms see one value per channel.")
        self.recipe = recipe
        self.data = splits, self.broken = data or open_checked(recipe, track)
        self.splits, self.notes = splits, splits.notes
        self.class_names = list(splits.labels.class_names)
        self.images = (len(splits.train), len(splits.val), len(splits.test) if splits.test else 0)
        self.size = f"{recipe.image_size} px"
        self.class_weights = None
        if recipe.class_weights == "balanced":
            counts = torch.from_numpy(class_pixels(splits.train)).float()
            self.class_weights = 1 / torch.log(1.02 + counts / counts.sum())
        self.every = recipe.interval
        self.epochs = recipe.validations

    def config(self) -> SegmenterConfig:
        """The configuration of the recipe's segmenter."""
        recipe = self.recipe
        sized = size_argument(recipe.model, recipe.image_size)
        regularised = {"drop_path_rate": recipe.drop_path_rate} if recipe.drop_path_rate else {}
        assert recipe.mean is not None
        assert recipe.std is not None
        return SegmenterConfig(
            backbone=recipe.model,
            backbone_args={**sized, **regularised, **recipe.parsed_model_args()},
            head=recipe.head,
            width=recipe.width,
            dropout=recipe.dropout,
            class_names=self.splits.labels.class_names,
            palette=self.splits.labels.palette,
            mean=recipe.mean,
            std=recipe.std,
            resize=recipe.resize,
            window=recipe.window,
            reduce_zero_label=recipe.reduce_zero_label,
            ignore_index=self.splits.labels.ignore_index,
            colours=tuple(self.splits.labels.colours),
            value_range=self.splits.train.reading.values,
        )

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        recipe, config = self.recipe, self.config()
        if recipe.starting_weights and (trained := trained_for(TASK, recipe.starting_weights)):
            model = _continued(trained, config)
        else:
            model = config.build(classifier_weights(recipe, config.backbone_args))
        if recipe.grad_checkpointing:
            model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        return model, freeze_maps(model.backbone, recipe.freeze) if recipe.freeze else []

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        recipe, config = self.recipe, self.config()
        transform = train_transform(recipe, config.mean, config.std)
        pairs = self.splits.train
        steps = self.every * recipe.accumulate
        sampler = StepSampler(len(pairs), recipe.batch_size, rank, world, recipe.seed, steps)
        return train_pairs_loader(pairs, transform, sampler, recipe.workers, recipe.seed, pin_memory)

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        config = self.config()
        transform = eval_transform(config.mean, config.std, config.resize)
        return eval_pairs_loader(self.splits.val, transform, self.recipe.workers, rank, world, pin_memory)

    def schedule(self) -> dict[str, Any]:
        warmup = min(self.recipe.warmup_iterations / self.every, self.epochs / 2)
        decay = {"sched": "poly", "decay_rate": self.recipe.power}
        return {**decay, "num_epochs": self.epochs, "warmup_epochs": warmup}

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = model(inputs)
        weights = self.class_weights.to(targets.device) if self.class_weights is not None else None
        loss = segmentation_loss(outputs, targets, self.recipe.auxiliary_weight, weights)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        counted = targets != IGNORE
        right = ((logits.argmax(1) == targets) & counted).sum() / counted.sum().clamp(min=1)
        return loss, {"accuracy": right}

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        counts = count_pixels(model, loader, len(self.class_names), device, self.config().window)
        # Each process has a part of the images; their counts add up.
        confusion = gather(counts.confusion[None].to(device)).sum(0)
        loss = float(gather(torch.tensor([counts.loss], device=device)).cpu().double().sum())
        scores = score_masks(confusion, class_counts(confusion)[None], self.class_names, resamples=0)
        return {
            "val_loss": loss / scores.pixels,
            "val_miou": scores.miou.value,
            "val_macc": scores.macc,
            "val_aacc": scores.aacc,
        }

    def check_resumed(self, progress: Progress, updates: int) -> None:
        if progress.updates not in (0, updates):
            raise UserError(
                f"this run is validated every {progress.updates} iterations, not every {updates}: resume it with "
                f"--validate-every {progress.updates}, and with --iterations a multiple of that."
            )

    def line(self, row: dict[str, float]) -> str:
        return (
            "iteration {iteration:g} of {total:g}: loss {train_loss:.3f}, validation loss {val_loss:.3f}, "
            "mIoU {val_miou:.1%}, pixel accuracy {val_aacc:.1%}, {images_per_second:.1f} images/s, "
            "{wait_share:.1%} waiting for data".format(**row, total=self.recipe.iterations)
        )

    def check_broken(self, broken: list[int]) -> None:
        train = self.splits.train
        check_broken("training images", broken, len(train), train.name, self.recipe.max_broken)

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        save_segmenter(folder, self.config(), state)

    def contents(self) -> Iterator[str]:
        for pairs in (self.splits.train, self.splits.val, self.splits.test):
            yield from (path.name for path in (pairs.images if pairs is not None else ()))

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[SegmentationScores, str]:
        recipe, splits = self.recipe, self.splits
        pairs, split = reported_split(splits)
        segmenter = open_segmenter(str(folder / "best"))
        device = segmenter.on_device(recipe.device)
        transform = segmenter.transform()
        loader: Any = track(eval_pairs_loader(pairs, transform, recipe.workers), f"scoring on {split}")
        counts = count_pixels(segmenter.model, loader, len(self.class_names), device, segmenter.config.window)
        scores = score_masks(counts.confusion, counts.images, self.class_names)
        shown = PairSet(pairs, transform, training=False, seed=0)

        def triptych(i: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
            image, truth = shown.picture(counts.positions[i])
            return image, truth, segmenter.segment(image)

        write_scores(folder, scores)
        write_segmentation_report(
            folder / "report.html",
            SegmentationReport(
                title=f"{recipe.model} with {HEAD_NAMES[recipe.head]} on {Path(recipe.data).name}",
                scores=scores,
                split=split,
                class_names=self.class_names,
                palette=list(splits.labels.palette),
                history=progress.history,
                image_names=[pairs.name(i) for i in counts.positions],
                image_ious=image_ious(counts.images).tolist(),
                load=triptych,
                broken=[*self.broken, *((splits.train.name(i), "became unreadable") for i in progress.broken)],
                recipe=recipe.to_yaml(),
                facts=facts,
                notes=self.notes,
            ),
        )
        return scores, split


def _continued(trained: TrainedFolder, config: SegmenterConfig) -> SegmentationModel:
    """A segmenter with another one's weights; the last convolutions only if the number of classes is the same."""
    stated = segmenter_config(trained)
    if (stated.backbone, stated.head) != (config.backbone, config.head):
        raise UserError(f"{trained} is {stated.backbone} with {stated.head}: give the same --model and --head.")
    return continued(trained, config.build(), len(stated.class_names) == len(config.class_names))
