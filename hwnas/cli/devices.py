"""``hwnas devices``: what latency can be measured on here."""

from __future__ import annotations

import click

from hwnas.cli.console import result


@click.command("devices")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """List the devices of this machine, by the names that --device takes."""
    from hwnas.latency.device import here

    found = here()
    lines = [f"{device.alias or device.kind:<12} {device.name}" for device in found]
    result({"devices": [device.model_dump(mode="json") for device in found]}, lines, as_json=as_json)
