"""The process that tries TensorRT: what is known of it however it ends."""

import subprocess
from types import SimpleNamespace

import pytest

from hwnas.latency.tensorrt_probe import Probe, probe


def test_a_package_that_is_not_installed_is_probed():
    found = probe("no_such_package")
    assert (found.version, found.builds, found.runs) == (None, False, False)
    assert found.why.startswith("ModuleNotFoundError: No module named 'no_such_package'. Install it with:")


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        # A crash keeps what was known before it.
        (
            SimpleNamespace(stdout='hwnas-probe {"version": "11.0"}\n', stderr="", returncode=-11),
            "it ended the process that tried it (exit status -11). Does this GPU and driver fit x 11.0?",
        ),
        (subprocess.TimeoutExpired("python", 2), "importing and trying x took over 2 s."),
    ],
    ids=["crash", "too slow"],
)
def test_a_probe_that_goes_wrong(monkeypatch, ran, why):
    def run(*arguments, **options):
        if isinstance(ran, Exception):
            raise ran
        return ran

    monkeypatch.setattr(subprocess, "run", run)
    found = probe.__wrapped__("x", 2)
    assert found.why.startswith(why) and not found.runs


def test_a_probe_is_plain_data():
    assert Probe(package="tensorrt").model_dump(mode="json")["runs"] is False
