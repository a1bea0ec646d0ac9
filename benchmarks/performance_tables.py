"""Write the results in results/ into docs/performance.md, between its markers.

python benchmarks/performance_tables.py
"""

from collections.abc import Sequence
from pathlib import Path

from record import replace_tables, rows

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

NAMES = {
    "dmformer_s": "DMFormer-S",
    "convnext_tiny": "ConvNeXt-T",
    "swin_tiny_patch4_window7_224": "Swin-T",
    "pvt_v2_b2": "PVTv2-B2",
    "poolformer_s36": "PoolFormer-S36",
    "inception_next_tiny": "InceptionNeXt-T",
    "mambaout_tiny": "MambaOut-T",
    "resnet50": "ResNet-50",
    "van_b0": "VAN-B0",
    "van_b2": "VAN-B2",
}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def kernels() -> str:
    """Milliseconds of our kernels, and the ratio of plain PyTorch's time; one shape per row."""
    found = rows("depthwise_cpu")
    columns = [(what, dtype) for what in ("forward", "forward and backward") for dtype in ("float32", "bfloat16")]
    lines = []
    for kernel, channels, side in dict.fromkeys((r["kernel"], r["channels"], r["side"]) for r in found):
        cells = []
        for what, dtype in columns:
            (row,) = [
                r
                for r in found
                if (r["kernel"], r["channels"], r["side"], r["what"], r["dtype"])
                == (kernel, channels, side, what, dtype)
            ]
            cells.append(f"{float(row['fast_ms']):.2f} ({float(row['plain_over_fast']):.1f})")
        lines.append([f"{kernel}, {channels} x {side} x {side}", *cells])
    return table(["8 images", *(f"{what}, {dtype}" for what, dtype in columns)], lines)


def parts() -> str:
    found = [r for r in rows("parts") if r["model"] == "dmformer_s"]
    lines = [
        [
            r["part"],
            r["dtype"],
            f"{float(r['gflop']):.1f}",
            f"{float(r['mb']):.0f}",
            r["arithmetic_floor_ms"],
            r["bytes_floor_ms"],
            r["ms"],
            r["gflop_per_s"],
        ]
        for r in found
    ]
    return table(["part", "type", "GFLOP", "MB", "arithmetic, ms", "bytes, ms", "measured, ms", "GFLOP/s"], lines)


def speeds(name: str, batch: str, kinds: Sequence[tuple[str, str]]) -> str:
    """Images per second, one model per row, one (form, dtype) per column."""
    found = {(r["model"], r["form"], r["dtype"]): r for r in rows(name) if r["batch_size"] == batch}
    models = dict.fromkeys(model for model, _, _ in found)
    lines = [
        [NAMES[m], *(f"{float(found[m, *k]['images_per_second']):.1f}" if (m, *k) in found else "–" for k in kinds)]
        for m in models
    ]
    return table(["images/s", *(f"{form}, {dtype}" for form, dtype in kinds)], lines)


def differences() -> str:
    found = rows("forms")
    kinds = dict.fromkeys((r["form"], r["dtype"]) for r in found if r["batch_size"] == "8")
    by = {(r["model"], r["form"], r["dtype"]): r["difference"] for r in found if r["batch_size"] == "8"}
    lines = [
        [NAMES[m], *(f"{float(by[m, *k]):.0e}" for k in kinds if k != ("plain", "float32"))]
        for m in dict.fromkeys(r["model"] for r in found)
    ]
    return table(["change of the logits", *(f"{f}, {d}" for f, d in kinds if (f, d) != ("plain", "float32"))], lines)


def training() -> str:
    found = {(r["model"], r["form"]): r for r in rows("training")}
    lines = []
    for model in dict.fromkeys(m for m, _ in found):
        cells = [NAMES[model]]
        for form in ("plain", "eager"):
            r = found[model, form]
            cells += [f"{float(r['images_per_second']):.2f}", f"{float(r['memory_mb']):.0f}"]
        lines.append(cells)
    return table(["", "plain, images/s", "plain, MB", "ours, images/s", "ours, MB"], lines)


def int8() -> str:
    header = ["ONNX Runtime", "float32, images/s", "int8, images/s", "ratio", "change of the logits", "their cosine"]
    return table(
        header,
        [
            [
                NAMES[r["model"]],
                r["float32_images_per_second"],
                r["int8_images_per_second"],
                r["int8_over_float32"],
                r["largest_change_of_logits"],
                r["cosine_of_logits"],
            ]
            for r in rows("int8")
        ],
    )


def cores() -> str:
    """Images per second of one thread, two threads that share operations, and two that share images."""
    found = {(r["model"], r["what"], r["size"], r["busy_processes"], r["way"]): r for r in rows("cores")}
    ways = {"training": ("two threads", "two processes"), "inference": ("two threads", "two threads, images apart")}
    lines = []
    for model, what, size, busy in dict.fromkeys(key[:-1] for key in found):
        cells = [NAMES.get(model, model), f"{what}, {size} px", "busy" if busy == "1" else "idle"]
        cells.append(f"{float(found[model, what, size, busy, 'one thread']['images_per_second']):.0f}")
        for way in ways[what]:
            row = found[model, what, size, busy, way]
            cells.append(f"{float(row['images_per_second']):.0f} ({row['to_one_thread']})")
        lines.append(cells)
    header = ["images/s (ratio to one thread)", "", "machine", "one thread", "shared operations", "shared images"]
    return table(header, lines)


FORMS = [
    ("plain", "float32"),
    ("eager", "float32"),
    ("fused", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("plain", "bfloat16"),
    ("eager", "bfloat16"),
    ("fused", "bfloat16"),
    ("openvino", "bfloat16"),
]
PEERS = [kind for kind in FORMS if kind[0] != "eager"]


def main() -> None:
    tables = {
        "kernels": kernels(),
        "parts": parts(),
        "peers": speeds("peers", "8", PEERS),
        "forms": speeds("forms", "8", FORMS),
        "latency": speeds("forms", "1", FORMS),
        "differences": differences(),
        "training": training(),
        "int8": int8(),
        "cores": cores(),
    }
    replace_tables(PAGE, tables)


if __name__ == "__main__":
    main()
