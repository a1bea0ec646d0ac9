"""The page on models matches the output of its script, and every local link in the documentation has a target."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dmformer.cli.embed import EmbedOptions
from dmformer.cli.evaluate import EvalOptions
from dmformer.cli.export import ExportOptions
from dmformer.cli.parsing import parse
from dmformer.cli.predict import PredictOptions
from dmformer.cli.serve import ServeOptions
from dmformer.tasks.recipes import RECIPES
from dmformer.utils.model_names import model_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")


@pytest.fixture(scope="module")
def script():
    """The namespace of docs/make_models.py."""
    return runpy.run_path(str(ROOT / "docs" / "make_models.py"))


@pytest.mark.slow
def test_page_is_up_to_date(script):
    assert script["render"](PAGE) == PAGE, "run python docs/make_models.py"


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


OPTIONS = {
    "embed": EmbedOptions,
    "eval": EvalOptions,
    "export": ExportOptions,
    "predict": PredictOptions,
    "serve": ServeOptions,
}


@pytest.mark.parametrize("page", ["multilabel.md", "embed.md"])
def test_commands_can_be_parsed(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    commands = re.findall(r"^dmformer .*$", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)), re.M)
    assert commands
    for line in [*commands, *re.findall(r"`(dmformer \w+ [^`]*\.\w[^`]*)`", text)]:
        _, command, *arguments = shlex.split(line, comments=True)
        if command == "train":
            recipe = RECIPES[arguments[0]]()
            parse(type(recipe), arguments[1:], command, default=recipe).check()
        else:
            parse(OPTIONS[command], arguments, command)
