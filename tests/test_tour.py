"""The notebook of the documentation runs and does what it says, from photos to a served model."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.filterwarnings("default")  # those of the kernel's client are not ours
@pytest.mark.slow
@pytest.mark.long
def test_tour_runs_to_its_end(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    told = [
        "".join(
            o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs if o.get("name") != "stderr"
        )
        for cell in cells
    ]
    scores = json.loads((tmp_path / "runs" / "patterns" / "scores.json").read_text())
    assert scores["top1"]["value"] > 0.6  # chance is a third
    assert f"top-1 {scores['top1']['value']:.1%}" in told[1]
    assert told[3].count("%") == 6
    assert sum(any("image/png" in o.get("data", {}) for o in cells[i].outputs) for i in (0, 4, 5)) == 3
    assert told[6].count("apart by") == 6
    assert any(name in told[7] for name in ("bars", "checks", "stripes"))
    assert told[8] == "'ready'"
    assert told[9].strip("'") in ("bars", "checks", "stripes")
    assert (tmp_path / "explanation" / "index.html").is_file()


def test_committed_notebook_has_no_errors_and_no_paths():
    text = NOTEBOOK.read_text("utf-8")
    notebook = nbformat.reads(text, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert outputs
    assert "/tmp/" not in text
    assert "site-packages" not in text
