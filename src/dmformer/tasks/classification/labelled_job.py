"""What trainings on whole images share, with labels or without, with one label or several labels per photo."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader

from ...utils.views import WORDS
from ..progress import Progress
from ..results import reported_split, write_scores
from .datasets import Splits
from .evaluate import check_broken, predict_split
from .image_recipe import ClassifierRecipe
from .kind import Kind
from .loaders import ImageSet, validation_loader
from .model import cosine_schedule
from .report import Report


class EpochJob:
    """The part of a `Job` that is the same for all trainings on whole images."""

    recipe: Any
    unit = "epoch"
    param_groups = None

    def schedule(self) -> dict[str, Any]:
        return cosine_schedule(self.recipe)

    def check_resumed(self, progress: Progress, updates: int) -> None:
        """Accept any number of steps: an epoch is a pass over the images."""


class LabelledJob(EpochJob):
    """The part of a `Job` that is the same for one label and for several labels per photo."""

    def __init__(self, recipe: ClassifierRecipe, splits: Splits, kind: Kind) -> None:
        self.recipe, self.kind = recipe, kind
        self.splits = self.data = splits
        self.class_names, self.notes = splits.class_names, splits.notes
        self.images = (len(splits.train), len(splits.val), len(splits.test) if splits.test else 0)
        self.size = f"{recipe.image_size} px"
        self.epochs = recipe.epochs

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return validation_loader(self.splits.val, self.recipe, self.recipe.crop_pct, rank, world, pin_memory)

    def check_broken(self, broken: list[int]) -> None:
        check_broken(self.splits.train, broken, self.recipe.max_broken)

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[Any, str]:
        recipe, splits = self.recipe, self.splits
        split, name = reported_split(splits)
        classifier = self.kind.open(str(folder / "best"))
        found = predict_split(classifier, split, recipe)
        scores = self.kind.score(found.probabilities, found.targets, classifier, True)
        positions, transform, at_least = found.positions.tolist(), classifier.transform(), classifier.at_least
        shown, trained = (ImageSet(part, transform, at_least, training=False, seed=0) for part in (split, splits.train))

        def picture(i: int) -> Image.Image:
            if split.is_stream:
                raise ValueError("a stream's images cannot be shown again")
            return shown.picture(positions[i])

        unread = [(trained, i) for i in progress.broken] + [(shown, i) for i in found.broken]
        write_scores(folder, scores)
        self.kind.write_report(
            folder / "report.html",
            Report(
                title=recipe.title,
                scores=scores,
                split=name,
                class_names=splits.class_names,
                history=progress.history,
                probabilities=found.probabilities,
                targets=self.kind.truth(found.targets),
                image_names=[split.filename(i) for i in positions],
                load_image=picture,
                broken=[(images.split.filename(i), images.reason(i)) for images, i in unread],
                notes=self.notes,
                answers_are=WORDS[classifier.tta],
                recipe=recipe.to_yaml(),
                facts=facts,
            ),
        )
        return scores, name
