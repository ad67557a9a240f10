"""Built-in strategies: single, data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Job, Parallel, UsageError, hookimpl, option

if TYPE_CHECKING:
    from engine.interfaces import Strategy
    from engine.registry import Store
    from engine.session import Session

CANONICAL = "fixed shards of a micro-batch, so that any number of processes gives the same bits; 0: not"


@dataclass
class Single(Parallel):
    """One process does all the work."""

    takes_shortcuts: ClassVar[bool] = True
    canonical: int = option(0, CANONICAL, at_least=0)

    def perform(self, session: Session, work: Callable[[Session], None]) -> None:
        """Do the work here. Raises UsageError if several processes are asked for."""
        if self.processes > 1:
            raise UsageError(
                f"parallel.processes={self.processes}: parallel=single is one process; choose parallel=data, or another"
            )
        super().perform(session, work)

    def build(self) -> Strategy:
        """Make the strategy."""
        from engine.distributed import current

        from .single import SingleProcess

        if (started := current().world) > 1:
            raise UsageError(f"parallel=single is for one process, and {started} were started: choose parallel=data")
        if self.canonical:
            from .canonical import Canonical

            return Canonical(self.canonical, self.threads)
        return SingleProcess()


@dataclass
class Data(Parallel):
    """Every process computes a share of each batch; gradients are summed."""

    takes_shortcuts: ClassVar[bool] = True
    bucket_mb: float = option(25.0, "gradients that are summed together, in MiB", above=0)
    compress: str = option(
        "none", "what is sent of gradients: all, rounded to a type, or products of narrow matrices",
        choices=("none", "float16", "bfloat16", "powersgd"),
    )  # fmt: skip
    compress_rank: int = option(2, "columns of powersgd's matrices", at_least=1)
    compress_after: int = option(1000, "steps before powersgd begins, which are sent whole", at_least=2)
    batch_norm: str = option(
        "local", "over what BatchNorm normalises in training: the process's share or all samples",
        choices=("local", "synchronised"),
    )  # fmt: skip
    find_unused: bool = option(False, "look in every step for parameters that no gradient reaches")
    verify_every: int = option(1000, "updates after which all processes' parameters are compared; 0: never", at_least=0)
    canonical: int = option(0, CANONICAL, at_least=0)
    sharded: bool = option(False, "each process keeps a part of parameters, gradients and optimiser state alone")

    def build(self) -> Strategy:
        """Make the strategy. Raises UsageError for options that do not go together."""
        self._require_one_kind()
        if self.canonical:
            from .canonical import Canonical

            return Canonical(self.canonical, self.threads, self.verify_every)
        synchronised = self.batch_norm == "synchronised"
        if self.sharded:
            from .fully_sharded import FullySharded

            return FullySharded(synchronised, self.verify_every)
        from .communication import sending_of
        from .data import DataParallel

        sending = sending_of(self.compress, self.compress_rank, self.compress_after)
        return DataParallel(sending, self.bucket_mb, self.find_unused, synchronised, self.verify_every)

    def _require_one_kind(self) -> None:
        """Raise UsageError for options of different ways to be data-parallel."""
        given = {
            "parallel.sharded=true": self.sharded,
            f"parallel.compress={self.compress}": self.compress != "none",
            f"parallel.batch_norm={self.batch_norm}": self.batch_norm != "local",
            "parallel.find_unused=true": self.find_unused,
        }
        chosen = [option for option, is_given in given.items() if is_given]
        if self.canonical and chosen:
            raise UsageError(f"parallel.canonical={self.canonical} does not go with {chosen[0]}: choose one of them")
        if self.sharded and (self.compress != "none" or self.find_unused):
            raise UsageError(f"parallel.sharded=true does not go with {chosen[-1]}: choose one of them")


@dataclass
class LocalSGD(Parallel):
    """Every process trains by itself on a share of each batch; now and then their weights are brought together."""

    every: int = option(16, "steps between two times that weights are brought together", at_least=1)
    outer: str = option(
        "average", "how: the processes' mean, or a Nesterov step towards it (DiLoCo)", choices=("average", "nesterov")
    )
    outer_lr: float = option(0.7, "learning rate of the Nesterov step", above=0)
    outer_momentum: float = option(0.9, "its momentum", at_least=0, below=1)
    warm_up: int = option(0, "steps at the start in which gradients are averaged instead, as in data", at_least=0)

    def build(self) -> Strategy:
        """Make the strategy."""
        from .local_sgd import Average, LocalTraining, Nesterov

        outer = Average() if self.outer == "average" else Nesterov(self.outer_lr, self.outer_momentum)
        return LocalTraining(outer, self.every, self.warm_up)


@dataclass
class Auto(Parallel):
    """Measures layers and links, predicts every strategy's step, and chooses data or hybrid; docs/planning.md."""

    schemes: list[str] = option(["a", "d"], "schemes of parallel=hybrid that may be chosen; [] for none")

    def build(self) -> Strategy:
        """Make the strategy. Raises UsageError for a scheme that there is none of."""
        from .planning.auto import automatic

        return automatic(self.schemes)


@dataclass
class Plan(Job):
    """Predict each strategy's bytes and time for the composed model, on machines that need not be there."""

    world: int = option(8, "processes", at_least=1)
    link: str = option("1Gbit", "rate at which each process sends, as 25Gbit or 100Mbit/s")
    latency: str = option("50us", "time that a message takes whatever its length, as 50us or 0.2ms")
    share: int = option(0, "samples of each process; 0: run.batch by the processes, at least one", at_least=0)
    inputs: list[int] = option([], "channels, height, width of the images, as [3,224,224]; then no data is opened")
    classes: int = option(10, "classes of these images", at_least=1)
    flops: float = option(0.0, "operations per second of a process's machine, as 19.5e12; 0: measure here", at_least=0)
    bandwidth: float = option(0.0, "GB/s of that machine's memory; 0: a byte for 10 operations", at_least=0)
    json: str = option("", "file for the same figures as JSON")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .planning.job import plan

        return plan


@dataclass
class Hybrid(Parallel):
    """As data in the convolutions, while every process computes a part of wide linear layers (Krizhevsky 2014)."""

    scheme: str = option(
        "d",
        "how: a, all samples at once; b, one process's at a time; c, a slice of each one's; d, sums, the fewest bytes",
        choices=("a", "b", "c", "d"),
    )
    layers: list[str] = option([], "linear layers to split, as patterns; none: those that send fewer bytes then")
    degree: int = option(0, "processes that share a layer; 0: as many as send the fewest bytes", at_least=0)
    updates: str = option(
        "once", "split layers are updated once a step, or after every pass of scheme b or c", choices=("once", "every")
    )
    bucket_mb: float = option(25.0, "other layers' gradients that are summed together, in MiB", above=0)
    verify_every: int = option(1000, "updates after which all processes' parameters are compared; 0: never", at_least=0)

    def build(self) -> Strategy:
        """Make the strategy."""
        from .hybrid.placing import Wanted
        from .hybrid.strategy import HybridParallel

        wanted = Wanted(self.scheme, tuple(self.layers), self.degree)
        return HybridParallel(wanted, self.updates == "every", self.bucket_mb, self.verify_every)


@dataclass
class Async(Parallel):
    """A server keeps the weights; workers that come and go push gradients to it, and nobody waits for another."""

    processes: int = option(2, "workers to start on this machine", at_least=0)
    servers: int = option(1, "servers, each of which keeps a part of the weights", at_least=1)
    role: str = option(
        "", "what this process is; by default it starts all of them", choices=("", "server", "shard", "worker")
    )
    server: str = option("", "HOST:PORT of the server; by default one that only this machine reaches")
    rule: str = option(
        "downpour",
        "workers push gradients and the server updates, or they update and are drawn to the server's weights (easgd)",
        choices=("downpour", "easgd"),
    )
    n_push: int = option(1, "steps whose gradients a worker adds up before it pushes", at_least=1)
    n_fetch: int = option(1, "steps after which a worker fetches weights", at_least=1)
    tau: int = option(10, "easgd: steps of a worker between two meetings with the server", at_least=1)
    alpha: float = option(0.3, "easgd: share of their distance that both then move", above=0, below=1)
    max_staleness: int | None = option(None, "updates that a push may come late; null: any number", at_least=0)
    beyond: str = option(
        "drop", "what then: drop it, or let workers so far ahead of the slowest wait", choices=("drop", "wait")
    )
    staleness_rate: bool = option(False, "divide the learning rate of a push by 1 + its staleness")
    compensation: float = option(0.0, "lambda of delay compensation (DC-ASGD); 0: none", at_least=0)
    patience: float = option(300.0, "seconds that a worker waits for a server that is not there", above=0)
    trace: str = option("", "file for the order of updates; by default trace.csv in the run's folder")

    def build(self) -> Strategy:
        """Make the strategy of the process's role; without one, this process alone computes (evaluations)."""
        from .asynchronous.starting import strategy_of

        return strategy_of(self)

    def perform(self, session: Session, work: Callable[[Session], None]) -> None:
        """Do ``work`` as server or worker, or start them."""
        from .asynchronous.starting import perform

        perform(session, work)


@dataclass
class AsyncReplay(Parallel):
    """One process repeats an asynchronous run, bit for bit, in the order that its trace tells."""

    processes: int = option(1, "one process", at_least=1, at_most=1)
    trace: str = option("", "folder of the recorded run, or its trace")

    def build(self) -> Strategy:
        """Make the strategy; without a trace, this process computes as one does (evaluations)."""
        from pathlib import Path

        from .asynchronous.replay import Replay
        from .single import SingleProcess

        return Replay(Path(self.trace)) if self.trace else SingleProcess()

    def perform(self, session: Session, work: Callable[[Session], None]) -> None:
        """Do ``work`` in this process. Raises UsageError without a trace."""
        if not self.trace:
            raise UsageError("parallel.trace must be given: the folder of the run to repeat")
        work(session)


@dataclass
class Pipeline(Parallel):
    """Every process has some layers in a row, through which parts of each batch pass one after the other."""

    shares_samples: ClassVar[bool] = False
    microbatches: int = option(4, "parts that a micro-batch is cut into, so that all processes compute", at_least=1)
    schedule: str = option(
        "1f1b", "gpipe (all forward, then all backward), or 1f1b (in turns, in less memory)", choices=("gpipe", "1f1b")
    )

    def build(self) -> Strategy:
        """Make the strategy."""
        from .pipeline.strategy import PipelineParallel

        return PipelineParallel(self.microbatches, self.schedule)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in strategies."""
    store.add("parallel", "single", Single)
    store.add("parallel", "data", Data)
    store.add("parallel", "local_sgd", LocalSGD)
    store.add("parallel", "pipeline", Pipeline)
    store.add("parallel", "auto", Auto)
    store.add("job", "plan", Plan)
    store.add("parallel", "hybrid", Hybrid)
    store.add("parallel", "async", Async)
    store.add("parallel", "async_replay", AsyncReplay)
