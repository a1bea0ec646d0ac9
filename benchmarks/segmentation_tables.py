"""Write the results in results/ into docs/segmentation.md, between its markers.

python benchmarks/segmentation_tables.py
"""

from pathlib import Path

from performance_tables import table
from record import replace_tables, rows

PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"
HEADS = {"fpn": "Semantic FPN", "upernet": "UperNet"}


def sizes() -> str:
    header = ["backbone", "head", "parameters", "published", "GMACs 512 x 512", "GMACs 512 x 2048", "published"]
    lines = [
        [
            r["model"].removesuffix("_patch4_window7_224"),
            HEADS[r["head"]],
            f"{float(r['parameters_all']):.1f}",
            r["published_parameters"],
            r["gmacs_512x512"],
            f"{float(r['gmacs_512x2048']):.0f}",
            r["published_gflops_512x2048"],
        ]
        for r in rows("segmentation_sizes")
    ]
    return table(header, lines)


def camvid() -> str:
    found = rows("camvid")
    ious = [key for key in found[0] if key.startswith("iou_")]
    header = ["run", "parameters (M)", "mIoU (%)", "95 % interval", "pixel accuracy (%)", "minutes", "images/s"]
    lines = [
        [
            r["run"],
            r["parameters"],
            percent(r["miou"]),
            f"{percent(r['miou_low'])} to {percent(r['miou_high'])}",
            percent(r["aacc"]),
            r["minutes"],
            r["images_per_second"],
        ]
        for r in found
    ]
    by_class = [[r["run"], *(percent(r[key]) for key in ious)] for r in found]
    return table(header, lines) + "\n\n" + table(["IoU (%)", *(k.removeprefix("iou_") for k in ious)], by_class)


def speed() -> str:
    lines = [
        [
            r["form"],
            r["dtype"],
            f"{float(r['latency_ms']):.0f}",
            f"{float(r['memory_mb']):.0f}",
            f"{float(r['ratio']):.2f}",
        ]
        for r in rows("segmentation")
    ]
    return table(["form", "type", "ms", "MB besides weights", "times as fast as plain"], lines)


def percent(share: str) -> str:
    return f"{100 * float(share):.1f}"


def main() -> None:
    replace_tables(PAGE, {"sizes": sizes(), "camvid": camvid(), "speed": speed()})


if __name__ == "__main__":
    main()
