"""dmformer shards: put labelled photos into tars, for data that is read from a shared or remote disk."""

from dataclasses import dataclass
from pathlib import Path

from ..tasks.classification.task import check_data
from ..tasks.task import check_paths
from ..utils.errors import UserError
from .parsing import parse
from .printing import remark


@dataclass(frozen=True)
class ShardsOptions:
    """Put labelled photos into shards: tars in WebDataset's layout, for file systems that are slow with many files, and
    for a web server: dmformer shards PHOTOS OUT [OPTIONS]

    Photos are copied unchanged. Photos without splits are split as `dmformer train` splits them, with the same options;
    training on the shards gives the same model as training on the photos. timm and WebDataset read the shards too.

    examples:
      dmformer shards photos/ shards/
      dmformer train classify --data shards/
      dmformer train classify --data wds/http://storage.example/shards
    """

    photos: str
    """A folder of class folders (or of train, val, test with class folders), an archive of one, a .csv or .jsonl table
    of paths and labels, or elpv."""
    out: str
    """Output folder."""
    val_data: str | None = None
    """Folder, archive or table of validation photos, if they are not beside the training photos."""
    test_data: str | None = None
    """Folder, archive or table of test photos, if they are not beside the training photos."""
    val_share: float = 0.15
    """Fraction held out for validation if the photos have no validation split."""
    test_share: float = 0.15
    """Fraction held out for the report if the photos have neither a validation nor a test split."""
    seed: int = 0
    """Seed for the split and for the order of the photos in the shards."""
    shard_mb: float = 256.0
    """Size of a shard in MB."""
    allow_leaks: bool = False
    """Write photos of one split that are also in another one."""
    overwrite: bool = False
    """Replace the folder if it holds shards."""


def shards(arguments: list[str]) -> None:
    options = parse(ShardsOptions, arguments, "shards")
    out = Path(options.out)
    check_data(options.photos)
    check_paths(options.val_data, options.test_data)
    if options.shard_mb <= 0:
        raise UserError(f"--shard-mb is {options.shard_mb}: it must be above 0.")

    from ..data.shards import holds_shards
    from ..tasks.classification.recipes import ClassificationRecipe
    from ..utils.display import track
    from ..utils.files import new_folder

    if out.exists() and not (options.overwrite and holds_shards(options.out)) and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists already: give another name, or --overwrite if it holds shards.")
    recipe = ClassificationRecipe(
        data=options.photos,
        val_data=options.val_data,
        test_data=options.test_data,
        val_share=options.val_share,
        test_share=options.test_share,
        seed=options.seed,
        allow_leaks=options.allow_leaks,
    )
    recipe.check()

    from ..tasks.classification.sharding import write

    with new_folder(out) as part:
        counts, notes = write(recipe, part, round(options.shard_mb * 1e6), lambda items, what: track(items, what))
    for note in notes:
        remark(note)
    print(", ".join(f"{count:,} {split}" for split, count in counts.items()) + f" photos\nshards: {out}")
