"""Pretraining a backbone on several sets of images, labelled or not, with or without a teacher."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...utils.display import track
from ...utils.errors import UserError
from ...utils.intervals import wilson
from ..classification.classifier import Classifier, open_classifier, save_classifier
from ..classification.datasets import Split
from ..classification.distillation.distillation import Distillation
from ..classification.distillation.loaders import ViewSet
from ..classification.distillation.student import CLASSES, Student, check_teachable, own_state
from ..classification.labelled_job import EpochJob
from ..classification.loaders import ImageSet, eval_loader
from ..classification.model import build_model, preprocessing
from ..classification.recipes import ClassificationRecipe
from ..folders import check_broken
from ..progress import Progress
from ..results import write_scores
from ..sampling import once_each
from .metrics import PretrainingScores, ProbeScore, SourceScore
from .probing import Features, knn, linear_probe, nearest, pooled_features
from .recipes import PretrainingRecipe
from .report import Neighbours, PretrainingReport, write_pretraining_report
from .sources import Source, Sources, open_sources, opened

QUERIES, SHOWN, GALLERY = 8, 6, 2000
"""Number of images whose nearest neighbours are shown, neighbours shown of each, and size of the gallery."""


class PretrainingJob(EpochJob):
    """See `Job`."""

    def __init__(self, recipe: PretrainingRecipe, data: Sources | None = None) -> None:
        self.recipe = recipe
        self.data = self.sources, notes = data or open_sources(recipe)
        self.labelled = [i for i, source in enumerate(self.sources) if source.class_names]
        if recipe.teacher is None and not self.labelled:
            raise UserError("no source has labels and there is no teacher: give --teacher, or class folders.")
        train, val = [s.train for s in self.sources], [s.val for s in self.sources]
        self.distillation = Distillation(recipe, train, val, [s.name for s in self.sources])
        teacher = self.distillation.teacher
        self.headline = "val_agreement" if teacher else "val_top1"
        self.class_names = teacher.class_names if teacher else self.sources[self.labelled[0]].class_names
        self.images: tuple[int, int, int] = (sum(map(len, train)), sum(map(len, val)), 0)
        self.size = f"{', '.join(map(str, recipe.sizes))} px"
        self.epochs = recipe.epochs
        self.notes = [*notes, *_notes(self.sources)]

    def head(self, source: int) -> str:
        """Name of the student's layer that predicts a source's classes; without a teacher, the first source has the
        classifier."""
        first = self.distillation.teacher is None and source == self.labelled[0]
        return CLASSES if first else f"source {source}"

    def build_model(self) -> tuple[nn.Module, list[nn.Module]]:
        model, frozen = build_model(self.recipe, self.class_names)
        check_teachable(model, self.recipe.model)
        heads = {self.head(i): len(self.sources[i].class_names) for i in self.labelled}
        heads.pop(CLASSES, None)
        return Student(model, heads | self.distillation.heads), frozen

    def train_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        sizes = [self.recipe.size(epoch) for epoch in range(self.epochs)]
        loader = self.distillation.train_loader(sizes, rank, world, pin_memory)
        assert isinstance(loader.dataset, ViewSet)
        self.views = loader.dataset
        return loader

    def val_loader(self, rank: int, world: int, pin_memory: bool) -> DataLoader:
        return self.distillation.val_loader(rank, world, pin_memory)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = model(inputs)
        loss, figures = torch.zeros((), device=inputs.device), {}
        if (answers := self.distillation.answers(targets)) is not None:
            loss, figures = self.distillation.loss(outputs, CLASSES, answers)
        right, labelled = torch.zeros((), device=inputs.device), 0
        for i in self.labelled:
            logits, own = outputs[self.head(i)].float(), targets["source"] == i
            wanted = targets["label"].where(own, -1)
            # The mean over the batch, whatever fraction comes from this source: each labelled image has the same
            # weight.
            part = F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum") / len(inputs)
            loss = loss + self.recipe.label_weight * part
            right = right + (logits.argmax(1) == wanted).float().sum()
            labelled = labelled + own.sum()
        if self.labelled:
            figures["top1"] = right / torch.as_tensor(labelled).clamp(min=1)
        return loss, figures

    @torch.no_grad()
    def validate(
        self, model: nn.Module, loader: DataLoader, device: torch.device, gather: Callable[[Any], Any]
    ) -> dict[str, float]:
        training = model.training
        model.eval()
        rows = []
        for images, targets, positions in loader:
            targets = {name: value.to(device) for name, value in targets.items()}
            outputs = model(images.to(device, memory_format=torch.channels_last), heads=True)
            rows.append(gather(self._row(outputs, targets, positions.to(device))).cpu())
        model.train(training)
        found = torch.cat(rows)
        found = found[once_each(found[:, 0])]
        self._check_broken_val(found)
        found = found[found[:, 0] >= 0]
        row = {}
        if self.distillation.teacher is not None:
            row = {"val_loss": float(found[:, 4].mean()), "val_agreement": float(found[:, 3].mean())}
        tops = {}
        for i in self.labelled:
            own = found[found[:, 1] == i]
            tops[f"val_top1_{self.sources[i].name}"] = float(own[:, 2].mean()) if len(own) else 0.0
        if tops:
            row |= {"val_top1": sum(tops.values()) / len(tops), **tops}
        return row

    def _row(self, outputs: dict[str, Tensor], targets: dict[str, Tensor], positions: Tensor) -> Tensor:
        """(B, 5): position, source, whether it matches the label, and the teacher's top class, the teacher's loss."""
        right = torch.zeros(len(positions), device=positions.device)
        for i in self.labelled:
            met = outputs[self.head(i)].argmax(1) == targets["label"]
            right = right.where(targets["source"] != i, met.float())
        agreed, loss = torch.zeros_like(right), torch.zeros_like(right)
        if (answers := self.distillation.answers(targets)) is not None:
            log = outputs[CLASSES].float().log_softmax(1)
            agreed = (log.argmax(1) == answers.probabilities.argmax(1)).float()
            loss = -(answers.probabilities * log).sum(1)
        exact = torch.float32 if loss.device.type == "mps" else torch.float64  # a Metal GPU has no float64
        columns = (positions, targets["source"], right, agreed, loss)
        return torch.stack([column.to(exact) for column in columns], 1)

    def _check_broken_val(self, found: Tensor) -> None:
        broken = int((found[:, 0] < 0).sum())
        if broken > self.recipe.max_broken * len(found):
            raise UserError(f"{broken} of {len(found)} validation photos cannot be read, more than --max-broken.")

    def line(self, row: dict[str, float]) -> str:
        told = f"epoch {row['epoch']:g} of {self.epochs}: loss {row['train_loss']:.3f}"
        if "val_agreement" in row:
            told += f", agreement with the teacher {row['val_agreement']:.1%}"
        if "val_top1" in row:
            told += f", accuracy {row['val_top1']:.1%} (mean of the sources)"
        return f"{told}, {row['images_per_second']:.0f} images/s, {row['wait_share']:.1%} waiting for data"

    def check_broken(self, broken: list[int]) -> None:
        for position in broken:
            self.views.reason(position)  # an image that differs from the one the teacher saw ends the run
        check_broken("photos", broken, len(self.views), self.views.name, self.recipe.max_broken)

    def save(self, folder: Path, model: nn.Module, state: dict[str, Tensor]) -> None:
        assert isinstance(model, Student)
        values = next((s.train.reading.values for s in self.sources if s.train.reading.values), None)
        config = preprocessing(self.recipe, 1.0)
        save_classifier(folder, model.model, own_state(state), self.class_names, config, values)

    def contents(self) -> Iterator[str]:
        for source in self.sources:
            for split in (source.train, source.val):
                yield from (f"{source.name}/{split.filename(i)}" for i in range(len(split)))

    def conclude(self, folder: Path, progress: Progress, facts: dict[str, str]) -> tuple[PretrainingScores, str]:
        recipe = self.recipe
        classifier = open_classifier(str(folder / "best"))
        device = classifier.on_device(recipe.device)
        best = [row for row in progress.history if row[self.headline] == progress.best][-1]
        n = self.images[1]
        agreement = wilson(round(best["val_agreement"] * n), n) if "val_agreement" in best else None
        sources = [
            SourceScore(s.name, len(s.class_names), wilson(round(best[f"val_top1_{s.name}"] * len(s.val)), len(s.val)))
            for s in (self.sources[i] for i in self.labelled)
        ]
        probe = probed(classifier, recipe.probe, recipe, device) if recipe.probe else None
        seen = round(best["epoch"]) * self.images[0]
        scores = PretrainingScores(n, seen, agreement, sources, probe)
        write_scores(folder, scores)
        write_pretraining_report(
            folder / "report.html",
            PretrainingReport(
                title=f"{recipe.model} pretrained on {', '.join(s.name for s in self.sources)}",
                scores=scores,
                teacher=recipe.teacher,
                history=progress.history,
                neighbours=self._neighbours(classifier, device),
                broken=[(self.views.name(i), self.views.reason(i)) for i in progress.broken],
                recipe=recipe.to_yaml(),
                facts=facts,
            ),
        )
        return scores, "held out"

    def _neighbours(self, classifier: Classifier, device: torch.device) -> list[Neighbours]:
        """The held-out images with the nearest features, for a few held-out images spread over the sources."""
        share = max(GALLERY // len(self.sources), SHOWN + 1)
        parts: list[tuple[ImageSet, Features, Source]] = []
        for source in self.sources:
            step = max(-(-len(source.val) // share), 1)
            assert source.val.indices is not None
            assert source.val.targets is not None
            some = replace(source.val, indices=source.val.indices[::step], targets=source.val.targets[::step])
            loader = evaluated(classifier, some, self.recipe)
            assert isinstance(loader.dataset, ImageSet)
            found = pooled_features(classifier.model, loader, device)
            parts.append((loader.dataset, found, source))
        values = torch.cat([found.values for _, found, _ in parts])
        places = [(images, int(i), source) for images, found, source in parts for i in found.positions]
        if len(places) < 2:
            return []

        def shown(place: int, cosine: float | None) -> tuple[str, Image.Image | None, float | None]:
            images, position, source = places[place]
            try:
                return f"{source.name}/{images.split.filename(position)}", images.picture(position), cosine
            except Exception:  # whatever is wrong with one image, the page matters more
                return source.name, None, cosine

        queries = [round(k * (len(places) - 1) / (QUERIES - 1)) for k in range(QUERIES)]
        rows = []
        for query in dict.fromkeys(queries):
            cosines, near = nearest(values[query : query + 1], values, SHOWN + 1)
            pairs = [(int(j), float(c)) for j, c in zip(near[0], cosines[0], strict=True) if int(j) != query][:SHOWN]
            rows.append(Neighbours(shown(query, None), [shown(j, c) for j, c in pairs]))
        return rows


def _notes(sources: list[Source]) -> list[str]:
    """What the user should know: sets without labels, and class names that several sets share."""
    notes = [f"{s.name}: {len(s.train) + len(s.val):,} photos without labels" for s in sources if not s.class_names]
    owners: dict[str, list[str]] = {}
    for source in sources:
        for name in source.class_names:
            owners.setdefault(name, []).append(source.name)
    shared = [f"'{name}' ({' and '.join(of)})" for name, of in owners.items() if len(of) > 1]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        notes.append(f"classes with the same name in several sources are kept separate: {', '.join(shared[:5])}{more}")
    return notes


def probed(classifier: Classifier, data: str, recipe: PretrainingRecipe, device: torch.device) -> ProbeScore:
    """Score the model's frozen features on a labelled folder with a linear probe and nearest neighbours."""
    splits = opened(data, recipe, test_share=ClassificationRecipe.test_share)
    test = splits.test or splits.val
    parts = [splits.train, splits.val, test]
    train, val, test_features = (
        pooled_features(
            classifier.model, evaluated(classifier, part, recipe), device, lambda b: track(b, "probing the features")
        )
        for part in parts
    )
    K, n = len(splits.class_names), len(test_features.labels)
    linear = linear_probe(train, val, test_features, K) == test_features.labels
    near = knn(train, test_features, K) == test_features.labels
    return ProbeScore(
        Path(data).name, K, len(train.labels), n, wilson(int(linear.sum()), n), wilson(int(near.sum()), n)
    )


def evaluated(classifier: Classifier, split: Split, recipe: PretrainingRecipe) -> DataLoader:
    """A loader of a split with the classifier's preprocessing."""
    return eval_loader(split, classifier.transform(), classifier.at_least, recipe.batch_size, recipe.workers)
