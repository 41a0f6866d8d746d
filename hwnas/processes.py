"""The processes that work on one run: how many there are, which one this is, and what they tell each other.

A thin layer over torch.distributed. Alone, everything here costs nothing and changes nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DistributedSampler

from hwnas.errors import HwnasError, InvalidInput

_Parameters = ParamSpec("_Parameters")
_Value = TypeVar("_Value")
_Item = TypeVar("_Item")

_BUCKET_BYTES = 1 << 25
"""Size of a message: large enough for its latency to be small beside it."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run.

    Attributes:
        rank: which one this is, counted from 0.
        size: how many there are.
        local_rank: which one this is on its machine, and so which of its GPUs is its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints, and writes files."""
        return self.rank == 0

    def share(self, items: Sequence[_Item], what: str = "a batch") -> Sequence[_Item]:
        """This process's part of ``items``, the parts being equal and in the order of the ranks.

        A tensor is divided along its first dimension.

        Raises:
            InvalidInput: they cannot be divided so.
        """
        part, rest = divmod(len(items), self.size)
        if rest or not part:
            raise InvalidInput(
                f"{what} of {len(items)} cannot be divided among {self.size} processes in equal parts: "
                f"use a multiple of {self.size}, and drop a last batch that is smaller."
            )
        return items[self.rank * part : (self.rank + 1) * part]


ALONE = Processes()


def processes() -> Processes:
    """The processes of torch.distributed's default group; one, where there is no group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    rank = distributed.get_rank()
    return Processes(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))


def launched() -> int:
    """How many processes a launcher such as torchrun says that it started; 1 without one."""
    if not all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes that a launcher started, for the body; a group that exists is used as it is.

    CPU tensors travel by gloo and CUDA tensors by NCCL, each where torch has it.

    Raises:
        InvalidInput: there are GPUs here, but fewer than processes.
    """
    if launched() == 1 or not distributed.is_available() or distributed.is_initialized():
        yield processes()
        return
    if torch.cuda.is_available():
        gpus, mine = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
        if mine >= gpus:
            raise InvalidInput(
                f"process {mine} on this machine has no GPU of its own: torch sees {gpus}. "
                f"Start one for each:  torchrun --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(mine)
    distributed.init_process_group()
    try:
        yield processes()
    finally:
        distributed.destroy_process_group()


def as_one(function: Callable[_Parameters, _Value]) -> Callable[_Parameters, _Value]:
    """Decorate a function that all processes call: it runs with the group joined."""

    @functools.wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Value:
        with joined():
            return function(*args, **kwargs)

    return run


class SharedBatches(BatchSampler):
    """A batch sampler of which each process takes its part of every batch; alone it takes all."""

    def __init__(self, sampler: Iterable[Any], batch_size: int, *, drop_last: bool) -> None:
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in super().__iter__():
            yield list(processes().share(batch))


def shared(batches: Iterable[Any]) -> Iterable[Any]:
    """This process's share of ``batches``, pairs of tensors or of named tuples of tensors.

    A loader that divides its data itself, by :class:`SharedBatches` or torch's DistributedSampler, is left to
    do so. Of any other, which must yield the same to all processes, each takes its part of every batch: that
    is right, and loads everything everywhere.

    Raises:
        InvalidInput: on reading, a batch holds something else, or cannot be divided in equal parts.
    """
    return batches if processes().size == 1 or is_divided(batches) else _parts(batches)


def is_divided(batches: Iterable[Any]) -> bool:
    """Whether a loader yields to each process other data, by itself."""
    divides = isinstance(getattr(batches, "batch_sampler", None), SharedBatches)
    return divides or isinstance(getattr(batches, "sampler", None), DistributedSampler)


def _parts(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        yield [_part(part) for part in batch] if isinstance(batch, list | tuple) else batch


def _part(value: Any) -> Any:
    """This process's share of a tensor, or of a named tuple of tensors."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_part, value))
    if not isinstance(value, Tensor):
        raise InvalidInput(
            f"a batch that {processes().size} processes divide must be of tensors; it holds a "
            f"{type(value).__name__}. Yield tensors, or divide the data in the loader (DistributedSampler)."
        )
    share: Callable[[Any], Any] = processes().share
    return share(value)


def begin_epoch(epoch: int, *loaders: Any) -> None:
    """Tell loaders with torch's DistributedSampler which epoch begins: it shuffles by that number."""
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)


def told_by_first(make: Callable[[], _Value]) -> _Value:
    """What ``make`` gives in the first process, in all of them; none of the others calls it.

    An error of the family is raised by all, so that none waits for one that has ended.
    """
    here = processes()
    if here.size == 1:
        return make()
    told: list[Any] = [None, None, None]
    failed: HwnasError | None = None
    if here.is_first:
        try:
            told[0] = make()
        except HwnasError as error:
            failed, told[1:] = error, [type(error), error.args]
    distributed.broadcast_object_list(told)
    value, kind, arguments = told
    if kind is not None and failed is None:
        # Without its constructor, which may want other arguments than the message that it made of them.
        failed = kind.__new__(kind, *arguments)
    if failed is not None:
        raise failed
    return value  # type: ignore[no-any-return]


def told_by_all(value: _Item) -> list[_Item]:
    """The ``value`` of every process, in the order of the ranks."""
    here = processes()
    if here.size == 1:
        return [value]
    values: list[Any] = [None] * here.size
    distributed.all_gather_object(values, value)
    return values


def any_of_them(claim: bool) -> bool:
    """Whether ``claim`` holds in any process."""
    if processes().size == 1:
        return claim
    flag = torch.tensor(int(claim), device=_message_device())
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def add_up(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over all processes, in place, without a gradient; bit for bit the same in all."""
    if processes().size > 1:
        distributed.all_reduce(tensor)
    return tensor


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place; bit for bit the same in all."""
    size = processes().size
    if size > 1:
        _exchange(tensors, lambda message: distributed.all_reduce(message.div_(size), async_op=True))


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the first process's, in place."""
    if processes().size > 1:
        _exchange(tensors, lambda message: distributed.broadcast(message, 0, async_op=True))


@torch.no_grad()
def _exchange(tensors: Sequence[Tensor], send: Callable[[Tensor], Any]) -> None:
    """Pass tensors of one device through ``send``, a bucket at a time: a message each would cost latency."""
    under_way = []
    for bucket in _buckets(tensors):
        message = torch.cat([tensor.reshape(-1) for tensor in bucket])
        under_way.append((bucket, message, send(message)))
    for bucket, message, work in under_way:
        work.wait()
        begin = 0
        for tensor in bucket:
            tensor.copy_(message[begin : begin + tensor.numel()].view(tensor.shape))
            begin += tensor.numel()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            kinds.setdefault(tensor.dtype, []).append(tensor)
    for kind in kinds.values():
        bucket: list[Tensor] = []
        filled = 0
        for tensor in kind:
            bucket.append(tensor)
            filled += tensor.numel() * tensor.element_size()
            if filled >= _BUCKET_BYTES:
                yield bucket
                bucket, filled = [], 0
        if bucket:
            yield bucket


def _message_device() -> torch.device:
    """Where a message lies whose content is on the host: the CPU, unless the group speaks NCCL alone."""
    return torch.device("cpu" if "cpu" in str(distributed.get_backend_config()) else "cuda")
