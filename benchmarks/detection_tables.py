"""Write the results in results/ into docs/detection.md, between its markers.

python benchmarks/detection_tables.py
"""

from pathlib import Path

from performance_tables import table
from record import RESULTS, replace_tables, rows

from dmformer.tasks.detection.model import BOX_NAMES, FRAMEWORK_NAMES

PAGE = Path(__file__).parents[1] / "docs" / "detection.md"


def sizes() -> str:
    header = ["backbone", "framework", "parameters (M)", "published", "GMACs", "of two activations", "published"]
    lines = [
        [
            r["backbone"],
            FRAMEWORK_NAMES[r["framework"]],
            f"{float(r['parameters_all']):.1f}",
            r["published_parameters"],
            f"{float(r['gmacs']):.0f}",
            f"{float(r['gmacs_of_two_activations']):.0f}",
            r["published_gflops"],
        ]
        for r in rows("detection_sizes")
    ]
    return table(header, lines)


def overfit() -> str:
    header = ["photos", "framework", "AP50 (%)", "AP (%)", "mask AP50 (%)", "steps", "minutes"]
    lines = []
    for r in sorted(rows("detection_overfit"), key=lambda r: r["run"]):
        photos, _, framework = r["run"].partition("-")
        name = (FRAMEWORK_NAMES | BOX_NAMES if photos == "bccd" else FRAMEWORK_NAMES)[framework]
        masks = percent(r["mask_ap50"]) if r["mask_ap50"] else ""
        lines.append(
            [
                photos,
                name or FRAMEWORK_NAMES[framework],
                percent(r["ap50"]),
                percent(r["ap"]),
                masks,
                r["steps"],
                r["minutes"],
            ]
        )
    return table(header, lines)


def bccd() -> str:
    found = rows("detection_bccd")
    by_class = [key for key in found[0] if key.startswith("ap50_") and key not in ("ap50_low", "ap50_high")]
    names = [f"{key.removeprefix('ap50_')} AP50" for key in by_class]
    header = ["backbone", "parameters (M)", "AP50 (%)", "95 % interval", "AP (%)", *names, "minutes", "photos/s"]
    lines = [
        [
            r["run"],
            r["parameters"],
            percent(r["ap50"]),
            f"{percent(r['ap50_low'])} to {percent(r['ap50_high'])}",
            percent(r["ap"]),
            *(percent(r[key]) for key in by_class),
            r["minutes"],
            r["images_per_second"],
        ]
        for r in found
    ]
    return table(header, lines)


def speed() -> str:
    header = ["framework", "step of 2 photos (s)", "MB", "prediction of 1 (s)", "MB"]
    found = {(r["framework"], r["what"]): r for r in rows("detection_speed")}
    lines = []
    for framework in dict.fromkeys(framework for framework, _ in found):
        cells = [FRAMEWORK_NAMES[framework]]
        for what in ("training", "prediction"):
            r = found[framework, what]
            cells += [f"{float(r['ms']) / 1e3:.1f}", r["memory_mb"]]
        lines.append(cells)
    return table(header, lines)


def percent(share: str) -> str:
    return f"{100 * float(share):.1f}"


def main() -> None:
    tables = {"sizes": sizes, "overfit": overfit, "bccd": bccd, "speed": speed}
    there = {name: make() for name, make in tables.items() if (RESULTS / f"detection_{name}.csv").exists()}
    replace_tables(PAGE, there)


if __name__ == "__main__":
    main()
