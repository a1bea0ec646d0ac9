"""What `dmformer choose` finds within a limit stricter than the default model needs.

python benchmarks/choose.py DATA RUNS [SET...]     # the folder with clothing/, and a folder for the results

Sets: clothing, solar-cells; by default both, with two seeds each: 36 minutes for a seed. The limit is 6 ms a photo on
one thread. For clothing, the default is dmformer_n at 128 px: on an AMD EPYC it took 7.0 to 7.3 ms as an exported file
in float32 and 22 ms in PyTorch, in the measurements of the choice itself (choose.json, beside other work). What is
finished in RUNS is not repeated.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from record import RESULTS, record

SETS = {"clothing": "--data {data}/clothing", "solar-cells": "--data elpv --recipe elpv"}
OPTIONS = "--latency 6ms --hours 0.6 --threads 1"
SEEDS = (0, 1)


def main() -> None:
    if len(sys.argv) < 3 or not Path(sys.argv[1], "clothing").is_dir():
        sys.exit(
            f"usage: python {sys.argv[0]} DATA RUNS [SET...], the folder with clothing/ and a folder for the results"
        )
    data, runs = sys.argv[1:3]
    (RESULTS / "choose.csv").unlink(missing_ok=True)
    for name in sys.argv[3:] or SETS:
        for seed in SEEDS:
            folder = Path(runs, f"{name}-{seed}")
            asked = ["choose", *f"{SETS[name]} {OPTIONS} --seed {seed}".split()]
            if not winner(folder):
                start = ["choose", "--resume"] if (folder / "choose.json").exists() else asked
                given = [part.format(data=data) for part in start]
                subprocess.run([sys.executable, "-m", "dmformer", *given, "--out", str(folder)], check=True)
            command = shlex.join(["dmformer", *(part.replace("{data}/", "") for part in asked)])
            record("choose", [figures(folder, name, seed, command)])


def winner(folder: Path) -> dict:
    """The winner of a finished choice; empty if it has none yet."""
    path = folder / "choose.json"
    return json.loads(path.read_text("utf-8"))["winner"] if path.exists() else {}


def figures(folder: Path, name: str, seed: int, command: str) -> dict[str, object]:
    """The winner of a finished choice and what it was chosen from."""
    state, won = json.loads((folder / "choose.json").read_text("utf-8")), winner(folder)
    return {
        "data": name,
        "seed": seed,
        "winner": won["candidate"],
        "level": " ".join(won["level"]),
        "latency_ms": f"{state['measured'][won['candidate']]['latency_ms']:.2f}",
        "epochs": won["epochs"],
        "validation_top1": f"{won['validation']:.4f}",
        "test_images": won["count"],
        "test_top1": f"{won['test']['value']:.4f}",
        "test_low": f"{won['test']['low']:.4f}",
        "test_high": f"{won['test']['high']:.4f}",
        "models_trained": len({trial["entrant"] for trial in state["trials"].values()}),
        "minutes": f"{state['seconds'] / 60:.1f}",
        "command": command,
    }


if __name__ == "__main__":
    main()
