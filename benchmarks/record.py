"""Where a figure was measured, and one CSV a benchmark: rows are appended, each with machine, versions and date."""

import csv
import datetime
import platform
from pathlib import Path

import torch

import dmformer

RESULTS = Path(__file__).parent / "results"


def circumstances() -> dict[str, str]:
    """Machine, threads, versions and date of a measurement."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "machine": f"{names[0] if names else platform.machine()} x {len(names) or 1}",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "dmformer": dmformer.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def record(name: str, rows: list[dict[str, object]]) -> None:
    """Append rows to results/NAME.csv and print them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    rows = [{**row, **circumstances()} for row in rows]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
