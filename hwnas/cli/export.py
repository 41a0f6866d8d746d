"""``hwnas export``: the trained network as ONNX, in the precision that it is deployed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import note, result
from hwnas.cli.data import DataChoice
from hwnas.cli.folder import RunSetup
from hwnas.cli.nets import data_for, find_net, is_run, require_net
from hwnas.cli.settings import parse, sort_out
from hwnas.errors import InvalidInput

if TYPE_CHECKING:
    from hwnas.deploy.description import ExportPrecision

_SAMPLES = 8
"""Validation images on which the file is compared with the network."""
_CALIBRATION = 32
"""Training images that int8's ranges are observed on."""


@click.command("export")
@click.argument("net")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True,
              help="int8 is calibrated on training images.")  # fmt: skip
@click.option("--argmax", is_flag=True, help="End with class numbers (uint8) instead of logits.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="[default: RUN/net[-PRECISION][-classes].onnx]")  # fmt: skip
@click.option("--data", metavar="NAME[:DIR]", help="Where classes and images come from [default: the run's].")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="data.NAME: see hwnas search.")
@click.option("--calibration", type=click.IntRange(1), show_default=f"{_CALIBRATION}",
              help="Training images that int8's ranges are observed on.")  # fmt: skip
@click.option("--untrained", is_flag=True, help="With fresh weights, for measuring before training.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    net: str,
    precision: ExportPrecision,
    argmax: bool,
    out: Path | None,
    data: str | None,
    settings: Sequence[str],
    calibration: int | None,
    untrained: bool,
    as_json: bool,
) -> None:
    """Export NET's network, a run's or the zoo's, to ONNX and check that it computes the same."""
    require_net(net, files=False)
    given = sort_out(parse(settings), {"data": None})["data"]
    known = data is not None or (is_run(net) and RunSetup.load(Path(net)) is not None)
    if calibration is not None and precision != "int8":
        raise InvalidInput(
            f"--calibration is for --precision int8; {precision} observes no ranges: leave --calibration out."
        )
    if given and not known and precision != "int8":
        raise InvalidInput(
            f"--set data.{next(iter(given))} says how data are loaded, and nothing says which: name them "
            "with --data NAME[:DIR], or leave --set out."
        )
    values = run_export(
        net,
        out,
        data_for(net, data, given) if known or precision == "int8" else None,
        precision=precision,
        argmax=argmax,
        calibration=calibration or _CALIBRATION,
        trained=not untrained,
    )
    result(values, lines(values), as_json=as_json)


def lines(values: dict[str, Any]) -> list[str]:
    """What was written, for people."""
    shown = [
        f"{values['path']}: {values['size_bytes'] / 2**20:.2f} MiB, {values['precision']}, gives "
        f"{values['output']}; as fp32 at most {values['max_abs_difference']:.1e} off PyTorch"
    ]
    if values["agreement_percent"] is not None:
        shown.append(
            f"names the same class as PyTorch for {values['agreement_percent']:.2f} % of the pixels of "
            f"{values['images_compared']} images"
        )
    return shown


def run_export(
    net: str,
    out: Path | None = None,
    images: DataChoice | None = None,
    *,
    precision: ExportPrecision = "fp32",
    argmax: bool = False,
    calibration: int = _CALIBRATION,
    trained: bool = True,
) -> dict[str, Any]:
    """Export, with the numeric check; where to, how large, and how far off.

    Args:
        net: a run's folder, or a network of the zoo.
        out: the file.
        images: where classes, samples and calibration images come from; None: nothing is known of them.
        precision: of the file.
        argmax: class numbers instead of logits.
        calibration: how many training images int8 is calibrated on.
        trained: a run's own weights, or fresh ones.
    """
    from hwnas.deploy.export import export
    from hwnas.deploy.onnx_network import OnnxNetwork

    if not trained:
        note("exporting fresh weights: good for milliseconds, not for predictions")
    found = find_net(net, trained=trained)
    if isinstance(found.network, OnnxNetwork):
        raise InvalidInput(f"{net} is exported already; export the run that it came from.")
    labelling = images.labelling() if images else found.labelling
    if images and labelling is not None:
        found.require_own(labelling, net, images.name)
    if labelling is None:
        note("no class names in the file: nothing says which data it is for; name them with --data")
    size = found.input_shape[1:]
    exported = export(
        found.network,
        found.input_shape,
        out or _default_path(net, precision, argmax),
        precision=precision,
        argmax=argmax,
        genotype=found.genotype,
        labelling=labelling,
        samples=images.samples(images.val, size, _SAMPLES) if images and trained else None,
        calibration=images.samples(images.train, size, calibration)
        if images and precision == "int8"
        else None,
    )
    return exported.model_dump(mode="json")


def _default_path(name: str, precision: str, argmax: bool) -> Path:
    parts = ("net" if is_run(name) else Path(name).name, precision if precision != "fp32" else "")
    stem = "-".join(part for part in (*parts, "classes" if argmax else "") if part)
    return (Path(name) if is_run(name) else Path()) / f"{stem}.onnx"
