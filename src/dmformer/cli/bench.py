"""dmformer bench: speed and memory of models in several forms."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..utils.errors import UserError
from .checks import check_source_or_name, check_writable
from .parsing import parse
from .printing import print_speeds, write


@dataclass(frozen=True)
class BenchOptions:
    """Measure speed and memory: dmformer bench [MODELS...] [OPTIONS]

    Everything is prepared first. Then every candidate has one turn in each of several rounds, so that other load on the
    machine affects all of them alike. Speed does not depend on the values of the weights: models given by name have
    random weights, and nothing is downloaded.

    images/s: median over the rounds, with the interquartile range. ms: time of a call with the whole batch. ratio:
    speed relative to the baseline's, median of the rounds' ratios. MB: peak memory of a call, without the weights and
    whatever else is held between calls. difference: largest difference of the logits from the plain float32 model's,
    relative to the largest of those; not for detectors.

    A detector is measured as a whole, with the selection of objects, of which noise has few.

    The exported forms (pip install 'dmformer[export]') run on the CPU with as many threads as PyTorch.

    examples:
      dmformer bench                                       dmformer_s, eager and fused
      dmformer bench van_b0 resnet18 --forms eager fused onnxruntime openvino --threads 1
      dmformer bench runs/photos-1/best --batch-sizes 1    your model, one image at a time
      dmformer bench dmformer_s --dtypes float32 bfloat16 --baseline dmformer_s/eager/float32
      dmformer bench dmformer_s --mode training --batch-sizes 16 --forms eager compiled
      dmformer bench dmformer_s+upernet --image-size 512 --batch-sizes 1 --forms plain fused
      dmformer bench van_b0+atss runs/boxes-1/best --image-size 320 --batch-sizes 1 --forms eager fused openvino
      dmformer bench --peers --forms fused openvino --csv peers.csv --plot peers.svg
    """

    models: tuple[str, ...] = ()
    """Models: names from dmformer or timm, with +fpn or +upernet for a segmenter of 150 classes on top, or +mask_rcnn,
    +cascade_rcnn, +retinanet, +atss, +sparse_rcnn or +dino for a detector of 80 classes;
    best/ folders of runs; or hf-hub:owner/name. They may come before the options. Default: dmformer_s."""
    peers: bool = False
    """Add DMFormer-S and models of similar size:
    ConvNeXt-T, Swin-T, PVTv2-B2, PoolFormer-S36, InceptionNeXt-T, MambaOut-T, ResNet-50."""
    forms: tuple[Literal["plain", "eager", "compiled", "fused", "onnxruntime", "openvino"], ...] = ()
    """plain: with PyTorch's own depth-wise convolutions; eager: the model as it is;
    compiled: by torch.compile, which takes minutes to start; fused: dmformer.fuse;
    onnxruntime, openvino: the fused model, exported.
    Default: eager and fused; in training, eager."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    """Data type of weights and images; of OpenVINO's arithmetic; of autocast in training."""
    mode: Literal["inference", "training"] = "inference"
    """training measures forward pass, cross entropy, backward pass and one AdamW step."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Images per call."""
    image_size: int = 224
    """Height and width in pixels."""
    device: Literal["cpu", "cuda"] | None = None
    """Default: cuda if available, else cpu."""
    layout: Literal["channels_last", "contiguous"] = "channels_last"
    """Memory format of PyTorch's forms."""
    threads: int | None = None
    """CPU threads; by default as many as PyTorch uses."""
    rounds: int = 7
    """Turns of each candidate, after one warm-up turn."""
    seconds: float = 0.5
    """Minimum length of a turn; short calls are repeated to fill it."""
    baseline: str | None = None
    """MODEL, MODEL/FORM or MODEL/FORM/DTYPE that has speed 1; by default the first candidate."""
    csv: str | None = None
    """Also write all results for each candidate to this file, with machine, versions and date."""
    plot: str | None = None
    """Also plot published top-1 against speed at the largest batch size, as .svg or .png."""
    overwrite: bool = False
    """Replace existing files."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""


def bench(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--models", *arguments]
    options = parse(BenchOptions, arguments, "bench")
    for model in options.models:
        check_source_or_name(model, heads=True)
    if options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")
    for option, place in (("--csv", options.csv), ("--plot", options.plot)):
        if place is not None:
            check_writable(option, Path(place), options.overwrite)
    if options.plot is not None and Path(options.plot).suffix not in (".svg", ".png"):
        raise UserError(f"--plot {options.plot}: give a name that ends in .svg or .png.")

    from ..bench.rounds import PEERS, as_csv, bench
    from ..utils.display import Display

    with Display() as display:
        rows = bench(
            [*options.models, *(PEERS if options.peers else ())] or ["dmformer_s"],
            forms=options.forms or (("eager",) if options.mode == "training" else ("eager", "fused")),
            dtypes=options.dtypes,
            mode=options.mode,
            batch_sizes=options.batch_sizes,
            image_size=options.image_size,
            device=options.device,
            layout=options.layout,
            threads=options.threads,
            rounds=options.rounds,
            seconds=options.seconds,
            baseline=options.baseline,
            say=display.say,
            progress=lambda what, done, total: display.step(what, done, total, ""),
        )
    if options.csv is not None:
        write(Path(options.csv), as_csv(rows))
    if options.plot is not None:
        from ..bench.plot import plot

        unknown_top1 = plot(rows, Path(options.plot))
        if unknown_top1:
            print(f"not plotted, because they have no published top-1: {', '.join(unknown_top1)}", file=sys.stderr)
    if options.format == "csv":
        print(as_csv(rows), end="")
    elif options.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_speeds(rows)
