"""Parameters and multiply-adds of segmenters with 150 classes, beside the published figures.

python benchmarks/segmentation_sizes.py     # a minute; only counts, independent of the machine
"""

from typing import Any

import timm
import torch
from record import RESULTS, record
from torch.utils.flop_counter import FlopCounterMode

from dmformer.models.catalogue import count_gmacs
from dmformer.tasks.segmentation.model import HEADS, segmentation_model

PUBLISHED = {  # UperNet at 512 x 2048: millions of parameters, and what the authors call GFLOPs
    "van_b2": (57, 948),
    "van_b3": (75, 1030),
    "van_b4": (90, 1098),
    "smt_s": (50, 935),
    "smt_s depths=(3, 4, 18, 1)": (50, 935),  # its second published form
    "smt_b": (62, 1004),
    "swin_tiny_patch4_window7_224": (60, 945),
}
ATTENTION = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products of two activations, which some authors' counts exclude."""
OTHERS = ("dmformer_n", "dmformer_t", "dmformer_s", "dmformer_l", "van_b0", "van_b1", "vitaev2_s", "resnet18")


def main() -> None:
    (RESULTS / "segmentation_sizes.csv").unlink(missing_ok=True)
    rows: list[dict[str, object]] = []
    for label in (*PUBLISHED, *OTHERS):
        name, *given = label.split(" ", 1)
        args: dict[str, Any] = {"depths": (3, 4, 18, 1)} if given else {}
        if name.startswith("swin"):
            args = {"img_size": (512, 512), "strict_img_size": False}
        for head in HEADS:
            with torch.device("meta"):
                model = segmentation_model(name, 150, HEADS[head], backbone_args=args).eval()
                backbone = timm.create_model(name, num_classes=0, **args)
            parts = {"backbone": backbone, "head": model.head, "auxiliary": model.auxiliary, "all": model}
            millions = {k: sum(p.numel() for p in m.parameters()) / 1e6 if m else 0.0 for k, m in parts.items()}
            published = PUBLISHED.get(label, ("", "")) if head == "upernet" else ("", "")
            rows.append(
                {
                    "model": label,
                    "head": head,
                    **{f"parameters_{k}": f"{v:.2f}" for k, v in millions.items()},
                    "gmacs_512x512": f"{count_gmacs(model, 512):.1f}",
                    "gmacs_512x2048": f"{count_gmacs(model, 512, 2048):.1f}",
                    "attention_gmacs_512x2048": f"{attention_gmacs(model, 512, 2048):.1f}",
                    "published_parameters": published[0],
                    "published_gflops_512x2048": published[1],
                }
            )
    record("segmentation_sizes", rows)


def attention_gmacs(model: Any, height: int, width: int) -> float:
    """10^9 multiply-adds of a module's products of two activations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"))
    return sum(v for k, v in counter.get_flop_counts()["Global"].items() if k in ATTENTION) / 2e9


if __name__ == "__main__":
    main()
