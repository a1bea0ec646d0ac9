"""Decoding, splitting, broken files, and loaders that depend only on seed, epoch and image."""

import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import COLOURS, make_photo
from PIL import Image

from dmformer.data.decode import BrokenImageError, decode
from dmformer.predict import predict
from dmformer.tasks.classification.classifier import open_classifier, save_classifier
from dmformer.tasks.classification.datasets import open_evaluation, open_splits
from dmformer.tasks.classification.evaluate import check_broken, predict_all
from dmformer.tasks.classification.layout import read_layout
from dmformer.tasks.classification.loaders import ImageSet, eval_loader, eval_transform, train_loader
from dmformer.tasks.classification.metrics import score
from dmformer.tasks.detection.datasets import open_boxes
from dmformer.tasks.folders import alike_note
from dmformer.tasks.foreign import foreign_format
from dmformer.tasks.sampling import StepSampler, seeded
from dmformer.tasks.segmentation.datasets import open_pairs
from dmformer.tasks.segmentation.recipes import SegmentationRecipe
from dmformer.utils.errors import UserError


def as_file(image: Image.Image, format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("LA", (90, 255), (90, 90, 90)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("I;16", 257 * 120, (120, 120, 120)),
    ],
)
def test_decode_shows_what_a_person_sees(mode, value, expected):
    image = Image.new(mode, (5, 4), value)
    file = as_file(image, "TIFF" if mode in ("CMYK", "LA") else "PNG")
    decoded = decode(file)
    assert decoded.mode == "RGB"
    assert decoded.size == (5, 4)
    assert decoded.getpixel((2, 2)) == expected


def test_decode_palette_and_float():
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(2)
    assert decode(as_file(palette, "PNG")).getpixel((1, 1)) == (10, 200, 30)
    ramp = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    values = np.asarray(decode(as_file(ramp, "TIFF")))[..., 0]
    assert values.min() == 0
    assert values.max() == 255


def test_decode_applies_exif_rotation():
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for display
    decoded = decode(as_file(image, "PNG", exif=exif))
    assert decoded.size == (4, 8)
    assert decoded.getpixel((3, 0)) == (255, 0, 0)


def test_decode_reads_large_jpegs_at_a_fraction():
    photo = as_file(Image.new("RGB", (1600, 1200), (9, 90, 200)), "JPEG")
    assert min(decode(photo, at_least=100).size) == 300  # 1/4 is the smallest fraction above twice 100
    photo.seek(0)
    assert decode(photo).size == (1600, 1200)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_decode_refuses_what_is_no_image(content):
    with pytest.raises(BrokenImageError):
        decode(io.BytesIO(content))


def test_folder_is_split_by_seed_and_stratified(recipe):
    splits = open_splits(recipe)
    assert splits.class_names == sorted(COLOURS)
    parts = [splits.train, splits.val, splits.test]
    assert sorted(np.concatenate([p.indices for p in parts])) == list(range(36))
    assert [len(p) for p in parts] == [26, 5, 5]
    assert min(np.bincount(splits.train.targets)) >= 8
    again = open_splits(recipe)
    other = open_splits(replace(recipe, seed=1))
    assert np.array_equal(again.test.indices, splits.test.indices)
    assert not np.array_equal(other.test.indices, splits.test.indices)
    kept = open_splits(replace(recipe, seed=1, split_seed=recipe.seed))
    assert np.array_equal(kept.test.indices, splits.test.indices)
    assert np.array_equal(kept.val.indices, splits.val.indices)
    for part in parts:
        for i in range(len(part)):
            assert splits.class_names[part.targets[i]] in part.reader.filename(int(part.indices[i]))


def save_set(root: Path, **counts: int) -> Path:
    """Photos in class folders, all different: save_set(root, **{"train/cat": 3})."""
    for k, (folder, n) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            make_photo((90 + k, 99, 99), 100 * k + i).save(root / folder / f"{i}.png")
    return root


def test_existing_splits_are_kept(recipe, tmp_path):
    counts = {f"{split}/{name}": n for split, n in (("train", 3), ("validation", 2), ("test", 1)) for name in "ab"}
    save_set(tmp_path / "set", **counts)
    splits = open_splits(replace(recipe, data=str(tmp_path / "set")))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert len(open_evaluation(replace(recipe, data=str(tmp_path / "set")), ["a", "b"])[0]) == 2


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("split", ["", "train/", "photos/Training/"])
def test_archive_equals_folder(recipe, photos, tmp_path, split, kind):
    if kind == ".zip":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in photos.rglob("*.png"):
                archive.write(path, f"{split}{path.relative_to(photos)}")
    else:
        with tarfile.open(tmp_path / f"photos{kind}", f"w:{kind[5:]}") as tar:
            for name in COLOURS:
                tar.add(photos / name, arcname=f"{split}{name}")
    tar = open_splits(replace(recipe, data=str(tmp_path / f"photos{kind}")))
    folder = open_splits(recipe)
    assert tar.class_names == folder.class_names
    assert np.array_equal(tar.train.indices, folder.train.indices)
    loaders = [eval_loader(s.val, eval_transform(recipe, recipe.crop_pct), 32, 8, workers=0) for s in (tar, folder)]
    for a, b in zip(*loaders, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_elpv_is_held_out_as_published():
    pytest.importorskip("elpv_dataset", reason="elpv-dataset is in the extra demo")
    from dmformer.tasks.recipes import RECIPES

    splits = open_splits(RECIPES["elpv"]())
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [1771, 197, 656]
    assert sum(int(s.targets.sum()) for s in (splits.train, splits.val, splits.test)) == 821
    assert splits.test.targets.mean() == pytest.approx(821 / 2624, abs=0.002)


def test_torchvision_set_by_name(recipe, tmp_path):
    pytest.importorskip("torchvision")
    splits_of = replace(recipe, data="torch/image_folder", data_root=str(tmp_path / "tv"), workers=0)
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / "tv" / split / name).mkdir(parents=True)
            for i in range(3):
                make_photo((9, 99, 9), i).save(tmp_path / "tv" / split / name / f"{i}.png")
    splits = open_splits(splits_of)
    assert splits.class_names == ["a", "b"]
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_errors_say_what_to_do(recipe, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    make_photo((1, 2, 3), 0).save(tmp_path / "flat" / "a.png")
    (tmp_path / "one" / "only").mkdir(parents=True)
    make_photo((1, 2, 3), 0).save(tmp_path / "one" / "only" / "a.png")
    for name in "xy":
        (tmp_path / "wrapped" / "set" / name).mkdir(parents=True)
        make_photo((1, 2, 3), 0).save(tmp_path / "wrapped" / "set" / name / "a.png")
    (tmp_path / "untrained" / "val" / "a").mkdir(parents=True)
    make_photo((1, 2, 3), 0).save(tmp_path / "untrained" / "val" / "a" / "a.png")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    (tmp_path / "notes.txt").write_text("text")
    for data, words in {
        "empty": "holds no images",
        "flat": "outside class folders",
        "one": "one class, 'only'",
        "wrapped": r"one class, 'set'.*--data .*wrapped/set\.",
        "untrained": "no train",
        "bad.tar": "cannot be read as a tar",
        "notes.txt": "is a file",
        "nowhere": "does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            open_splits(replace(recipe, data=str(tmp_path / data)))
    with pytest.raises(UserError, match="does not know"):
        open_evaluation(recipe, ["cat", "dog"])


def test_odd_folder_names(recipe, photos):
    odd = photos.rename(photos.with_name("my!photos #1.tar"))
    assert len(open_splits(replace(recipe, data=str(odd))).train) == 26


def test_empty_class_folders_are_told(recipe, photos):
    (photos / "nothing").mkdir()
    splits = open_splits(recipe)
    assert "nothing" not in splits.class_names
    assert splits.notes == ["folders without photos, left out: nothing"]


def test_broken_images_are_replaced_in_training_and_left_out_of_scores(recipe, photos):
    for i in range(6):
        (photos / "red car" / f"{i}.png").write_bytes(b"broken")
    splits = open_splits(recipe)
    broken = {i for i in range(len(splits.train)) if not is_readable(splits.train, i)}
    assert broken
    seen = torch.cat([positions for _, _, positions in train_loader(splits.train, replace(recipe, workers=0))])
    assert {int(~p) for p in seen if p < 0} <= broken
    loader = eval_loader(splits.train, eval_transform(recipe, recipe.crop_pct), 32, 8, workers=0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    found = predict_all(model, loader, torch.device("cpu"))
    assert set(found.broken) == broken
    assert len(found.targets) == len(splits.train) - len(broken)
    assert (found.targets >= 0).all()
    check_broken(splits.train, found.broken, 0.5)
    with pytest.raises(UserError, match=r"cannot be read.*\.png"):
        check_broken(splits.train, found.broken, 0.05)


def is_readable(split, i: int) -> bool:
    with split.reader[int(split.indices[i])][0] as file:
        try:
            decode(file)
        except BrokenImageError:
            return False
    return True


def test_images_depend_on_seed_epoch_and_position_alone(recipe):
    splits = open_splits(recipe)

    def epoch(number: int, workers: int, seed: int = 0) -> torch.Tensor:
        loader = train_loader(splits.train, replace(recipe, workers=workers, seed=seed, color_jitter=0.4, erasing=0.5))
        loader.batch_sampler.epoch = number
        return torch.cat([images for images, _, _ in loader])

    before = torch.get_rng_state()
    first = epoch(0, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, epoch(0, workers=2))
    assert not torch.equal(first, epoch(1, workers=0))
    assert not torch.equal(first, epoch(0, workers=0, seed=1))


def test_seeded_restores_what_was():
    torch.manual_seed(3)
    with seeded(0, 1, 2):
        a = torch.rand(2)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    with seeded(0, 1, 2):
        assert torch.equal(a, torch.rand(2))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_steps_are_the_same_whatever_the_processes(world):
    batch = 6 // world
    samplers = [StepSampler(20, batch, rank, world, seed=5) for rank in range(world)]
    whole = [sorted(i for _, i in step) for step in StepSampler(20, 6, seed=5)]
    parts = [sorted(i for step in steps for _, i in step) for steps in zip(*samplers, strict=True)]
    assert parts == whole
    assert len(whole) == 3
    scored = [StepSampler(20, batch, rank, world) for rank in range(world)]
    assert {len(list(s)) for s in scored} == {len(scored[0])}
    assert {i for s in scored for step in s for _, i in step} == set(range(20))


def test_sampler_goes_on_in_the_middle():
    sampler = StepSampler(20, 4, seed=1)
    steps = list(sampler)
    sampler.start = 3
    assert list(sampler) == steps[3:]
    assert list(sampler) == steps


@pytest.mark.slow
def test_real_photos(shared_data, recipe):
    clothing = open_splits(replace(recipe, data=str(shared_data / "clothing")))
    assert len(clothing.class_names) == 10
    assert [len(s) for s in (clothing.train, clothing.val, clothing.test)] == [3068, 341, 372]
    loader = eval_loader(clothing.test, eval_transform(recipe, recipe.crop_pct), 32, 64, workers=0)
    images, targets, positions = next(iter(loader))
    assert images.shape == (64, 3, 32, 32)
    assert (positions == torch.arange(64)).all()
    assert abs(float(images.mean())) < 1.5  # normalised
    assert targets.tolist() == clothing.test.targets[:64].tolist()


@pytest.mark.slow
@pytest.mark.long
def test_real_tars(shared_data, recipe):
    place = shared_data / "tiny_imagenet"
    data = replace(recipe, data=str(place / "train_20k.tar"), val_data=str(place / "val_4k.tar"))
    with pytest.raises(UserError, match=r"1 photo is both in train and val .*n01855672_44"):
        open_splits(data)
    splits = open_splits(replace(data, allow_leaks=True))
    assert (len(splits.class_names), len(splits.train), len(splits.val)) == (200, 20000, 4000)
    assert np.bincount(splits.val.targets).tolist() == [20] * 200
    assert len(open_evaluation(replace(recipe, data=str(place / "val_4k.tar")), splits.class_names)[0]) == 4000


# ---- folders as people have them


def opened(recipe, place: Path, **changes):
    return open_splits(replace(recipe, data=str(place), **changes))


def truth(split, class_names: list[str]) -> dict[str, str]:
    return {split.filename(i): class_names[split.target(i)] for i in range(len(split))}


def test_the_class_is_the_first_folder(recipe, tmp_path):
    place = save_set(tmp_path / "set", **{"cat/morning": 4, "cat/evening": 4, "dog/morning": 8})
    splits = opened(recipe, place)
    assert splits.class_names == ["cat", "dog"]
    assert all(name.startswith(label) for name, label in truth(splits.train, splits.class_names).items())
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 16


@pytest.mark.parametrize(
    ("train", "val", "test"), [("Training", "Valid", "Testing"), ("TRAIN", "dev", "eval"), ("tr", "Validation", "TEST")]
)
def test_splits_by_their_usual_names(recipe, tmp_path, train, val, test):
    sizes = {train: 3, val: 2, test: 1}
    place = save_set(tmp_path / "set", **{f"{split}/{name}/day": n for split, n in sizes.items() for name in "ab"})
    (place / "preview.png").write_bytes(b"")
    splits = opened(recipe, place)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert splits.class_names == ["a", "b"]
    assert any("1 photo beside the folders" in note for note in splits.notes)


@pytest.mark.parametrize(
    "folders",
    [("training_set", "test_set"), ("seg_train/seg_train", "seg_test/seg_test"), ("trainImages", "Test data")],
)
def test_splits_by_a_word_in_their_names(recipe, tmp_path, folders):
    counts = {f"{folder}/{name}": n for folder, n in zip(folders, (4, 1), strict=True) for name in "ab"}
    place = save_set(tmp_path / "set", **counts)
    splits = opened(recipe, place, val_share=0.25)
    assert splits.class_names == ["a", "b"]
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 2, 2]
    assert splits.notes == [
        f"{folder.partition('/')[0]} is read as the {split} split"
        for folder, split in zip(folders, ("train", "test"), strict=True)
    ]
    save_set(tmp_path / "set/seg_pred", **{"a": 2})
    with pytest.raises(UserError, match=r"beside seg_pred: if .* is a split, move the others away"):
        opened(recipe, place)


def test_lists_beside_class_folders_are_not_passed_over(recipe, photos):
    (photos / "train.txt").write_text("red car/1.png 0\n")
    (photos / "test.txt").write_text("Tested in May.\n")
    notes = open_splits(recipe).notes
    assert notes[-1].startswith(f"train.txt in {photos}: not read; give a table with a column split")


def test_class_folders_with_a_split_in_their_names_stay_classes(recipe, tmp_path):
    place = save_set(tmp_path / "set", **{"train station/inside": 6, "test track/outside": 6})
    assert opened(recipe, place).class_names == ["test track", "train station"]


def test_splits_inside_class_folders(recipe, tmp_path):
    sizes = {"train": 3, "Validation": 2}
    splits = opened(recipe, save_set(tmp_path / "a", **{f"{c}/{split}": n for c in "ab" for split, n in sizes.items()}))
    assert (splits.class_names, len(splits.train), len(splits.val)) == (["a", "b"], 6, 4)
    assert splits.val.targets.tolist() == [0, 0, 1, 1]
    assert splits.notes == ["the splits are inside the class folders"]
    mixed = opened(recipe, save_set(tmp_path / "b", **{"a/train": 8, "a/other": 4, "b/train": 8}))
    assert len(mixed.train) + len(mixed.val) + len(mixed.test) == 20


def test_folders_that_only_look_like_splits(recipe, tmp_path):
    assert opened(recipe, save_set(tmp_path / "a", bus=8, train=8)).class_names == ["bus", "train"]
    for place, counts, words in (
        ("b", {"bus": 2, "train/cat": 2, "train/dog": 2}, "train is a split, move the others away"),
        ("c", {"train": 2, "test": 2}, "photos directly in test, train"),
        ("d", {"train/a": 2, "train/b": 2, "val/a": 1, "valid/b": 1}, "val and valid, which both mean the val split"),
    ):
        with pytest.raises(UserError, match=words):
            opened(recipe, save_set(tmp_path / place, **counts))
    unlabelled = opened(recipe, save_set(tmp_path / "e", **{"train/a": 8, "train/b": 8, "test": 3}))
    assert "3 photos in test without class folders: left out" in unlabelled.notes
    assert len(unlabelled.train) + len(unlabelled.val) + len(unlabelled.test) == 16


def test_classes_that_differ_between_splits(recipe, tmp_path):
    both = {"train/cat": 3, "train/dog": 3}
    for place, more, words in (
        ("a", {"val/Cat": 2, "val/dog": 2}, "classes Cat; the training data has 'cat': write the names alike"),
        ("b", {"val/cat": 2, "test/cow": 2}, "classes cow; the training data does not know them"),
    ):
        with pytest.raises(UserError, match=words):
            opened(recipe, save_set(tmp_path / place, **both, **more))
    splits = opened(recipe, save_set(tmp_path / "c", **both, **{"val/cat": 2, "val/dog": 2, "test/cat": 2}))
    assert splits.notes == ["the test photos show none of 1 of 2 classes, which no score covers: dog"]
    for names, words in ((["Cat", "dog"], "the model has 'Cat'"), (["cow", "dog"], "does not know")):
        with pytest.raises(UserError, match=words):
            open_evaluation(replace(recipe, data=str(tmp_path / "c")), names)
    _, notes = open_evaluation(replace(recipe, data=str(tmp_path / "c")), ["cat", "cow", "dog"])
    assert "none of 2 of 3 classes" in notes[0]


def test_absent_classes_are_not_averaged_in():
    scores = score(torch.tensor([[0.9, 0.1, 0.0]] * 4), torch.tensor([0, 0, 0, 0]), ["a", "b", "c"], resamples=0)
    assert (scores.balanced_accuracy.value, scores.macro_f1.value) == (1.0, 1.0)
    assert [c.count for c in scores.classes] == [4, 0, 0]


def test_names_in_another_form_of_unicode_are_the_same_class(recipe, tmp_path):
    place = save_set(tmp_path / "set", **{"train/caf\u00e9": 3, "train/bar": 3, "val/cafe\u0301": 2, "val/bar": 2})
    splits = opened(recipe, place)
    assert splits.class_names == ["bar", "caf\u00e9"]
    assert splits.val.targets.tolist() == [0, 0, 1, 1]
    assert len(open_evaluation(replace(recipe, data=str(place)), ["bar", "cafe\u0301"])[0]) == 4


def test_what_is_left_out_is_told(recipe, photos):
    for name in ("red car/.ipynb_checkpoints/1.png", "__MACOSX/._1.png"):
        (photos / name).parent.mkdir()
        (photos / name).write_bytes(b"")
    (photos / "red car" / "1.svg").write_bytes(b"")
    Image.open(photos / "red car" / "1.png").rotate(5).save(photos / "red car" / "more.avif")
    splits = open_splits(recipe)
    assert splits.class_names == sorted(COLOURS)
    assert sum(len(s) for s in (splits.train, splits.val, splits.test)) == 37
    assert [note.partition(":")[0] for note in splits.notes] == [
        "skipped 2 files of the system or of dmformer",
        "left out 1 file that cannot be read as photos",
    ]


def test_copies_across_splits_stop_a_run(recipe, tmp_path):
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"}
    place = save_set(tmp_path / "set", **counts)
    shutil.copy(place / "train" / "a" / "0.png", place / "test" / "a" / "other.png")
    Image.open(place / "train" / "b" / "1.png").save(place / "val" / "a" / "other.bmp")
    with pytest.raises(UserError, match=r"2 photos are both in train and test, train and val .*--allow-leaks"):
        opened(recipe, place)
    notes = opened(recipe, place, allow_leaks=True).notes
    assert notes[0].startswith("2 photos are copies of another one (train/a/0.png = test/a/other.png")
    assert notes[1] == "1 photo is in two classes (train/b/1.png = val/a/other.bmp)"
    assert "say nothing about new photos" in notes[2]
    with pytest.raises(UserError, match="--allow-leaks"):
        opened(recipe, place / "train", val_data=str(place / "train"))


def test_copies_stay_together_in_a_random_split(recipe, photos):
    for i in range(12):
        shutil.copy(photos / "red car" / f"{i}.png", photos / "red car" / f"copy{i}.png")
    splits = open_splits(recipe)
    assert splits.notes[0].startswith("12 photos are copies")
    for part in (splits.train, splits.val, splits.test):
        names = {part.filename(i).partition("/")[2] for i in range(len(part)) if part.target(i) == 1}
        assert {f"copy{name}" for name in names if "copy" not in name} == {name for name in names if "copy" in name}
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 48


def test_near_duplicates_stay_together_too(recipe, tmp_path):
    rows, columns = np.mgrid[:60, :80] / 60
    for k in range(16):
        picture = np.sin(3 * columns + k) * np.cos((2 + k % 5) * rows) * 120 + 127
        image = Image.fromarray(picture.astype(np.uint8))
        folder = tmp_path / "set" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k}.png")
        image.resize((64, 48)).save(folder / f"{k}-small.jpg")
    assert opened(recipe, tmp_path / "set").notes == []
    splits = opened(recipe, tmp_path / "set", near_duplicates=True)
    assert splits.notes[0].startswith("16 photos look like another one (a/0-small.jpg = a/0.png")
    for part in (splits.train, splits.val, splits.test):
        names = {Path(part.filename(i)).stem for i in range(len(part))}
        assert {f"{name}-small" for name in names if "small" not in name} == {n for n in names if "small" in n}


def test_tables_of_paths_and_labels(recipe, photos):
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (photos / "labels.csv").write_text("\n".join(["Filename,Label", *rows, "gone.png,red car"]))
    lines = [json.dumps({"path": f"C:\\x\\{row.partition(',')[0]}", "label": row.partition(",")[2]}) for row in rows]
    (photos / "labels.jsonl").write_text("\n".join(lines))
    folder = open_splits(recipe)
    for name in ("labels.csv", "labels.jsonl"):
        table = opened(recipe, photos / name)
        assert table.class_names == folder.class_names
        assert truth(table.test, table.class_names) == truth(folder.test, folder.class_names)
    assert opened(recipe, photos / "labels.csv").notes == ["left out rows whose photo is not there: 1 (gone.png)"]
    small = photos / "蓝天" / "t.csv"
    rows = [f"{i}.png;{i % 2};{'train' if i < 9 else 'Testing'}" for i in range(12)]
    small.write_text("\n".join(["image;class;set", *rows]))
    splits = opened(recipe, small, val_share=0.3)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 3, 3]
    assert splits.class_names == ["0", "1"]
    for text, words in (("a,b\n1,2", "has the columns a, b"), ("path,label\n0.png,x\n0.png,y", "labels x and y")):
        small.write_text(text)
        with pytest.raises(UserError, match=words):
            opened(recipe, small)


TABLES = {
    "separator of Excel": ("sep=;\npath;label\na/0.png;cat\na/1.png;dog\n", {"a/0.png": "cat", "a/1.png": "dog"}),
    "blanks and quotes": ('Image ID, Label\n a/0.png , "cat, big"\n\n , \n', {"a/0.png": "cat, big"}),
    "rows that end early": ("path,label\na/0.png\na/1.png,dog\n", {"a/1.png": "dog"}),
    "no number": ("path,label\na/0.png,NaN\na/1.png,dog\n", {"a/1.png": "dog"}),
    "URLs": ("path,label\nhttps://x.org/a/0.png?raw=1,cat\n", {"a/0.png": "cat"}),
    "no suffix": ("id,label\n0,cat\n", {"a/0.png": "cat"}),
    "a photo missing beside others": ("path,label\na/3.png,cat\na/1.png,dog\n", {"a/1.png": "dog"}),
    "two names for one photo": ("path,label\nx/3.png,cat\ny/3.png,dog\na/1.png,dog\n", {"a/1.png": "dog"}),
    "two rows for one photo": ("path,label\n{}/a/0.png,cat\na/0.png,cat\n", {"a/0.png": "cat"}),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("case", TABLES)
def test_rows_stand_for_the_photos_that_they_mean(tmp_path, case, encoding):
    for name in ("a/0", "a/1", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_photo((9, 9, 9), ord(name[2])).save(tmp_path / f"{name}.png")
    text, labels = TABLES[case]
    (tmp_path / "t.csv").write_text(text.replace("{}", str(tmp_path)).replace("\n", "\r\n"), encoding, newline="")
    layout = read_layout(str(tmp_path / "t.csv"))
    (part,) = layout.parts.values()
    assert dict(zip(part.names, part.classes, strict=True)) == labels
    assert f"left out photos without a row: {3 - len(labels)}" in " ".join(layout.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,label\n0.png,caf\xe9\n", r"is not encoded as UTF-8 \(line 2\): save it as UTF-8"),
        (b"path,label\n0.png,cat,dog\n", "'0.png,cat,dog' has 3 cells, the first row 2"),
        (b'path,label\n0.png,"cat\n1.png,dog\n', "line 3: unexpected end of data: check the quotation marks"),
        (b"path,label,label\n0.png,1,cat\n", "two columns called 'label'"),
        (b"path,label\n0.png,c\0\n", "holds zero bytes"),
        (b'path,label\n0.png,"' + b"x" * 200_000 + b'"\n', "line 2: field larger than field limit"),
    ],
)
def test_tables_that_would_lose_rows_or_labels_are_refused(tmp_path, content, words):
    make_photo((9, 9, 9), 0).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_layout(str(tmp_path / "t.csv"))


def test_columns_of_boxes_are_told(tmp_path):
    make_photo((9, 9, 9), 0).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text("filename,class,xmin,ymin\n0.png,cat,3,4\n")
    (note,) = read_layout(str(tmp_path / "t.csv")).notes
    assert note.startswith("columns of boxes, not used: xmin, ymin; for detection, give COCO")


def test_lines_of_json_are_divided_at_line_ends_alone(tmp_path):
    make_photo((9, 9, 9), 0).save(tmp_path / "0.png")
    row = json.dumps({"path": "0.png", "label": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "t.jsonl").write_text(f'{row}\n\n{{"path": "0.png", "label": NaN}}\n\n', "utf-8")
    layout = read_layout(str(tmp_path / "t.jsonl"))
    assert layout.parts[""].classes == ["a\u2028b"]
    assert layout.notes == ["left out rows without a label: 1 (0.png)"]


def test_names_that_look_alike_and_classes_without_scored_photos_are_told(recipe, tmp_path):
    place = save_set(tmp_path / "set", **{"cat": 8, "Cat ": 8, "dog": 1})
    notes = opened(recipe, place).notes
    assert notes[0] == "classes whose names look alike, read as different ones: 'cat' and 'Cat␣'"
    assert notes[1] == "the validation photos show none of 1 of 3 classes, which no score covers: dog"
    assert alike_note(["cat", "ca\u200bt"])[0].endswith("'cat' and 'ca\\u200bt'")
    assert alike_note(["1", "2", "1.0", "\ufb01n", "fin"])[0].endswith("'1' and '1.0', '\ufb01n' and 'fin'")


def test_deep_images_share_a_range_that_the_model_keeps(recipe, photos, tmp_path):
    for path in photos.rglob("*.png"):
        values = np.asarray(Image.open(path))[..., 0].astype(np.uint16) * 16
        Image.fromarray(values).save(path)
    splits = open_splits(recipe)
    assert splits.train.reading.values == splits.test.reading.values == (0, 4095)
    assert "values from 0 to 4095" in splits.notes[0]
    brightest = max(np.asarray(ImageSet(splits.train, torch.tensor, 32, False, 0).picture(i)).max() for i in range(9))
    assert brightest > 200
    model = timm.create_model("dmformer_n", num_classes=3, dims=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    save_classifier(tmp_path / "m", model, model.state_dict(), splits.class_names, {}, splits.train.reading.values)
    classifier = open_classifier(str(tmp_path / "m"))
    assert classifier.values == (0.0, 4095.0)
    Image.fromarray(np.full((40, 40), 1000, np.uint16)).save(tmp_path / "dark.png")
    seen = []
    classifier_of = SimpleNamespace(
        task="classification",
        name="m",
        values=classifier.values,
        at_least=32,
        class_names=["a", "b", "c"],
        prepare=lambda image: seen.append(image.getpixel((0, 0))[0]) or np.zeros(1),
        probabilities=lambda batch: np.full((len(batch), 3), 1 / 3),
    )
    assert len(list(predict(classifier_of, [str(tmp_path / "dark.png")]))) == 1
    assert seen == [round(1000 / 4095 * 255)]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train_images", "test_images"), r"train_images, which are parts of a data set .* --data .*train\.csv"),
        (("train", "test1"), "test1, train, which are parts"),
        (("img", "masks_machine"), "img, masks_machine, which are parts"),
        (("JPEGImages", "SegmentationClass"), "are parts"),
        (("id0/images", "id0/masks", "id1/images", "id1/masks"), "images/ and masks/ in id0 and others"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, folders, words):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        make_photo((9, 9, 9), 1).save(tmp_path / folder / "1.png")
    for table in ("sample.csv", "train.csv"):
        (tmp_path / table).write_text("path,label\n")
    with pytest.raises(UserError, match=words):
        read_layout(str(tmp_path))


@pytest.mark.parametrize(
    "names", [("mask", "no_mask"), ("Class 1", "Class 2"), ("label_0", "label_1"), ("train", "bus")]
)
def test_classes_that_sound_like_parts_of_a_data_set(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        make_photo((9, 9, 9), 1).save(tmp_path / name / "1.png")
    assert set(read_layout(str(tmp_path)).parts[""].class_names) == set(names)


def test_a_link_to_itself_ends_nothing(tmp_path):
    place = save_set(tmp_path / "set", a=1, b=1)
    (place / "a" / "self").symlink_to("self")
    assert len(read_layout(str(place)).parts[""]) == 2


def test_splits_below_several_folders(tmp_path):
    place = save_set(tmp_path / "set", **{"x/x/train/a": 1, "x/x/train/b": 1, "x/x/val/a": 1, "x/__MACOSX": 1})
    assert set(read_layout(str(place)).parts) == {"train", "val"}


def loose_photos(folder, names, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        make_photo((90, 99, 99), seed + i).save(folder / name)


@pytest.mark.parametrize("name", ["metadata.csv", "_classes.csv"])
def test_a_table_of_labels_in_each_split(tmp_path, name):
    for split, seed in (("train", 0), ("valid", 50)):
        loose_photos(tmp_path / split, ["1.png", "2.png"], seed)
        labels = "file_name,label\n1.png,cat\n2.png,dog\n"
        ones = "filename, cat, dog\n1.png, 1, 0\n2.png, 0, 1\n"
        (tmp_path / split / name).write_text(labels if name == "metadata.csv" else ones)
    layout = read_layout(str(tmp_path))
    classes = {split: part.classes for split, part in layout.parts.items()}
    assert classes == {"train": ["cat", "dog"], "val": ["cat", "dog"]}
    assert layout.notes[0] == f"the labels are those in {tmp_path}/train/{name}"


def test_a_table_of_labels_above_a_folder_of_photos(tmp_path):
    loose_photos(tmp_path / "data", ["1.png", "2.png"])
    rows = ({"file_name": f"data/{i}.png", "label": i + 2} for i in (1, 2))
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_layout(str(tmp_path)).parts[""].classes == ["3", "4"]


def test_columns_of_one_and_zero_are_classes(tmp_path):
    loose_photos(tmp_path, ["1.png", "2.png"])
    (tmp_path / "t.csv").write_text("image,MEL,NV\n1,1.0,0.0\n2,0.0,1.0\n")
    layout = read_layout(str(tmp_path / "t.csv"))
    assert layout.parts[""].classes == ["MEL", "NV"]
    assert layout.notes[-1].endswith("are taken as classes: MEL, NV")
    (tmp_path / "t.csv").write_text("image,MEL,NV\n1,1.0,1.0\n2,0.0,1.0\n")
    with pytest.raises(UserError, match="name the one with the label 'label'"):
        read_layout(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data/train-0.parquet", "Hugging Face's tables of photos: .*--data hfds/OWNER/NAME"),
        ("a/1.dcm", "DICOM: save PNGs of 16 bits"),
        ("a/1.nii.gz", "volumes: save their slices"),
        ("a/1.CR2", "raw photos of cameras: develop them"),
        ("label_2/1.txt", "KITTI's labels: convert them to COCO"),
        ("labelTxt/1.txt", "DOTA's oriented boxes: "),
        ("ds0/ann/1.jpg.json", "Supervisely's annotations: export them"),
        ("batches.meta", "CIFAR's arrays: give --data torch/cifar10"),
        ("train.zip", "archives: give one of them as --data"),
        ("labels.xlsx", r"a spreadsheet: save it as \.csv"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, name, words):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.md").write_text("Notes")
    data = str(tmp_path)
    for opened_as in (open_boxes, lambda data: open_pairs(SegmentationRecipe(data=data)), read_layout):
        with pytest.raises(UserError, match=words):
            opened_as(data)


def test_masks_as_run_lengths_are_named(tmp_path):
    (tmp_path / "train.csv").write_text("ImageId,EncodedPixels\n1.png,1 5\n")
    assert foreign_format(tmp_path) == " It holds masks as run lengths in a table: write them as PNGs of class ids."
    assert foreign_format(tmp_path / "none") == ""
