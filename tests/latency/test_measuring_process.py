"""What a measuring process tells, and what is told of one that cannot."""

import sys
import time

import pytest

from hwnas.errors import MeasurementFailed
from hwnas.latency.measuring_process import Job, measure_apart
from hwnas.latency.subjects import OpSubject
from tests.latency.test_measuring import RULE, Varying, key


def job(backend, **options):
    return Job([OpSubject(key(4))], ["four"], backend, RULE, 3, 0, 1.1, 0, [[]], **options)


def measured(job):
    return measure_apart(job, lambda index, timing: None, lambda done, total, what: None)


def test_it_tells_what_its_canary_read_in_each_round(tmp_path):
    outcome = measured(job(Varying(tmp_path / "n")))
    assert (outcome.canary_ms, outcome.slowdowns) == ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])


def test_one_that_is_killed_while_it_writes_is_an_error_like_any_other_death(tmp_path, monkeypatch):
    """Fault: the memory is used up, and half a line is all that comes."""
    dying = tmp_path / "python"
    said = '{"doing": "measuring four"}\\n{"timings": [{"med'
    dying.write_text(f"#!/bin/sh\ncat > /dev/null\nprintf '{said}'\nexit 9\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(MeasurementFailed, match="ended with exit code 9 while measuring four, and gave no"):
        measured(job(Varying(tmp_path / "n")))


class Hanging(Varying):
    """Prepares, and never gives a reading."""

    def prepare(self, module, inputs):
        super().prepare(module, inputs)
        return lambda: time.sleep(600) or 1.0


def test_one_that_hangs_while_it_reads_is_ended(tmp_path):
    """Fault: the driver never comes back."""
    with pytest.raises(
        MeasurementFailed, match=r"exit code -?\d+ after 0 minutes without a visit while measuring four"
    ):
        measured(job(Hanging(tmp_path / "n"), patience_seconds=1.0))
