"""One CSV per benchmark, with machine, versions and date in every row; and tables for the documentation."""

import csv
import datetime
import platform
import re
from pathlib import Path

import torch

import dmformer
from dmformer.utils.machine import processor

RESULTS = Path(__file__).parent / "results"


def circumstances() -> dict[str, str]:
    """Machine, threads, versions and date of a measurement."""
    return {
        "machine": processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "dmformer": dmformer.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def record(name: str, rows: list[dict[str, object]]) -> None:
    """Append rows to results/NAME.csv and print them.

    Raises:
        ValueError: The file has other columns.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    rows = [{**row, **circumstances()} for row in rows]
    with path.open("a+", newline="") as file:
        file.seek(0)
        columns = next(csv.reader(file), None)
        writer = csv.DictWriter(file, fieldnames=columns or list(rows[0]), lineterminator="\n")
        if columns is None:
            writer.writeheader()
        elif set(columns) != set(rows[0]):
            raise ValueError(f"{path} has other columns than these results: move it away, or add the columns to it")
        writer.writerows(rows)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))


def rows(name: str) -> list[dict[str, str]]:
    """The rows of results/NAME.csv.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def replace_tables(page: Path, tables: dict[str, str]) -> None:
    """Replace the text between `<!-- NAME -->` and the next `<!-- end -->` of a page, for each name."""
    text = page.read_text(encoding="utf-8")
    for name, content in tables.items():
        mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        text = mark.sub(lambda m, content=content: f"{m[1]}{content}\n{m[2]}", text)
    page.write_text(text, encoding="utf-8")
