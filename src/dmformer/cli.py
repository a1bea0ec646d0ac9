"""The `dmformer` command: train, eval, predict, convert, bench, models.

Arguments are read and checked before torch is imported; each command imports what it needs.
"""

import contextlib
import csv
import difflib
import fnmatch
import inspect
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from .catalogue import model_names
from .config_file import task_of
from .errors import UserError, unknown
from .files import write_whole
from .kernels import chosen_mode
from .recipes import RECIPES, ClassificationRecipe, Recipe, SegmentationRecipe, read_recipe
from .runs import check_folder, find_run

T = TypeVar("T")

NAMED_SETS = ("torch", "hfds", "hfids", "wds", "tfds")
"""Prefixes of the sets that timm knows by name."""

MASK_OPTIONS = ("masks", "reduce_zero_label", "ignore_index", "window", "scales", "flip", "overwrite")
"""Options that only segmenters have."""

HELP = """usage: dmformer COMMAND [OPTIONS]

Convolutional-attention vision backbones: trained, reported and reused by one command.

commands:
  train     train a classifier or a segmenter on photos; writes a run folder with a report
  eval      score a trained model on a set of photos
  predict   classify photos, or segment them
  convert   make a published weights file of VAN, SMT, ViTAE or ViTAEv2 usable here and in timm
  bench     measure the speed and memory of models, ours and timm's, in several forms
  models    list the models

examples:
  dmformer train                                     solar cells, sound or defective: the demo, in minutes on a CPU
  dmformer train scratch --data photos/              your photos, one folder a class
  dmformer train finetune --data photos/ --weights runs/elpv-dmformer_n-1/best
  dmformer train camvid --data camvid/               semantic segmentation
  dmformer eval runs/elpv-dmformer_n-1/best --data elpv
  dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
  dmformer convert van_b0.pth van_b0/
  dmformer bench dmformer_s convnext_tiny --forms eager fused openvino
  dmformer models 'van_*'

`dmformer COMMAND --help` shows the options of a command.
"""

TRAIN_HELP = """Train a classifier or a segmenter, into a run folder with a report.

recipes (dmformer train RECIPE [OPTIONS]; elpv if none is named):
{recipes}

examples:
  dmformer train                                   the demo: solar cells, sound or defective
  dmformer train scratch --data photos/            photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/val/
  dmformer train scratch --data photos/ --epochs 60 --image-size 160 --class-weights balanced
  dmformer train finetune --data photos/ --weights runs/scratch-1/best --freeze 2
  dmformer train segment --data images/ --masks masks/ --classes names.txt --weights van_b2/ --model van_b2
  dmformer train --model-args gate=False --name without-gate
  dmformer train --resume                          go on with the run that was stopped
  torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/

The options below show the values of the recipe '{name}'.
"""


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model.

    A classifier: top-1, top-5, balanced accuracy, macro F1 and AUROC; a segmenter: mIoU, mean and pixel accuracy, and
    each class. With 95 % intervals.

    examples:
      dmformer eval runs/elpv-dmformer_n-1/best
      dmformer eval runs/photos-1/best --data photos/test --json scores.json
      dmformer eval runs/camvid-1/best --data camvid/ --scales 0.75 1 1.25 --flip
    """

    source: str
    """A run's best/ folder, or hf-hub:owner/name."""
    data: str | None = None
    """elpv (its held-out quarter, what a classifier is scored on by default), a folder or .tar of class folders, or a
    set that timm knows, e.g. torch/cifar10. For a segmenter a folder as in training.
    Of a folder or .tar with splits the test split counts, else the val split."""
    data_root: str | None = None
    """Where a named set lies or is cached."""
    split: str = "validation"
    """Split of a named set."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that read images; by default as many as there are cores, at most 8."""
    max_broken: float = 0.05
    """Share of unreadable images above which the figures are refused."""
    masks: str | None = None
    """Segmenters: folder of the id masks, where --data is a folder of images."""
    reduce_zero_label: bool | None = None
    """Segmenters: id 0 in the masks is unlabelled and class k is stored as k + 1 (ADE20K); by default as in the masks
    that were trained on."""
    ignore_index: tuple[int, ...] | None = None
    """Segmenters: ids in the masks that mean unlabelled; likewise."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the images' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the images mirrored."""
    json: str | None = None
    """Also write the scores to this file as JSON; - prints them instead of the table."""


@dataclass(frozen=True)
class PredictOptions:
    """Classify photos with a trained classifier, or segment them with a trained segmenter.

    A segmenter writes STEM.overlay.png and STEM.mask.png (ids of the classes, from 0) for each photo, and legend.png.
    Video goes in as a folder of frames.

    The first photo waits for torch and timm to be imported: seconds, about 10 on a slow machine.

    examples:
      dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
      dmformer predict runs/elpv-dmformer_n-1/best folder/ --format csv > classes.csv
      curl -s $URL | dmformer predict runs/elpv-dmformer_n-1/best - --format json
      dmformer predict runs/camvid-1/best frames/ --out segmented/
    """

    source: str
    """A run's best/ folder, or hf-hub:owner/name."""
    photos: tuple[str, ...]
    """Image files, folders (searched to the bottom), or - for an image on standard input."""
    top: int = 3
    """Classes to show."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""
    batch_size: int = 16
    """Classifiers: photos at a time."""
    out: str | None = None
    """Segmenters: folder of the pictures; by default predictions/."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the photos' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the photos mirrored."""
    overwrite: bool = False
    """Segmenters: replace pictures that are there."""


@dataclass(frozen=True)
class ConvertOptions:
    """Recognise a published weights file and write a folder that predict, eval, train --weights and timm load.

    Files of the authors of VAN, SMT, ViTAE and ViTAEv2, and VAN's of OpenMMLab and Hugging Face. They are read as
    tensors only; nothing in them is run. Every tensor must be used and every parameter filled.

    examples:
      dmformer convert van_tiny_754.pth.tar van_b0/
      dmformer predict van_b0/ photo.jpg
      dmformer train finetune --model van_b0 --weights van_b0/ --data photos/
      python -c "import dmformer, timm; timm.create_model('local-dir:van_b0', pretrained=True)"
    """

    source: str
    """A .pth, .pth.tar or .safetensors file."""
    out: str
    """Folder to write: model.safetensors and config.json."""
    drop_head: bool = False
    """Leave the classifier out, e.g. one of 21,841 classes."""
    image_size: int | None = None
    """Side in pixels that the weights were tuned for, where the file's published name does not tell, e.g. 384."""
    overwrite: bool = False
    """Replace a model that is in the folder."""


@dataclass(frozen=True)
class BenchOptions:
    """Measure speed and memory: dmformer bench [MODELS...] [OPTIONS]

    Everything is prepared first; then every candidate has one turn in each of several rounds, so that what else the
    machine does falls on all alike. Speed does not depend on the values of the weights: models given by name have
    random ones, nothing is downloaded.

    images/s: median of the rounds, and the middle half of them. ms: of a call with the whole batch. ratio: speed by
    the baseline's, median of the rounds' ratios. MB: the most that a call needs besides weights and what else is held
    between calls. difference: of the logits from the plain float32 model's, by the largest of those.

    The exported forms (pip install 'dmformer[export]') run on the CPU with as many threads as PyTorch.

    examples:
      dmformer bench                                       dmformer_s, as it is and fused
      dmformer bench van_b0 resnet18 --forms eager fused onnxruntime openvino --threads 1
      dmformer bench runs/photos-1/best --batch-sizes 1    your model, an image at a time
      dmformer bench dmformer_s --dtypes float32 bfloat16 --baseline dmformer_s/eager/float32
      dmformer bench dmformer_s --mode training --batch-sizes 16 --forms eager compiled
      dmformer bench --peers --forms fused openvino --csv peers.csv --plot peers.svg
    """

    models: tuple[str, ...] = ()
    """Names of ours or of timm's, runs' best/ folders, or hf-hub:owner/name; they may stand before the options.
    None is dmformer_s."""
    peers: bool = False
    """Add DMFormer-S and models of its size: ConvNeXt-T, Swin-T, PVTv2-B2, PoolFormer-S36, InceptionNeXt-T, MambaOut-T,
    ResNet-50."""
    forms: tuple[Literal["plain", "eager", "compiled", "fused", "onnxruntime", "openvino"], ...] = ()
    """plain: with the framework's own depth-wise convolutions; eager: the model as it is; compiled: by torch.compile,
    which takes minutes to start; fused: dmformer.fuse;
    onnxruntime, openvino: the fused model, exported. None is eager and fused; in training eager."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    """Of weights and images; of OpenVINO's arithmetic; of autocast in training."""
    mode: Literal["inference", "training"] = "inference"
    """training: forward, cross entropy, backward and a step of AdamW."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Images a call."""
    image_size: int = 224
    """Height and width in pixels."""
    device: Literal["cpu", "cuda"] | None = None
    """cuda where there is one, else cpu."""
    layout: Literal["channels_last", "contiguous"] = "channels_last"
    """Memory format of PyTorch's forms."""
    threads: int | None = None
    """Of the CPU; as many as PyTorch takes."""
    rounds: int = 7
    """Turns of each candidate, after one that does not count."""
    seconds: float = 0.5
    """Least length of a turn: short calls are repeated."""
    baseline: str | None = None
    """MODEL, MODEL/FORM or MODEL/FORM/DTYPE whose speed is 1; the first candidate."""
    csv: str | None = None
    """Also write everything known of each candidate to this file, with machine, versions and date."""
    plot: str | None = None
    """Also draw published top-1 against speed at the largest batch; .svg or .png."""
    overwrite: bool = False
    """Replace files that are there."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""


@dataclass(frozen=True)
class ModelsOptions:
    """List the models: name, parameters, multiply-adds at 224 x 224, published ImageNet-1K top-1, paper.

    The top-1 is the paper's, with what it was trained on: in1k, ImageNet-1K alone; in22k_ft_in1k, ImageNet-22K first.

    examples:
      dmformer models
      dmformer models 'smt_*' --format csv
    """

    filter: str = "*"
    """Part of a name, or a shell pattern."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the list."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, with 2 after a user's mistake, with 128 + n after signal n."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = {
        "train": _train,
        "eval": _eval,
        "predict": _predict,
        "convert": _convert,
        "bench": _bench,
        "models": _models,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    try:
        if arguments[0] == "--version":
            from . import __version__

            print(__version__)
        elif arguments[0] not in commands:
            raise unknown("command", arguments[0], commands)
        else:
            _check_environment()
            commands[arguments[0]](arguments[1:])
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has gone, as `| head` does
        sys.stderr.close()
        raise SystemExit(141) from None


def _train(arguments: list[str]) -> None:
    name, options = "elpv", arguments
    if arguments and not arguments[0].startswith("-"):
        name, options = arguments[0], arguments[1:]
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    start = RECIPES[name]()
    if "--resume" in options:  # the run's own recipe, with what is given now on top
        place = replace(start, out=_value_of("--out", options) or start.out, name=_value_of("--name", options))
        start = replace(read_recipe(find_run(place) / "recipe.yaml"), resume=True, overwrite=False)
    listed = "\n".join(f"  {key:24}{(recipe.__doc__ or '').splitlines()[0]}" for key, recipe in RECIPES.items())
    recipe = _parse(type(start), options, "train", TRAIN_HELP.format(recipes=listed, name=name), start)
    recipe.check()
    _check_model(recipe.model)
    _check_places(recipe)
    if recipe.weights is not None and not recipe.weights.startswith("hf-hub:"):
        _check_path(recipe.weights)
    check_folder(recipe)

    from .train import Stopped, train

    try:
        run = train(recipe, command=shlex.join(["dmformer", "train", *arguments]))
    except Stopped as stopped:
        print(f"dmformer: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    if run is not None:
        _print_scores(run.scores, run.split)
        print(f"best weights: {run.folder / 'best'}\nreport: {run.folder / 'report.html'}")


def _eval(arguments: list[str]) -> None:
    options = _parse(EvalOptions, arguments, "eval")
    _check_source(options.source)
    if task_of(options.source) == "segmentation":
        _eval_masks(options)
        return
    _refuse_options(options, EvalOptions, MASK_OPTIONS, "segmenters; this is a classifier")
    _check_data(options.data or "elpv")

    from .display import track
    from .evaluate import evaluate

    recipe = ClassificationRecipe(
        data_root=options.data_root, val_split=options.split, workers=options.workers, max_broken=options.max_broken
    )
    recipe.check()
    data = options.data or "elpv"
    scores = evaluate(options.source, data, options.batch_size, recipe, lambda loader: track(loader, "scoring"))
    _give_scores(scores, data, options.json)


def _eval_masks(options: EvalOptions) -> None:
    if options.data is None:
        raise UserError("name the images to score on: --data FOLDER.")
    for place in (options.data, options.masks):
        if place is not None:
            _check_path(place)
    _check_testing(options.window, options.scales)

    from .display import track
    from .evaluate import evaluate_masks

    scores = evaluate_masks(
        options.source,
        options.data,
        options.masks,
        options.reduce_zero_label,
        options.ignore_index,
        options.workers,
        options.max_broken,
        options.window,
        options.scales,
        options.flip,
        lambda items: track(items, "scoring"),
        lambda line: print(line, file=sys.stderr),
    )
    _give_scores(scores, options.data, options.json)


def _give_scores(scores: Any, split: str, json_file: str | None) -> None:
    text = json.dumps(scores.to_dict(), indent=2, ensure_ascii=False)
    if json_file == "-":
        print(text)
        return
    if json_file:
        _write(Path(json_file), text + "\n")
    _print_scores(scores, split)


def _predict(arguments: list[str]) -> None:
    options = _parse(PredictOptions, arguments, "predict")
    if options.top < 1 or options.batch_size < 1:
        raise UserError("--top and --batch-size must be 1 or more.")
    if not options.photos:
        raise UserError("name the photos: image files, folders, or - for standard input.")
    _check_source(options.source)
    for photo in options.photos:
        if photo != "-":
            _check_path(photo)
    if task_of(options.source) == "segmentation":
        _predict_masks(options)
        return
    _refuse_options(options, PredictOptions, (*MASK_OPTIONS, "out"), "segmenters; this is a classifier")

    from .display import track
    from .predict import predict

    found = predict(
        options.source, options.photos, options.top, options.batch_size, lambda names: track(names, "classifying")
    )
    if options.format == "json":
        rows = [
            {"name": p.name, "error": p.error}
            if p.error
            else {"name": p.name, "classes": [{"class": c, "probability": v} for c, v in p.classes]}
            for p in found
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    rows = []
    for p in found:
        cells = [cell for pair in p.classes for cell in pair]
        rows.append([p.name, *cells, *[""] * (2 * options.top - len(cells)), p.error or ""])
    header = ["photo", *(f"{what} {i + 1}" for i in range(options.top) for what in ("class", "probability")), "error"]
    _print_rows(header, rows, options.format)


def _predict_masks(options: PredictOptions) -> None:
    _check_testing(options.window, options.scales)
    _refuse_options(options, PredictOptions, ("batch_size",), "classifiers; this is a segmenter")

    from .display import track
    from .predict import predict_masks

    found = predict_masks(
        options.source,
        options.photos,
        options.out or "predictions",
        options.window,
        options.scales,
        options.flip,
        options.overwrite,
        lambda names: track(names, "segmenting"),
    )
    if options.format == "json":
        rows = [
            {"name": p.name, "error": p.error}
            if p.error
            else {"name": p.name, "overlay": p.overlay, "mask": p.mask, "shares": dict(p.shares)}
            for p in found
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    header, rows = (
        ["photo", *(f"{what} {i + 1}" for i in range(options.top) for what in ("class", "share")), "written"],
        [],
    )
    for p in found:
        cells: list[Any] = [cell for pair in p.shares[: options.top] for cell in pair]
        rows.append([p.name, *cells, *[""] * (2 * options.top - len(cells)), p.error or p.overlay])
    header = ["photo", *(f"{what} {i + 1}" for i in range(options.top) for what in ("class", "share")), "written"]
    _print_rows(header, rows, options.format)


def _convert(arguments: list[str]) -> None:
    options = _parse(ConvertOptions, arguments, "convert")
    _check_path(options.source)
    if options.image_size is not None and options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")

    from .convert import convert

    made = convert(options.source, options.out, options.drop_head, options.image_size, options.overwrite)
    config = made.data_config
    print(f"{made.model}, {made.parameters:,} parameters, {made.num_classes} classes")
    _, height, width = config["input_size"]
    print(
        f"images of {height} x {width} px, crop {config['crop_pct']:.3g}, {config['interpolation']}, "
        f"mean {config['mean']}, deviation {config['std']}"
    )
    print(f"written: {made.folder}; use it: dmformer predict {shlex.quote(str(made.folder))} photo.jpg")


def _bench(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--models", *arguments]
    options = _parse(BenchOptions, arguments, "bench")
    for model in options.models:
        if Path(model).exists() or ("/" in model and ":" not in model):
            _check_source(model)
        else:
            _check_model(model)
    if options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")
    for option, place in (("--csv", options.csv), ("--plot", options.plot)):
        if place is not None:
            _check_writable(option, Path(place), options.overwrite)
    if options.plot is not None and Path(options.plot).suffix not in (".svg", ".png"):
        raise UserError(f"--plot {options.plot}: give a name that ends in .svg or .png.")

    from .bench import PEERS, as_csv, bench
    from .display import Display

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
        _write(Path(options.csv), as_csv(rows))
    if options.plot is not None:
        from .speedplot import plot

        unknown_top1 = plot(rows, Path(options.plot))
        if unknown_top1:
            print(f"not drawn, without a published top-1: {', '.join(unknown_top1)}", file=sys.stderr)
    if options.format == "csv":
        print(as_csv(rows), end="")
    elif options.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_speeds(rows)


def _models(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--filter", *arguments]
    options = _parse(ModelsOptions, arguments, "models")
    names = model_names()
    if not any(options.filter in name or fnmatch.fnmatch(name, options.filter) for name in names):
        raise unknown("model", options.filter, names)

    from .catalogue import catalogue

    entries = catalogue(options.filter)
    if options.format == "json":
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    header = ["name", "parameters (M)", "GMACs", "published top-1 (%)", "trained on", "arXiv"]
    rows = [
        [e.name, f"{e.parameters:.2f}", f"{e.gmacs:.3f}", e.published_top1 or "", e.trained_on or "", e.arxiv]
        for e in entries
    ]
    _print_rows(header, rows, options.format)


def _parse(
    kind: type[T], arguments: Sequence[str], command: str, description: str | None = None, default: Any = None
) -> T:
    """Read options into a dataclass; a mistake is a UserError with the nearest names."""
    import tyro

    known = [f"--{f.name.replace('_', '-')}" for f in fields(kind)]  # type: ignore[arg-type]
    accepted = {"--help", *known, *(option.replace("--", "--no-") for option in known)}
    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        if option.replace("_", "-") not in accepted:
            raise unknown("option", option, known)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            options, rest = tyro.cli(
                kind,
                prog=f"dmformer {command}",
                description=description or inspect.getdoc(kind),
                args=list(arguments),
                **({} if default is None else {"default": default}),
                return_unknown_args=True,
                config=(tyro.conf.PositionalRequiredArgs,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = " ".join(line.strip("│ ").strip() for line in output.getvalue().splitlines()[1:])
        raise UserError(f"{text.split('───')[0].strip()} See dmformer {command} --help.") from None
    if rest and not rest[0].startswith("-"):
        raise UserError(f"'{rest[0]}' stands where no name is expected: names come first, then options.")
    if rest:
        raise unknown("option", rest[0].partition("=")[0], known)
    return options


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _check_environment() -> None:
    try:
        chosen_mode()
    except ValueError as error:
        raise UserError(f"{error}.") from None


def _check_path(path: str) -> None:
    if not Path(path).exists():
        near = difflib.get_close_matches(
            Path(path).name, [p.name for p in Path(path).parent.glob("*")] if Path(path).parent.is_dir() else [], n=1
        )
        hint = f"; did you mean {Path(path).parent / near[0]}?" if near else "."
        raise UserError(f"{path} does not exist{hint}")


def _check_writable(option: str, path: Path, overwrite: bool) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: no file can be written there.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: give another name, or --overwrite.")


def _check_places(recipe: Recipe) -> None:
    """The places that a recipe names exist."""
    places: list[str | None] = []
    if isinstance(recipe, ClassificationRecipe):
        _check_data(recipe.data)
        places = [recipe.val_data, recipe.test_data]
    elif isinstance(recipe, SegmentationRecipe):
        places = [recipe.data, recipe.masks]
    for place in places:
        if place is not None:
            _check_path(place)


def _refuse_options(options: Any, kind: type, names: Sequence[str], whose: str) -> None:
    """Options that were given although they mean nothing for the model."""
    for field in fields(kind):
        if field.name in names and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} is for {whose}.")


def _check_testing(window: int | None, scales: Sequence[float]) -> None:
    if window is not None and window < 32:
        raise UserError(f"--window is {window}: it must be 32 or more.")
    if not scales or min(scales) <= 0:
        raise UserError("--scales takes factors above 0, e.g. 0.75 1 1.25.")


def _check_data(data: str) -> None:
    prefix, _, rest = data.partition("/")
    if data == "elpv" or (rest and prefix.lower() in NAMED_SETS) or Path(data).exists():
        return
    near = difflib.get_close_matches(prefix, ["elpv", *NAMED_SETS], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown data '{data}': {hint}Give a folder of class folders, a .tar of one, elpv, or a set's name such as "
        "torch/cifar10 or hfds/OWNER/NAME."
    )


def _check_model(name: str) -> None:
    ours = model_names()
    if name in ours or name.startswith(("hf-hub:", "local-dir:")):
        return
    theirs = model_names("timm")
    if name.partition(".")[0] not in theirs:
        raise unknown("model", name, [*ours, *theirs])


def _check_source(source: str) -> None:
    if source.startswith("hf-hub:"):
        return
    _check_path(source)
    if Path(source).is_file():
        raise UserError(
            f"{source} is a file: make a weights file a folder first, dmformer convert {shlex.quote(source)} OUT/."
        )
    if not any((Path(source) / part / "config.json").is_file() for part in ("", "best")):
        raise UserError(f"{source} holds no config.json: give a run's best/ folder, as `dmformer train` writes it.")


def _print_scores(scores: Any, split: str) -> None:
    if hasattr(scores, "miou"):
        _print_mask_scores(scores, split)
        return
    lines = [("top-1", scores.top1), ("top-5", scores.top5)]
    lines += [("balanced accuracy", scores.balanced_accuracy), ("macro F1", scores.macro_f1)]
    print(f"{scores.count} images ({split})")
    for name, figure in lines:
        if figure is not None:
            print(f"  {name:18}{figure.value:7.1%}   95 % interval {figure.low:.1%} to {figure.high:.1%}")
    if scores.auroc is not None:
        print(f"  {'AUROC':18}{scores.auroc:7.3f}")


def _print_mask_scores(scores: Any, split: str) -> None:
    interval = f"95 % interval {scores.miou.low:.1%} to {scores.miou.high:.1%}"
    print(f"{scores.images} images ({split}), {scores.pixels:,} labelled pixels")
    print(f"  {'mIoU':18}{scores.miou.value:7.1%}   {interval}")
    print(f"  {'mean accuracy':18}{scores.macc:7.1%}\n  {'pixel accuracy':18}{scores.aacc:7.1%}")
    rows = [
        [c.name, *("" if v is None else v for v in (c.iou, c.accuracy)), c.share]
        for c in sorted(scores.classes, key=lambda c: -1 if c.iou is None else c.iou)
    ]
    _print_rows(["class", "IoU", "accuracy", "of the pixels"], rows, "table")


def _print_speeds(rows: Sequence[Any]) -> None:
    """A bench's rows: batch by batch, the fastest first."""
    first = rows[0]
    place = f"{first.device}, {first.layout}, threads: {first.threads}"
    print(f"{first.mode} at {first.image_size} px on {first.machine}: {place}")
    header = ["model", "form", "dtype", "batch", "images/s", "middle half", "ms", "ratio", "MB", "difference"]
    cells = [
        [
            *(r.model, r.form, r.dtype, r.batch_size),
            *(f"{r.images_per_second:.1f}", f"{r.low:.1f} to {r.high:.1f}", f"{r.latency_ms:.1f}"),
            "" if r.ratio is None else f"{r.ratio:.2f}",
            "" if r.memory_mb is None else f"{r.memory_mb:.0f}",
            "" if r.difference is None else f"{r.difference:.1e}",
        ]
        for r in sorted(rows, key=lambda r: (r.batch_size, -r.images_per_second))
    ]
    _print_rows(header, cells, "table", whole=True)
    print(f"ratio: to {first.baseline}" if first.baseline else "no ratio: the baseline could not be measured")


def _print_rows(header: list[str], rows: list[list[Any]], format: str, whole: bool = False) -> None:
    """Print a table; `whole` lets its lines be longer than the 80 columns that are assumed of a pipe."""
    if format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([header, *([f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows)])
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(f"{v:.1%}" if isinstance(v, float) and v <= 1 else escape(str(v)) for v in row))
    Console(width=200 if whole and not sys.stdout.isatty() else None).print(table)


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def _fail(message: str) -> NoReturn:
    print(f"dmformer: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
