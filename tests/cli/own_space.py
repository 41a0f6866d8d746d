"""A search space as a user's own module has it: no entry point, no name in the class."""

from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.autortnet.space import AutoRTNetwork


class Own(AutoRTNet):
    """Called by its module and class."""


class Four(AutoRTNet):
    """With other classes than AutoRTNet."""

    num_classes: int = 4


class Sloppy(AutoRTNet):
    """Whose networks compute something that no op does."""

    def supernet(self):
        return Doubled(self)


class Doubled(AutoRTNetwork):
    """An AutoRTNetwork whose logits are doubled behind its ops."""

    def forward(self, x_N3HW):
        return super().forward(x_N3HW) * 2
