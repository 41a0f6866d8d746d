"""Pictures that come from files, one after the other: images, animations, videos."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
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
        DataError: the source cannot be read, or holds no frame.
        InvalidInput: the file to write is the source itself; or a video cannot be written there.
        MissingExtra: a video, and PyAV is not installed.
        OSError: a picture cannot be written there.
    """
    is_video = source.suffix.lower() in VIDEO_SUFFIXES
    suffix = ".mp4" if is_video else ".png" if _frame_count(source) == 1 else ".webp"
    path = folder / f"{source.stem}{suffix}"
    if path.exists() and source.exists() and path.samefile(source):
        raise InvalidInput(f"{path} is the source itself; give another folder (--out).")
    write = {".mp4": _write_video, ".png": _write_still, ".webp": _write_animation}[suffix]
    return path, write(source, path, paint)


def _write_still(source: Path, path: Path, paint: Callable[[Pixels], Pixels]) -> int:
    from PIL import Image

    ((pixels, _),) = _frames(source)
    content = io.BytesIO()
    Image.fromarray(paint(pixels)).save(content, format="PNG")
    write_atomically(path, content.getvalue())
    return 1


def _write_animation(source: Path, path: Path, paint: Callable[[Pixels], Pixels]) -> int:
    from PIL import Image

    painted, durations_ms = [], []
    for pixels, duration_ms in _frames(source):
        painted.append(Image.fromarray(paint(pixels)))
        durations_ms.append(round(duration_ms) or 100)
    content = io.BytesIO()
    painted[0].save(
        content, format="WEBP", save_all=True, append_images=painted[1:], duration=durations_ms, loop=0,
        lossless=True,
    )  # fmt: skip
    write_atomically(path, content.getvalue())
    return len(painted)


def _frame_count(source: Path) -> int:
    with _opened(source) as image:
        return image.n_frames if _is_animation(image) else 1


def _is_animation(image: Any) -> bool:
    # A camera's .jpg may hold further pictures (MPO): previews of other sizes, not frames.
    return image.format in ("GIF", "PNG", "WEBP") and image.n_frames > 1


def _frames(source: Path) -> Iterator[tuple[Pixels, float]]:
    """The frames of a picture, each with the milliseconds that it is shown, 0 where nothing says."""
    from PIL import ImageOps, ImageSequence

    with _opened(source) as image:
        for frame in ImageSequence.Iterator(image) if _is_animation(image) else [image]:
            # Cameras store pictures lying down, and note which way is up.
            upright = ImageOps.exif_transpose(frame).convert("RGB")
            yield np.asarray(upright), frame.info.get("duration", 0)


@contextmanager
def _opened(source: Path) -> Iterator[Any]:
    """The picture as Pillow opens it; what fails while it is read is a DataError."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            yield image
    # Pillow raises SyntaxError for some damaged files.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{source} cannot be read as a picture: {error}") from error


def _write_video(source: Path, path: Path, paint: Callable[[Pixels], Pixels]) -> int:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", f"read {source.name}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # A video may be larger than memory: it is written aside, and takes its name when it is whole.
    aside = path.with_name(f".{path.name}.part.mp4")
    try:
        with closing(_video_frames(source)) as frames, av.open(str(aside), "w") as writing:
            count = _encode(frames, writing, paint)
        if not count:
            raise DataError(f"{source} holds no frame")
        aside.replace(path)
    except av.FFmpegError as error:
        raise InvalidInput(f"{path} cannot be written as a video: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return count


def _video_frames(source: Path) -> Generator[tuple[Pixels, Fraction]]:
    """The frames of a video, each with the video's rate."""
    import av

    try:
        with av.open(str(source)) as reading:
            if not reading.streams.video:
                raise DataError(f"{source} has no picture in it")
            rate = reading.streams.video[0].average_rate or Fraction(25)
            for frame in reading.decode(video=0):
                yield frame.to_ndarray(format="rgb24"), rate
    except av.FFmpegError as error:
        raise DataError(f"{source} cannot be read as a video: {error}") from error


def _encode(
    frames: Iterator[tuple[Pixels, Fraction]], writing: Any, paint: Callable[[Pixels], Pixels]
) -> int:
    import av

    stream: Any = None
    count = 0
    for pixels, rate in frames:
        painted = paint(pixels)
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
