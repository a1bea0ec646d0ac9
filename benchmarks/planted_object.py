"""Does class activation find what was learnt? The pointing game on synthetic images with known object positions.

An image is clutter with one object, whose texture is its class. A small model of every family learns the classes, but
never the positions. A map hits if its maximum lies within the object's box, with the customary tolerance: 15 pixels on
images about 500 wide (Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016), so 4 of 128. Chance is
the fraction of the image that counts as a hit. The same is measured for each model with random weights, and for the
maps shifted by half a cell up and to the left, where the centre of a cell's receptive field is in most models.

Times are CPU times on one thread, so other load on the machine hardly matters.

python benchmarks/planted_object.py [MODEL...]
python benchmarks/planted_object.py page     # write the results into docs/explain.md, draw docs/planted_object.jpg
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from performance_tables import table
from PIL import Image, ImageDraw
from record import record, replace_tables, rows
from torch import Tensor

from dmformer.interpret.cam import METHODS, class_activation, layer_name
from dmformer.interpret.randomisation import randomised
from dmformer.interpret.subject import Subject
from dmformer.report.drawing import heat
from dmformer.utils.intervals import wilson

KINDS = ("stripes across", "stripes down", "chequers", "dots")
SIZE, BATCH, TESTED = 128, 16, 200
STAGES = 3
"""How many of the last stages are measured."""
SIDES = (28, 40)
"""Minimum and maximum side of the object in images of `SIZE`."""

Box = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels; the last two are exclusive."""

MODELS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "dmformer_n": (300, 2e-3, dict(dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), layer_scale=1.0)),
    "van_b0": (600, 2e-3, dict(dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), layer_scale=1.0)),
    "smt_t": (800, 1e-3, dict(dims=(16, 32, 64, 128), depths=(1, 1, 2, 1))),
    "vitae_t": (300, 2e-3, dict(embed_dims=(16, 16, 32), dims=(32, 32, 64), depth=2)),
    "vitaev2_s": (
        300,
        2e-3,
        dict(
            embed_dims=(16, 16, 32, 32),
            dims=(16, 32, 64, 128),
            depths=(1, 1, 2, 1),
            groups=(1, 16, 16, 16),
            reduction_groups=(1, 16, 16, 16),
        ),
    ),
    "resnet18": (150, 1e-3, {}),
}
"""Training steps, learning rate and arguments of narrow models that train in minutes on one core."""


def scene(generator: np.random.Generator, kind: int, size: int = SIZE) -> tuple[np.ndarray, Box]:
    """An image (size, size, 3), uint8, of clutter with one object of a kind at a random place, and its box.

    Two decoys have the size and contrast of the object, but a random texture.
    """
    coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for shape in range(8):
        x, y, w, h = (generator.uniform(0, 1, 4) * size * (1, 1, 0.4, 0.4)).tolist()
        colour = tuple(generator.integers(0, 256, 3).tolist())
        (draw.ellipse if shape % 2 else draw.rectangle)((x, y, x + w, y + h), fill=colour)
    pixels = np.array(image, dtype=np.float32)
    top = left = side = 0
    for texture in (None, None, kind):
        side = int(generator.integers(SIDES[0], SIDES[1] + 1) * size / SIZE)
        top, left = generator.integers(0, size - side + 1, 2).tolist()
        dark, light = generator.integers(0, 100, 3), generator.integers(156, 256, 3)
        pattern = _pattern(generator, texture, side)[..., None]
        pixels[top : top + side, left : left + side] = np.where(pattern, light, dark)
    pixels += generator.normal(0, 12, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8), (top, left, top + side, left + side)


def _pattern(generator: np.random.Generator, kind: int | None, side: int) -> np.ndarray:
    """(side, side), bool; without a kind, random squares of 3 pixels."""
    if kind is None:
        squares = generator.integers(0, 2, (side // 3 + 1, side // 3 + 1)).astype(bool)
        return squares.repeat(3, 0).repeat(3, 1)[:side, :side]
    y, x = np.mgrid[:side, :side] + generator.integers(0, 6, (2, 1, 1))
    return (y % 6 < 3, x % 6 < 3, (y % 8 < 4) ^ (x % 8 < 4), (y % 6 - 2.5) ** 2 + (x % 6 - 2.5) ** 2 < 4)[kind]


def scenes(generator: np.random.Generator, n: int, size: int = SIZE) -> tuple[Tensor, Tensor, list[Box]]:
    """Normalised images (n, 3, size, size), their kinds (n) and the boxes of their objects."""
    kinds = generator.integers(0, len(KINDS), n).tolist()
    images, boxes = zip(*(scene(generator, kind, size) for kind in kinds), strict=True)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, torch.tensor(kinds), list(boxes)


def train(model: Any, steps: int, size: int = SIZE, batch: int = BATCH, lr: float = 1e-3, seed: int = 0) -> Any:
    """Train on images generated on the fly; returns the model in evaluation mode."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(steps):
        x, kinds, _ = scenes(generator, batch, size)
        F.cross_entropy(model(x), kinds).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def as_subject(name: str, model: Any, size: int = SIZE) -> Subject:
    """A model trained by this script, as a subject."""
    info = model.feature_info
    return Subject(
        name,
        model,
        [entry["module"] for entry in info],
        [entry["reduction"] for entry in info],
        list(KINDS),
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        (size, size),
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1,
    )


def middles(maps: Tensor) -> Tensor:
    """Row and column (N, 2) of the maximum of each map (N, H, W); the mean position if there are several."""
    return torch.stack([torch.nonzero(values >= values.max() - 1e-6).double().mean(0) for values in maps])


def hits(maps: Tensor, boxes: list[Box]) -> list[bool]:
    """Whether the maximum of each map (H, W) lies in its box or within the tolerance.

    A map of zeros misses.
    """
    tolerance = _tolerance(maps.shape[-1])
    found = []
    for values, (row, column), (top, left, bottom, right) in zip(maps, middles(maps).tolist(), boxes, strict=True):
        inside = top - tolerance <= row < bottom + tolerance and left - tolerance <= column < right + tolerance
        found.append(bool(values.any()) and inside)
    return found


def chance(boxes: list[Box], size: int = SIZE) -> float:
    """Fraction of the image within the box or its tolerance, averaged over the images."""
    tolerance, shares = _tolerance(size), []
    for top, left, bottom, right in boxes:
        height = min(bottom + tolerance, size) - max(top - tolerance, 0)
        width = min(right + tolerance, size) - max(left - tolerance, 0)
        shares.append(height * width / size**2)
    return statistics.mean(shares)


def _tolerance(size: int) -> int:
    return round(15 * size / 500)


def measure(name: str) -> list[dict[str, object]]:
    steps, lr, arguments = MODELS[name]
    torch.manual_seed(0)
    clock = time.process_time()
    model = train(timm.create_model(name, num_classes=len(KINDS), **arguments), steps, lr=lr)
    minutes = (time.process_time() - clock) / 60
    x, kinds, boxes = scenes(np.random.default_rng(1), TESTED)
    with torch.inference_mode():
        accuracy = float((torch.cat([model(part) for part in x.split(BATCH)]).argmax(1) == kinds).float().mean())
    subject = as_subject(name, model)
    control = randomised(subject, list(x[:BATCH]))
    centres = torch.tensor(boxes).double().view(-1, 2, 2).mean(1) - 0.5
    measured: list[dict[str, object]] = []
    for stage in range(len(subject.stages), len(subject.stages) - STAGES, -1):
        stride = subject.strides[stage - 1]
        # The layer used for the stage and, if different, the stage's own output.
        for layer in dict.fromkeys([layer_name(subject, stage), subject.stages[stage - 1]]):
            for method in METHODS:
                maps, others = (_maps(each, x, kinds, method, layer) for each in (subject, control))
                moved = F.pad(maps, (0, stride // 2, 0, stride // 2))[:, stride // 2 :, stride // 2 :]
                down, right = (middles(maps) - centres).median(0).values.tolist()
                measured.append(
                    {
                        "model": name,
                        "arguments": " ".join(f"{k}={v}".replace(" ", "") for k, v in arguments.items()),
                        "steps": steps,
                        "training_cpu_minutes": f"{minutes:.1f}",
                        "top1": f"{accuracy:.3f}",
                        "stage": stage,
                        "stride": stride,
                        "layer": layer,
                        "method": method,
                        "images": TESTED,
                        "chance": f"{chance(boxes):.3f}",
                        **_figures("hits", wilson(sum(hits(maps, boxes)), TESTED)),
                        **_figures("random_hits", wilson(sum(hits(others, boxes)), TESTED)),
                        "moved_hits": f"{sum(hits(moved, boxes)) / TESTED:.3f}",
                        "down_px": f"{down:.1f}",
                        "right_px": f"{right:.1f}",
                        "map_cpu_ms": f"{1e3 * _seconds(subject, x[:1], kinds[:1].tolist(), method, layer):.0f}",
                    }
                )
    return measured


def _maps(subject: Subject, x: Tensor, kinds: Tensor, method: str, layer: str) -> Tensor:
    parts = zip(x.split(BATCH), kinds.split(BATCH), strict=True)
    return torch.cat([class_activation(subject, images, k.tolist(), method, layer) for images, k in parts])


def _figures(name: str, rate: Any) -> dict[str, str]:
    return {name: f"{rate.value:.3f}", f"{name}_low": f"{rate.low:.3f}", f"{name}_high": f"{rate.high:.3f}"}


def _seconds(subject: Subject, x: Tensor, kinds: list[int], method: str, layer: str) -> float:
    times = []
    for _ in range(5):
        clock = time.process_time()
        class_activation(subject, x, kinds, method, layer)
        times.append(time.process_time() - clock)
    return statistics.median(times)


def stages_table() -> str:
    """Hits in percent by model and stage, one method per column: trained / with random weights."""
    found = [r for r in rows("planted_object") if r["layer"] == _taken(r)]
    lines = []
    for key in dict.fromkeys((r["model"], r["stage"], r["stride"]) for r in found):
        cells = [
            "{} ({} to {}) / {}".format(*(_percent(r, k) for k in ("hits", "hits_low", "hits_high", "random_hits")))
            for r in found
            if (r["model"], r["stage"], r["stride"]) == key
        ]
        lines.append([key[0], f"{key[1]} (stride {key[2]})", *cells])
    return table(["model", "stage", *METHODS], lines)


def norms_table() -> str:
    """Hits in percent before and after the final norms of the stages of VAN and SMT."""
    found = rows("planted_object")
    keys = [(r["model"], r["stage"]) for r in found if r["layer"] != _taken(r)]
    lines = []
    for model, stage in dict.fromkeys(keys):
        cells = [
            " / ".join(
                _percent(r, "hits")
                for r in sorted(found, key=lambda r: r["layer"] != _taken(r))
                if (r["model"], r["stage"], r["method"]) == (model, stage, method)
            )
            for method in METHODS
        ]
        lines.append([model, stage, *cells])
    return table(["model", "stage", *METHODS], lines)


def _taken(row: dict[str, str]) -> str:
    """The layer used for the stage of a row."""
    same = [r["layer"] for r in rows("planted_object") if (r["model"], r["stage"]) == (row["model"], row["stage"])]
    return same[0]


def _percent(row: dict[str, str], key: str) -> str:
    return f"{100 * float(row[key]):.0f}"


def draw(path: Path) -> None:
    """Draw some images under the maps of the small DMFormer at two stages, trained and with random weights."""
    steps, lr, arguments = MODELS["dmformer_n"]
    torch.manual_seed(0)
    subject = as_subject("", train(timm.create_model("dmformer_n", num_classes=len(KINDS), **arguments), steps, lr=lr))
    x, kinds, boxes = scenes(np.random.default_rng(2), 5)
    control = randomised(subject, list(x))
    columns = [
        class_activation(each, x, kinds.tolist(), layer=stage)
        for each, stage in ((subject, 3), (subject, 2), (control, 3))
    ]
    grid = Image.new("RGB", (5 * (SIZE + 8) - 8, 4 * (SIZE + 8) - 8), "white")
    for i, (pixels, (top, left, bottom, right)) in enumerate(zip(x, boxes, strict=True)):
        photo = Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
        box = np.zeros((SIZE, SIZE), bool)
        box[top:bottom, left:right] = True
        for row, picture in enumerate([photo, *(heat(photo, maps[i].numpy(), box) for maps in columns)]):
            grid.paste(picture, (i * (SIZE + 8), row * (SIZE + 8)))
    grid.save(path, quality=88)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["page"]:
        docs = Path(__file__).parents[1] / "docs"
        replace_tables(docs / "explain.md", {"stages": stages_table(), "norms": norms_table()})
        draw(docs / "planted_object.jpg")
        return
    for name in sys.argv[1:] or MODELS:
        record("planted_object", measure(name))


if __name__ == "__main__":
    main()
