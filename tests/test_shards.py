"""Shards: what is written, that every photo is read once an epoch, from a disk and over HTTP, and broken shards."""

import csv
import gc
import json
import os
import signal
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmformer.cli import main
from dmformer.data.shards import INDEX, INFO
from dmformer.tasks.classification.datasets import open_splits
from dmformer.tasks.classification.loaders import train_loader
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.train.loop import Run, Stopped, Trainer, train
from dmformer.utils.errors import UserError


@pytest.fixture
def shards(photos: Path) -> Path:
    """The 36 photos of `photos` in shards of about four photos."""
    main(["shards", str(photos), str(photos.parent / "shards"), "--shard-mb", "0.02"])
    return photos.parent / "shards"


class _Ranges(SimpleHTTPRequestHandler):
    """Answers requests for a range of bytes, which Python's own server does not."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers:
            return super().do_GET()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        data = path.read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path, handler: type = _Ranges) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_photo_is_in_one_shard_unchanged(shards, photos):
    info = json.loads((shards / INFO).read_text("utf-8"))
    assert sorted(info["class_names"]) == sorted(p.name for p in photos.iterdir())
    train = info["splits"]["train"]
    assert train["num_samples"] == sum(train["shard_lengths"]) == 26
    assert len(train["filenames"]) > 4
    with (shards / INDEX).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {p.relative_to(photos).as_posix() for p in photos.rglob("*.png")}
    for row in rows:
        data = (photos / row["name"]).read_bytes()
        with (shards / row["shard"]).open("rb") as file:
            file.seek(int(row["offset"]))
            assert file.read(int(row["size"])) == data
        with tarfile.open(shards / row["shard"]) as tar:
            key = row["name"].removesuffix(".png")
            assert tar.extractfile(f"{key}.png").read() == data
            assert info["class_names"][int(tar.extractfile(f"{key}.cls").read())] == key.split("/")[0]
    first = [row["class"] for row in rows if row["shard"] == "train-00000.tar"]
    assert len(set(first)) > 1  # programs that read shards one after the other see mixed classes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves shards open
@pytest.mark.slow
def test_timm_reads_the_shards(shards):
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    for split, count in (("train", 26), ("validation", 5)):
        found = create_dataset("wds/photos", root=str(shards), split=split, is_training=False)
        assert len(list(found)) == count
    del found
    gc.collect()


def test_any_layout_becomes_shards(photos, tmp_path, capsys):
    """A table with splits and names with dots that would be the same key; a zip; what is refused."""
    (tmp_path / "a.b").mkdir()
    for i, name in enumerate(("x.1.png", "x_1.png", "y.png", "z.png")):
        next(photos.glob(f"*/{i}.png")).rename(tmp_path / "a.b" / name)
    rows = ["path,label,split", "a.b/x.1.png,one,train", "a.b/x_1.png,two,train", "a.b/y.png,one,val"]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "a.b/z.png,two,test"]))
    main(["shards", str(tmp_path / "t.csv"), str(tmp_path / "table")])
    assert "2 train, 1 validation, 1 test photos" in capsys.readouterr().out
    with tarfile.open(tmp_path / "table" / "train-00000.tar") as tar:
        assert sorted(tar.getnames()) == ["a.b/x_1.cls", "a.b/x_1.png", "a.b/x_1_1.cls", "a.b/x_1_1.png"]
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
    main(["shards", str(tmp_path / "p.zip"), str(tmp_path / "zip"), "--val-share", "0.25"])
    assert "validation" in capsys.readouterr().out
    for arguments, told in (
        (["torch/cifar10", "new"], "named set"),
        ([str(photos), str(tmp_path / "zip")], "exists already"),
        ([str(photos), str(photos), "--overwrite"], "if it holds shards"),
        ([str(photos), "new", "--shard-mb", "0"], "--shard-mb is 0"),
        ([str(photos / "none"), "new"], "unknown data"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["shards", *arguments])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
    main(["shards", str(photos), str(tmp_path / "zip"), "--overwrite", "--val-share", "0", "--test-share", "0"])
    told = capsys.readouterr()
    assert told.out.startswith("32 train photos\n")
    assert "there are no validation photos" in told.err
    with pytest.raises(UserError, match="has no split 'validation': it has train"):
        open_splits(ClassificationRecipe(data=str(tmp_path / "zip")))
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_photo_once(shards, recipe, workers):
    """In two processes with several readers; 26 photos are 6 whole batches of two times two, and two left."""
    recipe = replace(recipe, data=str(shards), batch_size=2, workers=workers)
    split = open_splits(recipe).train
    seen, labels = [], {}
    for rank in range(2):
        for _, targets, positions in train_loader(split, recipe, rank, world=2):
            seen += positions.tolist()
            labels |= dict(zip(positions.tolist(), targets.tolist(), strict=True))
    assert len(seen) == len(set(seen)) == 24
    names = open_splits(recipe).class_names
    assert all(names[label] == split.filename(i).split("/")[0] for i, label in labels.items())


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "last" / "model.safetensors")


@pytest.mark.slow
def test_training_on_shards_equals_training_on_the_photos(shards, recipe, monkeypatch):
    """From a disk; and over HTTP, stopped in the middle of an epoch and resumed with readers of its own."""
    whole = final_weights(train(recipe))
    on_disk = final_weights(train(replace(recipe, data=str(shards), name="disk")))
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with served(shards.parent) as address:
        remote = replace(recipe, data=f"wds/{address}/shards", name="remote")
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stopping)
            with pytest.raises(Stopped):
                train(remote)
        run = train(replace(remote, resume=True, workers=2))
    over_http = final_weights(run)
    assert all(torch.equal(whole[name], on_disk[name]) for name in whole)
    assert all(torch.equal(whole[name], over_http[name]) for name in whole)
    assert run.split == "test"
    assert run.scores.count == 5


@pytest.mark.slow
def test_broken_shards_are_told_and_left_out(shards, recipe, tmp_path):
    lengths = json.loads((shards / INFO).read_text("utf-8"))["splits"]["train"]["shard_lengths"]
    (shards / "train-00000.tar").unlink()
    recipe = replace(recipe, data=f"wds/{shards}")
    told = rf"{lengths[0]} of 26 photos of train are in broken shards \(train-00000.tar is missing\)"
    with pytest.raises(UserError, match=told + ", more than --max-broken 0.05"):
        open_splits(recipe)
    found = open_splits(replace(recipe, max_broken=0.3))
    assert len(found.train) == 26 - lengths[0]
    with (shards / "train-00001.tar").open("r+b") as file:
        file.truncate(1000)
    with served(tmp_path) as address:
        found = open_splits(replace(recipe, data="wds/photos", data_root=f"{address}/shards", max_broken=0.5))
    assert len(found.train) == 26 - sum(lengths[:2])
    assert "train-00000.tar is missing; train-00001.tar is 1,000 bytes long" in found.notes[0]
    assert all(label == i for label, i in zip(found.train.targets, found.train.reader.targets, strict=True))
    with (shards / "train-00002.tar").open("r+b") as file:  # damaged without another size
        file.write(b"\xff" * (shards / "train-00002.tar").stat().st_size)
    recipe = replace(recipe, max_broken=0.9, batch_size=4)
    broken = [
        int(~p) for _, _, positions in train_loader(open_splits(recipe).train, recipe) for p in positions if p < 0
    ]
    assert len(broken) in range(1, lengths[2] + 1)
    (shards / INDEX).write_bytes((shards / INDEX).read_bytes()[:-300])
    with pytest.raises(UserError, match="cut off"):
        open_splits(recipe)
    with pytest.raises(UserError, match="no shards that can be read"):
        open_splits(replace(recipe, data="wds/http://127.0.0.1:9/shards"))
    (shards / INDEX).write_bytes((shards / INDEX).read_bytes().replace(b"train-00002", b"../train-00002"))
    with pytest.raises(UserError, match=r"train-00002\.tar is not in this folder"):
        open_splits(recipe)


def test_a_server_without_ranges_is_told(shards, recipe):
    class Plain(_Ranges):
        def do_GET(self) -> None:
            SimpleHTTPRequestHandler.do_GET(self)

    with served(shards, Plain) as address, pytest.raises(UserError, match="sends whole files when a range of bytes"):
        open_splits(replace(recipe, data=f"wds/{address}"))
