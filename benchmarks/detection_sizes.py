"""Parameters and multiply-adds of detectors for COCO's 80 classes at 1280 x 800, beside the published figures.

python benchmarks/detection_sizes.py     # ten minutes and 8 GB; independent of the machine

Runs a real prediction with random weights, because proposals cannot be counted otherwise: 1000 proposals, and 100
objects with masks, as in the authors' counts.
"""

from typing import Any

import torch
from record import RESULTS, record
from torch.utils.flop_counter import FlopCounterMode

from dmformer.tasks.detection.model import FRAMEWORKS, detection_model

HEIGHT, WIDTH = 800, 1280
BACKBONES = ("van_b2", "smt_s", "dmformer_s")
PUBLISHED = {  # for SMT-S: millions of parameters, and what the authors call GFLOPs
    "mask_rcnn": (40, 265),
    "cascade_rcnn": (78, 744),
    "retinanet": (30, 247),
    "atss": (28, 214),
    "dino": (40, 309),
}
PRODUCTS = (
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
    *(
        getattr(torch.ops.aten, name)
        for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention")
        if hasattr(torch.ops.aten, name)
    ),
)
"""Products of two activations, which some authors' counts exclude."""


def main() -> None:
    (RESULTS / "detection_sizes.csv").unlink(missing_ok=True)
    for name in BACKBONES:
        for framework, make in FRAMEWORKS.items():
            torch.manual_seed(0)
            model = all_counted(detection_model(name, 80, make).eval().requires_grad_(False))
            parts = {"backbone": model.backbone_module(), "all": model}
            millions = {k: sum(p.numel() for p in m.parameters()) / 1e6 for k, m in parts.items()}
            total, products = gmacs(model)
            published = PUBLISHED.get(framework, ("", "")) if name == "smt_s" else ("", "")
            record(
                "detection_sizes",
                [
                    {
                        "backbone": name,
                        "framework": framework,
                        **{f"parameters_{k}": f"{v:.2f}" for k, v in millions.items()},
                        "gmacs": f"{total:.1f}",
                        "gmacs_of_two_activations": f"{products:.1f}",
                        "published_parameters": published[0],
                        "published_gflops": published[1],
                    }
                ],
            )


def all_counted(model: Any) -> Any:
    """Let a model keep the maximum of proposals and objects; random ones would overlap or score too low."""
    if hasattr(model, "rpn"):
        model.rpn.nms_thresh = 1.0
    for part in model.modules():
        if hasattr(part, "score_thresh"):
            part.score_thresh = -1.0
    return model


@torch.inference_mode()
def gmacs(model: Any) -> tuple[float, float]:
    """10^9 multiply-adds for one image, and those of products of two activations."""
    image = torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model([image])
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.values()) / 2e9, sum(v for k, v in counts.items() if k in PRODUCTS) / 2e9


if __name__ == "__main__":
    main()
