"""What a transfer plan promises: first weights, stages, and what trains in each of them how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from engine.anatomy import Anatomy
from engine.freezing import Factors

if TYPE_CHECKING:
    from engine.loader import Loader, TestLoader
    from engine.parts import Parts
    from engine.pixels import Pixels


@dataclass(frozen=True)
class Stage:
    """A stretch of steps with one assembly; with ``patience``, it also ends after so many evaluations in vain."""

    name: str
    steps: int
    patience: int | None = None


class Shortcut(Protocol):
    """What stands in for a network in a stage whose frozen prefix has been computed already.

    Its loaders may compute it when they are first asked for: a run that resumes has its weights only then.
    """

    network: nn.Module
    """The rest of it, made of the network's own layers, under their names."""

    @property
    def loader(self) -> Loader:
        """The same samples in the same order, with the prefix's outputs as their images."""
        ...

    @property
    def test(self) -> TestLoader:
        """The test split likewise."""
        ...


class Transfer(Protocol):
    """What a network starts from, and which of its parameters train, in which stage; one object for a whole run.

    new: names of the parameters that took nothing from the weights that the run started from. None where nothing counts
    as pretrained: the run started without weights, or goes on from a checkpoint that does not tell.
    """

    new: frozenset[str] | None = None

    def start(self, model: nn.Module, anatomy: Anatomy) -> Sequence[str]:
        """Give a new model (on the CPU) its first weights, and return lines that say so; a resume does not ask."""
        return ()

    def compare(self, seen: Pixels) -> Sequence[str]:
        """Return lines that say how this run's images differ from what the first weights saw; after ``start``."""
        return ()

    def stages(self, steps: int) -> Sequence[Stage]:
        """Return the run's stages; their steps add up to ``steps``."""
        return [Stage("all", steps)]

    def factors(self, model: nn.Module, anatomy: Anatomy, stage: Stage) -> Mapping[str, Factors]:
        """Return by name what multiplies a parameter's rate in ``stage``; an lr of 0 freezes. Default: all train."""
        return {}

    def shortcut(self, run: Parts, stage: Stage) -> Shortcut | None:
        """Return what computes the stage without its frozen prefix, if it is to. Default: nothing."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resume has to know, as JSON values. Default: which parameters are new."""
        return {} if self.new is None else {"new": sorted(self.new)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned; {} from a checkpoint of a run without transfer."""
        self.new = frozenset(state["new"]) if "new" in state else None
