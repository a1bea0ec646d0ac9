"""How many wrong labels `dmformer embed` finds: 5 % of clothing's training labels are flipped at random.

python benchmarks/wrong_labels.py DATA [MODEL...]      # the folder with clothing/

Each row is one model and one seed: the fraction of the flipped labels that are among the first photos of the list, as
many as 5 % of the set, and anywhere in the list. A model is a best/ folder or the name of the package's weights; by
default dmformer_n.
"""

import sys
from pathlib import Path

import torch
from record import record

from dmformer.embed.features import embed, open_model
from dmformer.embed.findings import centred, wrong_labels

FLIPPED = 0.05
SEEDS = (0, 1, 2)


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1], "clothing", "train").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} DATA [MODEL...], the folder with clothing/")
    place = str(Path(sys.argv[1], "clothing", "train"))
    for name in sys.argv[2:] or ["dmformer_n"]:
        found = embed([place], open_model(name), name, 32, 0, 10**8)
        values, targets, classes = centred(found.values), found.targets, len(found.class_names)
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            count = round(FLIPPED * len(found))
            flipped = torch.randperm(len(found), generator=generator)[:count]
            wrong = targets.clone()
            wrong[flipped] = (targets[flipped] + torch.randint(1, classes, (count,), generator=generator)) % classes
            listed = [suspect.photo for suspect in wrong_labels(values, wrong, classes)[0]]
            first = set(listed[:count]) & set(flipped.tolist())
            row = {"data": "clothing/train", "photos": len(found), "classes": classes, "model": name, "seed": seed}
            row |= {"flipped": count, "in_first_5_percent": f"{len(first) / count:.4f}", "listed": len(listed)}
            row["in_list"] = f"{len(set(listed) & set(flipped.tolist())) / count:.4f}"
            record("wrong_labels", [row])


if __name__ == "__main__":
    main()
