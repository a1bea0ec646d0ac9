"""dmformer export: write a trained model for a runtime."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..tasks.table import TASKS, task_for
from ..utils.errors import UserError
from ..utils.files import check_path
from ..utils.model_names import model_names
from ..utils.views import WORDS, ViewsOrAuto
from .checks import check_source, open_source
from .parsing import parse
from .printing import print_rows


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained model for a runtime, and keep the file only if its outputs match PyTorch's.

    Writes the fused form, in float32, with free batch size, height and width, and with everything needed to use it:
    class names, normalisation, crop. Then opens the file in its runtime and compares it with PyTorch on photos at three
    sizes and two batch sizes; if they differ by more than 0.001 of the largest logit, nothing is written. Both speeds
    are measured in alternation. Detectors are exported with their raw predictions, among which the program that runs
    the file selects, as `dmformer predict` does; Mask R-CNN and Cascade R-CNN, with the objects that they select.

    onnx: ONNX, opset 20, for ONNX Runtime and most other runtimes; openvino: .xml and .bin, for Intel's CPUs and GPUs;
    pt2: for PyTorch (torch.export.load); aoti: compiled for this machine's kind of CPU, which takes a minute or more,
    for PyTorch without Python (torch._inductor.aoti_load_package); needs a C++ compiler.

    `dmformer predict` and `dmformer serve` accept .onnx and .xml files, and then need neither torch nor timm.

    examples:
      dmformer export runs/photos-1/best
      dmformer export runs/photos-1/best --to openvino --out photos.xml --photos photos/test
      dmformer export runs/photos-1/best --preprocessing        takes 8-bit photos of any size, with no code around it
      dmformer export runs/photos-1/best --int8 photos/train      the loss is measured on the photos held out
      dmformer predict photos-1.onnx photo.jpg
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or a model's name, which gets random weights, to try a runtime."""
    to: Literal["onnx", "openvino", "pt2", "aoti"] = "onnx"
    """Format to write."""
    out: str | None = None
    """File to write, or a folder for it; by default the run's name, in the current folder."""
    preprocessing: bool = False
    """Build resizing, cropping and normalisation into the graph, which then takes 8-bit photos (B, H, W, 3)."""
    fused: bool = True
    """First fold norms, layer scales and residuals into the convolutions."""
    dynamic_size: bool = True
    """Leave height and width free as well as the batch size, if the model allows it."""
    photos: tuple[str, ...] = ()
    """Photos or folders to compare on; by default photos from the run's data, or noise."""
    int8: str | None = None
    """Folder of photos to calibrate 8-bit weights and activations with; for onnx and openvino."""
    data: str | None = None
    """With --int8: labelled images to measure the loss of accuracy on, as for `dmformer eval`; by default the run's
    held-out photos. On photos that it was trained or calibrated on, the loss looks smaller than it is."""
    max_loss: float = 0.01
    """With --int8: maximum loss of top-1 or mIoU, from 0 to 1; a file that loses more is discarded."""
    speed: bool = True
    """Measure the speed of both."""
    overwrite: bool = False
    """Replace an existing file."""
    tta: ViewsOrAuto = "auto"
    """Classifiers: test-time augmentation, built into the graph. flip averages the probabilities of each photo
    and its mirror image, flips those of 4 views, with both upside down. auto: as in the run's own scores."""
    format: Literal["table", "json"] = "table"
    """How to print the result."""


def export(arguments: list[str]) -> None:
    options = parse(ExportOptions, arguments, "export")
    if Path(options.source).exists() or options.source.partition(".")[0] not in (*model_names(), *model_names("timm")):
        check_source(options.source)
    for place in (*options.photos, *((options.int8,) if options.int8 else ())):
        check_path(place)
    if options.int8 and options.to not in ("onnx", "openvino"):
        raise UserError(f"--int8 is for onnx and openvino, not for {options.to}.")
    if options.data is not None and not options.int8:
        raise UserError("--data is for --int8, whose loss is measured on it; --photos gives the photos to compare on.")
    task = task_for(None)
    if options.source.startswith("hf-hub:") or Path(options.source).exists():
        task, _ = open_source(options.source)
    if options.tta != "auto" and "tta" not in task.options:
        raise UserError(f"--tta is for classifiers; this is a {task.model}.")
    if options.data is not None:
        task.check_data(options.data)

    from rich.markup import escape

    from ..export.write import export as write
    from ..utils.display import console

    try:
        with console().status("") as status:
            written = write(
                options.source,
                options.to,
                options.out,
                options.preprocessing,
                options.fused,
                options.dynamic_size,
                options.photos,
                options.int8,
                options.data,
                options.max_loss,
                options.speed,
                options.overwrite,
                options.tta,
                lambda line: status.update(escape(line)),
            )
    except OSError as error:
        raise UserError(f"the file cannot be written: {error.strerror or error}.") from None
    if options.format == "json":
        print(json.dumps({**asdict(written), "path": str(written.path)}, indent=2, ensure_ascii=False))
        return
    _print(written)


def _print(written: Any) -> None:
    from ..export.formats import OPSET
    from ..export.kinds import kind_of

    for remark in written.remarks:
        print(remark)
    graph = f", opset {OPSET}, {written.operators} operators" if written.operators else ""
    free = "batch free" if written.fixed_size else "batch, height and width free"
    inside = ", preprocessing inside" if written.card.preprocessing else ""
    print(f"{written.path}: {written.megabytes:.1f} MB, {written.card.precision}{graph}, {free}{inside}\n")
    if written.card.members > 1:
        print(f"each answer is the mean of {written.card.members} models")
    if told := WORDS[written.card.tta]:
        print(f"each answer is {told}")
    apart = "to PyTorch in float32" if written.card.precision == "int8" else "to PyTorch"
    print(f"largest difference {apart}, {kind_of(written.card.task).apart}")
    rows = [[f"{a.height} x {a.width}", a.batch, f"{a.difference:.1e}"] for a in written.agreements]
    print_rows(["px", "batch", "difference"], rows, "table")
    if written.scores is not None:
        before, after = written.scores
        print(f"\n{TASKS[written.card.task].headline}: float32 {before:.1%}, int8 {after:.1%}")
    if written.speeds:
        print(f"\nimages/s, threads: {written.threads}")
        rows = [[s.batch, f"{s.pytorch:.1f}", f"{s.exported:.1f}", f"{s.ratio:.2f}"] for s in written.speeds]
        print_rows(["batch", "PyTorch", "this file", "ratio"], rows, "table")
    if written.path.suffix in (".onnx", ".xml"):
        print(f"\nuse it: dmformer predict {shlex.quote(str(written.path))} photo.jpg")
