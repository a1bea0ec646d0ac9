"""dmformer models: the list of models."""

import fnmatch
import json
from dataclasses import asdict, dataclass
from typing import Literal

from ..utils.errors import unknown
from ..utils.model_names import model_names
from .parsing import parse
from .printing import print_rows


@dataclass(frozen=True)
class ModelsOptions:
    """List the models: name, parameters, multiply-adds at 224 x 224, published ImageNet-1K top-1, paper.

    The top-1 is from the paper. It was trained on: in1k, ImageNet-1K only; in22k_ft_in1k, ImageNet-22K first.

    examples:
      dmformer models
      dmformer models 'smt_*' --format csv
    """

    filter: str = "*"
    """Part of a name, or a shell pattern."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the list."""


def models(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--filter", *arguments]
    options = parse(ModelsOptions, arguments, "models")
    names = model_names()
    if not any(options.filter in name or fnmatch.fnmatch(name, options.filter) for name in names):
        raise unknown("model", options.filter, names)

    from ..models.catalogue import catalogue

    entries = catalogue(options.filter)
    if options.format == "json":
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    header = ["name", "parameters (M)", "GMACs", "published top-1 (%)", "trained on", "arXiv"]
    rows = [
        [e.name, f"{e.parameters:.2f}", f"{e.gmacs:.3f}", e.published_top1 or "", e.trained_on or "", e.arxiv]
        for e in entries
    ]
    print_rows(header, rows, options.format)
