"""What each command does."""

import fnmatch
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from ..catalogue import model_names
from ..config_file import task_of
from ..errors import UserError, unknown
from ..recipes import RECIPES, ClassificationRecipe, read_recipe
from ..runs import check_folder, find_run
from .checks import (
    check_data,
    check_environment,
    check_model,
    check_path,
    check_places,
    check_source,
    check_testing,
    check_writable,
    refuse_options,
)
from .options import (
    HELP,
    MASK_OPTIONS,
    TRAIN_HELP,
    BenchOptions,
    ConvertOptions,
    EvalOptions,
    ModelsOptions,
    PredictOptions,
)
from .parsing import parse, value_of
from .printing import give_scores, print_rows, print_scores, print_speeds, write


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
            from .. import __version__

            print(__version__)
        elif arguments[0] not in commands:
            raise unknown("command", arguments[0], commands)
        else:
            check_environment()
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
        place = replace(start, out=value_of("--out", options) or start.out, name=value_of("--name", options))
        start = replace(read_recipe(find_run(place) / "recipe.yaml"), resume=True, overwrite=False)
    listed = "\n".join(f"  {key:24}{(recipe.__doc__ or '').splitlines()[0]}" for key, recipe in RECIPES.items())
    recipe = parse(type(start), options, "train", TRAIN_HELP.format(recipes=listed, name=name), start)
    recipe.check()
    check_model(recipe.model)
    check_places(recipe)
    if recipe.weights is not None and not recipe.weights.startswith("hf-hub:"):
        check_path(recipe.weights)
    check_folder(recipe)

    from ..train import Stopped, train

    try:
        run = train(recipe, command=shlex.join(["dmformer", "train", *arguments]))
    except Stopped as stopped:
        print(f"dmformer: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    if run is not None:
        print_scores(run.scores, run.split)
        print(f"best weights: {run.folder / 'best'}\nreport: {run.folder / 'report.html'}")


def _eval(arguments: list[str]) -> None:
    options = parse(EvalOptions, arguments, "eval")
    check_source(options.source)
    if task_of(options.source) == "segmentation":
        _eval_masks(options)
        return
    refuse_options(options, EvalOptions, MASK_OPTIONS, "segmenters; this is a classifier")
    check_data(options.data or "elpv")

    from ..display import track
    from ..evaluate import evaluate

    recipe = ClassificationRecipe(
        data_root=options.data_root, val_split=options.split, workers=options.workers, max_broken=options.max_broken
    )
    recipe.check()
    data = options.data or "elpv"
    scores = evaluate(options.source, data, options.batch_size, recipe, lambda loader: track(loader, "scoring"))
    give_scores(scores, data, options.json)


def _eval_masks(options: EvalOptions) -> None:
    refuse_options(options, EvalOptions, ("split", "data_root", "batch_size"), "classifiers; this is a segmenter")
    if options.data is None:
        raise UserError("name the images to score on: --data FOLDER.")
    for place in (options.data, options.masks):
        if place is not None:
            check_path(place)
    check_testing(options.window, options.scales)

    from ..display import track
    from ..evaluate import evaluate_masks

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
        track,
        lambda line: print(line, file=sys.stderr),
    )
    give_scores(scores, options.data, options.json)


def _predict(arguments: list[str]) -> None:
    options = parse(PredictOptions, arguments, "predict")
    if options.top < 1 or options.batch_size < 1:
        raise UserError("--top and --batch-size must be 1 or more.")
    if not options.photos:
        raise UserError("name the photos: image files, folders, or - for standard input.")
    check_source(options.source)
    for photo in options.photos:
        if photo != "-":
            check_path(photo)
    if task_of(options.source) == "segmentation":
        _predict_masks(options)
        return
    refuse_options(options, PredictOptions, (*MASK_OPTIONS, "out"), "segmenters; this is a classifier")

    from ..display import track
    from ..predict import predict

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
    print_rows(header, rows, options.format)


def _predict_masks(options: PredictOptions) -> None:
    check_testing(options.window, options.scales)
    refuse_options(options, PredictOptions, ("batch_size",), "classifiers; this is a segmenter")

    from ..display import track
    from ..predict import predict_masks

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
        found = [
            {"name": p.name, "error": p.error}
            if p.error
            else {"name": p.name, "overlay": p.overlay, "mask": p.mask, "shares": dict(p.shares)}
            for p in found
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows: list[list[Any]] = []
    for p in found:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in p.shares[: options.top])
        rows.append([p.name, shares or p.error, p.overlay])
    print_rows(["photo", "largest classes", "overlay"], rows, options.format, whole=True)


def _convert(arguments: list[str]) -> None:
    options = parse(ConvertOptions, arguments, "convert")
    check_path(options.source)
    if options.image_size is not None and options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")

    from ..convert import convert

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
    options = parse(BenchOptions, arguments, "bench")
    for model in options.models:
        if Path(model).exists() or ("/" in model and ":" not in model):
            check_source(model)
        else:
            check_model(model.partition("+")[0])
    if options.image_size < 32:
        raise UserError(f"--image-size is {options.image_size}: the models need 32 pixels or more.")
    for option, place in (("--csv", options.csv), ("--plot", options.plot)):
        if place is not None:
            check_writable(option, Path(place), options.overwrite)
    if options.plot is not None and Path(options.plot).suffix not in (".svg", ".png"):
        raise UserError(f"--plot {options.plot}: give a name that ends in .svg or .png.")

    from ..bench import PEERS, as_csv, bench
    from ..display import Display

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
        from ..speedplot import plot

        unknown_top1 = plot(rows, Path(options.plot))
        if unknown_top1:
            print(f"not drawn, without a published top-1: {', '.join(unknown_top1)}", file=sys.stderr)
    if options.format == "csv":
        print(as_csv(rows), end="")
    elif options.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_speeds(rows)


def _models(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--filter", *arguments]
    options = parse(ModelsOptions, arguments, "models")
    names = model_names()
    if not any(options.filter in name or fnmatch.fnmatch(name, options.filter) for name in names):
        raise unknown("model", options.filter, names)

    from ..catalogue import catalogue

    entries = catalogue(options.filter)
    if options.format == "json":
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    header = ["name", "parameters (M)", "GMACs", "published top-1 (%)", "trained on", "arXiv"]
    rows = [
        [e.name, f"{e.parameters:.2f}", f"{e.gmacs:.3f}", e.published_top1 or "", e.trained_on or "", e.arxiv]
        for e in entries
    ]
    print_rows(header, rows, options.format)


def _fail(message: str) -> NoReturn:
    print(f"dmformer: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
