"""Print results to standard output, or write them to files."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from ..tasks.results import Summary
from ..utils.errors import UserError
from ..utils.files import write_whole
from ..utils.visible import visible

WHOLE = 10_000
"""Columns of a table in a pipe: nothing is folded."""


def give_scores(scores: Any, summary: Summary, json_file: str | None) -> None:
    text = json.dumps(asdict(scores), indent=2, ensure_ascii=False)
    if json_file == "-":
        print(text)
        return
    if json_file:
        write(Path(json_file), text + "\n")
    print_summary(summary)


def print_summary(summary: Summary) -> None:
    print("\n".join(summary.lines))
    if summary.header:
        print_rows(summary.header, summary.rows, "table")


def print_speeds(rows: Sequence[Any]) -> None:
    """Print the rows of a bench by batch size, the fastest first."""
    first = rows[0]
    place = f"{first.device}, {first.layout}, threads: {first.threads}"
    print(f"{first.mode} at {first.image_size} px on {first.machine}: {place}")
    energy = any(r.energy_j is not None for r in rows)
    header = ["model", "form", "dtype", "batch", "images/s", "middle half", "ms", "ratio", "MB"]
    header += [*(["J/image"] if energy else []), "difference"]
    cells = [
        [
            *(r.model, r.form, r.dtype, r.batch_size),
            *(f"{r.images_per_second:.1f}", f"{r.low:.1f} to {r.high:.1f}", f"{r.latency_ms:.1f}"),
            "" if r.ratio is None else f"{r.ratio:.2f}",
            "" if r.memory_mb is None else f"{r.memory_mb:.0f}",
            *(["" if r.energy_j is None else f"{r.energy_j:.3g}"] if energy else []),
            "" if r.difference is None else f"{r.difference:.1e}",
        ]
        for r in sorted(rows, key=lambda r: (r.batch_size, -r.images_per_second))
    ]
    print_rows(header, cells, "table")
    print(f"ratio: to {first.baseline}" if first.baseline else "no ratio: the baseline could not be measured")


def print_rows(header: Sequence[str], rows: Iterable[Sequence[Any]], format: str) -> None:
    """Print a table as CSV, each row as it comes, or aligned: folded to the terminal's width, whole in a pipe."""
    if format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows)
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(name, overflow="fold") for name in header), box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    Console(width=None if sys.stdout.isatty() else WHOLE).print(table)


def fits_terminal(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Whether a table can be printed on the terminal without folding its cells; False in a pipe."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(header, *map(_cells, rows), strict=True)]
    return sys.stdout.isatty() and sum(widths) + 2 * len(widths) <= get_terminal_size().columns


def _cells(row: Sequence[Any]) -> list[str]:
    return [f"{v:.1%}" if isinstance(v, float) and v <= 1 else visible(str(v)) for v in row]


def remark(text: str) -> None:
    """Print a remark on the data to standard error."""
    print(f"note: {visible(text)}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
