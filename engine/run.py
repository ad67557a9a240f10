"""The loop. Everything that varies is a component; what happens in which order is written here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.diagnosis import require_finite
from engine.evaluation import evaluate
from engine.hookspecs import HOT
from engine.interfaces import Batch
from engine.loader import Step
from engine.parts import Parts
from engine.profiling import named_range
from engine.registry import bind
from engine.signals import StopRequests
from engine.state import capture


class Run(Parts):
    """One training job, assembled by ``engine.assemble``; ``fit`` carries it out."""

    def fit(self) -> str:
        """Train to the end, or until something stops the run; return the outcome. RunFailed says what went wrong."""
        with self.lifecycle() as stop, closing(self.steps_to_make()) as steps:
            while not (outcome := self.ending(stop)) and (step := next(steps, None)):
                if step.epoch != self.epoch:
                    self.epoch = step.epoch
                    self.hooks.on_epoch_start(run=self, epoch=step.epoch)
                self.train(step)
                if not self.strategy.follows:
                    self.report(step)
            self.save()
            self.checkpoints.close()
            self.outcome = outcome or self.ending(stop) or "done"
        return self.outcome

    def train(self, step: Step) -> None:
        """Make one step; its update is masked on the device if a number is not finite."""
        self.begin_step(step)
        loss, applied = self.graphed(self, step) if self.graphed else self.compute(step.batches, step.count)
        self.position = self.moved_to(step.end)
        for tell in self.on_step_end:
            tell(self, loss, applied)

    def compute(self, batches: Sequence[Batch], count: int) -> tuple[Tensor, Tensor]:
        """Do a step's arithmetic, without waiting for the device; return the summed loss and whether it was applied."""
        with named_range("forward and backward"), self.precision.computing(self.position, self.logging):
            loss = self.strategy.forward_backward(self.loss_of, batches, self.weight(count))
        for tell in self.on_backward_end:
            tell(self)
        with named_range("update"):
            overflow = self.precision.unscale(self.optimizer)
            if (largest := self.options.run.clip) is not None:
                self.grad_norm = self.strategy.clip(self.parameters, largest)
            elif self.logging:
                self.grad_norm = self.strategy.norm(self.parameters)
            watched = [loss]
            if overflow is None:  # nobody has looked at the gradients yet
                watched += [self.grad_norm] if largest else [p.grad for p in self.parameters if p.grad is not None]
            bad = self.guard.check(watched, overflow, self.strategy)
            self.strategy.update(self.precision, self.optimizer, bad)
            for parameter in self.parameters:  # the optimiser's zero_grad does the same in ten times as long
                parameter.grad = None
            applied = self.guard.settle()
            self.rates.advance(applied)
            if self.average and not self.precision.calibrating:
                self.average.update(applied, self.rates.updates)
            self.metrics.settle(applied)
        return loss, applied

    def loss_of(self, batch: Batch, index: int, outputs: Callable[[], Any] | None = None) -> Tensor:
        """Return a micro-batch's summed loss, as ``Strategy.forward_backward`` asks for it."""
        if self.graphed is None:  # a graph holds nothing that the host does, so there it is done before
            self.begin(batch, index)
        if (made := self.outputs(batch, outputs)) is None:  # another process goes on from here
            return batch.images.new_zeros(())
        loss = self.loss(made, batch.targets)
        with torch.no_grad():
            self.metrics.add(loss, self.loss.measure(made, batch.targets), len(batch))
        return loss

    def report(self, step: Step) -> None:
        """Do what is due after a step, always in this order: log, evaluate, end the epoch, next stage, save."""
        done, last, improved = self.position.step, self.position.step == self.steps, False
        if self.logging:
            self.log()
        if self.evaluate_every.due(done, step.epochs_done) or (last and not self.evaluate_every.never):
            improved = self.evaluate()
        if step.epochs_done is not None:
            self.hooks.on_epoch_end(run=self, epoch=step.epoch)
        if self.stage_over():
            self.next_stage()
        if self.save_every.due(done, step.epochs_done) or (improved and self.options.save.best):
            self.save()

    def log(self) -> None:
        """Tell the observers the numbers since the last log; the one place where the host waits for the device."""
        also = {"train/lr": self.rates.first, "train/grad_norm": self.grad_norm, **self.guard.telemetry(self.strategy)}
        scalars = self.metrics.read(also | self.strategy.telemetry() | self.precision.telemetry())
        require_finite(self, scalars.pop("latched", 0.0))
        self.recent.clear()
        took = self.clock.read(self.position, self.reader.waited, self.reader.spent)
        self.hooks.on_log(run=self, scalars=scalars | took)

    def evaluate(self) -> bool:
        """Evaluate on the test split with the averaged weights, if kept; return whether it is the best so far."""
        with self.clock.paused():
            model, test = self.evaluated
            scalars = evaluate(
                model, test, self.loss, self.precision, self.strategy, self.device, self.weights_to_evaluate(),
                views=self.views,
            )  # fmt: skip
            improved = self.is_best(scalars)
            self.hooks.on_evaluate_end(run=self, scalars=scalars)
        return improved

    def save(self) -> None:
        """Write a checkpoint of this very step, unless it is written already."""
        if self.saved_step != self.position.step and not self.strategy.follows:
            require_finite(self, self.strategy.sum(self.guard.latched).item())
            observed: dict[str, object] = {}
            with self.clock.paused():
                self.hooks.on_save_checkpoint(run=self, state=observed)
                self.checkpoints.save(self.position.step, *capture(self, observed))
            self.saved_step = self.position.step

    @contextmanager
    def lifecycle(self) -> Iterator[StopRequests]:
        """Within ``with``, observers are bound and told of the start, of an exception, and always of the end."""
        self.on_batch, self.on_backward_end, self.on_step_end = (bind(self.hooks, hook) for hook in HOT)
        try:
            self.hooks.on_fit_start(run=self)
            self.hooks.on_stage_start(run=self)
            self.to_train()
            self.start_clocks()
            with StopRequests() as stop:
                yield stop
        except BaseException as error:
            self.hooks.on_exception(run=self, error=error)
            raise
        finally:
            self.hooks.on_fit_end(run=self, outcome=self.outcome)
            self.close()
