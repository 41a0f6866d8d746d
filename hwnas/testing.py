"""Conformance suites for what others plug into hwnas: call one from a test of your own.

A suite raises AssertionError, saying what was expected of whom, at the first thing that does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from hwnas.latency.backend import LatencyBackend, Precision
from hwnas.latency.device import Device
from hwnas.latency.timing import Reader
from hwnas.layers import Add, Concat, Conv, PoolLinear, Resize


def check_backend(backend: LatencyBackend) -> None:
    """Make sure that ``backend`` times what it is given, and leaves everything else as it was.

    It must be able to run where the suite runs. Readings are looked at for being believable, and once for
    order: a convolution with 9,000 times the work of another must take longer. Takes about a second on a CPU.

    Raises:
        AssertionError: the first thing that does not hold.
        BackendUnavailable: the backend cannot run here.
    """
    _says_what_it_is(backend)
    backend.check()
    for module, shapes in _MODULES:
        _times(backend, module(), _plausible(shapes))
    _keeps_readers_apart(backend)
    _tells_large_from_small(backend)


_MODULES = (
    (lambda: Conv(3, 8), [(1, 3, 9, 11)]),
    (lambda: Conv(3, 8, stride=2), [(2, 3, 9, 11)]),
    (Add, [(1, 4, 5, 6)] * 3),
    (Concat, [(1, 4, 5, 6), (1, 2, 5, 6)]),
    # Only the shape of the second input is read: a runtime may drop it.
    (Resize, [(1, 4, 5, 6), (1, 3, 11, 13)]),
    (lambda: PoolLinear(4, 3), [(1, 4, 5, 6)]),
    (lambda: nn.Sequential(Conv(3, 4, stride=2), Conv(4, 4), PoolLinear(4, 3)), [(1, 3, 17, 19)]),
)


def _plausible(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).relu() for shape in shapes]


def _expect(claim: bool, expected: str) -> None:
    if not claim:
        raise AssertionError(expected)


def _says_what_it_is(backend: LatencyBackend) -> None:
    kind = type(backend).__name__
    _expect(
        isinstance(backend, LatencyBackend), f"{kind} must derive from hwnas.latency.backend.LatencyBackend"
    )
    name = getattr(backend, "name", None)
    _expect(isinstance(name, str) and bool(name), f"{kind}.name must be a text; it is {name!r}")
    _expect(isinstance(backend.device, Device), f"{kind}.device must be a Device; it is {backend.device!r}")
    _expect(backend.precision in get_args(Precision), f"{kind}.precision is {backend.precision!r}")
    _expect(backend.threads >= 1, f"{kind}.threads is {backend.threads!r}")
    for what, found in (("versions", backend.versions()), ("settings", backend.settings())):
        texts = all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())
        _expect(texts, f"{kind}.{what}() must map text to text, for the table's header; it gave {found!r}")
        again = getattr(backend, what)()
        _expect(again == found, f"{kind}.{what}() must not change: first {found!r}, then {again!r}")


def _times(backend: LatencyBackend, module: nn.Module, inputs: list[Tensor]) -> None:
    """Readings that can be believed; module, inputs and PyTorch's global state as they were."""
    module.train()
    what = f"{type(backend).__name__}.prepare({type(module).__name__})"
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    values = [x.clone() for x in inputs]
    state = _global_state()
    reader = backend.prepare(module, inputs)
    for reading in (reader(), reader()):
        _expect(
            isinstance(reading, float) and math.isfinite(reading) and reading > 0,
            f"{what}: a reading must be a finite number of milliseconds above 0; it is {reading!r}",
        )
    found = module.state_dict()
    same = all(
        found[name].dtype == tensor.dtype
        and found[name].device == tensor.device
        and torch.equal(found[name], tensor)
        for name, tensor in weights.items()
    )
    _expect(same, f"{what} changed the module's weights or statistics; it must work on a copy")
    _expect(all(part.training for part in module.modules()), f"{what} left the module in evaluation mode")
    _expect(all(map(torch.equal, inputs, values)), f"{what} changed its inputs")
    _expect(_global_state() == state, f"{what} changed PyTorch's threads, gradient mode or random state")


def _global_state() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        bytes(torch.get_rng_state().tolist()),
    )


def _keeps_readers_apart(backend: LatencyBackend) -> None:
    """A table holds a hundred readers and reads them in any order."""
    small, large = _small_and_large(backend)
    readings = [reader() for reader in (small, large, large, small)]
    _expect(all(reading > 0 for reading in readings), f"readers in turn gave {readings}")


def _tells_large_from_small(backend: LatencyBackend) -> None:
    small, large = (min(reader() for _ in range(3)) for reader in _small_and_large(backend))
    _expect(
        small < large,
        f"{type(backend).__name__}: 9,000 times the work took {large} ms, against {small} ms; "
        "is the right module timed, and to its end?",
    )


def _small_and_large(backend: LatencyBackend) -> tuple[Reader, Reader]:
    # MACs: 4·4·9 · 8·8 = 9,216 against 48·48·9 · 64·64 = 84,934,656, which is 9,216 times as many.
    return (
        backend.prepare(Conv(4, 4), _plausible([(1, 4, 8, 8)])),
        backend.prepare(Conv(48, 48), _plausible([(1, 48, 64, 64)])),
    )
