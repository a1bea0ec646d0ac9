"""Ablation of DMA: parts removed, and other mixers in the same skeleton. Three seeds per row, one table.

python benchmarks/ablation.py DATA      # the folder with tiny_imagenet/; about two hours on one core
"""

from short_runs import data_argument, data_folder, run

ROWS = {
    "full": (),
    "without the gate": ("gate=False",),
    "level 3x3 alone": ("levels=[[3,1]]",),
    "level 5x5, dilation 2, alone": ("levels=[[5,2]]",),
    "level 7x7, dilation 3, alone": ("levels=[[7,3]]",),
    "two levels, 3x3 and 7x7": ("levels=[[3,1],[7,3]]",),
    "without dilation": ("dilated=False",),
    "expand 2": ("expand_ratio=2",),
    "LKA as mixer": ("mixer=lka",),
    "SAM as mixer": ("mixer=sam",),
    "pooling as mixer": ("mixer=pooling",),
    "identity as mixer": ("mixer=identity",),
}
MODELS = ("dmformer_n", "dmformer_t")
SEEDS = (0, 1, 2)


def main() -> None:
    with data_folder(data_argument()):
        for seed in SEEDS:
            for model in MODELS:
                for row, arguments in ROWS.items():
                    run("ablation", row, "tiny20", model, arguments, seed)


if __name__ == "__main__":
    main()
