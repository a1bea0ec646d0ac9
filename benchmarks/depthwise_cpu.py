"""Depth-wise convolutions on a CPU: `kernels.depthwise` against plain PyTorch, interleaved, batch 8 at 224 px.

python benchmarks/depthwise_cpu.py           # the stages of VAN-B0 and DMFormer-S, float32 and bfloat16
python benchmarks/depthwise_cpu.py rules     # the measurements behind the choices in nn/kernels/cpu.py
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record
from torch import Tensor

from dmformer.nn.kernels import cpu
from dmformer.nn.kernels.depthwise import depthwise_sum
from dmformer.nn.mixers.dma import LEVELS

STAGES = [(32, 56), (64, 56), (64, 28), (128, 28), (160, 14), (320, 14), (256, 7), (512, 7)]
KERNELS = {"7x7 dilation 3": ((7, 3),), "5x5": ((5, 1),), "9x9": ((9, 1),), "sum of DMA": LEVELS}
BATCH, ROUNDS = 8, 9


def milliseconds(f: Callable[[], object]) -> float:
    clock = time.perf_counter()
    f()
    return 1000 * (time.perf_counter() - clock)


def compare(first: Callable[[], object], second: Callable[[], object]) -> tuple[str, str, str]:
    """Median milliseconds of each, and the median ratio second / first over neighbouring turns."""
    first(), second()
    pairs = [(milliseconds(first), milliseconds(second)) for _ in range(ROUNDS)]
    return (
        f"{statistics.median(a for a, _ in pairs):.3f}",
        f"{statistics.median(b for _, b in pairs):.3f}",
        f"{statistics.median(b / a for a, b in pairs):.2f}",
    )


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return x, grad


def kernels() -> None:
    rows = []
    for name, levels in KERNELS.items():
        for C, H in STAGES:
            for dtype in (torch.float32, torch.bfloat16):
                x, grad = tensors((BATCH, C, H, H), dtype)
                x.requires_grad_()
                weights = [torch.randn(C, 1, k, k).to(dtype).requires_grad_() for k, _ in levels]
                dilations = [d for _, d in levels]

                def fast(x=x, weights=weights, dilations=dilations):
                    return depthwise_sum(x, weights, dilations)

                def plain(x=x, weights=weights, dilations=dilations, C=C):
                    pairs = zip(weights, dilations, strict=True)
                    return sum(F.conv2d(x, w, padding=d * (w.shape[-1] // 2), dilation=d, groups=C) for w, d in pairs)

                def forward(f):
                    with torch.no_grad():
                        f()

                def both(f, grad=grad):
                    f().backward(grad)

                for what, run in (("forward", forward), ("forward and backward", both)):
                    fast_ms, plain_ms, ratio = compare(lambda: run(fast), lambda: run(plain))  # noqa: B023
                    shape = {"kernel": name, "channels": C, "side": H, "dtype": str(dtype).removeprefix("torch.")}
                    times = {"what": what, "fast_ms": fast_ms, "plain_ms": plain_ms, "plain_over_fast": ratio}
                    rows.append({**shape, **times})
    record("depthwise_cpu", rows)


def rules() -> None:
    """Zeros written into the image against oneDNN's own padding, and strips against products."""
    rows = []
    for k, d in [(3, 2), (3, 4), (3, 5), (3, 6), (3, 7), (5, 2), (5, 3), (7, 2), (7, 3), (9, 2)]:
        for W in (8, 14, 28, 56):
            x, _ = tensors((4, 64, 12, W), torch.float32)
            weight = cpu.crop_to_reach(torch.randn(64, 1, k, k), d, 12, W)
            py, px = (d * (side // 2) for side in weight.shape[-2:])

            def written(x=x, weight=weight, d=d, py=py, px=px):
                return F.conv2d(cpu.pad_width(x, px), weight, None, 1, (py, 0), d, 64)

            def own(x=x, weight=weight, d=d, py=py, px=px):
                return F.conv2d(x, weight, None, 1, (py, px), d, 64)

            chosen = "written" if cpu.is_refused(d, px) else "own"
            case = {"rule": "padding", "kernel": f"{k}x{k} dilation {d}", "channels": 64, "side": W}
            rows.append({**case, "chosen": chosen, **figures("written", written, "own", own)})
    for k, d in [(5, 1), (7, 1), (9, 1), (5, 2), (7, 3)]:
        for C, H in STAGES:
            x, grad = tensors((BATCH, C, H, H), torch.float32)
            reach = min(k // 2, (H - 1) // d)
            level = ((reach, reach), d)

            def strips(x=x, grad=grad, level=level):
                return cpu.gradient_by_strips(x, grad, *level)

            def products(x=x, grad=grad, level=level):
                return cpu.gradients_by_products(x, grad, [level])

            chosen = "strips" if cpu.is_made_of_strips(H, H, *level) else "products"
            case = {"rule": "gradient", "kernel": f"{k}x{k} dilation {d}", "channels": C, "side": H}
            rows.append({**case, "chosen": chosen, **figures("strips", strips, "products", products)})
    record("depthwise_rules", rows)


def figures(
    first: str, run_first: Callable[[], object], second: str, run_second: Callable[[], object]
) -> dict[str, str]:
    """The same columns for both rules."""
    first_ms, second_ms, ratio = compare(run_first, run_second)
    return {"first": first, "first_ms": first_ms, "second_ms": second_ms, "second_over_first": ratio}


if __name__ == "__main__":
    rules() if sys.argv[1:] == ["rules"] else kernels()
