"""``hwnas sweep`` as a user runs it: its folder, what it prints, its exit codes."""

import json
import re
import shutil

import pytest

from hwnas import SweepResult
from hwnas.cli.app import EXIT_BUDGET, EXIT_ERROR, EXIT_INTERRUPTED
from hwnas.core.genotype import Genotype
from hwnas.core.sweep_page import pareto
from hwnas.core.sweep_result import with_front
from hwnas.latency.fake import FakeBackend, default_formula
from hwnas.latency.timing import in_ms

from .conftest import hwnas, said, settings

FAST = ("--batch", "2", *settings(epochs=2, data__length=4, depth_from_epoch=0, arch_from_epoch=1))


@pytest.fixture(scope="session")
def targets(table):
    """A target with little room, and one with much."""
    latency = said("spaces", "show", "autortnet", "--lut", table)["latency_ms"]
    return [round(1.1 * latency["min"], 4), round(latency["median"], 4)]


def sweep(table, out, *options):
    return hwnas("sweep", "autortnet", "--lut", table, "--out", out, *FAST, *map(str, options))


def listed(targets):
    return ",".join(map(str, targets))


@pytest.fixture(scope="session")
def swept(table, targets, tmp_path_factory):
    """A finished sweep, and what it printed."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    result = sweep(table, out, "--targets", listed(targets))
    assert result.exit_code == 0, result.output
    return out, result


def test_it_ends_with_a_table_and_a_plot(swept, targets):
    out, result = swept
    found = SweepResult.model_validate_json((out / "pareto.json").read_text())
    assert [point.value for point in found.points] == targets
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0].strip() == "asked [ms]"
    for line, point in zip(lines[1:3], found.points, strict=True):
        cells = line.split()
        assert cells[:3] == [f"{point.value:g}", in_ms(point.predicted_ms), in_ms(point.measured_ms)]
        assert ("*" in cells) == point.on_front
        assert cells[-2:] == [point.genotype.short_id, point.folder]
    assert "the first 1 of 2 epochs were trained once for all" in lines
    assert f"next:  hwnas fit {out / found.front[-1].folder} " in result.stdout
    assert "what is found will be measured here: fake" in result.stderr
    page = (out / "sweep.md").read_text()
    assert page.count(f"| {found.points[0].genotype.short_id} |") >= 1
    assert "mIoU [%]" in page
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_each_point_is_a_run_folder_that_later_verbs_take(swept, targets):
    out, _ = swept
    run = out / f"{targets[0]:g}ms"
    assert json.loads((run / "search.json").read_text())["config"]["target_ms"] == targets[0]
    # The first of the two epochs is in the log of each, although it was trained once.
    for target in targets:
        log = (out / f"{target:g}ms" / "search.log.jsonl").read_text().splitlines()
        epochs = [event["epoch"] for event in map(json.loads, log) if event["event"] == "epoch"]
        assert epochs == [0, 1]
    assert said("measure", run, *settings(rounds=1))["asked_ms"] == targets[0]
    for verb in (("fit", run, *settings(epochs=1)), ("export", run), ("report", run)):
        result = hwnas(*verb)
        assert result.exit_code == 0, result.output
    again = said("search", "--out", run, "--resume")
    assert again["genotype"] == Genotype.load(run / "genotype.json").short_id


def test_it_is_what_search_finds_alone(swept, table, targets, tmp_path):
    out, _ = swept
    options = ("--lut", table, "--out", tmp_path, *FAST, "--target-ms", str(targets[1]))
    assert hwnas("search", "autortnet", *options).exit_code == 0
    for name in ("genotype.json", "result.json", "search.json", "table.json", "run.json"):
        assert (tmp_path / name).read_text() == (out / f"{targets[1]:g}ms" / name).read_text(), name


def test_a_finished_sweep_resumes_with_nothing_but_its_folder(swept):
    out, first = swept
    result = hwnas("sweep", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert result.stdout == first.stdout
    assert "epoch" not in result.stderr
    values = said("sweep", "--out", out, "--resume")
    assert values["run"] == str(out)
    assert values["met"] is True
    assert values["backend"] == "fake"
    assert [set(point) for point in values["points"]] == [
        {"value", "run", "genotype", "predicted_ms", "measured_ms", "met", "val", "on_front"}
    ] * 2


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_search_is_not_begun_in_a_sweeps_folder(swept, table, resume):
    out, _ = swept
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    result = hwnas("search", "--lut", table, "--out", out, *resume)
    assert result.exit_code == EXIT_ERROR
    assert f"{out} holds a sweep: go on with  hwnas sweep --out {out} --resume" in result.stderr
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_sweep_is_not_begun_in_a_searchs_folder(run, table, targets, resume):
    before = {path: path.read_bytes() for path in run.glob("*.json")}
    result = sweep(table, run, "--targets", listed(targets), *resume)
    assert result.exit_code == EXIT_ERROR
    assert f"{run} holds a search already; name another folder" in result.stderr
    assert "it starts anew" not in result.stderr
    assert {path: path.read_bytes() for path in run.glob("*.json")} == before


def test_the_folders_of_all_points_are_looked_at_before_anything_is_measured(
    run, targets, tmp_path, monkeypatch
):
    monkeypatch.setattr("hwnas.cli.asking.profile_space", lambda *_, **__: pytest.fail("measured"))
    taken = tmp_path / f"{targets[1]:g}ms"
    taken.mkdir()
    shutil.copy(run / "search.json", taken)
    options = ("--backend", "fake", "--out", tmp_path, "--targets", listed(targets))
    result = hwnas("sweep", "autortnet", *options)
    assert result.exit_code == EXIT_ERROR
    assert f"{taken} holds a search already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [taken.name]


def test_another_sweep_is_refused_with_the_differences(swept, table, targets):
    out, _ = swept
    result = sweep(table, out, "--targets", listed(targets))
    assert result.exit_code == EXIT_ERROR
    assert "holds a sweep already" in result.stderr
    result = hwnas("sweep", "--out", out, "--resume", *settings(arch_lr=0.5))
    assert result.exit_code == EXIT_ERROR
    assert "config.arch_lr" in result.stderr
    result = hwnas("sweep", "--out", out, "--resume", "--targets", "4,6")
    assert result.exit_code == EXIT_ERROR
    assert "values: checkpoint" in result.stderr


def test_latency_weights(table, tmp_path):
    options = ("--latency-weights", "0.001,10", "--penalty", "linear", "--json")
    result = sweep(table, tmp_path, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["swept"] == "latency_weight"
    assert [point["value"] for point in found["points"]] == [0.001, 10]
    assert all(point["measured_ms"] is not None and point["met"] is None for point in found["points"])
    config = json.loads((tmp_path / "weight-10/search.json").read_text())["config"]
    assert config["penalty"] == {"form": "linear", "weight": 10}
    assert hwnas("sweep", "--out", tmp_path, "--resume").exit_code == 0


def html_rows(page):
    """The table's rows, each as the text of its cells."""
    rows = re.findall("<tr>(.*?)</tr>", page)
    return [[re.sub("<[^>]+>", "", cell) for cell in re.findall("<t[hd].*?</t[hd]>", row)] for row in rows]


def test_a_sweep_has_a_report_that_leads_to_its_points_own(swept, tmp_path):
    out, _ = swept
    found = SweepResult.load(out)
    result = hwnas("report", out, "--png", tmp_path)
    assert result.exit_code == 0, result.output
    pages = [out / "report.html", *(out / point.folder / "report.html" for point in found.points)]
    assert result.stdout.splitlines() == [str(page) for page in pages]
    page = pages[0].read_text()
    heading, *rows = html_rows(page)
    assert heading[:3] == ["asked [ms]", "predicted [ms]", "measured [ms]"]
    for row, point in zip(rows, found.points, strict=True):
        assert row == [
            f"{point.value:g}",
            in_ms(point.predicted_ms),
            in_ms(point.measured_ms),
            f"{point.score:.1f}",
            "*" if point.on_front else "",
            point.genotype.short_id,
            point.folder,
        ]
    links = re.findall(r'<a href="([^"]+)">', page)
    assert [out / link for link in links] == pages[1:]
    assert all("<h2>In numbers</h2>" in point.read_text() for point in pages[1:])
    assert page.count("<svg") == 1 and "Pareto front" in page
    assert "the first 1 of 2 epochs were trained once for all" in page
    assert "points are done" not in page
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / found.points[0].folder / "architecture.png").is_file()


def test_a_report_of_a_sweep_that_was_stopped_has_what_is_there(swept, tmp_path):
    out, _ = swept
    found = SweepResult.load(out)
    shutil.copy(out / "sweep.json", tmp_path)
    refused = hwnas("report", tmp_path)
    assert refused.exit_code == EXIT_ERROR
    assert (
        f"has finished no point yet; go on with it:  hwnas sweep --out {tmp_path} --resume" in refused.stderr
    )
    first = found.model_copy(update={"points": with_front(found.points[:1])})
    (tmp_path / "pareto.json").write_text(first.model_dump_json())
    # Its runs lie elsewhere.
    result = hwnas("report", tmp_path)
    assert result.stdout.splitlines() == [str(tmp_path / "report.html")]
    page = (tmp_path / "report.html").read_text()
    assert [row[-1] for row in html_rows(page)] == ["run", found.points[0].folder]
    assert "<a href" not in page
    assert f"1 of 2 points are done; for the rest:  hwnas sweep --out {tmp_path} --resume" in page
    (tmp_path / "pareto.json").write_text('{"points": 3}')
    refused = hwnas("report", tmp_path)
    assert refused.exit_code == EXIT_ERROR
    assert "pareto.json is not what a sweep found:" in refused.stderr


class Slow(FakeBackend):
    """A device that has become slower by a fifth than its table says."""

    def __init__(self, **conditions):
        super().__init__(lambda key: 1.2 * default_formula(key), **conditions)


def test_a_target_that_is_missed_ends_in_exit_code_3_and_not_the_sweep(table, targets, tmp_path, monkeypatch):
    monkeypatch.setattr("hwnas.cli.machine.find_backend", lambda _: Slow)
    result = sweep(table, tmp_path, "--targets", listed(targets))
    assert result.exit_code == EXIT_BUDGET
    assert "(missed)" in result.stdout.splitlines()[1]
    assert "(missed)" not in result.stdout.splitlines()[2]
    assert f"the budget was not met by {targets[0]:g}ms" in result.stdout
    # Asked again, it says so again.
    assert hwnas("sweep", "--out", tmp_path, "--resume").exit_code == EXIT_BUDGET


def test_a_target_that_no_network_keeps_is_refused_before_anything_is_written(table, targets, tmp_path):
    result = sweep(table, tmp_path / "run", "--targets", listed([targets[1], 0.5 * targets[0]]))
    assert result.exit_code == EXIT_BUDGET
    assert "InfeasibleBudget: no network of autortnet keeps this budget" in result.stderr
    assert "(median)" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_interrupted_sweep_says_how_to_go_on(table, targets, tmp_path, monkeypatch):
    from hwnas.errors import Interrupted

    def stop(*_, **__):
        raise Interrupted("stopped in epoch 1 after 1 steps")

    monkeypatch.setattr("hwnas.core.sweep.search", stop)
    result = sweep(table, tmp_path / "run", "--targets", listed(targets))
    assert result.exit_code == EXIT_INTERRUPTED
    assert f"hwnas sweep autortnet --lut {table} --out {tmp_path / 'run'}" in result.stderr
    assert result.stderr.rstrip().endswith("--resume")
    # It needs nothing but the folder.
    monkeypatch.undo()
    result = hwnas("sweep", "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --targets 4,6,9 or --latency-weights 0.001,0.01,0.1"),
        (("--targets", "4"), "at least two values, all different"),
        (("--targets", "4;6"), '"4;6" should be numbers with commas between them'),
        (("--targets", "4,-6"), "a target_ms must be a number above 0, got -6"),
        (("--targets", "4,6", "--latency-weights", "1,2"), "over --targets or over --latency-weights"),
        (("--targets", "4,6", "--penalty", "log"), "beside which the penalty rests"),
        (("--latency-weights", "1,2", *settings(target_ms=4)), "the penalty rests"),
        (("--targets", "4,6", "--lut", "none"), "give a latency table"),
        (("--targets", "4,6", "--resume"), "there is no sweep at"),
        (("--targets", "4,6", *settings(nosuch=1)), '--set knows no "nosuch"'),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(table, tmp_path, options, message):
    result = sweep(table, tmp_path / "run", *options)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_without_scores_there_is_nothing_to_plot(swept):
    out, _ = swept
    found = SweepResult.model_validate_json((out / "pareto.json").read_text())
    bare = [point.model_copy(update={"scores": None, "on_front": None}) for point in found.points]
    assert pareto(found.model_copy(update={"points": tuple(bare)})) is None


@pytest.mark.filterwarnings("default::hwnas.NoPlotWarning")
def test_without_matplotlib_there_is_a_table_and_no_plot(swept, monkeypatch):
    import sys

    out, _ = swept
    (out / "pareto.png").rename(out / "kept.png")
    (out / "sweep.md").rename(out / "kept.md")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = hwnas("sweep", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert "NoPlotWarning: no pareto.png: matplotlib is not installed" in result.stderr
    assert not (out / "pareto.png").exists()
    assert (out / "sweep.md").read_text() == (out / "kept.md").read_text()
    (out / "kept.png").rename(out / "pareto.png")
