"""Names of the measures and of the files that they write; nothing heavy is imported."""

from pathlib import Path

from ..utils.errors import UserError

MEASURES = {
    "attention-distance": "how far attention looks, per layer and head",
    "receptive-field": "which pixels the unit in the middle of each stage depends on",
    "relative-receptive-field": "how much of its input each block of the deepest stage draws on",
    "gates": "what DMFormer's channel gates and depth-wise branches do",
    "modulators": "the maps inside SMT's scale-aware modulation",
    "cka": "how alike the layers of one or two models are",
}
"""What each measures, in a line."""

PICTURED = ("receptive-field", "modulators")
"""Measures that also write maps, as pictures."""


def files(measure: str, out: Path) -> dict[str, Path]:
    """What a measure writes into `out`: "csv", "plot" and, where it has maps, "maps"."""
    written = {"csv": out / f"{measure}.csv", "plot": out / f"{measure}.png"}
    return {**written, "maps": out / f"{measure}-maps.png"} if measure in PICTURED else written


def check_files(measure: str, out: Path, overwrite: bool) -> None:
    """Refuse to write over files of another time, and into what is no folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder.")
    for path in files(measure, out).values():
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already: give another --out, or --overwrite.")
