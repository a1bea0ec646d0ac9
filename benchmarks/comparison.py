"""The family and its peers of timm under one short recipe, on two sets of photos.

python benchmarks/comparison.py DATA      # the folder with clothing/ and tiny_imagenet/; about an hour on one core

Layer scales start at 1 in every model that has them, since a few hundred steps are too few to grow them.
"""

from short_runs import data_argument, data_folder, run

MODELS = {
    "dmformer_t": ("layer_scale=1.0",),
    "van_b0": ("layer_scale=1.0",),
    "pvt_v2_b0": (),
    "convnext_atto": ("ls_init_value=1.0",),
    "edgenext_x_small": ("ls_init_value=1.0",),
    "vitae_t": (),
    "smt_t": (),
    "resnet18": (),
    "poolformer_s12": ("layer_scale_init_values=1.0",),
}
SMALLEST = ("dmformer_t", "van_b0", "pvt_v2_b0", "convnext_atto", "edgenext_x_small")
DATA = ("tiny20", "clothing")


def main() -> None:
    with data_folder(data_argument()):
        for seed in (0, 1, 2):
            for data in DATA:
                for model, arguments in MODELS.items():
                    if seed == 0 or model in SMALLEST:
                        run("comparison", model, data, model, arguments, seed)


if __name__ == "__main__":
    main()
