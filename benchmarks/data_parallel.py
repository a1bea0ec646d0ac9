"""What data parallelism costs: bytes and operations of a step, and where it stops scaling; writes docs/scale.md.

    python benchmarks/data_parallel.py                              # with the assumptions below
    python benchmarks/data_parallel.py --images-per-second 900      # with a step measured on your GPU; prints only

A simulation, not a measurement. Every process has the whole model, computes the gradient of its images, and adds it to
the others' (a ring over the GPUs of a node, then one over the nodes). PyTorch sends the gradient in buckets of 25 MB
while the backward pass goes on; only what is left after it, at least the last bucket, makes the step longer.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from performance_tables import table
from record import replace_tables

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"

MODELS = {"dmformer_s": (26_647_612, 5.085), "dmformer_l": (44_869_240, 8.979)}
"""Parameters, and 10^9 multiply-adds for an image of 224 px (docs/models.md)."""
GPUS = (1, 8, 64, 512)
PER_NODE = 8
NETWORKS = {"25 Gbit/s": 25, "100 Gbit/s": 100, "400 Gbit/s": 400}
"""Of a node, all its GPUs together."""

OPERATIONS = 6
"""Operations of a training step per multiply-add of the forward pass: two, and twice as many in the backward pass."""
SUSTAINED = 50e12
"""Operations per second that a GPU sustains in these models, in bfloat16."""
SHORTEST = 0.030
"""Seconds that a step takes at least, however few its images: starting the kernels."""
BACKWARD = 2 / 3
"""Fraction of a step that is the backward pass, during which gradients are sent."""
BUCKET = 25 * 2**20
"""Bytes of a bucket of gradients."""
INSIDE = 200e9
"""Bytes per second between the GPUs of a node (NVLink)."""
USABLE = 0.8
"""Fraction of the network's bandwidth that is reached."""
LATENCY_INSIDE, LATENCY = 5e-6, 20e-6
"""Seconds for a message inside a node, and between nodes."""
PHOTO = 110e3
"""Bytes of a photo of ImageNet."""


@dataclass(frozen=True)
class Step:
    """A step of all GPUs together: seconds; bytes that each node sends; bytes of photos that each node reads a second.

    `alone` is the time of the same images on one GPU without others.
    """

    seconds: float
    alone: float
    sent: float
    images: int
    read: float

    @property
    def efficiency(self) -> float:
        return self.alone / self.seconds


def all_reduce(size: float, gpus: int, bandwidth: float) -> tuple[float, float]:
    """Seconds to add `size` bytes over all GPUs, and the bytes that a node sends for it."""
    inside, nodes = min(gpus, PER_NODE), max(gpus // PER_NODE, 1)
    sent = 2 * (nodes - 1) / nodes * size
    seconds = 2 * (inside - 1) / inside * size / INSIDE + sent / bandwidth
    return seconds + 2 * (inside - 1) * LATENCY_INSIDE + 2 * (nodes - 1) * LATENCY, sent


def step(model: str, gpus: int, images: int, gigabits: float, images_per_second: float | None = None) -> Step:
    """A step of `images` images on each GPU."""
    parameters, gmacs = MODELS[model]
    rate = images_per_second or SUSTAINED / (OPERATIONS * gmacs * 1e9)
    alone = max(images / rate, SHORTEST)
    gradient = 4.0 * parameters
    bandwidth = gigabits * 1e9 / 8 * USABLE
    whole, sent = all_reduce(gradient, gpus, bandwidth)
    last, _ = all_reduce(min(BUCKET, gradient), gpus, bandwidth)
    agreed, _ = all_reduce(8, gpus, bandwidth)  # the loop asks after each step whether any process was told to stop
    waiting = (max(whole - BACKWARD * alone, last) + agreed) if gpus > 1 else 0.0
    seconds = alone + waiting
    return Step(seconds, alone, sent, images * gpus, images * min(gpus, PER_NODE) / seconds * PHOTO)


def costs(images_per_second: float | None = None) -> str:
    """What a step of 128 images on each GPU computes and sends."""
    header = ["128 images on each GPU", "GPUs", "images a step", "10^12 operations a GPU", "MB a node sends"]
    header += ["MB/s of photos a node reads", *(f"efficiency, {name}" for name in NETWORKS), "images/s, 100 Gbit/s"]
    lines = []
    for model, (_, gmacs) in MODELS.items():
        for gpus in GPUS:
            found = {name: step(model, gpus, 128, gigabits, images_per_second) for name, gigabits in NETWORKS.items()}
            middle = found["100 Gbit/s"]
            line = [model, str(gpus), f"{middle.images:,}", f"{128 * OPERATIONS * gmacs / 1e3:.1f}"]
            line += [f"{middle.sent / 1e6:.0f}", f"{middle.read / 1e6:.0f}"]
            lines.append(
                [*line, *(f"{s.efficiency:.0%}" for s in found.values()), f"{middle.images / middle.seconds:,.0f}"]
            )
    return table(header, lines)


def fixed_batch(images_per_second: float | None = None) -> str:
    """The same 1,024 images a step, as the papers have it, divided among ever more GPUs at 100 Gbit/s."""
    header = ["1,024 images a step", "GPUs", "images on each", "ms a step", "of which waiting", "times as fast as one"]
    lines = []
    for model in MODELS:
        one = step(model, 1, 1024, 100, images_per_second).seconds
        for gpus in GPUS:
            found = step(model, gpus, 1024 // gpus, 100, images_per_second)
            waiting = (found.seconds - found.alone) * 1e3
            line = [model, str(gpus), str(1024 // gpus), f"{found.seconds * 1e3:.0f}", f"{waiting:.1f}"]
            lines.append([*line, f"{one / found.seconds:.1f}"])
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, help="measured on one GPU; by default from the assumptions")
    options = parser.parse_args()
    tables = {"costs": costs(options.images_per_second), "fixed batch": fixed_batch(options.images_per_second)}
    if options.images_per_second is None:
        replace_tables(PAGE, tables)
    print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
