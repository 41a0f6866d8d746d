"""A search space as a user's own module has it: no entry point, no name in the class."""

from hwnas.search_spaces.autortnet import AutoRTNet


class Own(AutoRTNet):
    """Called by its module and class."""


class Four(AutoRTNet):
    """With other classes than AutoRTNet."""

    num_classes: int = 4
