"""Our family and its timm peers under the same short recipe, on two data sets.

python benchmarks/comparison.py DATA      # the folder with clothing/ and tiny_imagenet/; about an hour on one core

Every model keeps its authors' initialisation, including layer scales.
"""

from short_runs import data_argument, data_folder, run

MODELS = (
    "dmformer_t",
    "van_b0",
    "pvt_v2_b0",
    "convnext_atto",
    "edgenext_x_small",
    "vitae_t",
    "smt_t",
    "resnet18",
    "poolformer_s12",
)
SMALLEST = ("dmformer_t", "pvt_v2_b0", "convnext_atto", "edgenext_x_small")
DATA = ("tiny20", "clothing")


def main() -> None:
    with data_folder(data_argument()):
        for seed in (0, 1, 2):
            for data in DATA:
                for model in MODELS:
                    if seed == 0 or model in SMALLEST:
                        run("comparison", model, data, model, (), seed)


if __name__ == "__main__":
    main()
