"""``hwnas spaces``: which search spaces there are, and what one of them holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hwnas.cli.choosing import choose_space, space_options
from hwnas.cli.console import result
from hwnas.cli.machine import fields_of
from hwnas.cli.settings import parse, sort_out
from hwnas.core.cost_ranges import ranges
from hwnas.core.space import SearchSpace
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import in_ms
from hwnas.names import find_space, known_spaces


@click.group("spaces", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the search spaces, or show one: hwnas spaces show autortnet."""
    if ctx.invoked_subcommand is not None:
        return
    for name, target in known_spaces().items():
        about = (inspect.getdoc(find_space(name)) or target).splitlines()[0]
        click.echo(f"{name:<12} {about}")


@command.command("show")
@click.argument("name")
@space_options
@click.option("--lut", type=click.Path(path_type=Path), help="A latency table of the space.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(
    name: str,
    preset: str | None,
    data: str | None,
    settings: Sequence[str],
    lut: Path | None,
    as_json: bool,
) -> None:
    """Print a space's fields, presets, choices, op keys, number of networks, and what these cost.

    With --lut also the milliseconds of its fastest, its median and its slowest network.
    """
    kind = find_space(name)
    fields = sort_out(parse(settings), {"space": list(kind.model_fields)})["space"]
    table = LatencyTable.load(lut) if lut is not None else None
    given = (fields_of(table, kind.name) if table is not None else None) or {}
    space = (
        choose_space(name, preset, fields, data, given_fields=given).space
        if preset or data
        else kind.from_preset(None, **{**given, **fields})
    )
    if table is not None:
        table.check(input_shape=space.input_shape())
    values = describe(space, table)
    lines = [*_fields(kind, space), ""]
    lines += [f"preset {key}: {preset.about}" for key, preset in kind.presets.items()]
    lines += ["", *(f"{key:<24} {', '.join(options)}" for key, options in values["choices"].items()), ""]
    lines += [
        f"choices      {len(values['choices'])}",
        f"op keys      {values['op_keys']} (rows of its latency table), {values['op_uses']} uses",
        f"networks     {values['cardinality']:.3g}",
        f"supernet     {values['parameters_supernet']:,} parameters",
        *(f"{name:<14} {_range(name, values[name])}" for name in _COSTS if name in values),
    ]
    result(values, lines, as_json=as_json)


_COSTS = ("latency_ms", "params", "macs", "activation_mib")


def _range(name: str, values: dict[str, float]) -> str:
    shown = in_ms if name == "latency_ms" else "{:.4g}".format
    return ", ".join(f"{shown(values[end])} {end}" for end in ("min", "median", "max"))


def describe(space: SearchSpace, table: LatencyTable | None = None) -> dict[str, Any]:
    """Fields, choices, sizes and costs of a space; nothing is computed but shapes and sums."""
    import torch

    with torch.device("meta"):
        supernet = space.supernet()
    recording = space.record()
    return {
        "name": space.name,
        "fields": space.model_dump(mode="json"),
        "choices": {name: list(choice.options) for name, choice in space.choices().items()},
        "op_keys": len(recording.keys()),
        "op_uses": len(recording.ops),
        "cardinality": space.cardinality(),
        "parameters_supernet": sum(parameter.numel() for parameter in supernet.parameters()),
        **{name: asdict(found) for name, found in ranges(space, table).items()},
    }


def _fields(kind: type[SearchSpace], space: SearchSpace) -> list[str]:
    about = _field_docs(kind)
    values = space.model_dump(mode="json")
    return [f"{name:<20} {values[name]!s:<16} {about.get(name, '')}" for name in kind.model_fields]


def _field_docs(kind: type[SearchSpace]) -> dict[str, str]:
    """The string below each field, which Python itself throws away."""
    import ast
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):  # noqa: SIM102 - two questions
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
                # As it is read by people: references and code without their marks.
                docs[before.target.id] = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
    return docs
