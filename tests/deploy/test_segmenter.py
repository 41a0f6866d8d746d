"""Pictures of any size through a network, and files of any kind through a painter."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hwnas.deploy import Segmenter
from hwnas.deploy.frames import overlay_file, sources
from hwnas.errors import DataError, InvalidInput, MissingExtra
from hwnas.segmentation import overlay
from tests.deploy.nets import LABELLING


class Bright(nn.Module):
    """Class 1 where red is above the labelling's mean, else class 0; as logits or as class numbers."""

    def __init__(self, logits=True):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        self.shape = x.shape
        found = (x[:, 0] > 0).long()
        return nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float() if self.logits else found


def half_red(height, width):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :, 0] = 255
    return picture


@pytest.mark.parametrize("logits", [False, True])
def test_a_picture_is_brought_to_the_networks_size_and_back(logits):
    net = Bright(logits)
    found = Segmenter(net, LABELLING, (8, 12))(half_red(20, 60))
    assert net.shape == (1, 3, 8, 12)
    assert found.shape == (20, 60) and found.dtype == np.uint8
    # Red is 0 on the left, below the mean of 0.5, and 1 on the right.
    assert not found[:, :30].any() and (found[:, 30:] == 1).all()


def test_a_class_without_a_name_is_an_error():
    class Strange(nn.Module):
        def forward(self, x):
            return torch.full((1, *x.shape[2:]), 7)

    with pytest.raises(InvalidInput, match="names class 7, and there are only 4 classes: road"):
        Segmenter(Strange(), LABELLING, (8, 12))(half_red(8, 12))


def test_an_overlay_is_a_mixture_and_leaves_void_alone():
    picture = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 255]], np.uint8)
    found = overlay(picture, labels, LABELLING.palette, opacity=0.25)
    # 0.75 · 100 + 0.25 · (10, 20, 30), the same with (200, 0, 0), and the picture itself.
    assert found.tolist() == [[[78, 80, 82], [125, 75, 75], [100, 100, 100]]]
    assert (picture == 100).all()
    with pytest.raises(InvalidInput, match="share their height and width"):
        overlay(picture, labels.T, LABELLING.palette)
    with pytest.raises(InvalidInput, match="opacity must lie in 0…1; got 2"):
        overlay(picture, labels, LABELLING.palette, opacity=2)


def inverted(picture):
    return 255 - picture


def test_a_still_picture_becomes_a_png(tmp_path):
    Image.fromarray(half_red(6, 8)).save(tmp_path / "a.bmp")
    path, frames = overlay_file(tmp_path / "a.bmp", tmp_path / "out", inverted)
    assert (path.name, frames) == ("a.png", 1)
    assert (np.asarray(Image.open(path)) == inverted(half_red(6, 8))).all()


def test_a_picture_that_lies_down_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    Image.fromarray(half_red(6, 8)).save(tmp_path / "a.png", exif=exif)
    path, _ = overlay_file(tmp_path / "a.png", tmp_path / "out", inverted)
    with Image.open(path) as found:
        assert found.size == (6, 8)
        # What was on the left is now at the top.
        assert np.asarray(found)[0, :, 0].tolist() == [255] * 6


def test_a_photograph_with_a_preview_is_one_picture(tmp_path):
    photograph, preview = Image.fromarray(half_red(16, 24)), Image.fromarray(half_red(6, 8))
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    path, frames = overlay_file(tmp_path / "a.jpg", tmp_path / "out", inverted)
    assert (path.name, frames) == ("a.png", 1)
    with Image.open(path) as found:
        assert found.size == (24, 16)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_picture_is_not_overwritten_by_its_overlay(name, tmp_path):
    frames = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (0, 100)]
    animated = {"save_all": True, "append_images": frames[1:]} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, **animated)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InvalidInput, match="is the source itself"):
        overlay_file(tmp_path / name, tmp_path, inverted)
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match="is the source itself"):
        overlay_file(tmp_path / name, tmp_path / "linked", inverted)
    assert (tmp_path / name).read_bytes() == before


def test_what_the_painter_raises_is_not_the_pictures_fault(tmp_path):
    Image.fromarray(half_red(6, 8)).save(tmp_path / "a.bmp")

    def paint(_):
        raise OSError("out of paint")

    with pytest.raises(OSError, match=r"^out of paint"):
        overlay_file(tmp_path / "a.bmp", tmp_path / "out", paint)


def test_an_animation_keeps_its_frames_and_its_timing(tmp_path):
    frames = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[40, 80, 120])
    path, count = overlay_file(tmp_path / "a.gif", tmp_path / "out", inverted)
    assert (path.name, count) == ("a.webp", 3)
    with Image.open(path) as found:
        assert found.n_frames == 3
        seen = []
        for number in range(3):
            found.seek(number)
            found.load()
            seen.append((found.info["duration"], int(np.asarray(found.convert("RGB"))[0, 0, 0])))
    assert seen == [(40, 255), (80, 155), (120, 55)]


def test_sources_are_files_and_what_folders_hold(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.png", "a.mp4", "notes.txt"):
        (folder / name).touch()
    (tmp_path / "c.jpg").touch()
    assert [path.name for path in sources([tmp_path / "c.jpg", folder])] == ["c.jpg", "a.mp4", "b.png"]
    with pytest.raises(DataError, match="no file or folder"):
        sources([tmp_path / "none.png"])
    with pytest.raises(DataError, match="neither a picture nor a video"):
        sources([folder / "notes.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures or videos"):
        sources([tmp_path / "empty"])


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        overlay_file(tmp_path / "a.png", tmp_path / "out", inverted)


def test_a_video_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MissingExtra, match=r"hwnas\[video\]"):
        overlay_file(tmp_path / "a.mp4", tmp_path / "out", inverted)


def test_a_video_keeps_its_rate_and_its_frames(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for value in (40, 90, 140, 190):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), value, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    # An odd width: the last column is left out, as the file's colours are stored for pairs.
    path, count = overlay_file(tmp_path / "a.mp4", tmp_path / "out", lambda x: inverted(x)[:, :31])
    assert (path, count) == (tmp_path / "out/a.mp4", 4)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert means == pytest.approx([215, 165, 115, 65], abs=8)
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["a.mp4"]
    with pytest.raises(InvalidInput, match="is the source itself"):
        overlay_file(tmp_path / "a.mp4", tmp_path, inverted)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(DataError, match="cannot be read as a video"):
        overlay_file(tmp_path / "bad.mp4", tmp_path / "out", inverted)

    def full(*_):
        raise av.FFmpegError(28, "No space left on device")

    monkeypatch.setattr("hwnas.deploy.frames._encode", full)
    with pytest.raises(InvalidInput, match=r"out/a\.mp4 cannot be written as a video: .*No space left"):
        overlay_file(tmp_path / "a.mp4", tmp_path / "out", inverted)
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["a.mp4"]
