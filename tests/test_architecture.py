"""The packages of dmformer and the imports allowed between them: all imports point down, no task imports another.

Where the order is not obvious: `predict` and `train` are in the same layer, because neither needs the other.
`interpret` is above `predict`, because it uses its rules for photos and output names. `serve` is above `interpret`,
because its page shows what a model looks at. `runtimes`, which reads exported files, is below the tasks, because a
teacher may be such a file. `data` is below `runtimes`, because a photo is decoded in the same way whatever model
receives it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dmformer"

FLOORS = (
    ("cli",),
    ("choose", "search"),
    ("bench", "serve"),
    ("embed", "export", "interpret"),
    ("predict", "train"),
    ("tasks",),
    ("report",),
    ("models", "runtimes"),
    ("data",),
    ("nn",),
    ("utils",),
)
"""From the top; packages of the same layer do not import each other."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TASKS = {"classification", "multilabel", "segmentation", "detection", "pretraining"}
TABLES = {"recipes", "opening", "table"}
"""The files beside the tasks that know all of them."""
BORROWED = {"pretraining": {"classification"}, "multilabel": {"classification"}}
"""A pretrained backbone is a classifier, trained on class folders or by a classifier as teacher. A multi-label
classifier is a classifier with other probabilities."""

PUBLIC = {"models", "models.weights", "nn.fuse", "predict.model", "tasks.classification.convert", "utils.version"}
"""The sources of the public names of the top-level package."""


def module_name(path: Path) -> str:
    """tasks.job for src/dmformer/tasks/job.py; the name of the package for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All of a file, those inside functions too."""
    return [node for node in statements(parsed(path)) if isinstance(node, ast.Import | ast.ImportFrom)]


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Those below a node. Their expressions, which hold no imports and are most of a file, are left out."""
    for block in ("body", "orelse", "handlers", "finalbody", "cases"):
        inner = getattr(node, block, ())
        for child in inner if isinstance(inner, list) else ():
            yield child
            yield from statements(child)


def imported(name: str, functions: bool = True) -> Iterator[str]:
    """The modules of dmformer that a module imports: anywhere, also for type checking, or only at module level."""
    path = MODULES[name]
    package = ["dmformer", *name.split(".")] if name else ["dmformer"]
    if path.name != "__init__.py":
        package.pop()
    for node in import_statements(path) if functions else parsed(path).body:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{whole}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] == "dmformer":
                inner = target.partition(".")[2]
                yield inner if inner in MODULES else inner.rpartition(".")[0]


def room(name: str) -> str:
    return name.partition(".")[0]


def task(name: str) -> str | None:
    """The task whose folder contains the module."""
    parts = name.split(".")
    return parts[1] if parts[0] == "tasks" and parts[1:2] and parts[1] in TASKS else None


def test_every_module_is_in_a_package():
    """Every module is in a package, and this file lists every package and every task."""
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == FLOOR.keys()
    folders = {path.name for path in (PACKAGE / "tasks").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == TASKS
    assert all((folder / "__init__.py").is_file() for folder in {path.parent for path in MODULES.values()})


def test_imports_are_relative():
    """Otherwise the import parser above would miss some."""
    for path in MODULES.values():
        for node in import_statements(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert not any(name.partition(".")[0] == "dmformer" for name in names), path


def test_imports_point_down():
    """The package itself, "", is above everything."""
    pairs = [(name, other) for name in MODULES.keys() - {"", "__main__"} for other in imported(name)]
    assert len(pairs) > 2000
    up = [
        f"{name} imports {other or 'the package itself'}"
        for name, other in pairs
        if not other or (room(other) != room(name) and FLOOR[room(other)] <= FLOOR[room(name)])
    ]
    assert not up


def test_top_imports_only_the_public_names():
    assert set(imported("")) == PUBLIC
    assert set(imported("__main__")) <= {"cli", "cli.main"}


def test_tasks_do_not_know_each_other():
    """The files that tasks share do not know any task either, except for the tables."""
    for name in MODULES:
        if room(name) != "tasks" or name.removeprefix("tasks.") in TABLES:
            continue
        own = task(name)
        allowed = {own, *BORROWED.get(own or "", ())}
        for other in imported(name):
            assert task(other) is None or task(other) in allowed, f"{name} imports {other}"
            assert other.removeprefix("tasks.") not in TABLES, f"{name} imports {other}"


def test_borrowing_is_still_needed():
    borrowed = {(task(name), task(other)) for name in MODULES if task(name) for other in imported(name)}
    for borrower, lenders in BORROWED.items():
        assert all((borrower, lender) in borrowed for lender in lenders)


def test_training_knows_no_task():
    for name in MODULES:
        if room(name) == "train":
            assert all(task(other) is None for other in imported(name)), name


def test_no_import_cycles():
    """Of imports at module level, except those of a package's __init__.py from its own modules."""
    graph = {name: {o for o in imported(name, functions=False) if o != name} for name in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("lowest", ["data", "runtimes"])
def test_what_opens_exported_files_knows_no_torch(lowest):
    for name, path in MODULES.items():
        if room(name) != lowest:
            continue
        for node in import_statements(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert not {n.partition(".")[0] for n in names} & {"torch", "torchvision", "timm"}, name
