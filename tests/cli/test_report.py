import re

import pytest

from hwnas.cli.diagram import graphs_of, ranks
from hwnas.cli.folder import RunFolder
from hwnas.cli.report import _milliseconds, plots
from hwnas.latency.table import LatencyTable
from hwnas.latency.verification import Calibration, Scores, Verification
from tests.cli.conftest import hwnas


def test_choices_on_edges_become_graphs():
    choices = {"h1.depth": "2", "h1.normal.e0-2": "skip", "h1.normal.e2-3": "zero", "agg.x1-m": "conv_3x3_x2"}
    assert graphs_of(choices) == {
        "h1.normal": {("0", "2"): "skip", ("2", "3"): "zero"},
        "agg": {("x1", "m"): "conv_3x3_x2"},
    }


def test_a_node_stands_right_of_all_that_it_reads():
    # 3 reads 2, which reads 0 and 1: columns 0, 0, 1, 2.
    assert ranks([("0", "2"), ("1", "2"), ("0", "3"), ("2", "3")]) == {"0": 0, "2": 1, "1": 0, "3": 2}


def test_a_circle_ends_too():
    assert set(ranks([("a", "b"), ("b", "a")])) == {"a", "b"}


def test_a_report_needs_no_other_file(run, tmp_path):
    result = hwnas("report", run, "--png", tmp_path)
    assert result.exit_code == 0, result.output
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)[^"]*"', page.replace("xlink:href", "href"))
    assert page.count("<svg") == 6
    # One page, one set of ids: what a plot refers to must not lie in another plot.
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 100
    plot_by_plot = page.split("<svg")[1:]
    for plot in plot_by_plot:
        referred = re.findall(r'(?:href="#|url\(#)([^")]+)', plot)
        assert set(referred) <= set(re.findall(r'\bid="([^"]+)"', plot))
    assert "url(#" in page and 'href="#' in page
    assert "Intersection over union by class" in page
    assert "data:image/png;base64," in page
    for word in ("asked", "predicted", "measured"):
        assert f"<td>{word}</td>" in page
    assert {path.stem for path in tmp_path.glob("*.png")} == set(plots(RunFolder(run)))
    # Parts of the network take all of what is predicted, and so do kinds of op.
    shares = page.partition("Where the predicted milliseconds go")[2].partition("</section>")[0]
    _, parts, kinds = shares.split("<h3>")
    predicted_ms = RunFolder(run).read("result.json")["predicted_ms"]
    for shown in (parts, kinds):
        taken = [float(ms) for ms in re.findall(r'<td class="n">([\d.]+) ms</td>', shown)]
        assert len(taken) > 2
        assert sum(taken) == pytest.approx(predicted_ms, rel=0.02)
        assert sum(map(float, re.findall(r"width:([\d.]+)%", shown))) == pytest.approx(100, abs=1)


def test_where_the_table_was_verified_a_prediction_has_an_interval(run, tmp_path):
    for name in ("genotype.json", "table.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert "95 %" not in _milliseconds(RunFolder(tmp_path))
    table = LatencyTable.load(tmp_path / "table.json")
    scores = Scores(networks=9, rmspe_percent=1, within_5=100, within_10=100, kendall_tau=1, bias=1)
    table.verification = Verification(
        created="now", rows=table.rows_digest, uncalibrated=scores, calibrated=scores,
        calibration=Calibration(), low_percent=-10.0, high_percent=20.0,
    )  # fmt: skip
    table.save(tmp_path / "table.json")
    found = re.search(
        r"<p>([\d.]+) ms in all by the table \(95 %: ([\d.]+) to ([\d.]+) ms\)",
        _milliseconds(RunFolder(tmp_path)),
    )
    assert found is not None
    predicted, low, high = map(float, found.groups())
    assert (low, high) == pytest.approx((0.9 * predicted, 1.2 * predicted), rel=0.01)
