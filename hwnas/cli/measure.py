"""``hwnas measure``: the milliseconds of the network that was found, beside those that were predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import note, result
from hwnas.cli.folder import RunFolder
from hwnas.cli.machine import (
    Machine,
    allow_busy_option,
    machine_options,
    reading_settings,
    recorded_options,
)
from hwnas.cli.nets import is_of_the_zoo
from hwnas.cli.settings import parse, sort_out
from hwnas.errors import InvalidInput, TableMismatch
from hwnas.files import write_json
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.header import TableHeader
    from hwnas.latency.measuring import ProfileSettings
    from hwnas.latency.table import LatencyTable
    from hwnas.latency.timing import Timing

_FAR_OFF = 0.15  # a prediction that is further off is remarked upon


@click.command("measure")
@click.argument("net")
@machine_options
@click.option("--batch", type=click.IntRange(1), help="Images in one inference [default: the table's].")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
              help="A field of the stopping rule, or backend.NAME; repeatable.")  # fmt: skip
@allow_busy_option
@click.option("--json", "as_json", is_flag=True, help='One JSON object on stdout; "median_ms" is the number.')
def command(
    net: str,
    device: str | None,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    batch: int | None,
    settings: Sequence[str],
    allow_busy: bool,
    as_json: bool,
) -> None:
    """Measure NET as a whole: a run's network, by default under its table's conditions, an exported file, or
    a network of the zoo.

    Of a run, RUN/measure.json is written; of a file, FILE.onnx.measure.json beside it; of the zoo, nothing.
    """
    from hwnas.latency.measuring import ProfileSettings

    homes = sort_out(parse(settings), {"profile": list(ProfileSettings.model_fields), "backend": None})
    machine = Machine(device, backend, precision, threads)
    reading = reading_settings(homes["profile"], allow_busy=allow_busy)
    path = Path(net)
    if path.is_file() or path.suffix == ".onnx":
        values = file_measure(
            path, machine, batch=batch or 1, settings=reading, backend_options=homes["backend"]
        )
    elif is_of_the_zoo(net):
        values = zoo_measure(
            net, machine, batch=batch or 1, settings=reading, backend_options=homes["backend"]
        )
    else:
        values = run_measure(
            RunFolder(path), machine, batch=batch, settings=reading, backend_options=homes["backend"]
        )
    result(values, lines(values), as_json=as_json)


def lines(values: dict[str, Any]) -> list[str]:
    """The three numbers for people: asked, predicted, measured."""
    shown = []
    if values["asked_ms"] is not None:
        shown.append(f"asked      {in_ms(values['asked_ms']):>8} ms")
    if values["predicted_ms"] is not None:
        by = "the table, corrected by measurements" if values["corrected"] else "the table"
        shown.append(f"predicted  {in_ms(values['predicted_ms']):>8} ms   (by {by})")
    under = f"{values['device']}, {values['backend']} {values['precision']}, batch {values['batch']}"
    number = f"measured   {in_ms(values['median_ms']):>8} ms ± {in_ms(values['spread_ms'], 2)}"
    shown.append(f"{number}   (of {values['count']} readings on {under})")
    if values["predicted_ms"] and abs(values["predicted_ms"] / values["median_ms"] - 1) > _FAR_OFF:
        off = 100 * (values["predicted_ms"] / values["median_ms"] - 1)
        shown.append(
            f"the prediction is {off:+.0f} % off; hwnas verify {values['table']} says why, and corrects it"
        )
    return [*shown, *values["remarks"]]


def run_measure(
    folder: RunFolder,
    machine: Machine,
    *,
    batch: int | None = None,
    settings: ProfileSettings | None = None,
    backend_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure, and keep it in the folder; what was not asked for is as in the run's table."""
    from hwnas.latency.measuring import measure_networks
    from hwnas.latency.subjects import plausible_inputs

    table = folder.table()
    options: dict[str, Any] = {}
    if table is not None:
        header = table.header
        options = _recorded(header, machine)
        machine = Machine(
            machine.device or header.device.alias,
            machine.backend or header.backend,
            machine.precision or header.precision,
            machine.threads or header.threads,
        )
        batch = batch or header.batch
    batch = batch or 1
    trained = (folder.path / "weights.pt").is_file()
    network = folder.network(trained=trained)
    if not trained:
        note("no weights yet: measuring with fresh ones, which take the same time")
    backend = machine.make(**{**options, **(backend_options or {})})
    inputs = plausible_inputs([(batch, *folder.space.input_shape())])
    measured = measure_networks({"network": (network, inputs)}, backend, settings)
    timing = measured.timings["network"]
    predicted = folder.read("result.json").get("predicted_ms")
    differing = _differences(table, backend, batch) if table is not None else []
    if predicted is not None and differing:
        listed = "\n".join(differing)
        note(f"the run's table predicts for other conditions than these (table against here):\n{listed}")
        predicted = None
    values = _values(timing, backend, batch) | {
        "genotype": folder.genotype.short_id,
        "asked_ms": folder.target_ms,
        "predicted_ms": predicted,
        "corrected": folder.corrected,
        "trained": trained,
        "table": str(folder.path / "table.json"),
        "remarks": [*measured.remarks, *measured.busy],
    }
    folder.write("measure.json", values)
    return values


def zoo_measure(
    name: str,
    machine: Machine,
    *,
    batch: int = 1,
    settings: ProfileSettings | None = None,
    backend_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a network of the zoo at the size of its card; nothing is kept."""
    from hwnas import zoo
    from hwnas.latency.measuring import measure_networks
    from hwnas.latency.subjects import plausible_inputs

    entry = zoo.find(name)
    backend = machine.make(**(backend_options or {}))
    inputs = plausible_inputs([(batch, *entry.card.input_shape)])
    measured = measure_networks({"network": (entry.network(), inputs)}, backend, settings)
    return _values(measured.timings["network"], backend, batch) | {
        "asked_ms": None,
        "predicted_ms": None,
        "network": name,
        "remarks": [*measured.remarks, *measured.busy],
    }


def file_measure(
    path: Path,
    machine: Machine,
    *,
    batch: int = 1,
    settings: ProfileSettings | None = None,
    backend_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure an exported file as it is, in a runtime that reads ONNX; kept beside the file.

    Raises:
        InvalidInput: a precision is asked for, or a backend that does not read ONNX.
    """
    from hwnas.deploy.onnx_network import OnnxNetwork
    from hwnas.latency.device import Device
    from hwnas.latency.export import with_batch
    from hwnas.latency.measuring import measure_all
    from hwnas.latency.onnx_backend import OnnxBackend
    from hwnas.latency.onnxruntime import has_fp16_kernels
    from hwnas.latency.subjects import ModelSubject, plausible_inputs

    if machine.precision is not None:
        raise InvalidInput(
            f"{path} is measured in its own precision: leave --precision out, or export another file."
        )
    network = OnnxNetwork(path)
    precision = network.description.precision if network.description else "the file's"
    on_cpu = Device.find(machine.device or "auto").kind != "cuda"
    # What a backend is told only decides about its builder's switches; on a CPU there are none, and fp16 is
    # refused where it is not computed in, which for a file that is there is a remark.
    half = precision == "fp16" and not on_cpu
    backend = Machine(machine.device, machine.backend, "fp16" if half else "fp32", machine.threads).make(
        **(backend_options or {})
    )
    if not isinstance(backend, OnnxBackend):
        raise InvalidInput(f"{backend.name} does not read ONNX files: use --backend onnxruntime or tensorrt.")
    inputs = plausible_inputs([(batch, 3, *network.size)])
    subject = ModelSubject(with_batch(path.read_bytes(), batch), tuple(inputs))
    measured = measure_all({path.name: subject}, backend, settings)
    remarks = [*measured.remarks, *measured.busy]
    if precision == "fp16" and backend.name == "onnxruntime" and on_cpu and not has_fp16_kernels():
        remarks.append("ONNX Runtime computes fp16 in fp32 on this CPU: the casts are in the number.")
    values = _values(measured.timings[path.name], backend, batch) | {
        "precision": precision,
        "asked_ms": None,
        "predicted_ms": None,
        "file": str(path),
        "remarks": remarks,
    }
    write_json(path.with_name(f"{path.name}.measure.json"), values)
    return values


def _values(timing: Timing, backend: LatencyBackend, batch: int) -> dict[str, Any]:
    """A measurement with all that it depends on."""
    return {
        "median_ms": timing.median_ms,
        "spread_ms": timing.spread_ms,
        "count": timing.count,
        "rounds": timing.rounds,
        "device": backend.device.name,
        "backend": backend.name,
        "precision": backend.precision,
        "threads": backend.threads,
        "batch": batch,
        "versions": backend.versions(),
        "settings": backend.settings(),
    }


def _recorded(header: TableHeader, machine: Machine) -> dict[str, Any]:
    """The table's switches; none for another backend or device, where they may make no sense."""
    other_backend = machine.backend is not None and machine.backend != header.backend
    if other_backend or (machine.device is not None and not header.device.answers_to(machine.device)):
        return {}
    return recorded_options(header)


def _differences(table: LatencyTable, backend: LatencyBackend, batch: int) -> list[str]:
    """What tells a measurement's conditions from the table's, a line each."""
    try:
        table.check(backend=backend, batch=batch)
    except TableMismatch as error:
        return [line for line in str(error).splitlines() if line.startswith("  ")]
    return []
