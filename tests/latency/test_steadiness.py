"""What may have disturbed a measurement is named."""

import time

import numpy as np
import psutil
import pytest

from hwnas.latency.device import Device, DeviceState
from hwnas.latency.steadiness import busy_processes, canary, causes, unsteadiness

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp")


def state(seconds=0.0, **values):
    return DeviceState(seconds=seconds, **values)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", list)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"gpu_processes": 3}, "3 processes compute on the GPU"),
        ({}, {"gpu_throttle_reasons": 0x04}, "the GPU's clocks are held down by the power cap"),
        (
            {"gpu_throttle_reasons": 0x40},
            {},
            "the GPU's clocks are held down by temperature, by the hardware",
        ),
        ({"gpu_mhz": 1500}, {"gpu_mhz": 1200}, "the GPU's clock went from 1500 to 1200 MHz"),
        ({"cpu_mhz": 4000}, {"cpu_mhz": 2500}, "the CPU's clock went from 4000 to 2500 MHz"),
        (
            {"involuntary_switches": 100},
            {"involuntary_switches": 900},
            "a measuring process was pushed off its core 80 times a second",
        ),
        ({}, {"load_average": 500.0}, "the load average is 500.0 on"),
    ],
)
def test_causes(before, after, text):
    found = causes(GPU, [(state(**before), state(10.0, **after))])
    assert len(found) == 1 and found[0].startswith(text)


def test_idling_is_no_cause():
    quiet_state = state(10.0, gpu_throttle_reasons=0x01, gpu_processes=1, load_average=0.0)
    assert causes(GPU, [(state(), quiet_state)]) == []
    assert causes(GPU, []) == []


def test_other_processes_are_named(monkeypatch):
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", lambda: ["make (12, 90 %)"])
    assert causes(GPU, [(state(), state(1.0))]) == ["other processes are at work: make (12, 90 %)"]


def test_each_cause_is_named_once_at_its_worst():
    calm = (state(cpu_mhz=3000, involuntary_switches=0), state(10.0, cpu_mhz=2900, involuntary_switches=300))
    worse = (state(cpu_mhz=3000, involuntary_switches=0), state(10.0, cpu_mhz=2000, involuntary_switches=900))
    assert causes(GPU, [calm, worse, calm]) == [
        "the CPU's clock went from 3000 to 2000 MHz",
        "a measuring process was pushed off its core 90 times a second",
    ]


class Process:
    def __init__(self, pid, share, gone=False):
        self.pid, self.share, self.gone = pid, share, gone

    def cpu_percent(self):
        return self.share

    def name(self):
        if self.gone:
            raise psutil.NoSuchProcess(self.pid)
        return f"p{self.pid}"


def test_the_busiest_come_first_and_idle_and_gone_ones_not_at_all(monkeypatch):
    listed = [Process(-1, 30.0), Process(-2, 99.0), Process(-3, 5.0), Process(-4, 80.0, gone=True)]
    monkeypatch.setattr(psutil, "process_iter", lambda: listed)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert busy_processes() == ["p-2 (-2, 99 %)", "p-1 (-1, 30 %)"]
    assert busy_processes(limit=1) == ["p-2 (-2, 99 %)"]


def test_the_canary_reads_the_clock_it_is_given():
    ticks = iter(range(0, 10**9, 500_000))
    assert canary(lambda: next(ticks))() == 0.5


def test_the_canary_is_as_quick_in_every_process_wherever_its_memory_begins(monkeypatch):
    places = []
    monkeypatch.setattr(np, "add", lambda a, b, out: places.append((a.ctypes.data, out.ctypes.data)))
    for _ in range(5):
        canary(time.perf_counter_ns)()
    assert {(a % 64, out % 64, out - a) for a, out in places} == {(0, 0, 1 << 14)}


def test_unequal_rounds_are_said_where_one_is_slower_than_is_borne():
    assert unsteadiness([], 1.1) == unsteadiness([1.0, 1.1], 1.1) == []
    said = "Rounds ran at unequal speed, as a ratio to the usual: 1.00, 1.25."
    assert unsteadiness([1.0, 1.25], 1.1) == [said]


def test_a_quarter_of_the_rounds_may_be_slow():
    assert unsteadiness([1.0, 9.0, 1.0, 1.0], 1.1) == []
    assert len(unsteadiness([1.0, 9.0, 1.0, 1.0, 1.2, 1.0], 1.1)) == 1
