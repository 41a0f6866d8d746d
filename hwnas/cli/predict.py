"""``hwnas predict``: what a network sees in pictures and videos of any size."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import click

from hwnas.cli.console import counting, note, result
from hwnas.cli.nets import find_net
from hwnas.errors import InvalidInput

_DEFAULT_NET = "autortnet-a-camvid"


@click.command("predict")
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--net", metavar="NET",
              help=f"A run, an exported file, or one of the zoo [default: {_DEFAULT_NET}].")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("predictions"),
              show_default=True)  # fmt: skip
@click.option("--data", metavar="NAME[:DIR]", help="Whose classes they are, where NET does not say.")
@click.option("--maps", is_flag=True, help="Class numbers as well: a PNG for each picture, NAME.classes.png.")
@click.option(
    "--opacity", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Of the colours."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    pictures: tuple[Path, ...],
    net: str | None,
    out: Path,
    data: str | None,
    maps: bool,
    opacity: float,
    as_json: bool,
) -> None:
    """Tint each pixel of PICTURES (images, animations, videos, folders of them) in its class's colour.

    Pictures may have any size: each is brought to the network's, and its classes back to the picture's.
    """
    if net is None:
        net = _DEFAULT_NET
        note(f"assuming --net {net}, which knows streets")
    values = run_predict(list(pictures), net, out, data=data, maps=maps, opacity=opacity)
    lines = [
        f"{file['path']}  {file['frames']} frame{'s' * (file['frames'] > 1)}" for file in values["files"]
    ]
    shares = ", ".join(f"{name} {share:.1f}" for name, share in values["classes"].items() if share >= 0.05)
    result(values, [*lines, f"% of the pixels: {shares}"], as_json=as_json)


def run_predict(
    pictures: list[Path],
    name: str,
    out: Path,
    *,
    data: str | None = None,
    maps: bool = False,
    opacity: float = 0.5,
) -> dict[str, Any]:
    """Write overlays into ``out``; the files, and each class's share of all pixels in percent.

    Raises:
        InvalidInput: two pictures would be written to one file; nothing says what the classes are.
    """
    import numpy as np
    from PIL import Image

    from hwnas.deploy.frames import overlay_file, sources
    from hwnas.deploy.segmenter import Segmenter
    from hwnas.files import write_atomically
    from hwnas.segmentation.predictions import overlay
    from hwnas.segmentation.registry import labelling

    files = sources(pictures)
    doubled = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if doubled:
        raise InvalidInput(
            f"several of the pictures are called {doubled[0]}, and would be written to one file: predict "
            "them into folders of their own (--out)."
        )
    if any(path.parent.resolve() == out.resolve() for path in files):
        raise InvalidInput(f"{out} holds the pictures themselves; name another folder with --out.")
    net = find_net(name, data)
    meaning = net.labelling or (labelling(data) if data else None)
    if meaning is None:
        raise InvalidInput(
            f"nothing says what the classes of {name} are: name its data with --data NAME[:DIR]."
        )
    segment = Segmenter(net.network, meaning, net.input_shape[1:])
    pixels = np.zeros(len(meaning.classes), dtype=np.int64)
    written = []
    with counting("predict") as on_progress:
        for number, source in enumerate(files, start=1):
            seen: list[Any] = []

            def paint(picture: Any, seen: list[Any] = seen) -> Any:
                classes = segment(picture)
                np.add(pixels, np.bincount(classes.ravel(), minlength=len(pixels)), out=pixels)
                seen[:] = [classes]
                return overlay(picture, classes, meaning.palette, opacity=opacity)

            path, frames = overlay_file(source, out, paint)
            written.append({"source": str(source), "path": str(path), "frames": frames})
            if maps and frames == 1:
                content = io.BytesIO()
                Image.fromarray(seen[0]).save(content, format="PNG")
                write_atomically(out / f"{source.stem}.classes.png", content.getvalue())
            on_progress(number, len(files), source.name)
    total = max(1, int(pixels.sum()))
    return {
        "files": written,
        "classes": {
            name: 100 * int(count) / total for name, count in zip(meaning.classes, pixels, strict=True)
        },
    }
