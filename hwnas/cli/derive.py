"""``hwnas derive``: what a genotype is as a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwnas.cli.console import result
from hwnas.cli.nets import is_of_the_zoo
from hwnas.core.genotype import Genotype
from hwnas.names import space_of


@click.command("derive")
@click.argument("genotype", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="Also list every op that runs, with its input shapes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(genotype: Path, layers: bool, as_json: bool) -> None:
    """Fold a GENOTYPE into its network: size and architecture as text.

    It is a run folder, a file, or the name of a network of the zoo.
    """
    if is_of_the_zoo(str(genotype)):
        from hwnas import zoo

        found = zoo.find(genotype).genotype
    else:
        # What is not there was meant as a run, unless it ends as a file does.
        is_file = genotype.is_file() or genotype.suffix == ".json"
        found = Genotype.load(genotype if is_file else genotype / "genotype.json")
    values = describe(found)
    lines = [
        f"{found.space} {found.short_id}",
        f"{values['parameters']:,} parameters, {values['ops']} ops",
        "",
        *(f"{name:<24} {option}" for name, option in found.choices.items()),
    ]
    if values["outside_of_ops"]:
        lines += [
            "",
            "computed outside of ops, in no count and no prediction:",
            *values["outside_of_ops"],
        ]
    if layers:
        lines += ["", *values["layers"]]
    result(values, lines, as_json=as_json)


def describe(genotype: Genotype) -> dict[str, Any]:
    """Parameters and ops of the network that a genotype describes, and what it computes outside of ops.

    Only shapes are computed.
    """
    import torch

    from hwnas.record import record

    space = space_of(genotype)
    with torch.device("meta"):
        network = space.build(genotype)
        recording = record(network, [torch.empty(1, *space.input_shape())])
    return {
        "space": genotype.space,
        "genotype": genotype.short_id,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "ops": len(recording.ops),
        "outside_of_ops": [str(each) for each in recording.uncharged],
        "choices": genotype.choices,
        "layers": [str(use.key) for use in recording.ops],
    }
