"""Images per second in training: forward, backward and step, with interleaved models, on an idle machine.

python benchmarks/training_speed.py      # models of comparison.py, at 64 px in batches of 32, float32, channels_last
"""

import statistics
import time

import timm
import torch
import torch.nn.functional as F
from comparison import MODELS
from record import record
from torch.utils.flop_counter import FlopCounterMode

import dmformer  # noqa: F401  (registers the models)

SIZE, BATCH, CLASSES, ROUNDS = 64, 32, 20, 7


def size(name: str) -> tuple[float, float]:
    """Parameters in millions and 10^9 multiply-adds at SIZE, with CLASSES classes."""
    model = timm.create_model(name, num_classes=CLASSES, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9


def main() -> None:
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(CLASSES, (BATCH,))
    models, seconds = {}, {name: [] for name in MODELS}
    for name in MODELS:
        model = timm.create_model(name, num_classes=CLASSES).train().to(memory_format=torch.channels_last)
        models[name] = model, torch.optim.AdamW(model.parameters(), fused=True)
    for turn in range(ROUNDS + 1):  # the first round is a warm-up
        for name, (model, optimizer) in models.items():
            started = time.perf_counter()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name in MODELS:
        parameters, gmacs = size(name)
        rows.append(
            {
                "model": name,
                "parameters_m": f"{parameters:.2f}",
                "gmacs": f"{gmacs:.4f}",
                "image_size": SIZE,
                "batch": BATCH,
                "images_per_second": f"{BATCH / statistics.median(seconds[name]):.1f}",
                "fastest": f"{BATCH / min(seconds[name]):.1f}",
            }
        )
    record("training_speed", rows)


if __name__ == "__main__":
    main()
