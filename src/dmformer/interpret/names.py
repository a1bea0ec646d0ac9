"""Names of the measures and of their output files; imports nothing heavy."""

from pathlib import Path

from ..utils.errors import UserError

MEASURES = {
    "attention-distance": "how far attention looks, per layer and head",
    "receptive-field": "which pixels the central unit of each stage depends on",
    "relative-receptive-field": "how much of its input each block of the deepest stage uses",
    "gates": "what DMFormer's channel gates and depth-wise branches do",
    "modulators": "the maps inside SMT's scale-aware modulation",
    "cka": "how similar the layers of one or two models are",
    "components": "how many directions the features of each stage use, and pictures of the first three",
}
"""One-line description of each measure."""

PICTURED = ("receptive-field", "modulators", "components")
"""Measures that also write images of maps."""


def files(measure: str, out: Path) -> dict[str, Path]:
    """Output files of a measure in `out`: "csv", "plot" and, if it has maps, "maps"."""
    written = {"csv": out / f"{measure}.csv", "plot": out / f"{measure}.png"}
    return {**written, "maps": out / f"{measure}-maps.png"} if measure in PICTURED else written


def check_files(measure: str, out: Path, overwrite: bool) -> None:
    """Raise UserError if output files exist already or `out` is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder.")
    for path in files(measure, out).values():
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already: give another --out, or --overwrite.")
