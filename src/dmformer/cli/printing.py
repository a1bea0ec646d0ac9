"""Results on standard output, and in files."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import write_whole


def give_scores(scores: Any, split: str, json_file: str | None) -> None:
    text = json.dumps(scores.to_dict(), indent=2, ensure_ascii=False)
    if json_file == "-":
        print(text)
        return
    if json_file:
        write(Path(json_file), text + "\n")
    print_scores(scores, split)


def print_scores(scores: Any, split: str) -> None:
    if hasattr(scores, "miou"):
        print_mask_scores(scores, split)
        return
    if hasattr(scores, "boxes"):
        print_box_scores(scores, split)
        return
    if hasattr(scores, "agreement"):
        print_pretraining_scores(scores, split)
        return
    lines = [("top-1", scores.top1), ("top-5", scores.top5)]
    lines += [("balanced accuracy", scores.balanced_accuracy), ("macro F1", scores.macro_f1)]
    print(f"{scores.count} images ({split})")
    print_figures(lines)
    if scores.auroc is not None:
        print(f"  {'AUROC':18}{scores.auroc:7.3f}")


def print_figures(lines: Sequence[tuple[str, Any]]) -> None:
    """Figures with their intervals, those that there are."""
    for name, figure in lines:
        if figure is not None:
            print(f"  {name:18}{figure.value:7.1%}   95 % interval {figure.low:.1%} to {figure.high:.1%}")


def print_pretraining_scores(scores: Any, split: str) -> None:
    print(f"{scores.count} images ({split}), after {scores.images_seen:,} images seen")
    print_figures([("agreement", scores.agreement), *((source.name, source.top1) for source in scores.sources)])
    if (probe := scores.probe) is not None:
        print(f"{probe.test_images} images of {probe.data}, features frozen")
        print_figures([("linear probe", probe.linear), ("nearest neighbours", probe.knn)])


def print_mask_scores(scores: Any, split: str) -> None:
    interval = f"95 % interval {scores.miou.low:.1%} to {scores.miou.high:.1%}"
    print(f"{scores.images} images ({split}), {scores.pixels:,} labelled pixels")
    print(f"  {'mIoU':18}{scores.miou.value:7.1%}   {interval}")
    print(f"  {'mean accuracy':18}{scores.macc:7.1%}\n  {'pixel accuracy':18}{scores.aacc:7.1%}")
    rows = [
        [c.name, *("" if v is None else v for v in (c.iou, c.accuracy)), c.share]
        for c in sorted(scores.classes, key=lambda c: -1 if c.iou is None else c.iou)
    ]
    print_rows(["class", "IoU", "accuracy", "of the pixels"], rows, "table")


def print_box_scores(scores: Any, split: str) -> None:
    print(f"{scores.images} images ({split}), {scores.objects:,} objects")
    interval = scores.ap50_interval
    for kind, ap in (("boxes", scores.boxes), ("masks", scores.masks)):
        if ap is None:
            continue
        among = f"   95 % interval {interval.low:.1%} to {interval.high:.1%}" if interval and kind == "boxes" else ""
        print(f"  {f'AP of {kind}':18}{ap.ap or 0:7.1%}\n  {'AP50':18}{ap.ap50 or 0:7.1%}{among}")
        sized = (("AP75", ap.ap75), ("small", ap.small), ("medium", ap.medium), ("large", ap.large), ("AR", ap.ar100))
        print("  " + ", ".join(f"{name} {value:.1%}" for name, value in sized if value is not None))
    rows = [
        [c.name, *("" if v is None else v for v in (c.ap, c.ap50, c.ar100)), c.objects]
        for c in sorted(scores.classes, key=lambda c: 2.0 if c.ap is None else c.ap)
    ]
    print_rows(
        ["class", "AP", "AP50", "AR", "objects"], [[str(v) if type(v) is int else v for v in r] for r in rows], "table"
    )


def print_speeds(rows: Sequence[Any]) -> None:
    """A bench's rows: batch by batch, the fastest first."""
    first = rows[0]
    place = f"{first.device}, {first.layout}, threads: {first.threads}"
    print(f"{first.mode} at {first.image_size} px on {first.machine}: {place}")
    header = ["model", "form", "dtype", "batch", "images/s", "middle half", "ms", "ratio", "MB", "difference"]
    cells = [
        [
            *(r.model, r.form, r.dtype, r.batch_size),
            *(f"{r.images_per_second:.1f}", f"{r.low:.1f} to {r.high:.1f}", f"{r.latency_ms:.1f}"),
            "" if r.ratio is None else f"{r.ratio:.2f}",
            "" if r.memory_mb is None else f"{r.memory_mb:.0f}",
            "" if r.difference is None else f"{r.difference:.1e}",
        ]
        for r in sorted(rows, key=lambda r: (r.batch_size, -r.images_per_second))
    ]
    print_rows(header, cells, "table", whole=True)
    print(f"ratio: to {first.baseline}" if first.baseline else "no ratio: the baseline could not be measured")


def print_rows(header: list[str], rows: list[list[Any]], format: str, whole: bool = False) -> None:
    """Print a table; `whole` lets its lines be longer than the 80 columns that are assumed of a pipe."""
    if format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([header, *([f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows)])
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(f"{v:.1%}" if isinstance(v, float) and v <= 1 else escape(str(v)) for v in row))
    Console(width=200 if whole and not sys.stdout.isatty() else None).print(table)


def write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
