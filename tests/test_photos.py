"""Photos as people's machines leave them: litter, suffixes, archives, deep pixel values, large images, copies."""

import io
import lzma
import os
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photo
from PIL import Image

from dmformer.data import copies
from dmformer.data.archives import FolderFiles, open_files
from dmformer.data.copies import near_photos, same_photos
from dmformer.data.decode import BrokenImageError, Reading, decode, pages_of
from dmformer.data.finding import find_photos, is_photo, list_photos, sort_out, split_of
from dmformer.data.pages import several_pages
from dmformer.data.values import set_range
from dmformer.predict.photos import places_in, save_png, suffixed
from dmformer.tasks.classification.datasets import PhotoReader, Split
from dmformer.tasks.leaks import find_copies
from dmformer.utils.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def as_file(values: np.ndarray, format: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format, **options)
    file.seek(0)
    return file


def grey(file: io.BytesIO, **options) -> np.ndarray:
    return np.asarray(decode(file, **options))[..., 0]


def deep_png(values: np.ndarray) -> io.BytesIO:
    """A PNG of 16 bits per channel, (H, W, 2, 3 or 4), which Pillow reads and cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


# ---- finding


def test_litter_and_output_are_skipped_and_counted():
    found = sort_out(
        [
            "cat/1.jpg",
            "cat/10.jpg",
            "cat/2.jpg",
            "cat/._1.jpg",
            "cat/.hidden.png",
            "cat/Thumbs.db",
            "cat/.ipynb_checkpoints/1-checkpoint.jpg",
            ".Trash-1000/files/old.jpg",
            "__MACOSX/cat/._1.jpg",
            "@eaDir/1.jpg/thumb.jpg",
            "lost+found/3.jpg",
            "$RECYCLE.BIN/4.jpg",
            "desktop.ini",
            "notes.txt",
            "cat/drawing.svg",
            "cat/README",
        ]
    )
    assert found.photos == ["cat/1.jpg", "cat/2.jpg", "cat/10.jpg"]
    assert found.litter == {
        **{"._*": 1, ".*": 1, ".ipynb_checkpoints": 1, ".Trash-1000": 1, "__MACOSX": 1, "@eaDir": 1},
        **{"lost+found": 1, "$RECYCLE.BIN": 1},
    }
    assert found.others == {".txt": 1, ".svg": 1, "without a suffix": 1}
    assert found.notes()[0].startswith("skipped 8 files of the system")
    assert ".svg (1)" in found.notes()[1]


@pytest.mark.parametrize(
    "output",
    [
        ["runs/r/recipe.yaml", "runs/r/metrics.csv", "runs/r/plot.png"],
        ["best/config.json", "best/model.safetensors", "best/sample.png"],
        ["predictions/legend.png", "predictions/cat/1.overlay.png", "predictions/cat/1.mask.png"],
        ["predictions/detections.json", "predictions/cat/1.detections.png"],
        ["explanation/index.html", "explanation/cat/1.run.cat.png"],
        ["analysis/gates.csv", "analysis/gates.png", "analysis/receptive-field-maps.png"],
        ["cat/1.overlay.png", "cat/1.mask.png", "legend.png"],
        ["cat/1.detections.png", "detections.json"],
    ],
)
def test_own_output_among_the_photos_is_skipped(output):
    pictures = [name for name in output if name.endswith(".png")]
    found = sort_out(["cat/1.jpg", "dog/1.jpg", *output])
    assert found.photos == ["cat/1.jpg", "dog/1.jpg"]
    assert found.litter == {"output of dmformer": len(pictures)}


def test_what_only_looks_like_output_is_kept():
    names = ["cat/1.mask.png", "cat/1.png", "cat/1.csv", "legend.png", "site/index.html", "site/a.png"]
    assert len(sort_out(names).photos) == 4


def test_suffixes_are_those_that_pillow_reads():
    for name in ("a.jfif", "a.AVIF", "a.jp2", "a.j2k", "a.Tiff", "a.JPE", "a.webp", "a.pnm", "a.heic", "a.mpo"):
        assert is_photo(name), name
    for name in ("a.pdf", "a.eps", "a.mpg", "a.h5", "a.txt", "jpg", "a.svg"):
        assert not is_photo(name), name


def test_linked_folders_are_followed_and_cycles_end(tmp_path):
    fill(tmp_path, "photos/cat/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "loop").symlink_to(tmp_path / "photos")
    assert find_photos(tmp_path / "photos").photos == ["cat/1.jpg", "dog/2.jpg"]
    remarks: list[str] = []
    fill(tmp_path, "photos/cat/.ipynb_checkpoints/1.jpg")
    listed = list_photos([str(tmp_path / "photos")], remarks.append)
    assert [os.path.relpath(name, tmp_path / "photos") for name in listed] == ["cat/1.jpg", "dog/2.jpg"]
    assert ".ipynb_checkpoints (1)" in remarks[0]
    (tmp_path / "none").mkdir()
    fill(tmp_path, "none/a.txt")
    with pytest.raises(UserError, match=r"no images; left out 1 file.*\.txt"):
        list_photos([str(tmp_path / "none")])


def test_folders_that_cannot_be_read_are_not_passed_over(tmp_path, monkeypatch):
    fill(tmp_path, "cat/1.png", "closed/2.png", "lost+found/3.png", "cat/.4.jpg.icloud")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    scandir = os.scandir

    def refusing(place: str):
        if Path(place).name in refused:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = {"lost+found"}
    found = find_photos(tmp_path)
    assert found.photos == ["cat/1.png", "closed/2.png"]
    assert found.litter == {"in iCloud alone": 1}
    refused = {"closed"}
    with pytest.raises(UserError, match="closed cannot be read: Permission denied"):
        find_photos(tmp_path)


def test_files_of_several_pictures_are_counted(tmp_path):
    pictures = [Image.new("RGB", (8, 8), (100 * i, 99, 9)) for i in range(3)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
        with Image.open(tmp_path / name) as image:
            assert pages_of(image) == 3, name
            assert image.tell() == 0
    with Image.open(tmp_path / "a.tif") as image:
        assert (pages_of(image, most=2), image.tell()) == (2, 0)
    pictures[1].encoderinfo = {"tiffinfo": {254: 1}}  # a reduced copy, as viewers of large images need it
    pictures[0].save(tmp_path / "b.tif", save_all=True, append_images=[pictures[1]])
    with Image.open(tmp_path / "b.tif") as image:
        assert (image.n_frames, pages_of(image)) == (2, 1)
    reader = PhotoReader(FolderFiles(tmp_path), ["a.gif", "b.tif"], [0, 0])
    notes = find_copies({"all": Split(reader, np.arange(2), None)}).notes
    assert notes[0] == "files with several frames or pages, of which the first is read: 1 (a.gif: 3)"
    assert several_pages(2, reader.filename, reader.open) == notes[:1]
    assert several_pages(1, lambda i: "b.tif", lambda i: reader.open(1)) == []


def test_long_names_leave_room_for_the_names_of_output(tmp_path):
    names = [f"{'ü' * 120}{end}.jpg" for end in "ab"] + ["c.jpg"]
    fill(tmp_path / "photos", *names)
    places = dict(places_in(tmp_path / "out", [str(tmp_path / "photos")]))
    assert len(set(places.values())) == 3
    assert places[str(tmp_path / "photos/c.jpg")] == tmp_path / "out/c"
    (tmp_path / "out").mkdir()
    for place in places.values():
        save_png(Image.new("L", (2, 2)), suffixed(place, "detections"))
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_split_names():
    assert [split_of(name) for name in ("Training", "TR", "Valid", "dev", "Testing", "eval", "bus")] == [
        *("train", "train", "val", "val", "test", "test"),
        None,
    ]


@pytest.mark.parametrize("kind", ["photos", "photos.tar", "photos.tar.gz", "photos.tar.xz", "photos.zip"])
def test_archives_hold_what_the_folder_holds(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "photos/cat/1.png", "photos/köln/2.png")
    Path("photos/cat/1.png").write_bytes(b"one")
    if ".tar" in kind:
        with tarfile.open(kind, "w:" + kind.partition(".tar")[2].removeprefix(".")) as tar:
            for name in ("cat/1.png", "köln/2.png"):
                tar.add(f"photos/{name}", f"./{name}")
            link = tarfile.TarInfo("cat/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "1.png"
            tar.addfile(link)
    elif kind.endswith(".zip"):
        with zipfile.ZipFile(kind, "w") as archive:
            archive.write("photos/cat/1.png", "cat\\1.png")
            archive.write("photos/köln/2.png", "köln/2.png")
    files = open_files(Path(kind))
    assert sorted(files.names())[0] == "cat/1.png"
    assert "köln/2.png" in files.names()
    with files.open("cat/1.png") as file:
        assert file.read() == b"one"
    if ".tar" in kind:
        assert files.open("cat/link.png").read() == b"one"


def test_damaged_archives_are_told(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8bno gzip")
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(bytes(9000))[:-40] + bytes(40))
    for name in ("a.zip", "a.tar.gz", "a.tar.xz"):
        with pytest.raises(UserError, match=r"cannot be read as a .* it may be damaged or incomplete"):
            open_files(tmp_path / name)
    (tmp_path / "a.tar").write_bytes(bytes.fromhex("28b52ffd"))
    with pytest.raises(UserError, match="is compressed with Zstandard: unpack it"):
        open_files(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [("content", b"TWO", "Bad CRC-32"), ("method", b"\x09\x00", "not supported"), ("size", b"\xff" * 4, "4.3 GB")],
)
def test_a_damaged_file_in_a_zip_is_an_unreadable_photo(tmp_path, place, value, reason):
    with zipfile.ZipFile(tmp_path / "a.tar", "w") as archive:  # a zip, whatever it is called
        for name, content in (("cat/1.png", b"one"), ("cat/2.png", b"two")):
            archive.writestr(name, content)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    listed = content.rindex(b"PK\x01\x02")  # the second file in the list at the end
    start = {"content": content.index(b"two"), "method": listed + 10, "size": listed + 24}[place]
    content[start : start + len(value)] = value
    (tmp_path / "a.tar").write_bytes(content)
    files = open_files(tmp_path / "a.tar")
    assert files.open("cat/1.png").read() == b"one"
    with pytest.raises(OSError, match=reason):
        files.open("cat/2.png")


# ---- values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_images_keep_their_contrast(bits):
    values = (RAMP * (2**bits - 1)).astype(np.uint16)
    expected = (values / (2**bits - 1) * 255).round()
    assert (grey(as_file(values)) == expected).all()
    assert (grey(as_file(values, "TIFF")) == expected).all()
    if bits < 16:
        colours = np.asarray(decode(deep_png(np.stack([values, values // 2, values * 0], 2))))
        assert (colours[..., 0] == expected).all()
        assert colours[..., 2].max() == 0


def test_colours_of_16_bits_are_read_as_before():
    values = np.random.default_rng(0).integers(0, 2**16, (6, 5, 3)).astype(np.uint16)
    assert (np.asarray(decode(deep_png(values))) == values >> 8).all()


def deep_tiff(path: Path, values: np.ndarray, compressed: bool) -> None:
    """A TIFF of 16 bits per colour, which Pillow reads and cannot write."""
    height, width, _ = values.shape
    data = values.astype("<u2").tobytes()
    data = zlib.compress(data) if compressed else data
    end = 8 + len(data)
    entries = [(256, 3, width), (257, 3, height), (259, 3, 8 if compressed else 1), (262, 3, 2), (273, 4, 8)]
    entries += [(277, 3, 3), (278, 3, height), (279, 4, len(data))]
    rows = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries]
    rows.insert(2, struct.pack("<HHII", 258, 3, 3, end))
    head = b"II*\0" + struct.pack("<I", end + 6) + data + struct.pack("<HHH", 16, 16, 16)
    path.write_bytes(head + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4))


@pytest.mark.parametrize("compressed", [False, True])
def test_colours_of_a_tiff_of_12_bits(tmp_path, compressed):
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, 3)).astype(np.uint16)
    values[0, 0, 0] = 4095
    deep_tiff(tmp_path / "a.tif", values, compressed)
    expected = (values / 4095 * 255).round()
    assert (np.asarray(decode(str(tmp_path / "a.tif"))) == expected).all()
    with open(tmp_path / "a.tif", "rb") as file:
        assert (np.asarray(decode(file)) == expected).all()


def test_grey_of_12_bits_with_transparency():
    values = (RAMP * 4095).astype(np.uint16)
    expected = (values / 4095 * 255).round()
    expected[0, 0] = 255  # transparent, on white
    shown = grey(deep_png(np.stack([values, np.where(values, 65535, 0).astype(np.uint16)], 2)))
    assert (shown == expected).all()


def test_8_bits_are_unchanged():
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    assert (np.asarray(decode(as_file(values), reading=Reading(values=(0, 4095)))) == values).all()


@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf, -9999.0, 3.4e38, -3.4e38])
def test_what_is_no_number_does_not_change_the_rest(stray):
    values = (2 * RAMP - 1).astype(np.float32)
    expected = grey(as_file(values, "TIFF"))
    assert (expected.min(), expected.max()) == (0, 255)
    values[0, 1] = stray
    found = grey(as_file(values, "TIFF"))
    keep = np.arange(64) != 1
    assert (found.ravel()[keep] == expected.ravel()[keep]).all()
    assert found[0, 1] in (0, 255)


def test_nodata_of_the_file_and_negative_values():
    values = (RAMP * 100).astype(np.float32)
    values[3, 3] = -100
    file = as_file(values, "TIFF", tiffinfo={42113: "-100"})
    assert grey(file)[3, 3] == 0
    assert grey(file)[0, 1] == round(100 / 63 / 100 * 255)  # from 0 to 100, not from -100
    signed = np.array([[-1000, 0, 3000]], np.int32)
    assert grey(as_file(signed, "TIFF")).tolist() == [[0, 64, 255]]


def test_a_set_has_one_range():
    dark, bright = (np.full((4, 4), value, np.uint16) for value in (200, 4000))
    dark[0, 0] = 0
    files = [as_file(dark), as_file(bright)]
    values = set_range(2, lambda i: files[i])
    assert values == (0, 4095)
    reading = Reading(values=values)
    assert grey(as_file(dark), reading=reading)[1, 1] == round(200 / 4095 * 255)
    assert grey(as_file(bright), reading=reading)[1, 1] == round(4000 / 4095 * 255)
    thermal = [(7000 + 500 * RAMP).astype(np.uint16), (7400 + 600 * RAMP).astype(np.uint16)]
    assert set_range(2, lambda i: as_file(thermal[i])) == (7000, 8000)  # of 14 bits it would fill a sixteenth
    assert set_range(2, lambda i: as_file(np.zeros((4, 4), np.uint8))) is None


def test_deep_images_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.zeros((4, 8), np.uint16)
    values[0, 0] = 4095
    for format in ("PNG", "TIFF"):
        turned = decode(as_file(values, format, exif=exif))
        assert turned.size == (4, 8)
        assert turned.getpixel((3, 0)) == (255, 255, 255)


# ---- large and foreign images


def test_large_and_long_images():
    with pytest.raises(BrokenImageError, match="40 x 40 pixels are more than --max-pixels 1000"):
        decode(as_file(np.zeros((40, 40), np.uint8)), reading=Reading(max_pixels=1000))
    with pytest.raises(BrokenImageError, match="60,000 x 1 pixels: one side is more than 100 times the other"):
        decode(as_file(np.zeros((1, 60000), np.uint8)))
    panorama = np.zeros((12000, 16000), np.uint8)  # 192 megapixels, above Pillow's own limit
    assert decode(as_file(panorama, "JPEG"), at_least=100).size == (2000, 1500)
    assert min(decode(as_file(panorama[:1024, :1024], "JPEG2000"), at_least=100).size) == 256


def test_pointers_of_git_lfs_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(BrokenImageError, match="Git LFS instead of the photo: run git lfs pull"):
        decode(str(tmp_path / "a.jpg"))


def test_heic_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BrokenImageError, match=r"dmformer\[heif\]"):
        decode(io.BytesIO(b"\0\0\0\x18ftypheic" + bytes(100)))


# ---- copies


@pytest.mark.parametrize("decoded", [copies.DECODED, 0])
def test_copies_are_found_by_their_pixels(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(copies, "DECODED", decoded)
    for i in range(4):
        make_photo((90, 100, 110), i).save(tmp_path / f"{i}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "4.png")
    exif = Image.Exif()
    exif[0x010E] = "another description"
    make_photo((90, 100, 110), 1).save(tmp_path / "5.png", exif=exif)
    make_photo((90, 100, 110), 2).save(tmp_path / "6.bmp")
    make_photo((90, 100, 110), 9, (64, 64)).save(tmp_path / "90.jpg")
    make_photo((90, 100, 110), 9, (64, 64)).save(tmp_path / "91.jpg", optimize=True)  # other bytes, the same pixels
    make_photo((90, 100, 110), 8, (64, 64)).save(tmp_path / "92.jpg")
    (tmp_path / "7.png").write_bytes(b"broken")
    (tmp_path / "8.png").write_bytes(b"broken")
    paths = sorted(tmp_path.iterdir())
    found = same_photos(len(paths), lambda i: paths[i].open("rb"))
    assert found == ([[0, 4], [1, 5], [2, 6], [9, 10]] if decoded else [[0, 4], [1, 5]])


def test_near_duplicates(tmp_path):
    rows, columns = np.mgrid[:96, :128] / 96
    pictures = [np.sin(6 * columns + k) * np.cos(5 * rows * (k + 1)) for k in range(4)]
    for k, picture in enumerate(pictures):
        Image.fromarray((127 + 120 * picture).astype(np.uint8)).save(tmp_path / f"{k}.png")
    Image.open(tmp_path / "1.png").resize((80, 60)).save(tmp_path / "4.jpg", quality=60)
    Image.new("L", (64, 64), 128).save(tmp_path / "5.png")
    Image.new("L", (64, 64), 30).save(tmp_path / "6.png")
    paths = sorted(tmp_path.iterdir())
    assert near_photos(len(paths), lambda i: paths[i].open("rb")) == [[1, 4]]
    assert same_photos(len(paths), lambda i: paths[i].open("rb")) == []
