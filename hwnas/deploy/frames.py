"""Pictures that come from files, one after the other: images, animations, videos."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import DataError, InvalidInput, MissingExtra
from hwnas.files import write_atomically
from hwnas.segmentation.dataset import Pixels
from hwnas.segmentation.files import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
"""Files that are read with PyAV."""
ANIMATION_SUFFIXES = (".gif", ".webp", ".png", ".apng")
"""Files that may hold several frames, read with Pillow."""

_READABLE = sorted({*IMAGE_SUFFIXES, *ANIMATION_SUFFIXES, *VIDEO_SUFFIXES})


def sources(paths: list[Path]) -> list[Path]:
    """The files that ``paths`` name, in order: of a folder, the pictures and videos directly in it.

    Raises:
        DataError: a path that is not there, a folder without any, or a file of another kind.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in _READABLE)
            if not inside:
                raise DataError(f"the folder {path} holds no pictures or videos ({', '.join(_READABLE)})")
            found += inside
        elif not path.is_file():
            raise DataError(f"no file or folder {path}")
        elif path.suffix.lower() not in _READABLE:
            raise DataError(f"{path} is neither a picture nor a video; these end in {', '.join(_READABLE)}")
        else:
            found.append(path)
    return found


def overlay_file(source: Path, folder: Path, paint: Callable[[Pixels], Pixels]) -> tuple[Path, int]:
    """Write what ``paint`` makes of every frame of ``source`` into ``folder``, in the same form.

    A still picture becomes a PNG, an animation an animated WebP with the same timing, a video an MP4 with the
    same frame rate (without sound).

    Returns:
        the file, and its number of frames.

    Raises:
        DataError: the source cannot be read.
        MissingExtra: a video, and PyAV is not installed.
    """
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return _video(source, folder / f"{source.stem}.mp4", paint)
    from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            painted, durations_ms = [], []
            for frame in ImageSequence.Iterator(image):
                durations_ms.append(frame.info.get("duration", 0))
                # Cameras store pictures lying down, and note which way is up.
                upright = ImageOps.exif_transpose(frame).convert("RGB")
                painted.append(Image.fromarray(paint(np.asarray(upright))))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{source} cannot be read as a picture: {error}") from error
    content = io.BytesIO()
    if len(painted) == 1:
        path = folder / f"{source.stem}.png"
        painted[0].save(content, format="PNG")
    else:
        path = folder / f"{source.stem}.webp"
        painted[0].save(
            content, format="WEBP", save_all=True, append_images=painted[1:],
            duration=[round(duration) or 100 for duration in durations_ms], loop=0, lossless=True,
        )  # fmt: skip
    write_atomically(path, content.getvalue())
    return path, len(painted)


def _video(source: Path, path: Path, paint: Callable[[Pixels], Pixels]) -> tuple[Path, int]:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", f"read {source.name}") from error
    if path.resolve() == source.resolve():
        raise InvalidInput(f"{path} is the video itself; give another --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A video may be larger than memory: it is written aside, and takes its name when it is whole.
    aside = path.with_name(f".{path.name}.part.mp4")
    try:
        with av.open(str(source)) as reading, av.open(str(aside), "w") as writing:
            if not reading.streams.video:
                raise DataError(f"{source} has no picture in it")
            rate = reading.streams.video[0].average_rate or Fraction(25)
            count = _encode(_decoded(reading), writing, rate, paint)
        if not count:
            raise DataError(f"{source} holds no frame")
        aside.replace(path)
    except av.FFmpegError as error:
        raise DataError(f"{source} cannot be read as a video: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
    return path, count


def _decoded(reading: Any) -> Iterator[Pixels]:
    for frame in reading.decode(video=0):
        yield frame.to_ndarray(format="rgb24")


def _encode(frames: Iterator[Pixels], writing: Any, rate: Fraction, paint: Callable[[Pixels], Pixels]) -> int:
    import av

    stream: Any = None
    count = 0
    for frame in frames:
        painted = paint(frame)
        # Colours are stored for two by two pixels, so an odd last row or column is left out.
        painted = np.ascontiguousarray(painted[: painted.shape[0] & ~1, : painted.shape[1] & ~1])
        if stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream = writing.add_stream(codec, rate=rate)
            stream.height, stream.width = painted.shape[:2]
            stream.pix_fmt = "yuv420p"
        for packet in stream.encode(av.VideoFrame.from_ndarray(painted, format="rgb24")):
            writing.mux(packet)
        count += 1
    if stream is not None:
        for packet in stream.encode():
            writing.mux(packet)
    return count
