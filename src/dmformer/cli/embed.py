"""dmformer embed: features of photos, and what they tell about the set."""

import csv
import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.limits import MAX_PIXELS
from ..utils.errors import UserError
from ..utils.files import check_path
from .checks import check_runs_on, check_source, check_writable, use_threads
from .parsing import parse
from .printing import print_rows, remark, write


@dataclass(frozen=True)
class EmbedOptions:
    """Compute the features of photos with a trained model, and look at the set through them.

    --out writes paths, labels and features to .npz (NumPy) or .parquet (needs 'dmformer[embed]'). Such a file can be
    given instead of the photos, so that the features are computed once.

    --page writes one file without scripts: a map of the photos (UMAP with 'dmformer[embed]', else principal
    components), near-duplicates, the most atypical photos and, for class folders and tables, likely wrong labels.

    examples:
      dmformer embed photos/ --out photos.npz --page photos.html
      dmformer embed photos.npz --neighbours photo.jpg --count 5
      dmformer embed photos/ --model runs/photos-1/best --wrong-labels suspects.csv
    """

    photos: tuple[str, ...]
    """Image files and folders (searched recursively); one folder of class folders, archive or table of paths and
    labels, whose labels are kept; or a file written by --out."""
    model: str = "dmformer_n"
    """A classifier: a run's best/ folder, the name of this package's weights, or hf-hub:owner/name."""
    out: str | None = None
    """File to write the features to: .npz or .parquet."""
    page: str | None = None
    """HTML file to write the page to."""
    wrong_labels: str | None = None
    """CSV file to write all likely wrong labels to, the clearest first."""
    neighbours: str | None = None
    """Photo whose nearest photos are printed."""
    count: int = 10
    """Number of nearest photos."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print them."""
    batch_size: int = 32
    """Photos per batch."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto: a GPU if there is one."""
    workers: int | None = None
    """Processes that read images; by default one per core, at most 8."""
    threads: int | None = None
    """Threads that compute on a CPU; by default one per core."""
    max_pixels: int = MAX_PIXELS
    """Maximum number of pixels of a photo; larger ones are not read."""
    overwrite: bool = False
    """Replace existing files."""


def embed(arguments: list[str]) -> None:
    options = parse(EmbedOptions, arguments, "embed")
    _check(options)
    use_threads(options.threads)

    from ..embed.features import embed as compute
    from ..embed.features import open_model, read
    from ..utils.display import track

    saved = _is_saved(options.photos)
    embedded = read(Path(options.photos[0])) if saved else None
    source = options.model if embedded is None else embedded.model
    model: Any = None
    if embedded is None or options.neighbours:
        model = open_model(source)

    def features_of(places: tuple[str, ...]) -> Any:
        return compute(
            places,
            model,
            source,
            options.batch_size,
            options.workers if places == options.photos else 0,
            options.max_pixels,
            options.device,
            lambda batches: track(batches, "computing features"),
            remark,
        )

    embedded = embedded or features_of(options.photos)
    for name, reason in embedded.broken:
        remark(f"{name} could not be read and is left out: {reason}")
    if options.out:
        from ..embed.features import write as write_features

        write_features(Path(options.out), embedded)
        size = embedded.values.shape[1]
        print(f"{options.out}: {size} features of {len(embedded)} photos, by {embedded.model}", file=sys.stderr)
    if options.wrong_labels:
        _write_suspects(embedded, Path(options.wrong_labels))
    if options.page:
        from ..embed.page import write_embedding_page

        title = f"Photos of {Path(options.photos[0]).resolve().name}"
        write_embedding_page(Path(options.page), title, embedded, shlex.join(["dmformer", "embed", *arguments]))
        print(options.page, file=sys.stderr)
    if options.neighbours:
        _print_neighbours(options, embedded, features_of((options.neighbours,)).values[0])


def _is_saved(photos: tuple[str, ...]) -> bool:
    return len(photos) == 1 and photos[0].endswith((".npz", ".parquet"))


def _check(options: EmbedOptions) -> None:
    if not options.photos:
        raise UserError("name the photos: image files, folders, or a file of features.")
    for photo in (*options.photos, *((options.neighbours,) if options.neighbours else ())):
        check_path(photo)
    if options.neighbours and Path(options.neighbours).is_dir():
        raise UserError(f"--neighbours {options.neighbours} is a folder: name one photo.")
    if not (options.out or options.page or options.neighbours or options.wrong_labels):
        raise UserError("say what to make of the photos: --out FILE, --page FILE, --wrong-labels FILE or --neighbours.")
    if min(options.count, options.batch_size, options.max_pixels, options.threads or 1) < 1:
        raise UserError("--count, --batch-size, --max-pixels and --threads must be 1 or more.")
    if not _is_saved(options.photos):
        check_source(options.model)
        check_runs_on(options.device, options.model)
    elif options.model != EmbedOptions.model:
        raise UserError(f"{options.photos[0]} names its model: omit --model.")
    for option, suffixes in (("out", (".npz", ".parquet")), ("page", (".html",)), ("wrong_labels", (".csv",))):
        value = getattr(options, option)
        if value is None:
            continue
        spelled = f"--{option.replace('_', '-')}"
        if not value.endswith(suffixes):
            raise UserError(f"{spelled} {value}: give a file that ends in {' or '.join(suffixes)}.")
        check_writable(spelled, Path(value), options.overwrite)
    if options.out and options.out.endswith(".parquet"):
        from ..utils.extras import needs

        with needs("embed", "writing Parquet"):
            import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports]


def _write_suspects(embedded: Any, path: Path) -> None:
    from ..embed.findings import centred, wrong_labels

    names = embedded.class_names
    if len(names) < 2:
        raise UserError("--wrong-labels needs photos with labels: one folder with a folder for each class, or a table.")
    suspects, agreement = wrong_labels(centred(embedded.values), embedded.targets, len(names))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "likelier", "its probability"])
    for s in suspects:
        row = [embedded.names[s.photo], names[s.given], f"{s.of_given:.4f}", names[s.likely], f"{s.of_likely:.4f}"]
        writer.writerow(row)
    write(path, text.getvalue())
    told = f"{path}: {len(suspects)} of {len(embedded)} labels to look at, the clearest first"
    print(f"{told}; a linear probe of the features agrees with {agreement:.1%} of all labels", file=sys.stderr)


def _print_neighbours(options: EmbedOptions, embedded: Any, query: Any) -> None:
    from ..embed.findings import near

    own = Path(str(options.neighbours)).resolve()
    cosines, places = near(query, embedded.values, options.count + 1)
    pairs = [(i, c) for i, c in zip(places, cosines, strict=True) if Path(embedded.names[i]).resolve() != own]
    pairs = pairs[: options.count]
    labels = embedded.labels or [""] * len(embedded)
    if options.format == "json":
        told = [{"path": embedded.names[i], "cosine": c, "label": labels[i] or None} for i, c in pairs]
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    rows = [[embedded.names[i], f"{c:.4f}", labels[i]] for i, c in pairs]
    print_rows(["path", "cosine", "label"], rows, options.format)
