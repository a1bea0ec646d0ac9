"""Time of a fused model on a CPU by part, against two lower bounds: its arithmetic and its memory traffic.

python benchmarks/parts.py                      # dmformer_s, float32 and bfloat16, batch 8 at 224 px
python benchmarks/parts.py van_b2

The arithmetic floor is the time of the multiplications and additions at the speed of a large matrix product. The bytes
floor is the time of reading inputs and weights and writing the result once, at the speed of a copy that exceeds the
caches. Both speeds are measured first.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import timm
import torch
from record import record
from torch import Tensor, nn

import dmformer
from dmformer.nn.fused import FusedConv

BATCH, SIZE, ROUNDS = 8, 224, 9


def seconds(f: Callable[[], object], rounds: int = ROUNDS) -> float:
    f()
    times = []
    for _ in range(rounds):
        clock = time.perf_counter()
        f()
        times.append(time.perf_counter() - clock)
    return statistics.median(times)


def product_speed(dtype: torch.dtype, n: int = 2048) -> float:
    """Operations per second of a product of n x n matrices with packed weights."""
    conv = FusedConv(nn.Conv2d(n, n, 1, bias=False).to(dtype).requires_grad_(False))
    x = torch.randn(1, n, 1, n).to(dtype).contiguous(memory_format=torch.channels_last)
    return 2 * n**3 / seconds(lambda: conv(x))


def copy_speed(n: int = 2**27) -> float:
    """Bytes per second, read plus written, of a copy of n bytes into allocated memory."""
    source, target = torch.zeros(n // 4), torch.zeros(n // 4)
    return 2 * n / seconds(lambda: target.copy_(source))


def role(name: str, conv: nn.Conv2d) -> str:
    if ".blocks." not in name:
        return "stem and downsampling"
    if conv.groups > 1:
        return "depth-wise"
    return f"{'MLP' if '.mlp.' in name else 'mixer'} 1x1, stage {int(name.split('.')[1]) + 1}"


def measure(name: str, dtype: torch.dtype) -> list[dict[str, object]]:
    model = dmformer.fuse(timm.create_model(name).eval()).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(dtype).contiguous(memory_format=torch.channels_last)
    flops: dict[str, float] = defaultdict(float)
    moved: dict[str, float] = defaultdict(float)
    spent: dict[str, list[float]] = defaultdict(list)
    clocks: dict[str, float] = {}
    running: dict[str, float] = defaultdict(float)

    def watch(key: str, part: str, conv: FusedConv) -> None:
        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            clocks[key] = time.perf_counter()

        def after(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> None:
            running[part] += time.perf_counter() - clocks[key]
            flops[part] += 2 * out.numel() * conv.weight[0].numel()
            moved[part] += sum(t.nbytes for t in (*(a for a in arguments if isinstance(a, Tensor)), conv.weight, out))

        conv.register_forward_pre_hook(before)
        conv.register_forward_hook(after)

    for key, module in model.named_modules():
        if isinstance(module, FusedConv):
            watch(key, role(key, module), module)
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for amounts in (running, flops, moved):
                amounts.clear()
            clock = time.perf_counter()
            model(x)
            total = time.perf_counter() - clock
            if turn:
                for part in running:
                    spent[part].append(running[part])
                spent["the rest"].append(total - sum(running.values()))
                spent["whole model"].append(total)
    flops["whole model"], moved["whole model"] = sum(flops.values()), sum(moved.values())
    product, copy = product_speed(dtype), copy_speed()
    return [
        {
            "model": name,
            "dtype": str(dtype).removeprefix("torch."),
            "batch": BATCH,
            "image_size": SIZE,
            "part": part,
            "gflop": f"{flops[part] / 1e9:.3f}",
            "mb": f"{moved[part] / 1e6:.1f}",
            "arithmetic_floor_ms": f"{1e3 * flops[part] / product:.2f}",
            "bytes_floor_ms": f"{1e3 * moved[part] / copy:.2f}",
            "ms": f"{1e3 * statistics.median(times):.2f}",
            "gflop_per_s": f"{flops[part] / statistics.median(times) / 1e9:.0f}",
            "product_gflop_per_s": f"{product / 1e9:.0f}",
            "copy_gb_per_s": f"{copy / 1e9:.1f}",
        }
        for part, times in sorted(spent.items())
    ]


def main() -> None:
    rows = []
    for name in sys.argv[1:] or ["dmformer_s"]:
        for dtype in (torch.float32, torch.bfloat16):
            rows += measure(name, dtype)
    record("parts", rows)


if __name__ == "__main__":
    main()
