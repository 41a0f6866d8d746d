"""Which TensorRT is used, and what is said where there is none."""

import sys
from types import SimpleNamespace

import pytest

from hwnas.errors import BackendUnavailable, MissingExtra
from hwnas.latency.tensorrt import TensorRTBackend
from tests.latency.imitated_tensorrt import GPU


def test_without_a_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtra, match=r"tensorrt or tensorrt_rtx is not.*\n.*'hwnas\[tensorrt-rtx\]'"):
        TensorRTBackend(GPU).check()


def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="8.6.1"))
    with pytest.raises(BackendUnavailable, match=r"TensorRT 10 or newer is needed; here is 8\.6\.1"):
        TensorRTBackend(GPU).versions()
