"""What is given by name, or as a class, where an object is wanted: refused with the call that makes one."""

from __future__ import annotations

from typing import Any

from hwnas.arguments import refuse_text
from hwnas.core.genotype import Genotype
from hwnas.core.search_data import SearchData
from hwnas.errors import InvalidInput


def refuse_space(space: Any) -> None:
    """Raise unless ``space`` may be a search space.

    Raises:
        InvalidInput: it is a name, a class or a genotype.
    """
    refuse_text("space", space, "a SearchSpace", f'hwnas.find_space("{space}")()')
    if isinstance(space, type):
        raise InvalidInput(
            f"space must be a SearchSpace, got the class {space.__name__}: "
            f"pass an instance, {space.__name__}(…)."
        )
    if isinstance(space, Genotype):
        raise InvalidInput(
            f"space must be a SearchSpace, got the genotype {space.short_id}: pass hwnas.space_of(genotype)."
        )


def refuse_table(table: Any) -> None:
    """Raise unless ``table`` may be a latency table.

    Raises:
        InvalidInput: it is a name or a path.
    """
    refuse_text("the table", table, "a LatencyTable", f'hwnas.LatencyTable.load("{table}")')


def refuse_data(data: Any) -> None:
    """Raise unless ``data`` are the data of a search.

    Raises:
        InvalidInput: they are named, or are batches alone.
    """
    refuse_text("data", data, "SearchData", "hwnas.SearchData(train=loader)", dataset=True)
    if not isinstance(data, SearchData):
        raise InvalidInput(
            f"data must be SearchData, got a {type(data).__name__}: pass hwnas.SearchData(train=batches), "
            "and val=batches where networks are to be compared."
        )


def refuse_backend(backend: Any) -> None:
    """Raise unless ``backend`` may be a latency backend, or none.

    Raises:
        InvalidInput: it is a name or a class.
    """
    refuse_text("backend", backend, "a LatencyBackend", f'hwnas.find_backend("{backend}")(device="auto")')
    if isinstance(backend, type):
        raise InvalidInput(
            f"backend must be a LatencyBackend, got the class {backend.__name__}: pass an instance, "
            f'{backend.__name__}(device="auto").'
        )


def refuse_network(network: Any) -> None:
    """Raise unless ``network`` may be a module.

    Raises:
        InvalidInput: it is a name, a path or a genotype.
    """
    refuse_text(
        "network",
        network,
        "a module",
        f'hwnas.load("{network}") for one of the zoo, or space.build(genotype)',
    )
    if isinstance(network, Genotype):
        raise InvalidInput(
            f"network must be a module, got the genotype {network.short_id}: pass "
            "hwnas.space_of(genotype).build(genotype)."
        )
