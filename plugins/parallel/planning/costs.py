"""What a process sends in a step under each strategy, exactly, and how long that takes on a given network.

Bytes are those that ``engine.distributed.Traffic`` counts: of the best algorithm for each collective, headers left
out. Formulas are per layer, so that they hold for any model; those of the hybrid schemes are in ``program``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log2

from engine import UsageError

from .layers import PlannedLayer

FLAG_BYTES = 4
FLAGS = 2  # all-reduces of one number in every step: whether a number was not finite, whether somebody asks to stop
BUCKET = 25 * 2**20  # bytes of gradients that are summed together


@dataclass(frozen=True)
class Setting:
    """How many processes there are, and how many samples each has of a micro-batch.

    group: processes that share a layer in a hybrid scheme; 0: all. gradient_bytes, activation_bytes: of a number that
    is sent; 0: as the layer has them.
    """

    world: int
    share: int
    group: int = 0
    gradient_bytes: float = 0
    activation_bytes: float = 0
    bucket: int = BUCKET

    @property
    def split(self) -> int:
        """How many processes share a layer."""
        return self.group or self.world

    @property
    def batch(self) -> int:
        """Samples of a micro-batch, over all processes."""
        return self.world * self.share

    def of_gradient(self, layer: PlannedLayer) -> float:
        """Return the bytes of a gradient's number on the wire."""
        return self.gradient_bytes or layer.number_bytes

    def of_activation(self, layer: PlannedLayer) -> float:
        """Return the bytes of an activation's number on the wire."""
        return self.activation_bytes or layer.activation_bytes


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind within a step: bytes that a process sends in all of them together, and how many."""

    what: str
    collective: str
    processes: int
    sent: float
    calls: float = 1.0


def all_reduce(what: str, numbers: float, size: float, processes: int, calls: float = 1.0) -> Exchange:
    """Return the exchange of summing ``numbers`` numbers of ``size`` bytes, as a ring does it."""
    return Exchange(what, "all_reduce", processes, 2 * (processes - 1) / processes * numbers * size, calls)


def all_gather(what: str, numbers: float, size: float, processes: int, calls: float = 1.0) -> Exchange:
    """Return the exchange of giving all others ``numbers`` numbers that this process has."""
    return Exchange(what, "all_gather", processes, (processes - 1) * numbers * size, calls)


def all_to_all(what: str, numbers: float, size: float, processes: int, calls: float = 1.0) -> Exchange:
    """Return the exchange of giving every other its part of ``numbers`` numbers."""
    return Exchange(what, "all_to_all", processes, (processes - 1) / processes * numbers * size, calls)


def reduce_scatter(what: str, numbers: float, size: float, processes: int, calls: float = 1.0) -> Exchange:
    """Return the exchange of summing ``numbers`` numbers, each process its part: an all-to-all (see ``Group``)."""
    return all_to_all(what, numbers, size, processes, calls)


def sent(exchanges: Sequence[Exchange]) -> float:
    """Return the bytes that a process sends in all of them."""
    return sum(exchange.sent for exchange in exchanges)


def gradient(layer: PlannedLayer, setting: Setting) -> list[Exchange]:
    """Return the exchange of summing a layer's gradients over all processes; none where nothing trains."""
    size = setting.of_gradient(layer)
    calls = layer.trained * layer.number_bytes / setting.bucket  # its share of a bucket
    return [all_reduce("gradients", layer.trained, size, setting.world, calls)] if layer.trained else []


def always(statistics: int, setting: Setting) -> list[Exchange]:
    """Return what strategies send in every step that are in step with each other: flags and BatchNorm's statistics."""
    made = [all_reduce("flags", FLAGS, FLAG_BYTES, setting.world, FLAGS)]
    return made + ([all_reduce("statistics", statistics, 4, setting.world)] if statistics else [])


def data(layers: Sequence[PlannedLayer], statistics: int, setting: Setting) -> list[Exchange]:
    """Return what data parallelism sends: all gradients, statistics and flags."""
    return [each for layer in layers for each in gradient(layer, setting)] + always(statistics, setting)


def local_sgd(layers: Sequence[PlannedLayer], statistics: int, setting: Setting, every: int) -> list[Exchange]:
    """Return what periodic averaging sends in the mean of ``every`` steps: once what data parallelism does in each."""
    once = data(layers, statistics, setting)
    return [Exchange(e.what, e.collective, e.processes, e.sent / every, e.calls / every) for e in once]


def asynchronous(layers: Sequence[PlannedLayer], setting: Setting, push: int = 1, fetch: int = 1) -> list[Exchange]:
    """Return what goes over a worker's link with the server in a step, both ways: a gradient, and fresh parameters."""
    moved = sum(layer.trained * setting.of_gradient(layer) for layer in layers)
    kept = sum(layer.parameters * layer.number_bytes for layer in layers)
    return [Exchange("push", "send", 2, moved / push, 1 / push), Exchange("fetch", "send", 2, kept / fetch, 1 / fetch)]


def pipeline(layers: Sequence[PlannedLayer], cuts: Sequence[int], setting: Setting, parts: int) -> list[list[Exchange]]:
    """Return what each stage's process sends: outputs to the next, gradients of inputs to the one before.

    cuts: the first layer of every stage but the first. parts: micro-batches that a batch is divided into.
    """
    stages: list[list[Exchange]] = [[] for _ in range(len(cuts) + 1)]
    for stage, cut in enumerate(cuts):
        before = layers[cut - 1]
        size = setting.batch * before.outputs * setting.of_activation(before)
        stages[stage].append(Exchange("outputs", "send", 2, size, parts))
        stages[stage + 1].append(Exchange("gradients of inputs", "send", 2, size, parts))
    return stages


@dataclass(frozen=True)
class Link:
    """A network: seconds that a message takes whatever its length, and seconds for a byte that a process sends.

    measured: of a collective, the seconds of one and those of a byte, on a real group; those count then. On paper, an
    all-reduce takes 2 log2 K messages one after the other, an all-gather log2 K (Thakur et al. 2005, "Optimization of
    collective communication operations in MPICH"), an all-to-all K - 1.
    """

    latency: float
    byte: float
    measured: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, exchange: Exchange) -> float:
        """Return how long an exchange takes if nothing else is sent meanwhile."""
        if exchange.processes < 2:
            return 0.0
        if exchange.collective in self.measured:
            start, byte = self.measured[exchange.collective]
            return start * exchange.calls + byte * exchange.sent
        depth = ceil(log2(exchange.processes))
        rounds = {"all_reduce": 2 * depth, "all_gather": depth, "all_to_all": exchange.processes - 1}
        return rounds.get(exchange.collective, 1) * self.latency * exchange.calls + self.byte * exchange.sent


UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def bits_per_second(text: str) -> float:
    """Return a rate written as 25Gbit, 100Mbit/s or 2.5Gbps. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)(?:bits?(?:/s)?|bps)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"link={text}: write a number and its unit, as in link=25Gbit or link=100Mbit/s")
    return float(match[1]) * UNITS[match[2]]


def seconds_of(text: str) -> float:
    """Return a time written as 50us, 0.2ms or 1s. Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ns|us|ms|s)", text.strip())
    if match is None:
        raise UsageError(f"latency={text}: write a number and its unit, as in latency=50us or latency=0.2ms")
    return float(match[1]) * SECONDS[match[2]]


def link_of(rate: str, latency: str) -> Link:
    """Return the network of so many bits per second and such a latency."""
    return Link(seconds_of(latency), 8 / bits_per_second(rate))
