"""The command `dmformer analyse`: its options, and what it prints."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.limits import MAX_PIXELS
from ..interpret.names import MEASURES, check_files
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from .checks import check_source_or_name
from .parsing import parse
from .printing import print_rows, remark


@dataclass(frozen=True)
class AnalyseOptions:
    """Measure what models look at and how they compute: dmformer analyse MEASURE MODELS... --data FOLDER

    Writes OUT/MEASURE.csv with every figure and OUT/MEASURE.png with a caption that says how to read it.

    measures:
      attention-distance         how far attention looks, per layer and head (SMT, ViTAE, ViTAEv2)
      receptive-field            which pixels the centre unit of each stage depends on; also pictures (any model)
      relative-receptive-field   how much of its input each block of the deepest stage draws on (models of blocks)
      gates                      channel gates and depth-wise branches (DMFormer)
      modulators                 the maps inside scale-aware modulation; also pictures (SMT)
      cka                        how similar the layers of one or two models are (any model)
      components                 how many directions features use; pictures of the first three as colours (any model)

    If a model lacks the part that a measure needs, one line says so and names the parts that it has. Models given by
    name have random weights; the caption says so. docs/measures.md has the formulas and explains how to read them.

    examples:
      dmformer analyse receptive-field runs/photos-1/best resnet18 --data photos/
      dmformer analyse attention-distance smt_t vitaev2_s --data photos/ --images 64
      dmformer analyse relative-receptive-field smt_t swin_tiny_patch4_window7_224 --data photos/
      dmformer analyse gates runs/photos-1/best --data photos/test --images 200
      dmformer analyse modulators runs/smt-1/best --data photos/ --blocks 1.1 3.7
      dmformer analyse cka runs/a/best runs/b/best --data photos/ --images 256 --format csv > similar.csv
      dmformer analyse components dmformer_n.dist_lite0 dmformer_n --data photos/
    """

    measure: str
    """One of the measures above."""
    sources: tuple[str, ...]
    """best/ folders of runs, this package's weights (dmformer_n.dist_lite0), hf-hub:owner/name, or names of models
    from dmformer or timm with random weights; cka takes one or two."""
    data: str | None = None
    """Folder of photos, searched recursively. For gates, its subfolders are classes."""
    images: int = 32
    """Number of photos, balanced over the classes, evenly spaced in the sorted names, the same ones every time.
    All are held in memory, 0.6 MB each at 224 px."""
    image_size: int | None = None
    """Image side in pixels for models given by name, by default the model's own;
    for segmenters and detectors, side of the centre crop of the photos, by default the largest that fits in all."""
    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of a photo; larger ones are not read."""
    blocks: tuple[str, ...] = ()
    """modulators: blocks by stage and number, e.g. 3.7; by default the last block of each stage."""
    out: str = "analysis"
    """Output folder, created if missing."""
    overwrite: bool = False
    """Replace existing files."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result: a short table, or every figure."""


def analyse(arguments: list[str]) -> None:
    """Run `dmformer analyse` with these arguments."""
    options = parse(AnalyseOptions, arguments, "analyse")
    _check(options)

    from ..interpret.analyse import analyse as measure
    from ..utils.display import track

    result = measure(
        options.measure,
        options.sources,
        str(options.data),
        options.out,
        options.images,
        options.image_size,
        options.blocks,
        options.overwrite,
        track,
        options.max_pixels,
        remark,
    )
    for name, reason in result.left_out:
        print(f"left out because it cannot be read: {name}: {reason}", file=sys.stderr)
    if options.format == "csv":
        print(result.as_csv(), end="")
    elif options.format == "json":
        rows = [dict(zip(result.header, row, strict=True)) for row in result.rows]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_rows(result.short_header, result.short, "table")
        print(result.caption)
        print(f"written: {', '.join(map(str, result.files))}")


def _check(options: AnalyseOptions) -> None:
    """Raise UserError for mistakes that can be found before torch is imported."""
    if options.measure not in MEASURES:
        raise unknown("measure", options.measure, MEASURES)
    if not options.sources:
        raise UserError("name the models: runs' best/ folders, hf-hub:owner/name, or names of models.")
    if options.measure == "cka" and len(options.sources) > 2:
        raise UserError(f"cka takes one or two models, not {len(options.sources)}.")
    if options.data is None:
        raise UserError("name the photos to measure on: --data FOLDER.")
    check_path(options.data)
    if options.max_pixels < 1:
        raise UserError(f"--max-pixels is {options.max_pixels}: it must be 1 or more.")
    if options.images < 1:
        raise UserError(f"--images is {options.images}: it must be 1 or more.")
    if options.image_size is not None and options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")
    if options.blocks and options.measure != "modulators":
        raise UserError("--blocks is for modulators.")
    for source in options.sources:
        check_source_or_name(source)
    check_files(options.measure, Path(options.out), options.overwrite)
