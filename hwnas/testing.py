"""Conformance suites for what others plug into hwnas: call one from a test of your own.

A suite raises AssertionError, saying what was expected of whom, at the first thing that does not hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.core.arch import ArchParameters, assigned
from hwnas.core.expected import ExpectedLatency
from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput, SpaceError
from hwnas.latency.backend import LatencyBackend, Precision
from hwnas.latency.device import Device
from hwnas.latency.fake import fake_table
from hwnas.latency.subjects import plausible_inputs
from hwnas.latency.timing import Reader
from hwnas.layers import Add, Concat, Conv, PoolLinear, Resize
from hwnas.ops import OpKey, build_op
from hwnas.record import OpUse, Recording, record


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
        _times(backend, module(), plausible_inputs(shapes))
    _keeps_readers_apart(backend)
    _tells_large_from_small(backend)


_MODULES = (
    (lambda: Conv(3, 8), [(1, 3, 9, 11)]),
    (lambda: Conv(3, 8, stride=2), [(2, 3, 9, 11)]),
    (Add, [(1, 4, 5, 6)] * 3),
    (Concat, [(1, 4, 5, 6), (1, 2, 5, 6)]),
    # Only the shape of the second input is read: a runtime may drop it.
    (Resize, [(1, 4, 5, 6), (1, 3, 11, 13)]),
    # By strides: enlarged by 2 and by 4, and cut.
    (Resize, [(1, 4, 6, 4), (1, 3, 11, 13)]),
    (lambda: PoolLinear(4, 3), [(1, 4, 5, 6)]),
    (lambda: nn.Sequential(Conv(3, 4, stride=2), Conv(4, 4), PoolLinear(4, 3)), [(1, 3, 17, 19)]),
)


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
        backend.prepare(Conv(4, 4), plausible_inputs([(1, 4, 8, 8)])),
        backend.prepare(Conv(48, 48), plausible_inputs([(1, 48, 64, 64)])),
    )


def check_space(
    space: SearchSpace, *, architectures: int = 4, seed: int = 0, tolerance: float = 1e-5
) -> None:
    """Ask of a search space whatever hwnas relies on; for the tests of whoever writes one.

    Fields survive JSON; nothing is computed outside of ops; every op can be rebuilt from its spec, and then
    has torch compute the same; genotypes are canonical and survive JSON; networks run at odd sizes; and the
    three views of random architectures agree: the supernet at one-hot computes what the derived network
    computes, and the expected latency at one-hot is the sum of table rows over the ops that the derived
    network runs.

    Args:
        space: with fields as small as it allows: networks are run, on the CPU, at its input shape.
        architectures: how many random architectures are tried.
        seed: of weights, inputs and architectures.
        tolerance: largest difference between outputs, relative to the largest output.

    Raises:
        AssertionError: the space breaks a rule; the message says which, and where.
        SpaceError: its supernet cannot be recorded.
    """
    if type(space).model_validate_json(space.model_dump_json()) != space:
        raise AssertionError(f"{space!r} does not equal itself after a round trip through JSON.")
    recording = space.record()
    if not recording.ops:
        raise AssertionError(f"{type(space).__name__} calls no op (no hwnas.Op): nothing can be timed.")
    _check_charged(recording)
    keys = recording.keys()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in keys:
            _check_op(key, [use for use in recording.ops if use.key == key])
        supernet = _with_statistics(space.supernet()).eval()
        arch = ArchParameters(supernet)
        table = fake_table(keys, _distinct(keys), input_shape=space.input_shape())
        cost = ExpectedLatency(recording, arch.choices, table)
        x = torch.randn(1, *space.input_shape())
        for _ in range(architectures):
            assignment = {choice.name: int(torch.randint(len(choice.options), ())) for choice in arch.choices}
            genotype = _check_genotype(space, assignment)
            with torch.no_grad():
                draw = arch.one_hot(assignment)
                network = space.build(genotype, supernet).eval()
                with assigned(supernet, arch, draw, gradient=False):
                    expected = supernet(x)
                found = network(x)
            difference = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
            if not difference <= tolerance:
                raise AssertionError(
                    f"{genotype.choices}: the derived network's output differs from the supernet's by "
                    f"{difference:.2g} (allowed: {tolerance:.2g}). Does a module outside the blocks depend "
                    "on a choice?"
                )
            derived = record(network, [x])
            ran = Counter(use.key for use in derived.ops)
            charged = recording.count(assignment)
            if ran != charged:
                raise AssertionError(
                    f"{genotype.choices}: the derived network runs other ops than the supernet's recording "
                    f"charges for.\n  run, not charged: {_listed(ran - charged)}\n"
                    f"  charged, not run: {_listed(charged - ran)}"
                )
            _check_charged(derived)
            ms = sum(table.latency_ms(key) * count for key, count in ran.items())
            if not math.isclose(cost.total(draw.weights), ms, rel_tol=1e-4):
                raise AssertionError(
                    f"{genotype.choices}: the expected latency at one-hot is {cost.total(draw.weights)} ms, "
                    f"the rows of the ops that run sum to {ms} ms."
                )
            _check_odd_sizes(space, network, genotype)


def _check_charged(recording: Recording) -> None:
    try:
        recording.charged()
    except SpaceError as error:
        raise AssertionError(str(error)) from error


def _check_op(key: OpKey, uses: Sequence[OpUse]) -> None:
    try:
        rebuilt = build_op(key.spec)
    except InvalidInput as error:
        raise AssertionError(str(error)) from error
    if rebuilt.spec != key.spec:
        raise AssertionError(f"{key.spec} gives {rebuilt.spec} when it is built again from its spec.")
    inputs = [torch.empty(shape, device="meta") for shape in key.input_shapes]
    try:
        output = rebuilt.to("meta").eval()(*inputs)
    except Exception as error:
        raise AssertionError(f"{key}, built alone from its spec, fails on these shapes: {error}") from error
    if not isinstance(output, Tensor):
        raise AssertionError(f"{key} gives a {type(output).__name__}; an op gives one tensor.")
    # What is timed is the rebuilt op: whatever has this key must compute the same.
    (timed,) = record(rebuilt, inputs).ops
    for use in uses:
        for here, there in zip_longest(use.work, timed.work, fillvalue="nothing"):
            if here != there:
                raise AssertionError(
                    f"{type(rebuilt).__name__} at {use.path} computes {here} where another with the same "
                    f"key, built from its spec, computes {there}; both would have the one row of {key}. "
                    "Hand on every constructor argument that time depends on: super().__init__(name=name)."
                )


def _check_genotype(space: SearchSpace, assignment: dict[str, int]) -> Genotype:
    genotype = space.genotype(assignment)
    again = Genotype.model_validate_json(genotype.model_dump_json())
    if again != genotype:
        raise AssertionError(f"{genotype} does not equal itself after a round trip through JSON.")
    if space.genotype(space.assignment(again)) != genotype:
        raise AssertionError(
            f"{genotype.choices} is not canonical: its own assignment gives another genotype."
        )
    return genotype


def _check_odd_sizes(space: SearchSpace, network: nn.Module, genotype: Genotype) -> None:
    shape = space.input_shape()
    if len(shape) != 3:
        return
    channels, height, width = shape
    odd = (1, channels, height + 1 - height % 2 + 2, width + 1 - width % 2 + 4)
    try:
        with torch.no_grad():
            network(torch.randn(odd))
    except Exception as error:
        raise AssertionError(f"{genotype.choices} does not run at the odd size {odd}: {error}") from error


def _distinct(keys: Sequence[OpKey]) -> Callable[[OpKey], float]:
    # Different for every key, so that two ops that are mistaken for one another do not cancel.
    order = {key: position for position, key in enumerate(keys)}
    return lambda key: 1.0 + 0.01 * order[key]


def _with_statistics(network: nn.Module) -> nn.Module:
    # Fresh statistics are those of the identity; only others tell one batch norm from another.
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    return network


def _listed(keys: Counter[OpKey]) -> str:
    return ", ".join(f"{count} × {key}" for key, count in keys.items()) or "none"
