"""Training a detector."""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.detections import THRESHOLD, coco_results
from ...data.palette import default_palette
from ...models.create import size_argument
from ...models.features import freeze_maps, undecayed
from ...utils.display import track
from ...utils.errors import UserError
from ...utils.extras import needs
from ...utils.files import write_whole
from ..build import check_names, classifier_weights, continued
from ..config import TrainedFolder, trained_for
from ..folders import check_broken
from ..progress import Progress
from ..results import reported_split, write_scores
from .datasets import BoxSplits, open_checked
from .detector import TASK, DetectorConfig, detector_config, open_detector, save_detector
from .evaluate import find_objects
from .loaders import BoxDataset, GroupedSampler, eval_boxes_loader, eval_transform, train_boxes_loader, train_transform
from .metrics import DetectionScores
from .model import BOX_NAMES, FRAMEWORK_NAMES, WITH_MASKS, DetectionModel
from .recipes import WITH_TRANSFORMERS, DetectionRecipe
from .report import DetectionReport, write_detection_report

FREE_SIZES = {"strict_img_size", "dynamic_img_size"}
"""Arguments with which timm's models made for one size accept every size."""


class DetectionJob:
    """See `Job`."""

    headline = "val_ap"

    def __init__(self, recipe: DetectionRecipe, data: BoxSplits | None = None) -> None:
        check_names(recipe)
        if size_argument(recipe.model, recipe.image_size) and not FREE_SIZES & recipe.parsed_model_args().keys():
            raise UserError(
                f"{recipe.model} takes images of one fixed size, but those of a detector vary in size: if the model "
                "can accept them, as Swin can, give --model-args strict_img_size=False."
            )
        with needs("det", "training a detector"):  # before the images are checked, which can take minutes
            import_module("faster_coco_eval")
            if recipe.framework in WITH_TRANSFORMERS:
                import_module("transformers")
                import_module("scipy")
        self.recipe = recipe
        self.splits = self.data = splits = data or open_checked(recipe, track)
        self.notes = list(splits.notes)
        self.class_names = list(splits.train.class_names)
        self.images = (len(splits.train), len(splits.val), len(splits.test) if splits.test else 0)
        self.masks = recipe.learns_masks and splits.train.has_masks
        self.framework = FRAMEWORK_NAMES[recipe.framework]
        if recipe.learns_masks and not self.masks:
            self.framework = BOX_NAMES[recipe.framework]
            told = "not every training object has an outline, so masks cannot be learnt"
            self.notes.append(f"{told}: the detector is {self.framework}")
        if self.masks and not splits.val.has_masks:
            self.notes.append("not every validation object has an outline: masks are not validated")
        self.size = f"sides of {min(recipe.sides)} to {max(recipe.sides)} px, and predicted at {recipe.image_size}"
        self.every = recipe.interval
        self.epochs = recipe.validations
        self.unit = "epoch" if self.every == 1 else "validation interval"
        self.updates = 1
        self.threshold = THRESHOLD

    def config(self) -> DetectorConfig:
        """The configuration of the recipe's detector."""
        recipe, train = self.recipe, self.splits.train
        regularised = {"drop_path_rate": recipe.drop_path_rate} if recipe.drop_path_rate else {}
        assert recipe.mean is not None
        assert recipe.std is not None
        return DetectorConfig(
            backbone=recipe.model,
            backbone_args={**regularised, **recipe.parsed_model_args()},
            framework=recipe.framework,
            masks=self.masks,
            width=recipe.width,
            samples=recipe.samples,
            queries=recipe.queries,
            class_names=tuple(train.class_names),
            category_ids=tuple(train.category_ids),
            mean=recipe.mean,
            std=recipe.std,
            image_size=recipe.image_size,
            max_side=recipe.max_side,
            value_range=train.reading.values,
            threshold=self.threshold,
        )

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        recipe, config = self.recipe, self.config()
        if recipe.starting_weights and (trained := trained_for(TASK, recipe.starting_weights)):
            model = _continued(trained, config)
        else:
            model = config.build(classifier_weights(recipe, config.backbone_args))
        backbone = model.backbone_module()
        if recipe.grad_checkpointing:
            backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        kept = freeze_maps(backbone, recipe.freeze) if recipe.freeze else []
        if recipe.norm_statistics == "kept":
            kept += [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return model, kept

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for the backbone, which may have its own learning rate, and for the rest, each with and without
        decay."""
        recipe = self.recipe
        assert isinstance(model, DetectionModel)
        backbone = model.backbone_module()
        groups = param_groups_weight_decay(backbone, recipe.weight_decay, no_weight_decay_list=undecayed(backbone))
        for group in groups:
            group["lr_scale"] = recipe.backbone_lr
        inside = {id(parameter) for parameter in backbone.parameters()}
        for group in param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=undecayed(model)):
            rest = [parameter for parameter in group["params"] if id(parameter) not in inside]
            groups.append({**group, "params": rest})
        return [group for group in groups if group["params"]]

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        recipe, config, boxes = self.recipe, self.config(), self.splits.train
        transform = train_transform(
            recipe.sides, recipe.max_side, recipe.hflip, recipe.jitter, recipe.photometric, config.mean, config.std
        )
        sampler = GroupedSampler(boxes.sizes, recipe.batch_size, rank, world, recipe.seed, self.every)
        self.updates = max(len(sampler) // recipe.accumulate, 1)
        return train_boxes_loader(boxes, transform, sampler, recipe.workers, recipe.seed, pin_memory, self.masks)

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        config = self.config()
        transform = eval_transform(config.image_size, config.max_side, config.mean, config.std)
        return eval_boxes_loader(self.splits.val, transform, self.recipe.workers, rank, world, pin_memory)

    def schedule(self) -> dict[str, Any]:
        warmup = min(self.recipe.warmup_iterations / self.updates, self.epochs / 10)
        if self.recipe.schedule == "cosine":
            return {"sched": "cosine", "num_epochs": self.epochs, "warmup_epochs": warmup}
        drops = [drop / self.every for drop in self.recipe.drops]
        steps = {"sched": "multistep", "decay_milestones": drops, "decay_rate": 0.1}
        return {**steps, "num_epochs": self.epochs, "warmup_epochs": warmup}

    def loss(
        self, model: nn.Module, inputs: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(inputs, targets)
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        masks = self.masks and self.splits.val.has_masks
        meter, _ = find_objects(model, loader, self.splits.val, device, masks)
        meter = meter.gathered()
        self.threshold = meter.best_threshold()
        scores = meter.scores(resamples=0)
        figures = {"val_ap": scores.boxes.ap, "val_ap50": scores.boxes.ap50, "val_ap75": scores.boxes.ap75}
        if scores.masks is not None:
            figures |= {"val_mask_ap": scores.masks.ap, "val_mask_ap50": scores.masks.ap50}
        return {name: value or 0.0 for name, value in figures.items()}

    def check_resumed(self, progress: Progress, updates: int) -> None:
        if progress.updates not in (0, updates):
            raise UserError(
                f"this run is validated every {progress.updates} iterations, not every {updates}: resume it with the "
                "--validate-every, --batch-size, --accumulate and number of processes that it was started with."
            )

    def line(self, row: dict[str, float]) -> str:
        masks = ", mask AP {val_mask_ap:.1%}".format(**row) if "val_mask_ap" in row else ""
        return (
            f"{self.unit} {{epoch:g}} of {self.epochs}: loss {{train_loss:.3f}}, AP {{val_ap:.1%}}, "
            f"AP50 {{val_ap50:.1%}}{masks}, "
            "{images_per_second:.1f} images/s, {wait_share:.1%} waiting for data"
        ).format(**row)

    def check_broken(self, broken: list[int]) -> None:
        train = self.splits.train
        check_broken("training photos", broken, len(train), train.name, self.recipe.max_broken)

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        save_detector(folder, self.config(), state)

    def contents(self) -> Iterator[str]:
        for boxes in (self.splits.train, self.splits.val, self.splits.test):
            yield from (path.name for path in (boxes.images if boxes is not None else ()))

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[DetectionScores, str]:
        recipe, splits = self.recipe, self.splits
        boxes, split = reported_split(splits)
        detector = open_detector(str(folder / "best"))
        device = detector.on_device(recipe.device)
        transform = detector.transform()
        loader: Any = track(eval_boxes_loader(boxes, transform, recipe.workers), f"scoring on {split}")
        masks = self.masks and boxes.has_masks
        meter, found = find_objects(detector.model, loader, boxes, device, masks)
        scores = meter.scores()
        shown = BoxDataset(boxes, transform, training=False, seed=0, masks=False)
        positions = sorted(found)

        def load(i: int) -> Any:
            return shown.picture(positions[i])

        write_scores(folder, scores)
        results = [
            row
            for position in positions
            for row in coco_results(found[position], int(boxes.image_ids[position]), detector.category_ids)
        ]
        write_whole(folder / "detections.json", json.dumps(results) + "\n")
        write_detection_report(
            folder / "report.html",
            DetectionReport(
                title=f"{recipe.model} with {self.framework} on {Path(recipe.data).stem}",
                scores=scores,
                split=split,
                threshold=detector.threshold,
                class_names=self.class_names,
                palette=default_palette(len(self.class_names)),
                history=[{**row, "epoch": row["epoch"] * self.every} for row in progress.history],
                image_names=[boxes.name(position) for position in positions],
                found=[found[position] for position in positions],
                truths=[boxes.annotations[position] for position in positions],
                load=load,
                masks=(lambda i: detector.detect(load(i))) if masks else None,
                faults=[*splits.faults, *((splits.train.name(i), "became unreadable") for i in progress.broken)],
                recipe=recipe.to_yaml(),
                facts=facts,
                notes=self.notes,
            ),
        )
        return scores, split


def _continued(trained: TrainedFolder, config: DetectorConfig) -> DetectionModel:
    """A detector with another one's weights; parts that depend on a differing number of classes start anew."""
    stated = detector_config(trained)
    if (stated.backbone, stated.framework) != (config.backbone, config.framework):
        raise UserError(
            f"{trained} is {stated.backbone} with {stated.framework}: give the same --model and --framework."
        )
    if stated.masks != config.masks:
        told = "predicts masks, but the data has none" if stated.masks else "predicts no masks, but the data has them"
        raise UserError(f"{trained} {told}: start from a classifier's weights instead.")
    for option in ("width", "queries") if config.framework not in WITH_MASKS else ():
        if getattr(stated, option) != getattr(config, option):
            value = getattr(stated, option)
            raise UserError(f"{trained} has another --{option}: give --{option} {'none' if value is None else value}.")
    return continued(trained, config.build(), len(stated.class_names) == len(config.class_names))
