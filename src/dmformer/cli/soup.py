"""dmformer soup: the mean of the weights of several runs as one model."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from ..tasks.config import read_folder
from ..tasks.table import task_for
from ..train.run_folder import SOUP
from ..utils.device import check_device
from ..utils.errors import UserError
from .checks import check_source, use_threads
from .parsing import parse
from .printing import print_rows, remark


@dataclass(frozen=True)
class SoupOptions:
    """Average the weights of several runs into one model: dmformer soup RUN RUN ... [OPTIONS]

    The runs have one model, the same classes and image size, and the same split of the same photos; they should have
    started from the same weights, and may differ in seed, learning rate and augmentation (arXiv 2203.05482). The soup
    is as fast as one of them, where an ensemble is as slow as all of them. It begins with the best run, and takes
    another only if that does not lower the validation score. The folds of a run have no validation photos in common:
    all are averaged, and eval scores the soup on test photos.

    The folder --out is like a run's: best/ is an ordinary model, soup.json has the scores of the runs and of the soup.

    examples:
      dmformer train classify --data photos/ --split-seed 0 --seed 1 --name one
      dmformer train classify --data photos/ --split-seed 0 --seed 2 --name two
      dmformer soup runs/one runs/two --out runs/soup
      dmformer eval runs/soup/best
      dmformer soup runs/one runs/two --uniform       all of them, whatever the validation says
      dmformer soup runs/cells --out runs/cells-soup  the folds of a run
    """

    runs: tuple[str, ...]
    """Folders of runs. A run in folds stands for its folds."""
    out: str = "soup"
    """Folder to write."""
    uniform: bool = False
    """Average all runs, whatever the validation score."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:N (GPU number N, from 0), mps (a Mac's GPU), or auto: a GPU if there is one."""
    threads: int | None = None
    """Threads that compute on a CPU; by default one per core."""
    overwrite: bool = False
    """Replace the folder if it holds a soup."""


def soup(arguments: list[str]) -> None:
    options = parse(SoupOptions, arguments, "soup")
    for run in options.runs:
        if run.startswith("hf-hub:"):
            raise UserError(f"{run} is not a run: a soup needs the photos that it was validated on.")
        check_source(run)
    check_device(options.device)
    task = task_for(read_folder(options.runs[0]))
    out = Path(options.out)
    use_threads(options.threads)

    from ..train.soup import make_soup
    from ..utils.display import track

    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (options.overwrite and (out / SOUP).is_file())):
        raise UserError(f"{out} exists already: give another --out, or --overwrite if it holds a soup.")
    made = make_soup(options.runs, out, options.uniform, options.device, track, remark)
    used = sum(member.used for member in made.members)
    if made.score is not None:
        rows = [[member.run, member.score, "yes" if member.used else ""] for member in made.members]
        print_rows(["run", f"validation {task.headline}", "in the soup"], [*rows, ["soup", made.score, ""]], "table")
    if used == 1:
        print("no other run improved the best one: the soup is this run alone")
    best = shlex.quote(str(out / "best"))
    print(f"soup of {used} of {len(made.members)} runs: {out / 'best'}\nnext: dmformer eval {best}")
