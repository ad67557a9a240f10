"""What a run is made of: the fields that its loop works with and observers may read, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pluggy
import torch
from torch import Tensor, nn

from engine import interfaces
from engine.checkpoint import Checkpoints
from engine.common import held_in_common
from engine.cuda_graph import GraphedStep
from engine.durations import Every, seconds
from engine.ema import WeightAverage
from engine.errors import UsageError
from engine.guard import Guard
from engine.interfaces import Batch
from engine.loader import Loader, Position, Step, TestLoader
from engine.marginalization import Views
from engine.metrics import Best, Clock, Metrics
from engine.options import Options
from engine.pixels import Pixels
from engine.precision import widened
from engine.randomness import Key, seed_torch
from engine.rates import Rates
from engine.signals import StopRequests


@dataclass(kw_only=True, eq=False)
class Parts:
    """A run's components and state, which only the loop changes, and the small questions that it asks in every step.

    Those are what a step's draws depend on, whether to log, whether to end and why, and what the loss is weighted by.

    ``engine.assemble`` gives the fields up to ``sweep``, once. ``enter_stage`` sets ``network`` and what follows it,
    for each stage anew. Those between say where the run stands.
    """

    options: Options
    loader: Loader
    test: TestLoader
    views: Views  # what evaluations average over
    statistics: Callable[[nn.Module], AbstractContextManager[None]]  # of BatchNorm, for evaluations
    loss: interfaces.LossFunction
    precision: interfaces.Precision
    strategy: interfaces.Strategy
    model: nn.Module  # the network itself, with canonical parameter names
    device: torch.device
    hooks: pluggy.HookRelay
    checkpoints: Checkpoints
    best: Best
    key: Key
    kernels: interfaces.KernelChooser
    anatomy: interfaces.Anatomy
    transfer: interfaces.Transfer
    pixels: Pixels | None  # as the network is given them
    stages: Sequence[interfaces.Stage]
    enter_stage: Callable[[Parts], None]  # assembles the stage that ``position`` is in
    out: Path
    memory: str = ""  # what memory.budget has changed, in lines
    lock: IO[Any] = field(default_factory=StringIO)  # held while the run folder is ours; of other processes none
    config: str = ""  # the composed configuration, as YAML
    overrides: Sequence[str] = ()
    choices: dict[str, Any] = field(default_factory=dict)  # group -> chosen name, or list of names
    tables: list[str] = field(default_factory=list)  # printed at the start: which kernel computes what, and why
    sweep: bool = False

    outcome: str = "failed"  # until ``fit`` has ended otherwise
    position: Position = field(default_factory=Position)
    epoch: int = -1  # of the step last begun; -1 before the first
    clock: Clock = field(default_factory=Clock)
    grad_norm: Tensor = field(init=False)  # of the last clipped or logged step

    network: nn.Module = field(init=False)  # the model as the strategy wraps it for training
    optimizer: torch.optim.Optimizer = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)  # those that train
    rates: Rates = field(init=False)
    guard: Guard = field(init=False)
    metrics: Metrics = field(init=False)
    average: WeightAverage | None = field(init=False, default=None)
    graphed: GraphedStep | None = field(init=False)  # what makes the steps with run.cuda_graph
    still: Sequence[nn.Module] = field(init=False, default=())  # layers that are frozen, and so in evaluation mode
    shortcut: interfaces.Shortcut | None = field(init=False, default=None)  # for the stage's frozen prefix

    def __post_init__(self) -> None:
        run = self.options.run
        self.evaluate_every = Every.parse(run.evaluate_every, "run.evaluate_every")
        patient = [f"run.patience={run.patience}"] if run.patience is not None else []
        patient += [f"transfer: stage {stage.name}'s patience" for stage in self.stages if stage.patience is not None]
        if patient and self.evaluate_every.never:
            raise UsageError(f"{patient[0]} needs evaluations, run.evaluate_every=never has none: change one")
        self.save_every = Every.parse(self.options.save.every, "save.every")
        self.grad_norm = torch.zeros((), device=self.device)
        self.on_batch: tuple[Callable[..., None], ...] = ()  # the observers' functions, once training has begun
        self.deadline = float("inf")  # of time.monotonic(), once training has begun
        self.max_seconds = seconds(run.max_time, "run.max_time") if run.max_time else float("inf")
        shards = self.strategy.fixed_shards
        self.step_key = self.key.at("step", 0 if shards else self.strategy.rank)
        self.draws = self.loader.accumulate * (shards or 1)  # keys that a step needs
        self.logging = False  # whether the metrics are read after the present step
        self.recent: list[Position] = []  # where the steps since the last log began
        self.saved_step = -1
        self._weights: dict[int, Tensor] = {}

    @property
    def source(self) -> interfaces.Source:
        """The training source."""
        return self.loader.source

    @property
    def steps(self) -> int:
        """The run's length in steps; shorter once a stage has ended early."""
        return self.position.begun + sum(stage.steps for stage in self.stages[self.position.stage :])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training set."""
        return self.loader.steps_per_epoch

    @property
    def stage(self) -> interfaces.Stage:
        """The present stage."""
        return self.stages[self.position.stage]

    @property
    def in_last_stage(self) -> bool:
        """Whether no other stage follows."""
        return self.position.stage == len(self.stages) - 1

    @property
    def stage_end(self) -> int:
        """The step at which the present stage ends, at the latest."""
        return self.position.begun + self.stage.steps

    @property
    def reader(self) -> Loader:
        """What the present stage's steps come from."""
        return self.shortcut.loader if self.shortcut else self.loader

    @property
    def evaluated(self) -> tuple[nn.Module, TestLoader]:
        """What the present stage's evaluations compute with, and on what: views are made of whole images."""
        if self.shortcut and not self.views.members:
            return self.shortcut.network, self.shortcut.test
        return self.model, self.test

    def steps_to_make(self) -> Generator[Step]:
        """Yield steps from where the run is on, those of a stage from what it reads; the strategy may end them."""
        ended = False
        while not ended:
            reader, ended = self.reader, True
            with closing(self.strategy.steps(reader, self.position)) as steps:
                for step in steps:
                    yield step
                    if self.reader is not reader:  # another stage
                        ended = False
                        break

    def moved_to(self, position: Position) -> Position:
        """Return a position of the loader's, which may have prepared it in another stage, in the present one."""
        return replace(position, stage=self.position.stage, begun=self.position.begun)

    def to_train(self) -> None:
        """Put every layer into training mode, but those that are frozen."""
        self.network.train()
        for layer in self.still:
            layer.eval()

    def stage_over(self) -> bool:
        """Return whether the present stage, not the last, has come to its end: its last step, or no improvement."""
        in_vain = self.stage.patience is not None and self.best.stale >= self.stage.patience
        return not self.in_last_stage and (in_vain or self.position.step >= self.stage_end)

    def next_stage(self) -> None:
        """Go on to the next stage."""
        self.position = replace(self.position, stage=self.position.stage + 1, begun=self.position.step)
        self.best.begin_anew()
        reader = self.reader
        self.enter_stage(self)
        self.to_train()
        if self.reader is not reader:  # whose clock begins anew
            self.clock.start(self.position, self.reader.waited, self.reader.spent)
        self.hooks.on_stage_start(run=self)

    def begin_step(self, step: Step) -> None:
        """Take note where a step begins and whether it is logged."""
        if step.start is not None:
            self.position = self.moved_to(step.start)
            if self.strategy.follows:  # its rates are those of the step, not of so many as it has made itself
                self.rates.updates.fill_(step.start.step)
                self.rates.look_up()
                self.recent.clear()
        self.recent.append(self.position)
        self.logging = self.log_due(step)

    def seed(self, position: Position, index: int) -> None:
        """Point torch's generators at the draws of micro-batch (or shard) ``index`` of the step at ``position``."""
        seed_torch(self.step_key.at(position.step * self.draws + index), self.device)

    def begin(self, batch: Batch, index: int) -> None:
        """Show a micro-batch to the observers, and make its random draws depend on (seed, step, index) alone."""
        for tell in self.on_batch:
            tell(self, batch)
        self.seed(self.position, index)

    def close(self) -> None:
        """Give up what the run holds, whether it has ended well or not; what is being saved is waited for."""
        self.checkpoints.give_up()
        self.loader.close()
        self.lock.close()

    def start_clocks(self) -> None:
        """Measure from now on: throughput, and the time that the run may take."""
        self.deadline = time.monotonic() + self.max_seconds
        self.clock.start(self.position, self.reader.waited, self.reader.spent)

    def log_due(self, step: Step) -> bool:
        """Return whether the metrics are read after ``step``: in its rhythm, and at an epoch's or a stage's end."""
        done = step.end.step
        may_end = self.stage.patience is not None and self.evaluate_every.due(done, step.epochs_done)
        in_rhythm = done % self.options.run.log_every == 0 or step.epochs_done is not None
        return in_rhythm or may_end or done == self.stage_end

    def ending(self, stop: StopRequests) -> str:
        """Return why training ends now, or "" to go on; all processes get the same answer."""
        if self.position.step >= self.steps:
            return "done"
        patience = [self.options.run.patience, self.stage.patience] if self.in_last_stage else []
        if any(most is not None and self.best.stale >= most for most in patience):
            return "early stop"
        if self.strategy.any(stop.requested is not None or time.monotonic() > self.deadline):
            requested = next(filter(None, self.strategy.gather(stop.requested)), None)
            if requested and self.strategy.leads:
                stop.tell(requested)
            return f"stopped by {requested}" if requested else "max_time"
        return ""

    def outputs(self, batch: Batch, outputs: Callable[[], Any] | None = None) -> Any:
        """Return what the network makes of a micro-batch, in its numeric policy; a loss takes them in float32."""
        with self.precision.forward(batch.samples):
            made = self.network(batch.images) if outputs is None else outputs()
            return None if made is None else widened(made)

    def is_best(self, scalars: Mapping[str, float]) -> bool:
        """Take note of an evaluation; return whether it is the best so far."""
        if self.precision.calibrating:
            return False
        return self.best.take(scalars[f"test/{self.best.name}"], self.position.step)

    def weights_to_evaluate(self) -> Sequence[AbstractContextManager[Any]]:
        """Return the contexts that put into the model, in this order, what it is evaluated with."""
        average: list[AbstractContextManager[Any]] = [self.average.swapped()] if self.average else []
        quantised, prepared = self.precision.evaluation_weights(self.model), self.kernels.prepared(self.model)
        average.append(held_in_common(self.model, self.strategy))
        return [*average, quantised, prepared, self.strategy.evaluating(self.model), self.statistics(self.model)]

    def weight(self, samples: int) -> Tensor:
        """Return what multiplies the summed loss of a step: loss scale / samples (1 for a summed loss), a scalar."""
        weight = self._weights.get(samples)
        if weight is None:
            value = 1.0 if self.loss.reduction == "sum" else 1.0 / samples
            dtype = torch.promote_types(self.precision.dtype, torch.float32)
            weight = self._weights[samples] = torch.tensor(value, dtype=dtype, device=self.device)
        scale = self.precision.scale()
        return weight if scale is None else weight * scale
