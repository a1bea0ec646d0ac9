"""Time of the command for help, an error and one image: a new process each, in several interleaved rounds.

python benchmarks/startup.py RUN/best PHOTO MODEL.onnx
"""

import shutil
import statistics
import subprocess
import sys
import time

from record import record

ROUNDS = 3


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    dmformer = shutil.which("dmformer") or "dmformer"
    commands = {
        "dmformer --help": [dmformer, "--help"],
        "dmformer train --lrr 1": [dmformer, "train", "--lrr", "1"],
        "import timm": [sys.executable, "-c", "import timm"],
        "dmformer predict": [dmformer, "predict", *sys.argv[1:3]],
        "dmformer predict model.onnx": [dmformer, "predict", sys.argv[3], sys.argv[2]],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(ROUNDS + 1):  # the first round warms the disk cache
        for name, command in commands.items():
            clock = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            if i:
                times[name].append(time.perf_counter() - clock)
    rows = [
        {
            "command": name,
            "seconds_median": f"{statistics.median(values):.3f}",
            "seconds_min": f"{min(values):.3f}",
            "seconds_max": f"{max(values):.3f}",
            "rounds": ROUNDS,
        }
        for name, values in times.items()
    ]
    record("startup", rows)


if __name__ == "__main__":
    main()
