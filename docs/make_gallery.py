"""Draw docs/gallery.jpg: `python docs/make_gallery.py PHOTOS`, what the weights in this package see in a few photos.

The photos of the picture are scikit-image's astronaut, chelsea, coffee and rocket, which are in the public domain.
"""

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_transform

from dmformer.interpret.cam import class_activation
from dmformer.interpret.components import principal_components
from dmformer.interpret.subject import open_subject

PICTURE = Path(__file__).parent / "gallery.jpg"
WEIGHTS, SIZE, STAGES = "dmformer_n.dist_lite0", 128, (2, 3)


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: python {sys.argv[0]} PHOTOS, a folder of a few photos")
    subject = open_subject(WEIGHTS)
    prepare: Any = create_transform(
        (3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic", mean=subject.mean, std=subject.std
    )
    photos = [Image.open(path).convert("RGB") for path in sorted(Path(sys.argv[1]).iterdir())]
    images = torch.stack([prepare(photo) for photo in photos])
    with torch.no_grad():
        probabilities, classes = subject.model(images).softmax(1).max(1)
    maps = class_activation(subject, images, classes.tolist(), "layer-cam", layer=3)
    stages = principal_components(subject, [images])
    figure = Figure(figsize=(2.2 * len(photos) + 0.4, 2.2 * (len(STAGES) + 2) + 0.4), layout="constrained")
    panels: Any = figure.subplots(len(STAGES) + 2, len(photos), squeeze=False)
    for i, column in enumerate(panels.T):
        photo = np.asarray(subject.picture(images[i]))
        name = subject.class_names[int(classes[i])].partition(",")[0]
        column[0].imshow(photo)
        column[0].set_title(textwrap.fill(f"{name}, {probabilities[i]:.0%}", 24), fontsize=9)
        for axes, stage in zip(column[1:], STAGES, strict=False):
            axes.imshow(stages[stage - 1].pictures[i].numpy(), interpolation="nearest")
        column[-1].imshow(photo.mean(2), cmap="gray")
        column[-1].imshow(maps[i].numpy(), cmap="inferno", alpha=0.6)
    for row, title in zip(
        panels, ["photo", *(f"components, stage {s}" for s in STAGES), "class, stage 3"], strict=True
    ):
        row[0].set_ylabel(title, fontsize=9)
    for axes in panels.flatten():
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
    figure.savefig(PICTURE, dpi=80, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
