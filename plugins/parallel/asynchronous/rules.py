"""What is agreed between server and workers: when they speak, and what is done with a gradient that comes late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """The options of asynchronous training that decide what is computed.

    kind: "downpour" (gradients are pushed, the server updates) or "easgd" (workers update, and are pulled together).
    """

    kind: str = "downpour"
    push: int = 1  # steps whose gradients are added up before they are pushed
    fetch: int = 1  # steps between two times that weights are fetched
    max_staleness: int | None = None
    beyond: str = "drop"  # what is done with a push that is staler: dropped, or workers ahead of the slowest wait
    staleness_rate: bool = False
    compensation: float = 0.0
    alpha: float = 0.0  # of easgd: share of the distance that worker and server move towards each other

    @property
    def averages(self) -> bool:
        """Whether workers update by themselves."""
        return self.kind == "easgd"

    def rate(self, staleness: int) -> float:
        """Return what the learning rate is multiplied by (Zhang et al. 2015, with 1 + staleness)."""
        return 1 / (1 + staleness) if self.staleness_rate else 1.0

    def drops(self, staleness: int) -> bool:
        """Return whether a push is too stale to be applied."""
        return self.beyond == "drop" and self.max_staleness is not None and staleness > self.max_staleness

    def words(self) -> str:
        """Return in a line what is done."""
        late = f"; staleness above {self.max_staleness}: {self.beyond}" if self.max_staleness is not None else ""
        return f"asynchronous ({self.kind}), pushes of {self.push} and fetches every {self.fetch} steps{late}"

    def facts(self) -> dict[str, Any]:
        """Return the rules, of JSON's kinds: ``Rules(**facts)`` are the same."""
        return asdict(self)


@dataclass(frozen=True)
class Taken:
    """A step that a worker has made: its number and first sample, and the weights that it was made from.

    version: of the weights when they were fetched; age: steps made from them before this one.
    """

    step: int
    sample: int
    version: int
    age: int


@dataclass
class Push:
    """What a worker has computed since its last push.

    worker: its slot. gradients: of what trains, the sum over the steps, None where no step reached; in easgd the
    worker's weights. buffers: the model's, after the last step. bad: whether something was not finite that is not here
    (easgd; other servers' parts). elsewhere: the norms of gradients that other servers have, by number.
    """

    worker: int
    steps: list[Taken]
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    bad: bool = False
    then: list[Tensor] | None = None  # the weights that the gradients were computed from, where they are needed
    elsewhere: dict[int, float] = field(default_factory=dict)
    losses: list[list[Made]] = field(default_factory=list)  # for each step, its micro-batches

    def staleness(self, version: int) -> int:
        """Return how many updates there were since the oldest weights of the push, up to ``version``."""
        return version - min(taken.version for taken in self.steps)


@dataclass
class Made:
    """A micro-batch as the network answered it, from which losses and metrics follow. single: not one of a list."""

    outputs: list[Tensor]
    targets: Tensor
    samples: Tensor
    single: bool = True

    def form(self) -> tuple[int, bool]:
        """Return how many outputs there are, and whether it is a single one."""
        return len(self.outputs), self.single

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [*self.outputs, self.targets, self.samples]


def facts_of(push: Push) -> tuple[dict[str, Any], list[Tensor]]:
    """Return a push as plain facts and tensors."""
    facts = {
        "steps": [[t.step, t.sample, t.version, t.age] for t in push.steps],
        "missing": [index for index, gradient in enumerate(push.gradients) if gradient is None],
        "trained": len(push.gradients),
        "buffers": len(push.buffers),
        "bad": push.bad,
        "elsewhere": list(push.elsewhere.items()),
        "made": [[made.form() for made in step] for step in push.losses],
    }
    given = [gradient for gradient in push.gradients if gradient is not None]
    made = [tensor for step in push.losses for each in step for tensor in each.tensors()]
    return facts, [*given, *push.buffers, *made]


def push_of(worker: int, facts: Mapping[str, Any], tensors: list[Tensor]) -> Push:
    """Return the push that ``facts_of`` has taken apart."""
    rest = iter(tensors)
    missing = set(facts["missing"])
    gradients = [None if index in missing else next(rest) for index in range(facts["trained"])]
    buffers = [next(rest) for _ in range(facts["buffers"])]
    losses = [
        [Made([next(rest) for _ in range(count)], next(rest), next(rest), single) for count, single in step]
        for step in facts["made"]
    ]
    steps, elsewhere = [Taken(*taken) for taken in facts["steps"]], dict(facts["elsewhere"])
    return Push(worker, steps, gradients, buffers, facts["bad"], elsewhere=elsewhere, losses=losses)
