"""Every model up to 50 M parameters, exported to ONNX and OpenVINO: agreement with PyTorch, and speed beside it.

python benchmarks/export.py FOLDER                    # photos to compare on; all of ours up to 50 M parameters
python benchmarks/export.py FOLDER dmformer_n van_b0
python benchmarks/export.py                           # put the table into docs/export.md

Random weights, as speed does not depend on them; the fused form; batch, height and width free in every file.
"""

import sys
import tempfile

from record import record, results

from dmformer.catalogue import catalogue
from dmformer.errors import UserError
from dmformer.export.write import export

LARGEST = 50.0
"""Millions of parameters."""


def main() -> None:
    folder, names = sys.argv[1], sys.argv[2:] or [e.name for e in catalogue() if e.parameters <= LARGEST]
    for name in names:
        for to in ("onnx", "openvino"):
            with tempfile.TemporaryDirectory() as out:
                try:
                    written = export(name, to, out, photos=[folder])
                except UserError as error:
                    record("export", [{"model": name, "to": to, "failed": str(error)}])
                    continue
            one, several = written.speeds
            row = {
                "model": name,
                "to": to,
                "failed": "",
                "sizes": len({(a.height, a.width) for a in written.agreements}),
                "largest_difference": f"{max(a.difference for a in written.agreements):.1e}",
                "megabytes": round(written.megabytes, 1),
                "operators": written.operators or "",
                "pytorch_images_per_second": round(one.pytorch, 1),
                "images_per_second": round(one.exported, 1),
                "ratio": round(one.ratio, 2),
                f"pytorch_images_per_second_batch_{several.batch}": round(several.pytorch, 1),
                f"images_per_second_batch_{several.batch}": round(several.exported, 1),
                f"ratio_batch_{several.batch}": round(several.ratio, 2),
            }
            record("export", [row])


def tables() -> None:
    found = {(row["model"], row["to"]): row for row in results("export")}
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        onnx, openvino = found[name, "onnx"], found[name, "openvino"]
        worst = max(onnx["largest_difference"], openvino["largest_difference"], key=float)
        cells = [name, worst, onnx["megabytes"], onnx["operators"], onnx["pytorch_images_per_second"]]
        for row in (onnx, openvino):
            cells += [row["images_per_second"], row["ratio"]]
        lines.append(cells + [row["ratio_batch_8"] for row in (onnx, openvino)])
    print(lines)


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else tables()
