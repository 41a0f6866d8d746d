"""``hwnas demo``: the whole way on this machine, in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from hwnas.cli.asking import Asked, open_data, search_config
from hwnas.cli.choosing import choose_space
from hwnas.cli.console import note
from hwnas.cli.data import DataChoice
from hwnas.cli.derive import describe
from hwnas.cli.evaluate import run_eval
from hwnas.cli.export import run_export
from hwnas.cli.fit import run_fit
from hwnas.cli.folder import RunFolder
from hwnas.cli.machine import Machine, profile_space, reading_settings
from hwnas.cli.measure import lines, run_measure
from hwnas.cli.report import write_report
from hwnas.cli.search import run_search
from hwnas.cli.settings import validated
from hwnas.core.fit import FitConfig
from hwnas.core.search_config import SearchConfig

SEARCH = {"epochs": 8, "depth_from_epoch": 2, "validate_every": 4}
FIT = {"epochs": 20, "validate_every": 10}
SCENES = {"length": 96}


@click.command("demo")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/demo"), show_default=True
)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--short", is_flag=True, help="One epoch on a dozen scenes: to see that everything works.")
def command(out: Path, backend: str, short: bool) -> None:
    """Profile this CPU, search a small AutoRTNet on drawn scenes, train it, measure it: two to four minutes.

    Run again, it goes on where it stopped.
    """
    import torch

    # On tensors this small, threads mostly wait for one another; on a busy machine they wait for long.
    torch.set_num_threads(1)
    settings = {"epochs": 1, "depth_from_epoch": 0} if short else SEARCH
    chosen = choose_space("autortnet", "small", {}, "synthetic")
    base = validated(SearchConfig, chosen.space.preset("small").search)
    config = search_config(base, settings)
    images = DataChoice.of("synthetic", 4 if short else 8, {"length": 12} if short else SCENES)
    machine = Machine(device="cpu", backend=backend)
    folder = RunFolder(out)

    # Minutes count here more than milliseconds: no further rounds where the machine is not quiet.
    reading = reading_settings({"most_rounds": 1}, allow_busy=True)
    table = profile_space(chosen.space, machine.make(), out / "table.json", settings=reading)
    run_search(
        Asked(chosen, table, images, open_data(chosen.space, images, config.device), config),
        out,
        resume=(out / "search.json").is_file(),
    )
    size = describe(folder.genotype)
    note(f"found {size['genotype']}: {size['parameters']:,} parameters, {size['ops']} ops")
    training = {**chosen.space.preset("small").fit, **({"epochs": 1} if short else FIT)}
    run_fit(folder, images, validated(FitConfig, training), resume=True)
    scores = run_eval(folder, images, images.val)
    exported = run_export(str(folder.path), images=images)
    measured = run_measure(folder, machine, settings=reading)
    report = write_report(folder)

    click.echo(f"\nmIoU       {scores['miou']:8.1f} %    of {scores['images']} drawn scenes never trained on")
    for line in lines(measured):
        click.echo(line)
    click.echo(f"network    {exported['path']}")
    click.echo(f"report     {report}")
