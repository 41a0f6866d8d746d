"""TensorRT without a GPU: a builder that only says what it was told, and marks for tests of the real one."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from hwnas.latency.device import Device

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", index=0, cores=30, compute_capability="6.1")

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx (TensorRT itself builds only with a GPU)",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


class FakeConfig:
    """A builder's configuration whose timing cache takes what begins with its device."""

    def __init__(self, device):
        self.device, self.cache, self.profiling_verbosity = device, None, "names"

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content, serialize=lambda: content or self.device + b": new")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.content and not cache.content.startswith(self.device):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class FakeTensorRT:
    """The builder of TensorRT without a GPU: its network is the model, its engine says so."""

    __name__, __version__ = "tensorrt", "10.9"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    INTERNAL_ERROR, ERROR = 0, 1

    def __init__(self, device=b"titan", plan=b"engine"):
        self.device, self.plan, self.flags, self.config = device, plan, None, None
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "__init__": lambda self: None})

    def Builder(self, log):
        def build(network, config):
            self.config = config
            if self.plan is None:
                log.log(1, "no kernel for node Conv_0")
                log.log(3, "gossip")
            return self.plan

        return SimpleNamespace(
            create_network=lambda flags: setattr(self, "flags", flags),
            create_builder_config=lambda: FakeConfig(self.device),
            build_serialized_network=build,
        )

    def OnnxParser(self, network, log):
        return SimpleNamespace(parse=lambda model: True)
