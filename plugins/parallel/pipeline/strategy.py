"""A pipeline: each process computes one stage of the model, for one part of a batch after the other.

The stages and what they send each other are torch.distributed.pipelining's (GPipe, Huang et al. 2019; 1F1B, Narayanan
et al. 2019); model parallelism of this kind is one half of DistBelief (Dean et al. 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.utils import get_total_norm

from engine import Batch, UsageError
from engine.backward import one_by_one
from engine.distributed.group import size_of
from engine.distributed.together import Together
from engine.interfaces import Piece, Precision
from engine.loader import Loader, Position, Step
from engine.randomness import Key, seed_torch

from .splitting import Segments

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class PipelineParallel(Together):
    """Computes and updates the layers of one stage; all processes see the same samples, the last knows the loss.

    A micro-batch is cut into ``microbatches`` parts, and BatchNorm is over each part; torch's draws depend on the part
    and the stage. Every process has memory for the whole model, but gradients, activations and current weights of its
    own stage alone; an evaluation sends everybody all of them, and everybody evaluates all samples.
    """

    def __init__(self, microbatches: int, schedule: str) -> None:
        super().__init__()
        self.stage, self.stages = self.group.rank, self.group.world
        self.rank, self.world = 0, 1  # of the samples
        self.fixed_shards = microbatches
        self._schedule_of = SCHEDULES[schedule]
        self._model: nn.Module | None = None
        self._segments: Segments | None = None
        self._owner: dict[str, int] = {}  # by parameter and buffer: the stage that has it
        self._lines: dict[Any, Line] = {}  # by how many parts of which shape pass
        self._key: Key | None = None
        self._made = 0

    def shard(self, model: nn.Module) -> nn.Module:
        """Have the whole model here again, where a stage of training has ended."""
        if self._owner:
            self._send_all(model)
        self._owner, self._lines = {}, {}
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """See that the model can be cut into as many stages as there are processes."""
        self._model = model
        if self.stages > 1:
            self._segments = Segments(model)
            self._segments.require(self.stages)
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up what this stage's draws depend on."""
        self._key = key

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Return the loader's steps. Raises UsageError for a micro-batch that cannot be cut into equal parts."""
        if loader.batch % self.fixed_shards:
            raise UsageError(
                f"run.batch={loader.batch} cannot be cut into parallel.microbatches={self.fixed_shards} parts: choose "
                "a multiple"
            )
        parts = self.fixed_shards * loader.accumulate
        if self._schedule_of is Schedule1F1B and self.stages > 1 and parts < self.stages:
            raise UsageError(
                f"parallel.schedule=1f1b keeps {self.stages} stages busy with at least as many parts, a step has "
                f"{parts}: raise parallel.microbatches, or choose parallel.schedule=gpipe"
            )
        self._made = position.step
        return loader.steps(position)

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Pass all parts of all micro-batches through this stage, forward and backward; return their loss if known."""
        parts = [part for batch in batches for part in self._cut(batch)]
        if self.stages == 1:
            return one_by_one(loss_of, parts, weight)
        images = parts[0].images
        place = (len(parts), images.shape, images.dtype)
        if place not in self._lines:
            self._lines[place] = self._line(len(parts), images)
        self.group.traffic.add("send", self._lines[place].sent)
        if self.group.watch is not None:
            self.group.watch.begin("pipeline's step")
        with self.group.guarded("pipeline's step"):
            return self._lines[place].run(loss_of, parts, weight, self._seed)

    def _cut(self, batch: Batch) -> list[Batch]:
        count = self.fixed_shards
        if len(batch) % count:
            raise UsageError(f"{len(batch)} samples cannot be cut into parallel.microbatches={count} equal parts")
        images, targets, samples = (t.chunk(count) for t in (batch.images, batch.targets, batch.samples))
        return [Batch(*each) for each in zip(images, targets, samples, strict=True)]

    def _line(self, count: int, images: Tensor) -> Line:
        assert self._segments is not None
        assert self._model is not None
        with self.precision.forward() if self.precision is not None else nullcontext():
            self._segments.measure(images)
        stages = self._segments.stages(self.stages)
        modules = [
            self._segments.module(each, number == 0, number == self.stages - 1) for number, each in enumerate(stages)
        ]
        self._owner = owners(self._model, modules)
        shapes = [tuple(images.shape), *(each.shape for each in stages)]
        given, made = (images.new_empty(shapes[self.stage + side]).requires_grad_() for side in (0, 1))
        return Line(modules[self.stage], self.stage, self.stages, count, given, made, self._schedule_of, self.group)

    def _seed(self, index: int, device: torch.device) -> None:
        if self._key is not None:
            step = self._key.at("stage", self.stage, self._made)
            seed_torch(step.at(index), device)

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Update this stage's parameters; the others have no gradient here."""
        super().update(precision, optimizer, bad)
        self._made += 1

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the norm of all stages' gradients together."""
        own = get_total_norm([p.grad for p in parameters if p.grad is not None])
        own = own.to(parameters[0])  # it is the CPU's, and narrow, where there is no gradient
        return self.group.all_reduce(own.square(), "norm").sqrt()

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Within ``with``, and until the next update, every process has all stages' parameters and buffers."""
        self._send_all(model)
        yield

    @torch.no_grad()
    def _send_all(self, model: nn.Module) -> None:
        kinds: dict[Any, list[Tensor]] = {}
        for name, values in model.state_dict().items():
            kinds.setdefault((self._owner.get(name, 0), values.dtype), []).append(values)
        for (owner, _), tensors in kinds.items() if self._owner else ():
            flat = self.group.broadcast(torch.cat([tensor.flatten() for tensor in tensors]), owner, "weights")
            for values, sent in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                if owner != self.stage:
                    values.copy_(sent.view_as(values))

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return whole tensors, of which each stage saves its own."""
        return {name: Piece.whole(t, self._owner.get(name, 0) == self.stage) for name, t in state.items()}

    def describe(self) -> str:
        """Return how many processes there are and how they are connected."""
        cut = f"a pipeline of {self.stages} stages, {self.fixed_shards} parts of a micro-batch in a row"
        return f"{super().describe()}\n{cut}" if self.stages > 1 else ""


class Line:
    """One process's stage, for a number of parts of a shape. ``given``, ``made``: a tensor as it takes, and passes on.

    sent: bytes that this process sends in a step.
    """

    def __init__(
        self,
        layers: nn.Module,
        stage: int,
        stages: int,
        count: int,
        given: Tensor,
        made: Tensor,
        schedule: Callable[..., Any],
        group: Any,
    ) -> None:
        self._first, self._last = stage == 0, stage == stages - 1
        self.sent = count * ((0 if self._last else size_of(made)) + (0 if self._first else size_of(given)))
        self._count, self._dtype = count, given.dtype
        self._compute = Compute(layers)
        made = made if not self._last else made.new_empty(()).requires_grad_()  # the last stage makes losses
        pipeline_stage = PipelineStage(
            self._compute, stage, stages, given.device, (given,), (made,), group=group.process_group
        )
        self._weight = torch.empty(())
        self._schedule = schedule(pipeline_stage, count, lambda loss, _: loss * self._weight, scale_grads=False)

    def run(
        self,
        loss_of: Callable[..., Tensor],
        parts: Sequence[Batch],
        weight: Tensor,
        seed: Callable[[int, torch.device], None],
    ) -> Tensor:
        """Pass all parts through, forward and backward; return the sum of their losses, 0 if another stage has it."""
        self._weight = weight
        losses: list[Tensor] = []

        def pass_on(index: int, given: Tensor) -> Tensor:
            passed: list[Tensor] = []

            def outputs() -> Any:
                seed(index, given.device)
                # What arrives is a leaf, which a layer must not change in place.
                made = self._compute.layers(given if self._first else given.clone())
                if self._last:
                    return made
                passed.append(made.to(self._dtype))
                return None

            loss = loss_of(parts[index], index, outputs)
            losses.append(loss.detach())
            return loss if self._last else passed[0]

        self._compute.begin(pass_on)
        images = [torch.cat([part.images for part in parts])] if self._first else []
        self._schedule.step(*images, target=torch.arange(self._count) if self._last else None, return_outputs=False)
        return torch.stack(losses).sum().to(weight.dtype)


class Compute(nn.Module):
    """A stage's layers as torch's schedule calls them: for one part after the other, in their order."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self._pass_on: Callable[[int, Tensor], Tensor] | None = None
        self._passed = 0

    def begin(self, pass_on: Callable[[int, Tensor], Tensor]) -> None:
        """Compute parts from the first on by ``pass_on``, given their numbers."""
        self._pass_on, self._passed = pass_on, 0

    def forward(self, given: Tensor) -> Tensor:
        """Return what is passed on of the next part."""
        assert self._pass_on is not None
        self._passed += 1
        return self._pass_on(self._passed - 1, given)


def owners(model: nn.Module, stages: Sequence[nn.Module]) -> dict[str, int]:
    """Return, by the names of a model's state, the stage that has it, the first for what none computes with.

    Raises UsageError for a parameter of two stages.
    """
    found: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for name, tensor in (*stage.named_parameters(), *stage.named_buffers()):
            if found.setdefault(id(tensor), number) != number:
                raise UsageError(
                    f"parallel=pipeline: '{name}' is used at both ends of a cut, so it cannot be in one process: start "
                    "fewer processes, or do not share it"
                )
    return {name: found.get(id(tensor), 0) for name, tensor in model.state_dict(keep_vars=True).items()}
