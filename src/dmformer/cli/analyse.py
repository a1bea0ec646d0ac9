"""The command `dmformer analyse`: its options, and what it prints."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..interpret.names import MEASURES, check_files
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from .checks import check_source_or_name
from .parsing import parse
from .printing import print_rows


@dataclass(frozen=True)
class AnalyseOptions:
    """Measure what models look at and how they compute: dmformer analyse MEASURE MODELS... --data FOLDER

    Writes OUT/MEASURE.csv with every figure and OUT/MEASURE.png with a caption that says how to read it.

    measures:
      attention-distance         how far attention looks, per layer and head (SMT, ViTAE, ViTAEv2)
      receptive-field            which pixels the unit in the middle of each stage depends on; pictures too (any model)
      relative-receptive-field   how much of its input each block of the deepest stage draws on (models of blocks)
      gates                      channel gates and depth-wise branches (DMFormer)
      modulators                 the maps inside scale-aware modulation; pictures too (SMT)
      cka                        how alike the layers of one or two models are (any model)

    A model that has no such part is told in one line, with what it has. Models given by name have random weights, which
    the caption says. docs/measures.md has the formulas and how to read them.

    examples:
      dmformer analyse receptive-field runs/photos-1/best resnet18 --data photos/
      dmformer analyse attention-distance smt_t vitaev2_s --data photos/ --images 64
      dmformer analyse relative-receptive-field smt_t swin_tiny_patch4_window7_224 --data photos/
      dmformer analyse gates runs/photos-1/best --data photos/test --images 200
      dmformer analyse modulators runs/smt-1/best --data photos/ --blocks 1.1 3.7
      dmformer analyse cka runs/a/best runs/b/best --data photos/ --images 256 --format csv > similar.csv
    """

    measure: str
    """One of those above."""
    sources: tuple[str, ...]
    """Runs' best/ folders, hf-hub:owner/name, or names of models, ours or timm's; cka takes one or two."""
    data: str | None = None
    """Folder of photos, searched to the bottom. Folders in it are classes, for gates."""
    images: int = 32
    """Photos to take: as many of each class as possible, evenly spread over the sorted names; always the same ones. All
    are held in memory, 0.6 MB each at 224 px."""
    image_size: int | None = None
    """Side in pixels of the images of models given by name, and of the middle that is cut out of a segmenter's photos;
    by default the models' own, and what all photos have."""
    blocks: tuple[str, ...] = ()
    """modulators: blocks by stage and number, e.g. 3.7; by default the last of each stage."""
    out: str = "analysis"
    """Folder to write into, made if it is not there."""
    overwrite: bool = False
    """Replace files that are there."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result: a short table, or every figure."""


def analyse(arguments: list[str]) -> None:
    """Do what `dmformer analyse` was told."""
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
    )
    for name, reason in result.left_out:
        print(f"left out, for it cannot be read: {name}: {reason}", file=sys.stderr)
    if options.format == "csv":
        print(result.as_csv(), end="")
    elif options.format == "json":
        rows = [dict(zip(result.header, row, strict=True)) for row in result.rows]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_rows(result.short_header, result.short, "table", whole=True)
        print(result.caption)
        print(f"written: {', '.join(map(str, result.files))}")


def _check(options: AnalyseOptions) -> None:
    """Mistakes that can be found before torch is imported."""
    if options.measure not in MEASURES:
        raise unknown("measure", options.measure, MEASURES)
    if not options.sources:
        raise UserError("name the models: runs' best/ folders, hf-hub:owner/name, or names of models.")
    if options.measure == "cka" and len(options.sources) > 2:
        raise UserError(f"cka takes one or two models, not {len(options.sources)}.")
    if options.data is None:
        raise UserError("name the photos to measure on: --data FOLDER.")
    check_path(options.data)
    if options.images < 1:
        raise UserError(f"--images is {options.images}: it must be 1 or more.")
    if options.image_size is not None and options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")
    if options.blocks and options.measure != "modulators":
        raise UserError("--blocks is for modulators.")
    for source in options.sources:
        check_source_or_name(source)
    check_files(options.measure, Path(options.out), options.overwrite)
