"""Results of each measure for several models: rows of a CSV, a short table, a caption and figures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import plots
from .attention_distance import attention_distances
from .components import PICTURES, principal_components
from .gates import QUANTILES, between_classes, class_channels, read_gates, variances
from .hooks import blocks
from .modulators import CUT, chosen_blocks, read_modulators
from .receptive_field import receptive_fields, relative_receptive_fields
from .similarity import cka
from .subject import Subject

BATCH, BATCH_WITH_GRADIENT, BATCH_OF_PAIRS = 16, 4, 32
"""Images per batch."""
ENERGY_SHARES, CONTRIBUTION_SHARES = (0.5, 0.95, 0.99), (0.2, 0.3, 0.5, 0.99)
BINS = 20
"""Bins of the histogram of gates."""

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Case:
    """A model and its images.

    Attributes:
        images: (n, 3, H, W), as prepared for the model.
        labels: Class of each image from its folder, (n,); None without class folders.
        wanted: Names or labels of the requested blocks, if any.
    """

    name: str
    subject: Subject
    images: Tensor
    labels: Tensor | None
    class_names: list[str]
    wanted: Sequence[str]
    progress: Progress

    def batches(self, most: int = BATCH) -> Iterable[Tensor]:
        """The images in batches of nearly equal size."""
        return self.progress(self.images.tensor_split(-(-len(self.images) // most)), f"measuring {self.name}")

    @property
    def facts(self) -> list[Any]:
        """The first cells of every row; see `FACTS`."""
        return [self.name, "trained" if self.subject.trained else "random", len(self.images), *self.images.shape[2:]]


FACTS = ["model", "weights", "images", "height", "width"]


@dataclass(frozen=True)
class Found:
    """Results of a measure; see `Analysis`. `maps` is an additional figure."""

    header: list[str]
    rows: list[list[Any]]
    short_header: list[str]
    short: list[list[str]]
    caption: str
    plot: Figure
    maps: Figure | None = None
    maps_caption: str = ""


def attention_distance_of(cases: Sequence[Case]) -> Found:
    models = [(case.name, attention_distances(case.subject, case.batches())) for case in cases]
    rows, short = [], []
    for case, (name, layers) in zip(cases, models, strict=True):
        for layer in layers:
            heads = layer.pixels.mean(0)
            spread = layer.pixels.std(0, correction=0)
            rows += [
                [*case.facts, layer.name, layer.stage, layer.stride, layer.kind, head, *figures, layer.uniform]
                for head, figures in enumerate(zip(heads.tolist(), spread.tolist(), strict=True), 1)
            ]
            cells = (heads.mean().item(), heads.min().item(), heads.max().item(), layer.uniform)
            short.append([name, layer.name, layer.kind, str(len(heads)), *(f"{v:.1f}" for v in cells)])
    height, width = cases[0].images.shape[2:]
    caption = (
        "Mean distance between a position and the positions it attends to. Each point is a head, the line is the "
        "mean per layer; high heads look far, low ones near. Black dashes: equal weights on all positions in reach; "
        "a head on the dash ignores distance. Hollow points: attention within windows, whose reach is the window."
    )
    header = [
        *FACTS,
        "layer",
        "stage",
        "stride",
        "kind",
        "head",
        "distance_px",
        "deviation_over_images",
        "equal_weights",
    ]
    short_header = ["model", "layer", "kind", "heads", "mean (px)", "nearest head", "farthest head", "equal weights"]
    return Found(header, rows, short_header, short, caption, plots.attention_distance(models, height, width))


def receptive_field_of(cases: Sequence[Case]) -> Found:
    models = [(case.name, receptive_fields(case.subject, case.batches(BATCH_WITH_GRADIENT))) for case in cases]
    rows, short = [], []
    for case, (name, fields) in zip(cases, models, strict=True):
        for stage, found in enumerate(fields, 1):
            place = [*case.facts, found.name, stage, found.stride]
            pixels = [found.area(share) for share in ENERGY_SHARES]
            rows += [
                [*place, "energy, smallest area", share, n**0.5, n / found.energy.numel()]
                for share, n in zip(ENERGY_SHARES, pixels, strict=True)
            ]
            for log, what in ((False, "contribution, square"), (True, "log10(1 + contribution), square")):
                rows += [[*place, what, share, *found.square(share, log)] for share in CONTRIBUTION_SHARES]
            square = found.square(CONTRIBUTION_SHARES[-1])
            sides = [f"{n**0.5:.1f}" for n in pixels]
            short.append([name, found.name, str(found.stride), *sides, f"{square[0]:.0f}", f"{square[1]:.1%}"])
    height, width = cases[0].images.shape[2:]
    caption = (
        "How much of the image the central unit of each stage's map depends on: the side of a square with the area of "
        "the smallest set of pixels that contains this fraction of the energy, the squared gradient of the unit with "
        "respect to the image. Higher values use more of the image; where a line is flat, further stages add nothing."
    )
    maps_caption = (
        "The energy from which the sides are computed: how much the central unit of a stage's map depends on each "
        "pixel. Each step of one is a factor of ten; black is a millionth of the largest value or less."
    )
    return Found(
        [*FACTS, "layer", "stage", "stride", "quantity", "share", "side_px", "share_of_image"],
        rows,
        ["model", "stage", "stride", "50 % (px)", "95 % (px)", "99 % (px)", "square of 99 % (px)", "of the image"],
        short,
        caption,
        plots.receptive_field(models, height, width),
        plots.receptive_field_maps(models),
        maps_caption,
    )


def relative_receptive_field_of(cases: Sequence[Case]) -> Found:
    models = [(case.name, relative_receptive_fields(case.subject, case.batches(BATCH_WITH_GRADIENT))) for case in cases]
    rows, short = [], []
    for case, (name, fields) in zip(cases, models, strict=True):
        for found in fields:
            block, sides = found.block, {}
            for what, added in (("block", False), ("what it adds", True)):
                sides[what] = [found.relative_side(share, added) for share in ENERGY_SHARES]
                rows += [
                    [*case.facts, block.name, block.label, block.kind, *found.energy.shape, what, *pair]
                    for pair in zip(ENERGY_SHARES, sides[what], strict=True)
                ]
            cells = [f"{side:.1%}" for what in sides for side in sides[what][:2]]
            short.append([name, block.label, block.kind, *cells])
    caption = (
        "How much of its own input each block of the deepest stage uses for the central unit of its output: the side "
        "of the smallest area that contains 95 % of the energy, relative to the map's side. High blocks mix the whole "
        "map, low ones their neighbourhood. Left: the whole block, where a strong skip connection favours the centre. "
        "Right: only what the block adds to its input."
    )
    return Found(
        [*FACTS, "layer", "block", "kind", "map_height", "map_width", "of", "share", "relative_side"],
        rows,
        ["model", "block", "kind", "50 %", "95 %", "what it adds: 50 %", "95 %"],
        short,
        caption,
        plots.relative_receptive_field(models),
    )


def gates_of(cases: Sequence[Case]) -> Found:
    rows, short, shown, by_prediction = [], [], [], []
    for case in cases:
        readings, predicted = read_gates(case.subject, case.batches())
        labels, names = case.labels, case.class_names
        if labels is None:
            labels, names = predicted, case.subject.class_names
            by_prediction.append(case.name)
        several = len(labels.unique()) > 1
        shown.append((case.name, readings, labels if several else None))
        for block in readings:
            place = [*case.facts, block.name, block.label]
            quantiles = torch.quantile(block.gates.double().flatten(), torch.tensor(QUANTILES).double()).tolist()
            rows += [[*place, "quantile", q, "", v] for q, v in zip(QUANTILES, quantiles, strict=True)]
            counts = torch.histc(block.gates, BINS, 0, 1) / block.gates.numel()
            rows += [
                [*place, "histogram", f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}", "", v]
                for i, v in enumerate(counts.tolist())
            ]
            parts = variances(block.gates)
            rows += [
                [*place, "variance across images", "", "", parts.across_images],
                [*place, "variance across channels", "", "", parts.across_channels],
                [*place, "share between images", "", "", parts.input_share],
            ]
            for level, share, rms in zip(block.levels, block.shares.tolist(), block.rms.tolist(), strict=True):
                rows += [[*place, "branch share", level, "", share], [*place, "branch rms", level, "", rms]]
            classes = ""
            if several:
                channels, overall, by_chance = between_classes(block.gates, labels)
                rows.append([*place, "share between classes", "", "", overall])
                rows.append([*place, "share between classes, by chance", "", "", by_chance])
                rows += [[*place, "share between classes", "", c, v] for c, v in enumerate(channels.tolist())]
                for label, found in class_channels(block.gates, labels).items():
                    rows += [[*place, "difference of the class", names[label], c, v] for c, v in found]
                classes = f"{overall:.1%} ({by_chance:.1%})"
            shares = ", ".join(f"{n} {v:.0%}" for n, v in zip(block.levels, block.shares.tolist(), strict=True))
            span = f"{quantiles[2]:.2f} ({quantiles[0]:.2f} to {quantiles[-1]:.2f})"
            short.append([case.name, block.label, span, f"{parts.input_share:.1%}", classes, shares])
    caption = (
        "Top: the channel gates over images and channels; near 0, a channel is closed. Middle: the fraction of the "
        "gates' variance between images (at 0, each channel's gate is constant), and the part of it between classes; "
        "at or below the dotted line, it is no more than for unrelated classes. Bottom: each depth-wise branch's "
        "fraction of the variance of their sum before the norm; below 0, it works against the others."
    )
    if by_prediction:
        caption += f" The classes are the model's predictions: {', '.join(by_prediction)}."
    return Found(
        [*FACTS, "layer", "block", "quantity", "of", "channel", "value"],
        rows,
        ["model", "block", "gate: median (5 to 95 %)", "between images", "classes (by chance)", "branches"],
        short,
        caption,
        plots.gates(shown),
    )


def modulators_of(cases: Sequence[Case]) -> Found:
    rows, short, models, pictures = [], [], [], []
    for case in cases:
        places = chosen_blocks(case.subject, case.wanted)
        found = read_modulators(case.subject, case.batches(), places)
        models.append((case.name, places, found))
        subject = case.subject
        photo = np.asarray(subject.picture(case.images[0]))
        pictures.append((case.name, photo, places, found))
        for place, parts in zip(places, found, strict=True):
            for part in parts:
                rows.append([*case.facts, place.name, place.label, part.name, part.energy, part.high])
                short.append([case.name, place.label, part.name, f"{part.energy:.3g}", f"{part.high:.1%}"])
    caption = (
        f"The fraction of high frequencies (above {CUT} periods per position) in the variance of the maps inside each "
        "block: each head before and after its convolution, the modulator aggregated from the heads, the value that it "
        "multiplies, and the block's output. Lower is smoother; white noise has 80 %."
    )
    maps_caption = (
        "The mean absolute value over channels for the first photo; bright is large, each map has its own scale. The "
        "energy is the mean square over all photos. Heads are shown after their convolutions; the modulator, "
        "aggregated from them, multiplies the value."
    )
    return Found(
        [*FACTS, "layer", "block", "part", "energy", "high_frequency_share"],
        rows,
        ["model", "block", "part", "energy", "high frequencies"],
        short,
        caption,
        plots.modulators(models),
        plots.modulator_maps(pictures),
        maps_caption,
    )


def cka_of(cases: Sequence[Case]) -> Found:
    first, second = cases[0], cases[-1]
    count = -(-len(first.images) // BATCH_OF_PAIRS)
    pairs = list(zip(first.images.tensor_split(count), second.images.tensor_split(count), strict=True))
    values = cka(first.subject, second.subject, first.progress(pairs, f"comparing {first.name} and {second.name}"))
    down, across = blocks(first.subject), blocks(second.subject)
    alone = len(cases) == 1
    others = values - 2 * torch.eye(len(down)) if alone else values  # exclude each block itself from its best match
    rows, short = [], []
    for i, block in enumerate(down):
        rows += [
            [*first.facts, block.name, block.label, second.name, other.name, other.label, values[i, j].item()]
            for j, other in enumerate(across)
        ]
        best = int(others[i].argmax())
        short.append([block.label, block.kind, across[best].label, across[best].kind, f"{values[i, best].item():.3f}"])
    caption = (
        "Similarity of the blocks' outputs over the photos: 1, equal up to rotation and scale; 0, unrelated. Bright "
        "squares on the diagonal are groups of blocks with similar outputs."
        if alone
        else "Similarity of the blocks' outputs over the photos: 1, equal up to rotation and scale; 0, unrelated. A "
        "bright diagonal band: the models are similar at the same depth; off the diagonal: one model has at one depth "
        "what the other has at another."
    )
    return Found(
        [*FACTS, "layer", "block", "other_model", "other_layer", "other_block", "cka"],
        rows,
        [f"{first.name}: block", "kind", f"most like {second.name}: block", "kind", "CKA"],
        short,
        caption,
        plots.cka(first.name, second.name, down, across, values),
    )


def components_of(cases: Sequence[Case]) -> Found:
    models = [(case.name, principal_components(case.subject, case.batches())) for case in cases]
    rows, short = [], []
    for case, (name, stages) in zip(cases, models, strict=True):
        for stage, found in enumerate(stages, 1):
            place = [*case.facts, found.name, stage, found.stride, len(found.variances)]
            fractions = (found.variances / found.variances.sum()).tolist()
            rows.append([*place, "effective dimensions", "", found.dimensions])
            rows += [[*place, "fraction of the variance", i, v] for i, v in enumerate(fractions, 1)]
            cells = [str(len(fractions)), f"{found.dimensions:.1f}", f"{found.share(3):.0%}"]
            short.append([name, str(stage), str(found.stride), *cells])
    caption = (
        "How many directions the features of each stage use: the variance's fraction in the first components, over all "
        "positions of all photos. A line that reaches the top early: few directions carry nearly everything."
    )
    maps_caption = (
        "The first three principal components of each stage as red, green and blue, one scale for the photos of a row "
        "of maps. Equal colours are similar features; colours of different stages or models cannot be compared."
    )
    photos = [np.asarray(cases[0].subject.picture(image)) for image in cases[0].images[:PICTURES]]
    return Found(
        [*FACTS, "layer", "stage", "stride", "channels", "quantity", "component", "value"],
        rows,
        ["model", "stage", "stride", "channels", "effective dimensions", "in the first three"],
        short,
        caption,
        plots.components(models),
        plots.component_maps(photos, models),
        maps_caption,
    )
