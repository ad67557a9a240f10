"""A training step as a CUDA graph: recorded once, then replayed by a single launch.

A small network's step is hundreds of kernels, each of which the host takes longer to launch than the GPU to compute. A
graph holds them all, with the addresses they read and write. So batches are copied into fixed slots, and whatever
changes from step to step (rates, masks, averages, sums of the metrics) is a tensor that the step changes in place. What
the host does in a step (hooks, seeds, positions) is no part of the graph and goes on as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.errors import RunFailed, UsageError
from engine.interfaces import Batch
from engine.loader import Step
from engine.masking import maskable
from engine.profiling import named_range

if TYPE_CHECKING:
    from engine.parts import Parts
    from engine.run import Run

WARM_UP = 3  # steps made as usual first, in which libraries load kernels and allocate what a recording must not


def require_recordable(run: Parts) -> None:
    """Raise UsageError, naming it and what to do, if something cannot be part of a graph. The optimiser comes later."""
    _refuse(_obstacle(run))


def require_recordable_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError if the optimiser's step cannot be part of a graph."""
    kind = type(optimizer).__name__
    if hasattr(optimizer, "step_unless"):
        if not getattr(optimizer, "capturable", False):
            _refuse(f"optim: {kind} is not declared capturable: choose another optim")
    elif not maskable(optimizer):
        _refuse(f"optim: {kind} waits for a flag in every step: choose another optim")


def _refuse(reason: str) -> None:
    if reason:
        raise UsageError(f"run.cuda_graph=true: {reason}, or run.cuda_graph=false")


def _obstacle(run: Parts) -> str:
    given = run.options.run
    if run.device.type != "cuda":
        return f"a graph is recorded on a GPU, not on the {run.device}: choose run.device=cuda"
    if given.accumulate > 1:
        return (
            f"run.accumulate={given.accumulate} makes the host seed each micro-batch within the step: choose "
            "run.accumulate=1 with a larger run.batch"
        )
    if given.compile:
        return "run.compile=true may compile anew in the middle of a recording: choose run.compile=false"
    observer = next(iter(run.hooks.on_backward_end.get_hookimpls()), None)
    if observer is not None:
        return (
            f"observer '{observer.plugin_name}' is told when gradients are complete (on_backward_end), which is inside "
            "the graph: leave it out of observe, or leave out the option of it that needs them"
        )
    for group, part in (("parallel", run.strategy), ("precision", run.precision)):
        if not getattr(part, "capturable", False):
            return f"{group}: {type(part).__name__} is not declared capturable: choose another {group}"
    scale = run.precision.scale()
    if scale is not None and scale.device.type == "cpu":
        return f"precision: {type(run.precision).__name__} keeps its loss scale on the host: choose another precision"
    return ""


@dataclass(frozen=True)
class Recording:
    """A graph, and the tensors that hold its results after a replay, until the next replay of any."""

    graph: torch.cuda.CUDAGraph
    loss: Tensor
    applied: Tensor
    grad_norm: Tensor


class GraphedStep:
    """Makes training steps by replaying a graph, after some that are made as usual; every step is made exactly once.

    Steps that are logged compute the gradient's norm as well, and what their numeric policy then measures; they have a
    graph of their own. The two share their memory, so what is to outlast the next replay is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # for warming up too, so that autograd meets one stream only
        self._pool = torch.cuda.graph_pool_handle()
        self._slots: Batch | None = None
        self._made = 0  # steps made as usual: all of them before the first recording, whose memory they cannot share
        self._recordings: dict[bool, Recording] = {}  # by whether the step is logged

    def __call__(self, run: Run, step: Step) -> tuple[Tensor, Tensor]:
        """Make a step of one batch; return its summed loss and whether it was applied, as ``Run.compute`` does.

        Raises RunFailed if the step cannot be recorded, or if the batch has another form than the one before.
        """
        (batch,) = step.batches
        run.begin(batch, 0)
        self._fill_slots(batch)
        if self._made < WARM_UP:
            self._made += 1
            return self._as_usual(run, step.count)
        clips = run.options.run.clip is not None
        if run.logging not in self._recordings:
            self._recordings[run.logging] = self._record(run, step.count)
        recording = self._recordings[run.logging]
        with named_range("replay of the step"):
            recording.graph.replay()
        loss, applied, norm = recording.loss, recording.applied, recording.grad_norm
        has_norm = run.logging or clips
        if run.on_step_end or run.logging:  # somebody is told of this step, and may keep what it finds
            loss, applied = loss.clone(), applied.clone()
            norm = norm.clone() if has_norm else norm
        run.guard.applied = applied
        if has_norm:
            run.grad_norm = norm
        return loss, applied

    def _fill_slots(self, batch: Batch) -> None:
        if self._slots is None:
            self._slots = Batch(torch.empty_like(batch.images), torch.empty_like(batch.targets), batch.samples)
        if _form(batch) != _form(self._slots):
            raise RunFailed(
                f"run.cuda_graph=true: a batch is {_form(batch)}, the ones before were {_form(self._slots)}; a graph "
                "needs them alike (run.cuda_graph=false does not)"
            )
        self._slots.samples = batch.samples
        self._slots.images.copy_(batch.images)
        self._slots.targets.copy_(batch.targets)

    def _compute(self, run: Run, count: int) -> tuple[Tensor, Tensor]:
        assert self._slots is not None, "they are filled before"
        result = run.compute([self._slots], count)
        run.metrics.add_up()  # what the host kept for later would be missing in the graph
        return result

    def _as_usual(self, run: Run, count: int) -> tuple[Tensor, Tensor]:
        """Make a step that computes the norm too, so that whichever kind is recorded first has seen all its kernels."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        logging, norm = run.logging, run.grad_norm
        run.logging = True
        with torch.cuda.stream(self._stream):
            result = self._compute(run, count)
        run.logging = logging
        if not logging and run.options.run.clip is None:
            run.grad_norm = norm  # nobody asked for this step's
        current.wait_stream(self._stream)
        return result

    def _record(self, run: Run, count: int) -> Recording:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": a "global" recording would fail over what the loader's threads allocate and copy meanwhile.
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(self._stream), _declared_capturable(run.optimizer), recording:
                loss, applied = self._compute(run, count)
        except RuntimeError as error:
            raise RunFailed(
                f"run.cuda_graph=true: the step cannot be recorded ({_first_line(error)}): run.cuda_graph=false trains "
                "without"
            ) from error
        return Recording(graph, loss, applied, run.grad_norm)


def _form(batch: Batch) -> tuple[Any, ...]:
    return (tuple(batch.images.shape), batch.images.dtype, tuple(batch.targets.shape), batch.targets.dtype)


@contextmanager
def _declared_capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within ``with``, the optimiser's groups say ``capturable``, without which torch's Adam refuses to be recorded.

    A fused one, which keeps its state on the device anyhow, reads the word for nothing else; but if it said so for
    good, torch would warn of the steps that are not recorded.
    """
    groups = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _first_line(error: BaseException) -> str:
    """Return the first line of what went wrong first: ending a failed recording raises an error of its own."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return " ".join(str(error).split("\n")[0].split())
