"""Whether int8 pays off on a CPU: exported fused models, quantised by ONNX Runtime, against float32.

python benchmarks/int8.py FOLDER                    # dmformer_s and van_b0, calibrated on 32 photos of a folder
python benchmarks/int8.py FOLDER dmformer_n

Static quantisation of convolutions and matrix products: weights per output channel, activations by their range on the
images. The weights are random, so the comparison is of logits rather than accuracy.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from record import record

import dmformer
from dmformer.bench.variants import open_model
from dmformer.export.formats import export_onnx
from dmformer.export.quantise import quantise
from dmformer.runtimes.sessions import to_onnxruntime

BATCH, SIZE, ROUNDS, PHOTOS = 8, 224, 7, 32


def photos(folder: Path) -> np.ndarray:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))[: PHOTOS + BATCH]
    data = [np.asarray(Image.open(f).convert("RGB").resize((SIZE, SIZE)), dtype=np.float32) for f in files]
    return ((np.stack(data) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2).astype("f4")


def main() -> None:
    images = photos(Path(sys.argv[1]))
    held_out, rows = np.ascontiguousarray(images[-BATCH:]), []
    for name in sys.argv[2:] or ["dmformer_s", "van_b0"]:
        with tempfile.TemporaryDirectory() as folder:
            plain, small = (Path(folder) / f"{what}.onnx" for what in ("plain", "int8"))
            export_onnx(dmformer.fuse(open_model(name, SIZE)[0]), plain, SIZE, dynamic_size=False)
            quantise(plain, small, (image[None] for image in images[:PHOTOS]), {})
            sessions = {
                kind: to_onnxruntime(p, torch.get_num_threads()) for kind, p in (("float32", plain), ("int8", small))
            }
            answers = {kind: s.run(held_out).copy() for kind, s in sessions.items()}
            seconds: dict[str, list[float]] = {kind: [] for kind in sessions}
            for _ in range(ROUNDS):
                for kind, session in sessions.items():
                    clock = time.perf_counter()
                    session.run(held_out)
                    seconds[kind].append(time.perf_counter() - clock)
            ratio = statistics.median(a / b for a, b in zip(seconds["float32"], seconds["int8"], strict=True))
            change = np.abs(answers["int8"] - answers["float32"]).max() / np.abs(answers["float32"]).max()
            cosine = float(
                np.sum(answers["int8"] * answers["float32"])
                / (np.linalg.norm(answers["int8"]) * np.linalg.norm(answers["float32"]))
            )
            rows.append(
                {
                    "model": name,
                    "batch": BATCH,
                    "float32_images_per_second": f"{BATCH / statistics.median(seconds['float32']):.1f}",
                    "int8_images_per_second": f"{BATCH / statistics.median(seconds['int8']):.1f}",
                    "int8_over_float32": f"{ratio:.2f}",
                    "largest_change_of_logits": f"{change:.3g}",
                    "cosine_of_logits": f"{cosine:.4f}",
                    "float32_mb": f"{plain.stat().st_size / 1e6:.1f}",
                    "int8_mb": f"{small.stat().st_size / 1e6:.1f}",
                    "onnxruntime": onnxruntime.__version__,
                }
            )
    record("int8", rows)


if __name__ == "__main__":
    main()
