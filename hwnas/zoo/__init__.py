"""Trained networks that come with hwnas, each with a card that says how it came about and what it scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

    from hwnas.zoo.cards import Card
    from hwnas.zoo.entry import Entry

_SHIPPED = Path(__file__).parent


def names() -> list[str]:
    """Names of the networks that come with hwnas, sorted."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/card.json"))


def find(name: str | Path) -> Entry:
    """One network with its card; what is large is read when it is asked for.

    Args:
        name: one of :func:`names`, or a folder as ``hwnas zoo pack`` writes it.

    Raises:
        InvalidInput: there is none of that name.
        DataError: its card is damaged.
    """
    from hwnas.zoo.entry import Entry

    shipped = names()
    if str(name) in shipped:
        return Entry(_SHIPPED / str(name))
    if (Path(name) / "card.json").is_file():
        return Entry(Path(name))
    raise InvalidInput(
        f'the zoo has no network "{name}"; it has: {", ".join(shipped) or "none yet"}. A folder that '
        "hwnas zoo pack wrote can be named by its path."
    )


def card(name: str | Path) -> Card:
    """What is known of one network: data, recipe, scores, latency.

    Raises:
        InvalidInput: there is none of that name.
        DataError: its card is damaged.
    """
    return find(name).card


def load(name: str | Path) -> nn.Module:
    """A trained network of the zoo, in eval mode on the CPU, in fp32.

    It takes images ``[N, 3, H, W]`` normalised as ``hwnas.zoo.card(name).labelling`` says, and gives logits
    ``[N, classes, H, W]``. AutoRTNets take any height and width; the card's ``input_shape`` is what they were
    trained and measured at.

    Args:
        name: one of ``hwnas.zoo.names()``, or a folder as ``hwnas zoo pack`` writes it.

    Raises:
        InvalidInput: there is none of that name.
        DataError: its files are damaged: what they hold is not what the card says.
        GenotypeError: it is of a space of another package, which is neither imported nor offers the space as
            an entry point.
    """
    return find(name).network()
