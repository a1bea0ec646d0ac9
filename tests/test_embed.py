"""Features of photos: files, nearest neighbours, the page, near-duplicates, likely wrong labels."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, make_photo

from dmformer.cli import main
from dmformer.embed.findings import centred, near, near_duplicates, neighbours, pca, wrong_labels
from dmformer.tasks.pretraining.probing import out_of_fold


def groups(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 150 photos in three groups that lie well apart, and their groups."""
    targets = torch.arange(150) % 3
    noise = torch.randn(150, 6, generator=torch.Generator().manual_seed(seed))
    return torch.eye(6)[targets] * 9 + noise, targets


def test_wrong_labels_come_first():
    values, targets = groups()
    flipped = [4, 40, 77, 113, 149]
    given = targets.clone()
    given[flipped] = (targets[flipped] + 1) % 3
    suspects, agreement = wrong_labels(values, given, 3)
    assert 1 - agreement == pytest.approx(len(flipped) / len(given), abs=0.03)
    assert 3 <= len(suspects) <= 8
    for suspect in suspects[:4]:
        assert suspect.photo in flipped
        assert suspect.given == given[suspect.photo]
        assert suspect.likely == targets[suspect.photo]
        assert suspect.of_likely > 0.5 > suspect.of_given
    leads = [s.of_given - s.of_likely for s in suspects]
    assert leads == sorted(leads)
    probabilities = out_of_fold(values, targets, 3)
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 150, abs=1e-5)
    assert float((probabilities.argmax(1) == targets).float().mean()) > 0.97
    noise = torch.randn(150, 6, generator=torch.Generator().manual_seed(1))  # nothing can be learnt from it
    assert float((out_of_fold(noise, targets, 3).argmax(1) == targets).float().mean()) < 0.55


def test_neighbours_pairs_and_map():
    values, _ = groups()
    values[7] = values[3] * 1.01
    centre = centred(values.numpy())
    assert centre.mean(0).abs().max() < 1e-5
    cosines, places = neighbours(centre, 4)
    every = torch.nn.functional.normalize(centre, dim=1) @ torch.nn.functional.normalize(centre, dim=1).T
    every.fill_diagonal_(-2)
    assert torch.allclose(cosines, every.topk(4, dim=1).values, atol=1e-5)
    assert int(places[3, 0]) == 7
    pairs = near_duplicates(cosines, places, 0.999)
    assert [(pair.first, pair.second) for pair in pairs] == [(3, 7)]
    points, variance = pca(centre)
    expected = torch.linalg.eigvalsh(centre.T @ centre).flip(0)
    assert variance == pytest.approx((expected[:2] / expected.sum()).tolist(), abs=1e-4)
    assert np.abs(points.T @ points)[0, 1] < 1e-2
    found, order = near(values[3].numpy(), values.numpy(), 2)
    assert set(order) == {3, 7}
    assert found[0] == pytest.approx(1, abs=1e-4)


@pytest.fixture
def labelled(trained_classifier, tmp_path) -> tuple[str, Path]:
    """A trained model, and its photos with one copy under another name, one wrong label and one broken file."""
    place = tmp_path / "photos"
    shutil.copytree(trained_classifier.folder.parents[1] / "photos", place)
    names = list(COLOURS)
    (place / names[0] / "3.png").rename(place / names[1] / "wrong.png")
    shutil.copy(place / names[2] / "5.png", place / names[2] / "copy.png")
    (place / names[2] / "broken.png").write_bytes(b"no photo")
    return str(trained_classifier.folder), place


@pytest.mark.slow
def test_the_command_writes_features_a_page_and_lists(labelled, tmp_path, capsys):
    model, place = labelled
    out, page, wrong = tmp_path / "f.npz", tmp_path / "page.html", tmp_path / "wrong.csv"
    arguments = ["--model", model, "--out", out, "--page", page, "--wrong-labels", wrong, "--workers", "0"]
    main(["embed", *map(str, [place, *arguments])])
    told = capsys.readouterr().err
    assert "broken.png could not be read and is left out" in told
    with np.load(out) as found:
        assert found["features"].shape == (37, 32)
        assert found["features"].dtype == np.float32
        names, labels = found["paths"].tolist(), found["labels"].tolist()
        assert str(found["model"]) == model
    assert all(Path(name).parent.name == label for name, label in zip(names, labels, strict=True))
    html = page.read_text("utf-8")
    assert "<script" not in html
    assert html.count("<figure>") >= 37
    assert "broken.png" in html
    rows = list(csv.DictReader(io.StringIO(wrong.read_text("utf-8"))))
    assert Path(rows[0]["path"]).name == "wrong.png"
    assert rows[0]["likelier"] == "red car"

    query = str(place / "蓝天" / "5.png")
    main(["embed", str(out), "--neighbours", query, "--count", "3", "--format", "json"])
    near_ones = json.loads(capsys.readouterr().out)
    assert Path(near_ones[0]["path"]).name == "copy.png"
    assert near_ones[0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert [each["label"] for each in near_ones] == ["蓝天"] * 3
    new = tmp_path / "new.png"
    make_photo(COLOURS["red car"], 999).save(new)
    main(["embed", str(out), "--neighbours", str(new), "--count", "2", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2
    assert all("red" in row["path"] or "wrong" in row["path"] for row in rows)

    for arguments, message in (
        ([place], "say what to make of the photos"),
        ([place, "--out", "f.txt"], "--out f.txt: give a file that ends in .npz or .parquet"),
        ([place, "--out", out], "exists already"),
        ([out, "--model", model, "--page", tmp_path / "b.html"], "names its model: omit --model"),
        ([place / "red car", "--model", model, "--wrong-labels", tmp_path / "b.csv"], "needs photos with labels"),
    ):
        with pytest.raises(SystemExit):
            main(["embed", *map(str, arguments)])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_parquet_holds_the_same(labelled, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    from dmformer.embed.features import read

    model, place = labelled
    for name in ("f.npz", "f.parquet"):
        main(["embed", str(place), "--model", model, "--out", str(tmp_path / name), "--workers", "0"])
    one, other = read(tmp_path / "f.npz"), read(tmp_path / "f.parquet")
    assert one.names == other.names
    assert one.labels == other.labels
    assert np.array_equal(one.values, other.values)
