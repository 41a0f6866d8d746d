import contextlib
import sys

import pytest
import torch

from hwnas.latency.tensorrt_package import log_of
from tests.latency.imitated_tensorrt import FakeTensorRT


@pytest.fixture
def imitate(monkeypatch):
    used = []

    def with_tensorrt(**options):
        trt = FakeTensorRT(**options)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext(used.append(index)))
        log_of.cache_clear()
        trt.used = used
        return trt

    yield with_tensorrt
    log_of.cache_clear()
