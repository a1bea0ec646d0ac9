"""DMA's sum of three depth-wise convolutions on a CPU: `kernels.depthwise` against plain PyTorch, in turn.

python benchmarks/depthwise_cpu.py
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record

from dmformer.kernels.depthwise import depthwise_sum
from dmformer.mixers.dma import LEVELS

SHAPES = [(32, 32, 32, 32), (32, 64, 16, 16), (32, 128, 8, 8), (32, 192, 4, 4), (8, 64, 56, 56), (8, 320, 14, 14)]
ROUNDS = 7


def milliseconds(f: Callable[[], object]) -> float:
    clock = time.perf_counter()
    f()
    return 1000 * (time.perf_counter() - clock)


def main() -> None:
    rows = []
    for shape in SHAPES:
        C = shape[1]
        x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn(shape).to(memory_format=torch.channels_last)
        weights = [torch.randn(C, 1, k, k, requires_grad=True) for k, _ in LEVELS]
        dilations = [d for _, d in LEVELS]

        def fast(x=x, weights=weights, dilations=dilations):
            return depthwise_sum(x, weights, dilations)

        def plain(x=x, weights=weights, dilations=dilations, C=C):
            levels = zip(weights, dilations, strict=True)
            return sum(F.conv2d(x, w, padding=d * (w.shape[-1] // 2), dilation=d, groups=C) for w, d in levels)

        def forward(f):
            with torch.no_grad():
                f()

        def both(f, grad=grad):
            f().backward(grad)

        for what, run in (("forward", forward), ("forward and backward", both)):
            run(fast), run(plain)
            pairs = [(milliseconds(lambda: run(fast)), milliseconds(lambda: run(plain))) for _ in range(ROUNDS)]  # noqa: B023
            rows.append(
                {
                    "shape": "x".join(map(str, shape)),
                    "what": what,
                    "fast_ms": f"{statistics.median(a for a, _ in pairs):.2f}",
                    "plain_ms": f"{statistics.median(b for _, b in pairs):.2f}",
                    "plain_over_fast": f"{statistics.median(b / a for a, b in pairs):.2f}",
                }
            )
    record("depthwise_cpu", rows)


if __name__ == "__main__":
    main()
