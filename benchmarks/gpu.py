"""DMA's taps with BatchNorm and ReLU, and whole models, on a GPU: our kernels against PyTorch, eager and compiled.

python benchmarks/gpu.py           # results/gpu.csv and results/gpu_models.csv, as far as 8 minutes allow
python benchmarks/gpu.py stages    # only the stages
python benchmarks/gpu.py models    # only whole models

Compilation takes most of the time, so Triton's kernels are first compiled on all cores, into Triton's cache.

Times are medians of repeated, interleaved runs. Floors are lower bounds on the time of our form: its bytes at the
bandwidth of torch.clone on the same tensor, and its multiplications and additions at the GPU's float32 rate (81 of each
per element and sweep, not on tensor cores).
"""

import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from record import record
from torch import Tensor, nn

import dmformer  # noqa: F401 (registers the models)
from dmformer.nn.kernels import depthwise
from dmformer.nn.mixers.dma import LEVELS

BATCH = 128
STAGES = [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
"""Channels, height and width of dmformer_s's stages at 224 pixels."""
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FLOP_PER_S = {"NVIDIA H200": 67e12, "NVIDIA H100": 67e12, "NVIDIA A100": 19.5e12}
"""Plain float32 operations per second, from the data sheets; for other GPUs, rows lack that floor."""
ROUNDS = 10
SECONDS = 440
"""Seconds after which no measurement starts; a second call benefits from the caches of Triton and inductor."""
DEVICE = "cuda"


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median time per call of each, interleaved; short calls are repeated until they take 5 ms."""
    repeats = {}
    for name, function in functions.items():
        for _ in range(3):  # compiles and tunes
            function()
        synchronize()
        clock = time.perf_counter()
        function()
        synchronize()
        repeats[name] = max(1, int(0.005 / (time.perf_counter() - clock)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize()
            clock = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            synchronize()
            times[name].append(1000 * (time.perf_counter() - clock) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


class Fused(nn.Module):
    """The part of DMA between its 1x1 convolutions, in plain PyTorch: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(C, C, k, padding=d * (k // 2), dilation=d, groups=C, bias=False) for k, d in LEVELS
        )
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (conv(x) for conv in self.convs)
        return F.relu(self.norm(a + b + c))

    def kernels(self, x: Tensor) -> Tensor:
        """The same with our kernels; in evaluation mode, the norm is folded first, like in `dmformer.fuse`."""
        from dmformer.nn.kernels.triton_taps import depthwise_taps, depthwise_taps_norm_relu, merge_taps

        if not self.training:
            return depthwise_taps(x, *self.folded, relu=True)
        taps = merge_taps([conv.weight for conv in self.convs], [d for _, d in LEVELS])
        return depthwise_taps_norm_relu(x, *taps, self.norm.weight, self.norm.bias, self.norm.eps)[0]

    @torch.no_grad()
    def fold(self) -> "Fused":
        from dmformer.nn.kernels.triton_taps import merge_taps

        weight, offsets = merge_taps([conv.weight for conv in self.convs], [d for _, d in LEVELS])
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        self.folded = (weight * scale[:, None], offsets, self.norm.bias - self.norm.running_mean * scale)
        return self


def measure_stage(shape: tuple[int, ...], dtype: torch.dtype, layout: str, rounds: int = ROUNDS) -> list[dict]:
    """Rows for inference, training forward and training forward with backward."""
    torch.manual_seed(0)
    C = shape[1]
    x, grad = (torch.randn(shape, device=DEVICE).to(dtype, memory_format=FORMATS[layout]) for _ in range(2))
    block = Fused(C).to(DEVICE, dtype).eval().fold()
    compiled = torch.compile(block) if DEVICE == "cuda" else block
    clone = milliseconds({"clone": lambda: x.clone()}, rounds)["clone"]
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "interpreter"
    rate = next((rate for card, rate in FLOP_PER_S.items() if name.startswith(card)), None)
    rows = []
    # Images read and written, and how often 81 taps are gone through: forward, gradient of x, gradient of the weights.
    for what, images, sweeps in (("inference", 2, 1), ("training forward", 4, 1), ("training", 13, 3)):
        leaf = x.detach().requires_grad_(what != "inference")
        block.train(what != "inference")

        def run(forward, what=what, leaf=leaf):
            if what == "inference":
                with torch.no_grad():
                    return forward(leaf)
            out = forward(leaf)
            if what == "training":
                out.backward(grad)
            return out.detach()

        if what == "inference":  # times are only comparable if the outputs agree
            expected, actual = run(block).float(), run(block.kernels).float()
            error = ((expected - actual).abs().max() / expected.abs().max()).item()
            assert error < 4 * torch.finfo(dtype).eps + 1e-4, error
        ms = milliseconds(
            {
                "kernels": lambda run=run: run(block.kernels),
                "eager": lambda run=run: run(block),
                "compiled": lambda run=run: run(compiled),
            },
            rounds,
        )
        bytes_ms = clone * images / 2
        flop_ms = 1000 * sweeps * 2 * 81 * x.numel() / rate if rate else None
        rows.append(
            {
                "gpu": name,
                "shape": "x".join(map(str, shape)),
                "dtype": str(dtype).removeprefix("torch."),
                "layout": layout,
                "what": what,
                **{f"{key}_ms": f"{value:.3f}" for key, value in ms.items()},
                "clone_ms": f"{clone:.3f}",
                "eager_over_kernels": f"{ms['eager'] / ms['kernels']:.2f}",
                "compiled_over_kernels": f"{ms['compiled'] / ms['kernels']:.2f}",
                "share_of_bytes_floor": f"{bytes_ms / ms['kernels']:.2f}",
                "share_of_float32_floor": f"{flop_ms / ms['kernels']:.2f}" if flop_ms else "",
            }
        )
    return rows


def measure_model(name: str, training: bool, batch: int = BATCH, size: int = 224, rounds: int = 5) -> list[dict]:
    """Rows for one model in bfloat16 and channels_last: plain eager, plain compiled, with the kernels."""
    torch.manual_seed(0)
    kind = {"device": DEVICE, "memory_format": torch.channels_last}
    images = torch.randn(batch, 3, size, size).to(**kind)
    targets = torch.randint(0, 1000, (batch,), device=DEVICE)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not training:
            with torch.inference_mode():
                model(images.bfloat16())
            return
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rows, before = [], depthwise.MODE
    for form in ("plain eager", "plain compiled", "kernels eager", "kernels compiled"):
        if form.startswith("kernels") and name.startswith("convnext"):
            continue
        depthwise.MODE = "plain" if form.startswith("plain") else "auto"
        torch.compiler.reset()
        model = timm.create_model(name).to(**kind).train(training)
        if not training:
            model = model.bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), fused=DEVICE == "cuda")
        run = torch.compile(model) if form.endswith("compiled") and DEVICE == "cuda" else model
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ms = milliseconds({form: lambda run=run, o=optimizer: step(run, o)}, rounds)[form]
        rows.append(
            {
                "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else "interpreter",
                "model": name,
                "what": "training step" if training else "inference",
                "batch": batch,
                "form": form,
                "ms": f"{ms:.2f}",
                "images_per_s": f"{1000 * batch / ms:.0f}",
                "peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if DEVICE == "cuda" else "",
            }
        )
    depthwise.MODE = before
    return rows


def compile_stage(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """Compile all variants of the kernels for a stage without timing them; runs in several processes at once."""
    from dmformer.nn.kernels import triton_taps

    for kernel in (triton_taps._taps_kernel, triton_taps._weight_grad_kernel):
        kernel._do_bench, kernel.cache_results = lambda call, quantiles: call() or [1.0] * 3, False
    block = Fused(shape[1]).to(DEVICE, dtype).fold()
    x = torch.randn(2, *shape[1:], device=DEVICE).to(dtype, memory_format=FORMATS[layout]).requires_grad_()
    block.train().kernels(x).sum().backward()
    block.eval().kernels(x)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and PyTorch finds none")
    clock = time.monotonic()
    what = sys.argv[1:] or ["stages", "models"]
    shapes = [(BATCH, *shape) for shape in STAGES]
    low, full = (list(itertools.product(shapes, [dtype], FORMATS)) for dtype in (torch.bfloat16, torch.float32))
    stages = [*low, *full] if "stages" in what else low[1::2]
    with multiprocessing.get_context("spawn").Pool(min(len(stages), os.cpu_count() or 1)) as pool:
        pool.starmap(compile_stage, stages)
    print(f"compiled in {time.monotonic() - clock:.0f} s", flush=True)
    jobs: list[tuple[str, functools.partial]] = []
    if "stages" in what:
        jobs += [("gpu", functools.partial(measure_stage, *stage)) for stage in low]
    if "models" in what:
        models = itertools.product(("dmformer_s", "van_b2", "convnext_tiny"), (False, True))
        jobs += [("gpu_models", functools.partial(measure_model, *model)) for model in models]
    if "stages" in what:
        jobs += [("gpu", functools.partial(measure_stage, *stage)) for stage in full]
    for name, job in jobs:
        if time.monotonic() - clock > SECONDS:
            print("no time left for", name, *job.args)
            continue
        torch.compiler.reset()
        record(name, job())


if __name__ == "__main__":
    main()
