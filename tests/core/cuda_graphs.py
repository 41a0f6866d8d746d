"""CUDA graphs without a GPU: torch's own code around them, over graphs that record and replay on a CPU.

As a GPU's graph does, a recording repeats the operations that ran while it was captured, reads and writes the
tensors that they read and wrote, and knows nothing of the Python around them. Unlike there, capturing
computes, too.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """Operations with the tensors that they ran on."""

    captured = 0
    """How many were captured, by all."""

    def __init__(self):
        self.calls = []
        self.replays = 0

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, results in self.calls:
                for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                    # A view, or what was written in place, is there already.
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class Recording(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, tensors(result)))
        return result


def tensors(result):
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def capturing(graph, pool=None):
    Graph.captured += 1
    with Recording(graph):
        yield


@pytest.fixture
def cuda_graphs(monkeypatch):
    """Puts recordings in the place of CUDA's graphs; the class that counts them."""
    monkeypatch.setattr(Graph, "captured", 0)
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": contextlib.nullcontext,
        "stream": lambda stream: stream,
        "device": contextlib.nullcontext,
        "synchronize": lambda: None,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    graphs = torch.cuda.graphs
    for name, value in {"CUDAGraph": Graph, "graph": capturing, "graph_pool_handle": object}.items():
        monkeypatch.setattr(graphs, name, value)
        monkeypatch.setattr(torch.cuda, name, value)
    return Graph
