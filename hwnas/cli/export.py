"""``hwnas export``: the trained network as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwnas.cli.console import note, result
from hwnas.cli.folder import RunFolder


@click.command("export")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: RUN/net.onnx]")
@click.option("--untrained", is_flag=True, help="With fresh weights, for measuring before training.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(run: Path, out: Path | None, untrained: bool, as_json: bool) -> None:
    """Export RUN's network to ONNX and check that it computes the same numbers."""
    values = run_export(RunFolder(run), out, trained=not untrained)
    size, off = values["bytes"] / 2**20, values["max_abs_difference"]
    line = f"{values['path']}: {size:.2f} MiB, at most {off:.1e} off PyTorch"
    result(values, [line], as_json=as_json)


def run_export(folder: RunFolder, out: Path | None = None, *, trained: bool = True) -> dict[str, Any]:
    """Export, with the numeric check; where to, how large, and how far off at most."""
    import torch

    from hwnas.latency.export import export_onnx

    path = out or folder.path / "net.onnx"
    if not trained:
        note("exporting fresh weights: good for milliseconds, not for predictions")
    network = folder.network(trained=trained)
    inputs = [torch.rand(1, *folder.space.input_shape())]
    report = export_onnx(network, inputs, path)
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "max_abs_difference": float(report.max_abs_difference or 0.0),
    }
