"""What watches a search: whether choices learn anything, and whether they collapse."""

from __future__ import annotations

from typing import Any

from hwnas.core.blindness import BlindChoiceWarning, BlindnessMonitor
from hwnas.core.collapse import CollapseMonitor, CollapseWarning, passive_options
from hwnas.core.searched import Searched
from hwnas.errors import HwnasWarning


class Monitors:
    """Both monitors of a search, by epoch.

    Args:
        searched: what is watched, with its budget's options switched off, which is no move of the search's.
    """

    def __init__(self, searched: Searched) -> None:
        arch, recording = searched.arch, searched.recording
        self._arch = arch
        self._config = searched.config
        self.blindness = BlindnessMonitor(arch, searched.config.score_kinds)
        self.collapse = CollapseMonitor(arch, recording, passive_options(searched.net, recording))

    def values(self) -> dict[str, Any]:
        """For the log of an epoch."""
        return {"task_gradient": self.blindness.means(), "collapse": self.collapse.values()}

    def end_epoch(self, epoch: int, steps: int) -> list[tuple[list[str], str, type[HwnasWarning]]]:
        """What is to be said after an epoch of so many steps: choices, text and kind; begins a new epoch."""
        said: list[tuple[list[str], str, type[HwnasWarning]]] = []
        if self._arch.moves():
            if blind := self.blindness.newly_blind():
                said.append((blind, self.blindness.advice(blind), BlindChoiceWarning))
            first, last = self._config.arch_from_epoch, self._config.epochs
            done = (epoch + 1 - first) / max(1, last - first)
            for sign, names in self.collapse.newly_seen(steps, done):
                said.append((names, self.collapse.advice(sign, names), CollapseWarning))
        self.blindness.clear()
        return said
