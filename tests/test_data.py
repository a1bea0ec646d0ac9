"""Decoding, splitting, broken files, and loaders that depend only on seed, epoch and image."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import COLOURS, make_photo
from PIL import Image

from dmformer.data.decode import BrokenImageError, decode
from dmformer.tasks.classification.datasets import open_evaluation, open_splits
from dmformer.tasks.classification.evaluate import check_broken, predict_all
from dmformer.tasks.classification.loaders import eval_loader, eval_transform, train_loader
from dmformer.tasks.sampling import StepSampler, seeded
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


def test_decode_refuses_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match="exceeds limit"):
        decode(as_file(Image.new("L", (40, 40)), "PNG"))


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
    for part in parts:
        for i in range(len(part)):
            assert splits.class_names[part.targets[i]] in part.reader.filename(int(part.indices[i]), absolute=True)


def test_existing_splits_are_kept(recipe, tmp_path):
    for split, n in (("train", 3), ("validation", 2), ("test", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                make_photo((9, 9, 9), i).save(folder / f"{i}.jpg")
    splits = open_splits(replace(recipe, data=str(tmp_path / "set")))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert len(open_evaluation(replace(recipe, data=str(tmp_path / "set")), ["a", "b"])) == 2


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # timm keeps it open
@pytest.mark.parametrize("split", ["", "train/"])
def test_tar_equals_folder(recipe, photos, tmp_path, split):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in COLOURS:
            tar.add(photos / name, arcname=f"{split}{name}")
    tar = open_splits(replace(recipe, data=str(tmp_path / "photos.tar")))
    folder = open_splits(recipe)
    assert tar.class_names == folder.class_names
    assert np.array_equal(tar.train.indices, folder.train.indices)
    loaders = [eval_loader(s.val, eval_transform(recipe), 32, 8, workers=0) for s in (tar, folder)]
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
    (tmp_path / "untrained" / "val" / "a").mkdir(parents=True)
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    (tmp_path / "notes.txt").write_text("text")
    for data, words in {
        "empty": "holds no images",
        "flat": "outside class folders",
        "one": "one class, 'only'",
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
    assert "nothing" in splits.notes[0]


def test_broken_images_are_replaced_in_training_and_left_out_of_scores(recipe, photos):
    for i in range(6):
        (photos / "red car" / f"{i}.png").write_bytes(b"broken")
    splits = open_splits(recipe)
    broken = {i for i in range(len(splits.train)) if not is_readable(splits.train, i)}
    assert broken
    seen = torch.cat([positions for _, _, positions in train_loader(splits.train, replace(recipe, workers=0))])
    assert {int(~p) for p in seen if p < 0} <= broken
    loader = eval_loader(splits.train, eval_transform(recipe), 32, 8, workers=0)
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


def test_real_photos(shared_data, recipe):
    clothing = open_splits(replace(recipe, data=str(shared_data / "clothing")))
    assert len(clothing.class_names) == 10
    assert [len(s) for s in (clothing.train, clothing.val, clothing.test)] == [3068, 341, 372]
    loader = eval_loader(clothing.test, eval_transform(recipe), 32, 64, workers=0)
    images, targets, positions = next(iter(loader))
    assert images.shape == (64, 3, 32, 32)
    assert (positions == torch.arange(64)).all()
    assert abs(float(images.mean())) < 1.5  # normalised
    assert targets.tolist() == clothing.test.targets[:64].tolist()


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # timm keeps it open
@pytest.mark.slow
def test_real_tars(shared_data, recipe):
    place = shared_data / "tiny_imagenet"
    data = replace(recipe, data=str(place / "train_20k.tar"), val_data=str(place / "val_4k.tar"))
    splits = open_splits(data)
    assert (len(splits.class_names), len(splits.train), len(splits.val)) == (200, 20000, 4000)
    assert np.bincount(splits.val.targets).tolist() == [20] * 200
    assert len(open_evaluation(replace(recipe, data=str(place / "val_4k.tar")), splits.class_names)) == 4000
