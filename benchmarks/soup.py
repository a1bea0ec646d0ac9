"""Soups against their members and the ensemble of them, on solar cells: three runs that differ in their seeds.

python benchmarks/soup.py RUNS               # a folder for the runs; those that are there are not repeated
python benchmarks/soup.py RUNS-2 --lr 2e-4   # other options of the runs

The data come with the extra `demo`. The runs share the split and the starting weights. A row holds the validation
score, by which the greedy soup is chosen, and scores on the test photos, which choose nothing. The soup "with the mean
of the statistics" shows what it would be without new BatchNorm statistics.
"""

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from record import record
from safetensors.torch import load_file, save_file

from dmformer.cli import main as dmformer
from dmformer.tasks.classification.classifier import save_ensemble
from dmformer.tasks.classification.evaluate import evaluate

OPTIONS = "--image-size 96 --epochs 4 --precision bf16 --threads 1 --workers 0 --processes 1 --tracker none"
SEEDS = 3


def with_mean_statistics(members: Sequence[Path], folder: Path) -> Path:
    """The mean of all tensors, the BatchNorm statistics included, as a folder."""
    shutil.copytree(members[0] / "best", folder / "best")
    states = [load_file(member / "best" / "model.safetensors") for member in members]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for key, tensor in states[0].items()
    }
    save_file(mean, folder / "best" / "model.safetensors")
    shutil.copy(members[0] / "recipe.yaml", folder)
    return folder


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {sys.argv[0]} RUNS [OPTIONS], a folder for the runs and options of `dmformer train`")
    train = ["train", "elpv", *OPTIONS.split(), *sys.argv[2:]]
    members = [Path(sys.argv[1], f"cells-{seed}") for seed in range(SEEDS)]
    for seed, member in enumerate(members):
        if not (member / "report.html").exists():
            dmformer([*train, "--seed", str(seed), "--out", str(member.parent), "--name", member.name])
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name)
        models = {f"run with seed {seed}": member for seed, member in enumerate(members)}
        models["ensemble of the runs"] = runs / "ensemble"
        save_ensemble(runs / "ensemble" / "best", [member / "best" for member in members])
        shutil.copy(members[0] / "recipe.yaml", runs / "ensemble")
        validation = {}
        for kind, options in {"greedy": [], "uniform": ["--uniform"]}.items():
            models[f"{kind} soup"] = out = runs / kind
            dmformer(["soup", *map(str, members), *options, "--threads", "1", "--out", str(out)])
            made = json.loads((out / "soup.json").read_text())
            validation |= {Path(each["run"]): each["score"] for each in made["members"]} | {out: made["score"]}
            validation[kind] = ", ".join(Path(each["run"]).name for each in made["members"] if each["used"])
        models["uniform soup with the mean of the statistics"] = with_mean_statistics(members, runs / "averaged")
        table: list[dict[str, object]] = []
        for what, folder in models.items():
            scores = evaluate(str(folder / "best"))
            table.append(
                {
                    "data": "solar-cells",
                    "model": what,
                    "made_of": validation.get(folder.name, ""),
                    "validation_top1": f"{validation[folder]:.4f}" if folder in validation else "",
                    "test_top1": f"{scores.top1.value:.4f}",
                    "test_top1_low": f"{scores.top1.low:.4f}",
                    "test_top1_high": f"{scores.top1.high:.4f}",
                    "test_balanced": f"{scores.balanced_accuracy.value:.4f}",
                    "test_auroc": f"{scores.auroc:.4f}",
                    "command": shlex.join(["dmformer", *train]),
                }
            )
        record("soup", table)


if __name__ == "__main__":
    main()
