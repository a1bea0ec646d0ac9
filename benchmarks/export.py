"""Every model up to 50 M parameters in ONNX, and the smallest of each family in OpenVINO: agreement and speed.

python benchmarks/export.py FOLDER                    # photos for the comparison
python benchmarks/export.py FOLDER dmformer_n van_b0
python benchmarks/export.py                           # write the tables into docs/export.md

Random weights, because speed does not depend on them; fused models; batch, height and width are free in every file.
"""

import sys
import tempfile
from pathlib import Path

from performance_tables import table
from record import record, replace_tables, rows

from dmformer.export.write import export
from dmformer.models.catalogue import catalogue

LARGEST = 50.0
"""Maximum size in millions of parameters."""
SMALLEST = ("dmformer_n", "van_b0", "smt_t", "vitae_t", "vitaev2_s")
PAGE = Path(__file__).parents[1] / "docs" / "export.md"


def main() -> None:
    folder, names = sys.argv[1], sys.argv[2:] or [e.name for e in catalogue() if e.parameters <= LARGEST]
    for name in names:
        for to in ("onnx", "openvino") if name in SMALLEST else ("onnx",):
            with tempfile.TemporaryDirectory() as out:
                written = export(name, to, out, photos=[folder])
            one, several = written.speeds
            row = {
                "model": name,
                "to": to,
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
    lines = []
    for r in rows("export"):
        speeds = [r[key] for key in ("pytorch_images_per_second", "images_per_second", "ratio", "ratio_batch_8")]
        lines.append(
            [r["model"], r["to"], r["sizes"], r["largest_difference"], r["megabytes"], r["operators"], *speeds]
        )
    header = [
        "model",
        "to",
        "sizes",
        "largest difference",
        "MB",
        "operators",
        "PyTorch, images/s",
        "file",
        "ratio",
        "at batch 8",
    ]
    replace_tables(PAGE, {"variants": table(header, lines)})


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else tables()
