"""What a run is made of: the fields that its loop works with and observers may read, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import accumulate
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
    stages: Sequence[interfaces.Stage]
    enter_stage: Callable[[Parts], None]  # assembles the stage that ``position`` is in
    out: Path
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
    average: WeightAverage | None = field(init=False)
    graphed: GraphedStep | None = field(init=False)  # what makes the steps with run.cuda_graph

    def __post_init__(self) -> None:
        run = self.options.run
        self.evaluate_every = Every.parse(run.evaluate_every, "run.evaluate_every")
        if run.patience is not None and self.evaluate_every.never:
            raise UsageError(
                f"run.patience={run.patience} needs evaluations, run.evaluate_every=never has none: change one"
            )
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
        self._stage_ends = list(accumulate(stage.steps for stage in self.stages))

    @property
    def source(self) -> interfaces.Source:
        """The training source."""
        return self.loader.source

    @property
    def steps(self) -> int:
        """The run's length in steps."""
        return self._stage_ends[-1]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training set."""
        return self.loader.steps_per_epoch

    @property
    def stage_end(self) -> int:
        """The step at which the present stage ends."""
        return self._stage_ends[self.position.stage]

    def begin_step(self, step: Step) -> None:
        """Take note where a step begins and whether it is logged."""
        if step.start is not None:
            self.position = replace(step.start, stage=self.position.stage)
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
        self.clock.start(self.position, self.loader.waited, self.loader.spent)

    def log_due(self, step: Step) -> bool:
        """Return whether the metrics are read after ``step``: in its rhythm, and at an epoch's or a stage's end."""
        done = step.end.step
        return done % self.options.run.log_every == 0 or step.epochs_done is not None or done == self.stage_end

    def ending(self, stop: StopRequests) -> str:
        """Return why training ends now, or "" to go on; all processes get the same answer."""
        if self.position.step >= self.steps:
            return "done"
        if self.options.run.patience is not None and self.best.stale >= self.options.run.patience:
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
