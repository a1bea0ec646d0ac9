"""timm's own test suite, run on the models of this package: `python tests/timm_suite.py [names, as in "dmformer_*"]`.

Downloads the source distribution of the installed timm with pip, extracts its tests, and runs `test_models.py` on
every model that this package registers, or on the named ones: timm's own models are left out of its lists. timm's tests
are used unchanged, except for one line: our module names are prepended to the list of modules whose models are tested
for `forward_intermediates`. The exit code is 0 if no test failed and every model passed at least one.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm

import dmformer  # noqa: F401  (registers the models before timm's tests list them)

OURS = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models(sys.argv[1:])}
OURS = {name: module for name, module in OURS.items() if module.startswith("dmformer.")}
FILTERS = "FEAT_INTER_FILTERS = [\n"
LIST_MODELS = timm.list_models


def list_ours(*args: Any, **kwargs: Any) -> list[str]:
    """timm's function, of our models alone: to collect tests of all the others takes longer than many of ours."""
    return [name for name in LIST_MODELS(*args, **kwargs) if name.partition(".")[0] in OURS]


class OnlyOurs:
    """A pytest plugin: selects the tests of our models and counts their outcomes, (model, outcome) -> tests."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        ours = [item for item in items if self._model(item) in OURS]
        config.hook.pytest_deselected(items=[item for item in items if self._model(item) not in OURS])
        items[:] = ours

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item):
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[self._model(item), report.outcome] += 1
        return report

    @staticmethod
    def _model(item: pytest.Item) -> str:
        callspec = getattr(item, "callspec", None)
        return str(callspec.params.get("model_name", "")).split(".")[0] if callspec else ""


def fetch_tests(folder: Path) -> Path:
    """Put the tests of the installed timm into `folder`; returns the path of its test_models.py."""
    requirement = f"timm=={version('timm')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm", "--dest", folder]
    subprocess.run([*pip, requirement], check=True)
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as tar:
        # Without timm's package: the tests must import the installed one.
        members = [m for m in tar.getmembers() if re.match(r"[^/]+/(tests/|pyproject\.toml$)", m.name)]
        tar.extractall(folder, members, filter="data")
    (tests,) = folder.glob("timm-*/tests/test_models.py")
    source = tests.read_text()
    if source.count(FILTERS) != 1:
        sys.exit(f"{tests} of {requirement} has no line {FILTERS!r}: this script needs to follow timm's change.")
    modules = sorted({module.rpartition(".")[2] for module in OURS.values()})
    tests.write_text(source.replace(FILTERS, f"{FILTERS}    *{modules!r},\n"))
    return tests


def main() -> None:
    tally = OnlyOurs()
    timm.list_models = list_ours
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch_tests(Path(folder))
        config = tests.parents[1] / "pyproject.toml"
        code = pytest.main(["-c", str(config), "-p", "no:cacheprovider", "-q", "--durations=5", str(tests)], [tally])
    for name in OURS:
        counts = ", ".join(f"{tally.outcomes[name, o]} {o}" for o in ("passed", "failed", "skipped"))
        print(f"{name}: {counts}")
    untested = [name for name in OURS if not tally.outcomes[name, "passed"]]
    if untested or not OURS:
        sys.exit(f"timm's suite passed no test for {', '.join(untested) or ' '.join(sys.argv[1:])}")
    sys.exit(code)


if __name__ == "__main__":
    main()
