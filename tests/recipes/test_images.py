import io
import json
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hwnas.errors import DataError, InvalidInput
from hwnas.recipes.images import LabelledImages, random_resized_crop
from hwnas.segmentation.transforms import seeded

CLASSES = ("n02", "n01", "n10")


def encoded(pixels, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def painted(count=3, size=(6, 8)):
    """File name within a split → bytes; every image has one colour, the last of each class is grey."""
    files = {}
    for number, name in enumerate(CLASSES):
        for index in range(count):
            pixels = np.full((*size, 3), (40 * number, 40 * index, 7), np.uint8)
            files[f"{name}/{index}.png"] = encoded(pixels[..., 1] if index == count - 1 else pixels)
    return files


def as_folder(root, split, files):
    for name, content in files.items():
        (root / split / name).parent.mkdir(parents=True, exist_ok=True)
        (root / split / name).write_bytes(content)
    return root


def as_zip(path, split, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{split}/{name}", content)
        archive.writestr("README.txt", "no image")
    return path


@pytest.fixture
def folder(tmp_path):
    return as_folder(tmp_path / "folder", "train", painted())


@pytest.fixture
def zipped(tmp_path):
    """The same images in two zip files, with others of another split beside them."""
    files = painted()
    names = sorted(files)
    for part, chosen in enumerate((names[:4], names[4:])):
        as_zip(tmp_path / f"zipped/train-{part}.zip", "train", {name: files[name] for name in chosen})
    as_zip(tmp_path / "zipped/val-0.zip", "val", {"n01/a.png": encoded(np.zeros((6, 8, 3), np.uint8))})
    return tmp_path / "zipped"


def test_folder_and_zip_hold_the_same_images(folder, zipped):
    one, other = (LabelledImages(place, "train", flip=0) for place in (folder, zipped))
    assert one.classes == other.classes == ("n01", "n02", "n10")
    assert len(one) == len(other) == 9
    for index in range(9):
        (x, label), (twin, same) = one[index], other[index]
        assert torch.equal(x, twin)
        assert int(label) == int(same) == index // 3
    assert len(LabelledImages(zipped, "val")) == 1


def test_images_on_a_device_are_the_same_and_stay_there(folder):
    plain, moved = (LabelledImages(folder, "train", crop=(5, 5)) for _ in range(2))
    assert moved.to("cpu") is moved
    for own, other in zip(plain[4, 7], moved[4, 7], strict=True):
        assert torch.equal(own, other)
    image, label = moved.to("meta")[4, 7]
    assert image.device.type == label.device.type == "meta"
    assert (tuple(image.shape), tuple(label.shape), label.dtype) == ((3, 5, 5), (), torch.int64)


@pytest.mark.parametrize("form", [as_folder, as_zip])
def test_tiny_imagenets_own_layout_has_its_classes(form, tmp_path, folder):
    files = {name.replace("/", "/images/"): content for name, content in painted().items()}
    files["n01/n01_boxes.txt"] = b"0.png 0 0 7 5"
    form(tmp_path / "tiny" if form is as_folder else tmp_path / "tiny/train.zip", "train", files)
    one, other = LabelledImages(folder, "train", flip=0), LabelledImages(tmp_path / "tiny", "train", flip=0)
    assert other.classes == ("n01", "n02", "n10")
    assert [int(other[index][1]) for index in range(9)] == [index // 3 for index in range(9)]
    assert all(torch.equal(one[index][0], other[index][0]) for index in range(9))


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "n01/more/a.png", "n01/images/more/a.png"])
@pytest.mark.parametrize("form", [as_folder, as_zip])
def test_images_without_a_class_are_refused(form, name, tmp_path):
    path = tmp_path if form is as_folder else tmp_path / "train.zip"
    form(path, "train", {"n02/b.png": b"", name: b""})
    with pytest.raises(DataError, match=rf"has train/{name}, which says no class; expected train/CLASS/NAME"):
        LabelledImages(tmp_path, "train")


def test_a_place_may_be_written_as_on_the_command_line(folder):
    assert len(LabelledImages(f"tiny_imagenet:{folder}", "train")) == 9


def test_pixels_are_normalised_and_grey_becomes_colour(folder):
    images = LabelledImages(folder, "train", flip=0)
    assert images.read(1)[:, 2, 3].tolist() == [40, 40, 7]  # class n01 is painted second
    assert images.read(2)[:, 2, 3].tolist() == [80, 80, 80]
    x, _ = images[1]
    expected = [(40 / 255 - 0.485) / 0.229, (40 / 255 - 0.456) / 0.224, (7 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(x[:, 0, 0], torch.tensor(expected))
    assert x.shape == (3, 6, 8)


def test_a_seed_decides_crop_and_flip_and_leaves_the_global_state(folder):
    images = LabelledImages(folder, "train", crop=(5, 5))
    state = torch.get_rng_state()
    first, again, other = (images[0, seed][0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert first.shape == (3, 5, 5) == other.shape
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_workers_read_what_one_process_reads(zipped):
    images = LabelledImages(zipped, "train", flip=0)
    alone = [x for x, _ in DataLoader(images, 3)]
    # Opened before the workers fork: a position in a file that is shared would mix their reads up.
    shared = [x for x, _ in DataLoader(images, 3, num_workers=2)]
    assert all(torch.equal(x, twin) for x, twin in zip(alone, shared, strict=True))


def test_what_is_missing_or_damaged_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r"no folder .*nosuch; expected train/CLASS/NAME or train/CLASS/im"):
        LabelledImages(tmp_path / "nosuch", "train")
    with pytest.raises(
        DataError, match=r"no images in .*folder; expected val/CLASS/NAME or val/CLASS/images"
    ):
        LabelledImages(folder, "val")
    (folder / "train/n01/0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"n01/0\.png cannot be read"):
        LabelledImages(folder, "train").read(0)
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (folder / "train/n01/0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"n01/0\.png cannot be read"):
        LabelledImages(folder, "train").read(0)


def test_a_damaged_zip_file_is_named(tmp_path):
    (tmp_path / "train-0.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"train-0\.zip is no zip file, or a damaged one"):
        LabelledImages(tmp_path, "train")
    path = as_zip(tmp_path / "train-0.zip", "train", painted(count=1))
    content = bytearray(path.read_bytes())
    at = content.index(b"\x89PNG") + 30
    content[at : at + 8] = bytes(8)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train-0\.zip \(train/n0\d/0\.png\) cannot be read: Bad CRC-32"):
        for index in range(3):
            LabelledImages(tmp_path, "train").read(index)


def test_a_member_that_is_damaged_before_its_checksum_is_named(tmp_path):
    path = as_zip(tmp_path / "plain.zip", "train", painted(count=1))
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "train-0.zip", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        members = packed.infolist()
    content = bytearray((tmp_path / "train-0.zip").read_bytes())
    for member in members:
        # Where the deflated bytes begin: a block type that there is not.
        content[member.header_offset + 30 + len(member.filename)] = 0xFF
    (tmp_path / "train-0.zip").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train-0\.zip \(train/n0\d/0\.png\) cannot be read: "):
        LabelledImages(tmp_path, "train").read(0)


def test_a_picture_whose_chunks_are_damaged_is_named(folder):
    path = folder / "train/n01/0.png"
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    at = whole.index(b"IDAT")
    size = int.from_bytes(whole[at - 4 : at], "big")
    half = b"IDAT" + whole[at + 4 : at + 4 + size // 2]
    first = (size // 2).to_bytes(4, "big") + half + zlib.crc32(half).to_bytes(4, "big")
    # The second half in a chunk whose name is none.
    path.write_bytes(whole[: at - 4] + first + b"\0\0\0\4\0\0\0\0" + whole[at + 4 + size // 2 :])
    with pytest.raises(DataError, match=r"n01/0\.png cannot be read"):
        LabelledImages(folder, "train").read(0)


def test_what_lies_unpacked_beside_its_zip_file_is_one_image(folder):
    alone = LabelledImages(folder, "train")
    as_zip(folder / "train-0.zip", "train", painted() | {"n01/new.png": painted()["n01/0.png"]})
    both = LabelledImages(folder, "train")
    assert len(both) == len(alone) + 1
    assert torch.equal(both.read(len(alone)), alone.read(0))


def test_crops_have_the_share_and_the_shape_that_were_drawn(monkeypatch):
    # A ramp tells where a part was taken: rows by the first channel, columns by the second.
    rows, columns = torch.arange(100)[:, None].expand(100, 100), torch.arange(100).expand(100, 100)
    image = torch.stack([rows, columns, rows]).byte()

    def crop(*numbers, size=(100, 100), **options):
        monkeypatch.setattr(torch, "rand", lambda _: torch.tensor(numbers))
        found = random_resized_crop(image, size, **options)
        return [int(found[0].min()), int(found[0].max()), int(found[1].min()), int(found[1].max())]

    # All of the area, square: the whole image.
    assert crop(1.0, 0.5, 0.0, 0.0) == [0, 99, 0, 99]
    # (0.25 - 0.08) / 0.92 of the way: a quarter of the area, 50×50, at the top left.
    assert crop((0.25 - 0.08) / 0.92, 0.5, 0.0, 0.0, size=(50, 50)) == [0, 49, 0, 49]
    # The same area at 4:3, 58 wide and 43 high, at the other end.
    assert crop((0.25 - 0.08) / 0.92, 1.0, 0.999, 0.999, size=(43, 58)) == [57, 99, 42, 99]
    # The least that may be shown, a quarter and all.
    assert crop(0.0, 0.5, 0.0, 0.0, size=(50, 50), least_share=0.25) == [0, 49, 0, 49]
    assert crop(0.0, 0.5, 0.0, 0.0, least_share=1.0) == [0, 99, 0, 99]


def test_images_show_at_least_the_share_that_is_asked_for(folder):
    images = LabelledImages(folder, "train", crop=(6, 8), least_share=1.0, flip=0.0)
    assert torch.equal(images[1, 3][0], images[1, 4][0])
    with pytest.raises(InvalidInput, match=r"least_share is a share of an image's area, in \(0, 1\]; got 0"):
        LabelledImages(folder, "train", least_share=0)


def test_an_image_that_is_kept_in_memory_is_read_once(folder):
    plain = LabelledImages(folder, "train", crop=(5, 5))
    kept = LabelledImages(folder, "train", crop=(5, 5), cache=True)
    first = [kept[index, 1][0] for index in range(len(kept))]
    for path in folder.rglob("*.png"):
        path.unlink()
    again = [kept[index, 1][0] for index in range(len(kept))]
    assert all(torch.equal(x, twin) for x, twin in zip(first, again, strict=True))
    with pytest.raises(DataError):
        plain.read(0)


def test_any_image_can_be_cropped():
    for shape in ((1, 1), (1, 40), (33, 2)):
        for seed in range(20):
            with seeded(seed):
                assert random_resized_crop(torch.zeros(3, *shape).byte(), (7, 9)).shape == (3, 7, 9)


def test_real_tiny_imagenet(real_data):
    root = real_data("tiny_imagenet")
    images = LabelledImages(f"tiny_imagenet:{root}", "val", crop=(64, 64))
    assert (len(images), images.num_classes) == (10_000, 200)
    assert json.loads((root / "classes.json").read_text())
    some = [images[index, 0] for index in range(0, 10_000, 500)]
    assert {tuple(image.shape) for image, _ in some} == {(3, 64, 64)}
    assert [int(label) for _, label in some] == list(range(0, 200, 10))
