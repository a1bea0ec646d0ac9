"""Model soups: the mean of the weights of several runs as one model (arXiv 2203.05482).

runs -> their photos -> the mean of their weights, with new BatchNorm statistics -> best/, recipe.yaml, soup.json
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.finding import no_remark
from ..models.create import settle_norms
from ..models.weights import read_state_dict
from ..tasks.config import TrainedFolder, read_folder
from ..tasks.opening import open_job, open_trained
from ..tasks.progress import Progress
from ..tasks.recipe import Recipe
from ..tasks.recipes import read_recipe
from ..utils.display import Track, untracked
from ..utils.errors import UserError
from ..utils.files import new_folder, write_whole
from .run_folder import SOUP
from .same_data import data_of

STATISTICS = 2048
"""Training images from which BatchNorm's statistics are estimated, at most."""

MAY_DIFFER = {"threshold", "thresholds", "tta", "drop_rate", "drop_path_rate"}
"""Entries of config.json in which the members may differ: found by validation, or of no effect on the weights."""

CALLED = {"architecture": "model", "backbone": "model", "num_classes": "number of classes", "label_names": "classes"}
CALLED |= {"class_names": "classes", "input_size": "image size"}
"""What error messages call an entry of config.json."""

LONGEST_VALUE = 60
"""Letters of such an entry that a message shows."""


@dataclass(frozen=True)
class Member:
    """A run, its validation score (None for the folds of one run), and whether its weights are in the soup."""

    run: str
    score: float | None
    used: bool


@dataclass(frozen=True)
class Soup:
    """What was made of what.

    Attributes:
        figure: Column of metrics.csv that the scores are of, e.g. val_top1.
        members: The best first.
        score: Of the soup on the validation photos; None for the folds of one run.
    """

    figure: str
    members: list[Member]
    score: float | None


def make_soup(
    sources: Sequence[str],
    out: Path,
    uniform: bool = False,
    device: str = "auto",
    track: Track = untracked,
    say: Callable[[str], None] = no_remark,
) -> Soup:
    """Average the weights of runs, and write a folder like a run's: best/, recipe.yaml and soup.json.

    The greedy soup (section 2 of the paper) begins with the best run and takes another, in the order of their scores,
    if the validation score of the mean is then at least as high. Folds of one run have no validation photos in common:
    all are averaged, and nothing is scored.

    Args:
        sources: Folders of runs, or their best/ folders. An ensemble stands for its members.
        out: The folder; it is replaced.
        uniform: Average all runs, whatever the score.
        device: See `find_device`.
        track: Shows how far it has got.
        say: Takes a line on each score.

    Raises:
        UserError: Fewer than two runs, or runs that differ in model, classes, preprocessing or photos.
    """
    folders = _members([read_folder(source) for source in sources])
    recipe, folds = _recipe_of_all(folders)
    states = [read_state_dict(folder.weights) for folder in folders]
    names = [str(folder.folder.parent) for folder in folders]
    with new_folder(out) as part:
        kitchen = _Kitchen(folders[0], replace(recipe, device=device), part / "best", track, say)
        if folds:
            kitchen.take(kitchen.mean(states))
            kitchen.keep()
            soup = Soup(kitchen.job.headline, [Member(name, None, True) for name in names], None)
        else:
            soup = _chosen(kitchen, names, states, uniform)
        write_whole(part / SOUP, json.dumps(asdict(soup), indent=1, ensure_ascii=False) + "\n")
        write_whole(part / "recipe.yaml", replace(recipe, out=str(out.parent), name=out.name).to_yaml())
    return soup


def _members(folders: Sequence[TrainedFolder]) -> list[TrainedFolder]:
    """The folders, ensembles replaced by their members; UserError if their weights cannot be averaged."""
    found = [
        read_folder(str(folder.folder / member)) if member else folder
        for folder in folders
        for member in folder.stated.get("members", [""])
    ]
    if len(found) < 2:
        raise UserError("a soup is made of two runs or more: name their folders, or the folder of a run in folds.")
    first = _flat(found[0].stated)
    for other in found[1:]:
        its = _flat(other.stated)
        for name in [*first, *(name for name in its if name not in first)]:
            if name not in MAY_DIFFER and first.get(name) != its.get(name):
                what = CALLED.get(name, name)
                told = f"{_short(its.get(name))} instead of {_short(first.get(name))}"
                raise UserError(f"{other} cannot be averaged with {found[0]}: it has another {what}, {told}.")
    return found


def _flat(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json, those of its inner mappings included."""
    flat: dict[str, Any] = {}
    for name, value in stated.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _recipe_of_all(folders: Sequence[TrainedFolder]) -> tuple[Recipe, bool]:
    """The recipe whose photos all runs were trained and validated on, and whether they are folds of a run, whose recipe
    it is then."""
    runs = [folder.folder.parent for folder in folders]
    for run, folder in zip(runs, folders, strict=True):
        if not (run / "recipe.yaml").is_file():
            raise UserError(f"{folder} is not in a run's folder, whose recipe.yaml says on which photos to score it.")
    recipes = [read_recipe(run / "recipe.yaml").alone() for run in runs]
    if recipes[0].task != folders[0].task:
        raise UserError(f"{runs[0]} is a run of {recipes[0].task}, whose models have no score to choose by.")
    above = runs[0].parent
    if all(run.parent == above for run in runs) and (above / "recipe.yaml").is_file():
        if "thresholds" in folders[0].stated:
            raise UserError(f"{above} has folds, which share no photos to choose the thresholds of a soup on.")
        return read_recipe(above / "recipe.yaml").alone(), True
    first = _data_of(runs[0], recipes[0])
    for run, recipe in zip(runs[1:], recipes[1:], strict=True):
        if _data_of(run, recipe) != first:
            told = f"{run} was trained on other photos than {runs[0]}, or with another split of them"
            raise UserError(f"{told}: its score says nothing here. Train runs for a soup with one --split-seed.")
    return recipes[0], False


def _data_of(run: Path, recipe: Recipe) -> dict[str, Any]:
    """The photos of a run: as it saved them, or if that is gone, as they are now."""
    saved = Progress.read(run / "last").data if (run / "last").is_dir() else {}
    return saved or data_of(open_job(recipe))


def _chosen(kitchen: "_Kitchen", names: Sequence[str], states: Sequence[dict[str, Tensor]], uniform: bool) -> Soup:
    """Keep the uniform or the greedy soup."""
    scores: list[float] = []
    for name, state in zip(names, states, strict=True):
        scores.append(kitchen.score(state, name))
        if scores[-1] > max(scores[:-1], default=-1.0):
            kitchen.keep()
    order = sorted(range(len(states)), key=lambda i: -scores[i])
    if uniform:
        used, best = order, kitchen.score(kitchen.mean(states), "the soup")
        kitchen.keep()
    else:
        used, best = order[:1], scores[order[0]]
        for i in order[1:]:
            score = kitchen.score(kitchen.mean([states[j] for j in (*used, i)]), f"the soup with {names[i]}")
            if score >= best:
                used, best = [*used, i], score
                kitchen.keep()
    return Soup(kitchen.job.headline, [Member(names[i], scores[i], i in used) for i in order], best)


class _Kitchen:
    """One model that takes the weights of each member and of each soup, and the data to score it on.

    Args:
        folder: Of a member, for the model.
        recipe: Whose photos are read.
        best: Folder for the soup.
        track, say: See `make_soup`.
    """

    def __init__(
        self, folder: TrainedFolder, recipe: Recipe, best: Path, track: Track, say: Callable[[str], None]
    ) -> None:
        self.best, self.track, self.say = best, track, say
        self.job = open_job(replace(recipe, processes=None))
        opened = open_trained(folder)
        self.device, self.model = opened.on_device(recipe.device), opened.model
        self.val_loader = self.job.val_loader(0, 1, False)

    def score(self, state: Mapping[str, Tensor], what: str) -> float:
        """The score of weights on the validation photos; the model keeps them."""
        self.take(state)
        row = self.job.validate(self.model, self.val_loader, self.device, lambda tensor: tensor)
        self.say(f"{what}: {self.job.headline} {row[self.job.headline]:.1%}")
        return row[self.job.headline]

    def take(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def keep(self) -> None:
        """Write the model with the weights that it has, and the thresholds that its last validation found, if any."""
        self.job.save(self.best, self.model, self.model.state_dict())

    def mean(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The mean of weights, with the BatchNorm statistics that training images have in a model of these weights.

        The mean of the members' statistics would not fit: the features of averaged weights vary less than those of each
        member. Norms with equal statistics in all members were frozen in training, and stay as they are.
        """
        first = states[0]
        self.take({name: _mean([state[name] for state in states]) for name in first})
        self.model.train()
        norms = []
        for name, norm in self.model.named_modules():
            if isinstance(norm, _BatchNorm) and (own := f"{name}.running_var") in first:
                if all(torch.equal(state[own], first[own]) for state in states):
                    norm.eval()
                else:
                    norms.append(norm)
        if norms:
            set_seed(self.job.recipe.seed)  # of mixup
            loader = self.job.train_loader(0, 1, False)
            count = min(-(-STATISTICS // self.job.recipe.batch_size), len(loader))
            batches = zip(self.track(range(count), "BatchNorm statistics"), loader, strict=False)
            settle_norms(self._pass, norms, (batch for _, batch in batches))
        return {name: tensor.clone() for name, tensor in self.model.eval().state_dict().items()}

    def _pass(self, batch: Any) -> None:
        """A batch as in training, forward only."""
        inputs, targets = send_to_device(tuple(batch[:2]), self.device)
        self.job.loss(self.model, inputs, targets)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape; of counters, the first."""
    return torch.stack(list(tensors)).mean(0) if tensors[0].is_floating_point() else tensors[0]
