"""One network of the zoo on disk: ``card.json``, ``genotype.json`` and ``weights.safetensors``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from hwnas.core.genotype import Genotype
from hwnas.errors import DataError, InvalidInput
from hwnas.names import space_of
from hwnas.zoo.cards import Card

CARD, GENOTYPE, WEIGHTS = "card.json", "genotype.json", "weights.safetensors"


@dataclass(frozen=True)
class Entry:
    """A folder of the zoo's layout; its files are read, and checked, when they are asked for."""

    folder: Path

    @cached_property
    def card(self) -> Card:
        """What is known of it.

        Raises:
            DataError: the card is missing or damaged.
        """
        return Card.load(self.folder / CARD)

    @cached_property
    def genotype(self) -> Genotype:
        """Its architecture.

        Raises:
            GenotypeError: it is missing or damaged.
            DataError: it is another one than the card says.
        """
        found = Genotype.load(self.folder / GENOTYPE)
        if found.short_id != self.card.genotype:
            raise DataError(
                f"{self.folder / GENOTYPE} is the architecture {found.short_id}, and the card speaks of "
                f"{self.card.genotype}: restore the folder."
            )
        return found

    def network(self) -> nn.Module:
        """The derived network with its weights, in fp32 and eval mode.

        The folder may come from elsewhere: nothing in it is executed, nor decides what is imported.

        Raises:
            DataError: the weights are missing, are not those that the card describes, or do not fit.
            GenotypeError: the architecture is of a space that is neither known nor imported.
        """
        from safetensors.torch import load  # not for those who never load one

        path = self.folder / WEIGHTS
        if not path.is_file():
            raise DataError(f"no weights at {path}: restore the folder.")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.card.sha256:
            raise DataError(
                f"{path} is damaged: its sha256 is {digest[:12]}…, the card says {self.card.sha256[:12]}…. "
                "Restore the file."
            )
        network = space_of(self.genotype, may_import=False).build(self.genotype).eval()
        put_weights(network, load(content), str(path))
        return network


def fp16_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights and running statistics of ``network``, in fp16 where they are floating.

    Raises:
        InvalidInput: a value is beyond fp16's range.
    """
    weights = {
        name: tensor.detach().cpu().to(torch.float16 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in network.state_dict().items()
    }
    beyond = [
        name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if beyond:
        raise InvalidInput(
            f"{', '.join(beyond[:4])}{' …' if len(beyond) > 4 else ''} hold values beyond fp16's 65504, "
            "or none at all: such a network cannot be packed in fp16. Did its training diverge?"
        )
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def put_weights(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put fp16 weights into an fp32 network.

    Raises:
        DataError: they are of another network; ``where`` names the file.
    """
    try:
        network.load_state_dict(
            {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in weights.items()
            }
        )
    except RuntimeError as error:
        raise DataError(f"{where} holds the weights of another network: {error}") from error
