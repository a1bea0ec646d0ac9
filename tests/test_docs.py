"""The page on models matches the output of its script, and every local link in the documentation has a target."""

import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmformer.cli import main
from dmformer.cli.main import COMMANDS
from dmformer.utils.model_names import model_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
FAMILIES = re.findall(r"<!-- variants: (\w+)_", PAGE)


COMMAND = re.compile(r"(?:^|&& |\| |-m )dmformer (?P<arguments>.*)")
"""A line with a command: alone, after another one, or started by torchrun."""


class Parsed(BaseException):
    """Ends a command once its arguments are parsed, before it does anything."""


def commands() -> Iterator[tuple[str, str]]:
    """The command lines that pages and help texts show, with where they are."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield page.name, line
        for line in re.findall(
            r"`((?:dmformer|torchrun) [^`…]* --[^`…]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        ):
            yield page.name, " ".join(line.split())
    for path in sorted((ROOT / "src" / "dmformer" / "cli").glob("*.py")):
        for line in re.findall(r"^ +((?:dmformer|torchrun|curl) [^\n]*)$", path.read_text("utf-8"), re.MULTILINE):
            yield path.name, re.split(r" {2,}", line)[0]  # what follows describes it


@pytest.mark.slow
def test_every_command_that_is_shown_is_one(monkeypatch, capsys):
    """Every command line in the pages and the help texts is parsed, and a recipe checked; nothing is run."""

    def stop(*_: object) -> None:
        raise Parsed

    for name, command in COMMANDS.items():
        module = importlib.import_module(command.__module__)
        if name == "train":
            monkeypatch.setattr(module, "check_model", stop)  # comes after the check of the recipe
        else:
            monkeypatch.setattr(module, "parse", lambda *given, parse=module.parse: (parse(*given), stop()))
    tried, wrong = 0, []
    for where, line in commands():
        found = COMMAND.search(line)
        if found is None or re.match(r"[A-Z]+( |$)", found["arguments"]):  # `dmformer COMMAND --help`
            continue
        arguments = [a for a in shlex.split(found["arguments"], comments=True) if not re.fullmatch(r"\[?[A-Z]+\]?", a)]
        arguments = arguments[: next((i for i, a in enumerate(arguments) if a in (">", "|", "&")), None)]
        tried += 1
        try:
            main(arguments)
        except Parsed:
            continue
        except SystemExit as end:
            if not end.code or "--resume" in arguments:  # a run to resume is looked for before the rest is parsed
                continue
        wrong.append(f"{where}: {line}: {capsys.readouterr().err}")
    assert wrong == []
    assert tried > 100


@pytest.fixture(scope="module")
def script():
    """The namespace of docs/make_models.py."""
    return runpy.run_path(str(ROOT / "docs" / "make_models.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, id=first, marks=pytest.mark.long if first.startswith("v") else [])
        for first, part in zip(["begin", *FAMILIES], re.split("(?=<!-- variants: )", PAGE), strict=True)
    ],
)
def test_page_is_up_to_date(script, part):
    """To count the operations of the families with many or large models takes long."""
    assert script["render"](part) == part, "run python docs/make_models.py"


def test_page_names_every_model():
    assert [name for name in model_names() if f"| `{name}` |" not in PAGE] == []


@pytest.mark.slow
def test_drawings_are_reproducible_and_on_the_page(script, tmp_path):
    for folder in ("once", "twice"):
        script["draw"](tmp_path / folder)
    drawn = {path.name for path in (tmp_path / "once").iterdir()}
    assert all((tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes() for name in drawn)
    assert {path.name for path in script["DRAWINGS"].iterdir()} == drawn
    assert set(re.findall(r"\(models/(\w+\.svg)\)", PAGE)) == drawn


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
