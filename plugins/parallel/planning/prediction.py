"""What each strategy is predicted to send and to take for a step; which of them to choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt

from . import costs, program
from .costs import Exchange, Link, Setting
from .layers import PlannedLayer
from .machine import Machine

SCHEMES = {
    "a": (program.DATA, program.COLUMN),
    "b": (program.DATA, program.COLUMN),
    "c": (program.DATA, program.COLUMN),
    "d": program.CHOICES,
}
EVERY = 16  # steps between two averages of local SGD, in the table: what parallel=local_sgd does by default


@dataclass(frozen=True)
class Prediction:
    """A strategy's step: what a process sends in it, and seconds of computing, of communication, and of both.

    lower: all communication is hidden behind computing; upper: none is. exact: it computes the same gradient as one
    process would on the whole batch. group: processes that share a layer, in a hybrid scheme. choices: of every layer.
    """

    name: str
    exchanges: tuple[Exchange, ...]
    compute: float
    communication: float
    exact: bool = True
    group: int = 1
    choices: tuple[str, ...] = ()
    remark: str = ""

    @property
    def sent(self) -> float:
        """Bytes that a process sends in a step."""
        return costs.sent(self.exchanges)

    @property
    def lower(self) -> float:
        """Seconds of a step if all that can overlap does."""
        return max(self.compute, self.communication)

    @property
    def upper(self) -> float:
        """Seconds of a step if nothing overlaps."""
        return self.compute + self.communication


@dataclass(frozen=True)
class Case:
    """What is planned for: a model, how many processes and samples, on which machines, by which network."""

    layers: Sequence[PlannedLayer]
    statistics: int
    setting: Setting
    machine: Machine
    link: Link

    def predicted(self, name: str, exchanges: Sequence[Exchange], compute: float, **more: object) -> Prediction:
        """Return a prediction from what is exchanged and how long is computed."""
        seconds = sum(self.link.seconds(exchange) for exchange in exchanges)
        return Prediction(name, tuple(exchanges), compute, seconds, **more)  # type: ignore[arg-type]

    def work(self, layer: PlannedLayer, choice: str, setting: Setting, passes: int = 1) -> float:
        """Return the seconds of a layer, forward, backward and update, in a process."""
        if choice == program.DATA:
            return self.machine.seconds(layer, setting.share) + self.machine.update(layer.trained)
        samples, parts = setting.share * setting.split / passes, setting.split
        return passes * self.machine.seconds(layer, samples, parts) + self.machine.update(layer.trained / parts)


def predictions(case: Case) -> list[Prediction]:
    """Return every strategy's prediction: one process, data, the hybrid's schemes, and those of another algorithm."""
    made = [one_process(case)]
    if case.setting.world > 1:
        made += [data(case), *hybrids(case), *others(case)]
    return made


def one_process(case: Case) -> Prediction:
    """Return the prediction for a process that computes the whole batch alone."""
    alone = replace(case.setting, world=1, share=case.setting.batch, group=0)
    return Prediction("single", (), sum(case.work(layer, program.DATA, alone) for layer in case.layers), 0.0)


def data(case: Case) -> Prediction:
    """Return the prediction for data parallelism."""
    compute = sum(case.work(layer, program.DATA, case.setting) for layer in case.layers)
    choices = (program.DATA,) * len(case.layers)
    return case.predicted(
        "data", costs.data(case.layers, case.statistics, case.setting), compute, choices=choices
    )  # fmt: skip


def hybrids(case: Case) -> Iterator[Prediction]:
    """Yield the prediction for each scheme, in groups of the best size, and for the best choice of all; or nothing.

    A scheme is left out if, in groups of any size, it would split nothing.
    """
    if not any(layer.splits for layer in case.layers):
        return
    sizes = [size for size in divisors(case.setting.world) if size > 1]
    for name in SCHEMES:
        tried = [one for size in sizes if (one := scheme(case, name, size)) is not None]
        if tried:
            yield min(tried, key=lambda one: one.upper)
    tried = [free(case, size) for size in sizes]
    yield min(tried, key=lambda one: one.upper)


def scheme(case: Case, name: str, size: int) -> Prediction | None:
    """Return the prediction for scheme a, b, c or d in groups of ``size``; None if it would split nothing.

    As ``parallel=hybrid`` does, it splits what sends fewer bytes split: by columns, and in scheme d by rows too.
    """
    setting = replace(case.setting, group=size)
    plan = program.best(case.layers, setting, lambda e: e.sent, lambda layer, choice: 0.0, SCHEMES[name])
    if set(plan.choices) == {program.DATA}:
        return None
    passes = {"b": size, "c": min(size, setting.share)}.get(name, 1)
    return _hybrid(case, f"hybrid {name}", plan.choices, setting, passes)


def free(case: Case, size: int) -> Prediction:
    """Return the prediction for the best choice of every layer, in groups of ``size``."""
    setting = replace(case.setting, group=size)
    plan = program.best(case.layers, setting, case.link.seconds, lambda layer, c: case.work(layer, c, setting))
    return _hybrid(case, "layer by layer", plan.choices, setting)


def _hybrid(case: Case, name: str, choices: tuple[str, ...], setting: Setting, passes: int = 1) -> Prediction:
    made = list(program.exchanges(case.layers, choices, setting))
    if passes > 1:  # the same bytes, in more and smaller exchanges
        made = [replace(e, calls=e.calls * passes) if " to " in e.what else e for e in made]
    made += costs.always(case.statistics, setting)
    compute = sum(case.work(layer, c, setting, passes) for layer, c in zip(case.layers, choices, strict=True))
    return case.predicted(name, made, compute, group=setting.split, choices=choices)


def others(case: Case) -> Iterator[Prediction]:
    """Yield the predictions for strategies that compute another gradient, or with other parts of the model."""
    compute = data(case).compute
    averaged = costs.local_sgd(case.layers, case.statistics, case.setting, EVERY)
    remark = f"another algorithm: parameters are averaged every {EVERY} steps"
    yield case.predicted("local_sgd", averaged, compute, exact=False, remark=remark)
    link = costs.asynchronous(case.layers, case.setting)
    # The server's link carries what all workers' links do, each way half of it.
    waits = sum(case.link.seconds(exchange) for exchange in link)
    busy = case.setting.world * case.link.byte * costs.sent(link) / 2
    remark = "another algorithm: gradients are stale; one server"
    yield Prediction("async", tuple(link), compute, max(waits, busy), exact=False, remark=remark)
    if (piped := pipeline(case)) is not None:
        yield piped


def pipeline(case: Case) -> Prediction | None:
    """Return the prediction for stages of about equal time, as many as processes; None if there are fewer layers."""
    world, batch = case.setting.world, case.setting.batch
    layers = [layer for layer in case.layers if layer.outputs]
    if world > len(layers):
        return None
    times = [case.machine.seconds(layer, batch) + case.machine.update(layer.trained) for layer in layers]
    cuts = balanced(times, world)
    stages = [sum(times[first:last]) for first, last in pairwise([0, *cuts, len(layers)])]
    parts = min(batch, 4 * world)
    slowest = max(stages) * (parts + world - 1) / parts  # stages wait for the first micro-batch and for the last
    busiest = max(costs.pipeline(layers, cuts, case.setting, parts), key=costs.sent)
    remark = f"{parts} micro-batches; bytes of the busiest stage"
    return case.predicted("pipeline", busiest, slowest, remark=remark)


def balanced(times: Sequence[float], parts: int) -> list[int]:
    """Return where to cut a sequence into ``parts`` that are not empty, so that the largest sum is about the least."""
    low, high = max(times), sum(times)
    for _ in range(50):
        middle = (low + high) / 2
        if len(_filled(times, middle)) < parts:
            high = middle
        else:
            low = middle
    cuts = _filled(times, high)
    while len(cuts) < parts - 1:  # fewer were enough: cut further wherever it can be done
        cuts = sorted({*cuts, next(place for place in range(1, len(times)) if place not in cuts)})
    return cuts


def _filled(times: Sequence[float], most: float) -> list[int]:
    """Return the cuts of filling one part after the other up to ``most``."""
    cuts, total = [], 0.0
    for place, time in enumerate(times):
        if place and total + time > most:
            cuts.append(place)
            total = 0.0
        total += time
    return cuts


def divisors(number: int) -> list[int]:
    """Return all divisors, in rising order."""
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def chosen(made: Sequence[Prediction], names: Sequence[str] = ()) -> Prediction:
    """Return the one of the shortest step, nothing hidden, among those that compute the same gradient.

    names: the only ones that count, if any; those that choose layer by layer do not, as no strategy carries them out.
    """
    able = [one for one in made if one.exact and (one.name in names if names else one.name != "layer by layer")]
    return min(able, key=lambda one: one.upper)


def crossing(case: Case, choice: str) -> float | None:
    """Return the batch of all processes above which splitting all by ``choice`` sends more than data parallelism.

    What a scheme sends is a constant and a part proportional to the batch. None if nothing can be split.
    """
    if not any(layer.splits for layer in case.layers) or case.setting.split < 2:
        return None
    choices = program.split_all(case.layers, choice)
    none, one = (
        costs.sent(list(program.exchanges(case.layers, choices, replace(case.setting, share=share))))
        for share in (0, 1)
    )
    everything = sum(costs.sent(costs.gradient(layer, case.setting)) for layer in case.layers)
    return case.setting.world * (everything - none) / (one - none)
