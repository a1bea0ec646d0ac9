"""Time and memory of a training step and a prediction of each detector, in interleaved rounds.

python benchmarks/detection_speed.py [BACKBONE]      # dmformer_n by default; on a GPU if there is one
"""

import statistics
import sys
from typing import Any

import torch
from record import RESULTS, record
from torch import Tensor

from dmformer.bench.variants import Call, memory_over_rest
from dmformer.tasks.detection.model import FRAMEWORKS, detection_model
from dmformer.utils.timing import interleave, turn

HEIGHT, WIDTH, BATCH, CLASSES, OBJECTS = 480, 640, 2, 80, 10
ROUNDS, SECONDS = 3, 0.1


def main() -> None:
    backbone = sys.argv[1] if len(sys.argv) > 1 else "dmformer_n"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    calls = {}
    for framework, make in FRAMEWORKS.items():
        torch.manual_seed(0)
        calls[framework, "training"] = training(detection_model(backbone, CLASSES, make).to(device), device)
        calls[framework, "prediction"] = prediction(detection_model(backbone, CLASSES, make).to(device), device)
    memory = {key: memory_over_rest(call, device) for key, call in calls.items()}
    times = interleave([lambda call=call: turn(call.run, SECONDS) for call in calls.values()], ROUNDS, lambda *_: None)
    place = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    measured = [
        {
            "backbone": backbone,
            "framework": framework,
            "what": what,
            "photos": BATCH if what == "training" else 1,
            "height": HEIGHT,
            "width": WIDTH,
            "device": place,
            "ms": f"{1e3 * statistics.median(seconds):.0f}",
            "lowest": f"{1e3 * min(seconds):.0f}",
            "highest": f"{1e3 * max(seconds):.0f}",
            "memory_mb": f"{memory[framework, what] or 0:.0f}",
        }
        for (framework, what), seconds in zip(calls, times, strict=True)
    ]
    name = "detection_speed" if device.type == "cpu" else "detection_speed_gpu"
    (RESULTS / f"{name}.csv").unlink(missing_ok=True)
    record(name, measured)


def photos(n: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, HEIGHT, WIDTH, generator=generator).to(device) for _ in range(n)]


def training(model: Any, device: torch.device) -> Call:
    """Forward, losses, backward and an AdamW step on two images of ten objects each, with masks if supported."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for _ in range(BATCH):
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([WIDTH - 120.0, HEIGHT - 120.0])
        boxes = torch.cat([corner, corner + 20 + 100 * torch.rand(OBJECTS, 2, generator=generator)], 1)
        target = {"boxes": boxes, "labels": torch.randint(CLASSES, (OBJECTS,), generator=generator)}
        if model.predicts_masks:
            masks = torch.zeros(OBJECTS, HEIGHT, WIDTH, dtype=torch.uint8)
            for mask, (left, upper, right, lower) in zip(masks, boxes.int().tolist(), strict=True):
                mask[upper:lower, left:right] = 1
            target["masks"] = masks
        targets.append({name: value.to(device) for name, value in target.items()})
    optimizer, images = torch.optim.AdamW(model.train().parameters(), lr=1e-5), photos(BATCH, device)

    def step() -> None:
        loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)

    return Call(step, lambda: None)


def prediction(model: Any, device: torch.device) -> Call:
    """Prediction on one image."""
    images = photos(1, device)
    model.eval()

    @torch.inference_mode()
    def predict() -> None:
        model(images)
        wait(device)

    return Call(predict, lambda: None)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
