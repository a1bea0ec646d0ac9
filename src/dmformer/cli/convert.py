"""dmformer convert: turn a published weights file into a folder."""

import shlex
from dataclasses import dataclass

from ..utils.errors import UserError
from ..utils.files import check_path
from .parsing import parse


@dataclass(frozen=True)
class ConvertOptions:
    """Recognise a published weights file and write a folder that predict, eval, train --weights and timm can load.

    Supported: the original authors' files for VAN, SMT, ViTAE and ViTAEv2, and VAN from OpenMMLab and Hugging Face.
    Files are read as tensors only; no code in them is run. Every tensor must be used and every parameter filled.

    examples:
      dmformer convert van_tiny_754.pth.tar van_b0/
      dmformer predict van_b0/ photo.jpg
      dmformer train finetune --weights van_b0/ --data photos/
      python -c "import dmformer, timm; timm.create_model('local-dir:van_b0', pretrained=True)"
    """

    source: str
    """A .pth, .pth.tar or .safetensors file."""
    out: str
    """Output folder, for model.safetensors and config.json."""
    drop_head: bool = False
    """Drop the classifier, e.g. one with 21,841 classes."""
    image_size: int | None = None
    """Image side in pixels that the weights were tuned for, e.g. 384, if the file's published name does not say."""
    overwrite: bool = False
    """Replace an existing model in the folder."""


def convert(arguments: list[str]) -> None:
    options = parse(ConvertOptions, arguments, "convert")
    check_path(options.source)
    if options.image_size is not None and options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")

    from ..tasks.classification.convert import convert

    made = convert(options.source, options.out, options.drop_head, options.image_size, options.overwrite)
    config = made.data_config
    print(f"{made.model}, {made.parameters:,} parameters, {made.num_classes} classes")
    _, height, width = config["input_size"]
    print(
        f"images of {height} x {width} px, crop {config['crop_pct']:.3g}, {config['interpolation']}, "
        f"mean {config['mean']}, standard deviation {config['std']}"
    )
    print(f"written: {made.folder}; use it: dmformer predict {shlex.quote(str(made.folder))} photo.jpg")
