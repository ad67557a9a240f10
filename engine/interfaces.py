"""What options build: the contracts between the loop and its components, as typed Protocols.

Subclass a Protocol to inherit its working defaults, or provide the same members. ``engine.testing`` checks
an implementation against the promises made here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from engine.anatomy import Anatomy
from engine.freezing import Factors
from engine.kernels import DIRECTIONS, ConvKernel, ConvSpec, KernelChooser, KernelRow
from engine.pictures import Pictures
from engine.pieces import Piece, wholes
from engine.plan import Plan
from engine.precision import Precision
from engine.randomness import Key
from engine.transfer import Shortcut, Stage, Transfer

if TYPE_CHECKING:
    from engine.loader import Loader, Position, Step

__all__ = [
    "DIRECTIONS", "Anatomy", "Augmentation", "Batch", "ConvKernel", "ConvSpec", "Factors", "KernelChooser", "KernelRow",
    "LossFunction", "Marginalization", "Pictures", "Piece", "Plan", "Precision", "Records", "Shortcut", "Source",
    "Stage", "Strategy", "Transfer",
]  # fmt: skip


@dataclass(slots=True)
class Batch:
    """One micro-batch of this process.

    images: [n, channels, height, width], a float type. targets: int64 [n] class numbers, or floats
    [n, classes] (soft labels) or [n, outputs] (regression). samples: int64 [n] on the CPU, the global sample
    numbers: positions in the stream of all epochs, each unique within the run, the same at any world size.
    """

    images: Tensor
    targets: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(slots=True)
class Records:
    """Some records of a source, as they are stored.

    encoding "raw": images is uint8 [n, channels, height, width]; "tensor": the same in a float type, already
    prepared (cached features); "encoded": a list of n files' bytes (JPEG, PNG), which the loader decodes to
    the source's shape. targets: int64 [n] or float [n, outputs].
    """

    encoding: str
    images: Tensor | Sequence[bytes]
    targets: Tensor


class Source(Protocol):
    """Random access to records; no decoding, shuffling or augmentation happens here. Safe to call from threads."""

    classes: Sequence[str]
    """Names of the classes; empty for regression, where targets are [n, outputs] floats."""
    shape: tuple[int, int, int]
    """(channels, height, width) of every image once decoded."""
    fingerprint: str
    """Changes when the records change; kept in checkpoints."""
    colour: Mapping[str, Any] | None = None
    """Of all pixels, as 0..255, the "mean" [c] and "covariance" [c][c]; None where nobody has computed them."""

    def __len__(self) -> int: ...

    def records(self, indices: Sequence[int]) -> Records:
        """Return the records at ``indices``, in that order. Raises UsageError naming an unreadable file."""
        ...

    def pictures(self, indices: Tensor) -> tuple[Pictures, Tensor] | None:
        """Return where whole images are, and their targets, for native code to read; None: ask for ``records``.

        indices: int64 [n] on the CPU.
        """
        return None

    def name_of(self, index: int) -> str:
        """Name a record for an error message: its file, or its number."""
        return f"record {index}"


class Augmentation(Protocol):
    """A step of preparing batches, its random draw apart from its arithmetic so that each can be tested."""

    group: int = 1
    """Consecutive samples that may be mixed with each other: rows 0..group-1 of a batch, and so on in whole groups."""
    by_record: bool = False
    """Whether draws depend on which image it is and on the epoch: then ``draw_by_record`` is called, not ``draw``."""

    def prepare(self, training: Callable[[], Source]) -> None:
        """Learn what is needed (statistics, say) from the training source, opened by calling ``training``."""
        return None

    def draw(self, key: Key, samples: Tensor, shape: tuple[int, int, int]) -> Any:
        """Draw the parameters of ``samples`` (int64 [n]); a pure function of (key, sample), whatever the batch.

        Where ``group`` is above 1, of (key, the samples of the group).
        """
        return None

    def draw_by_record(self, key: Key, records: Tensor, epoch: int, shape: tuple[int, int, int]) -> Any:
        """Draw the parameters of the source's ``records`` (int64 [n]) in an epoch, counted from 0."""
        return None

    def apply(self, images: Tensor, targets: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        """Return augmented images and targets; ``images`` [n, c, h, w] is uint8 0..255 or float, never edited."""
        ...

    def test(self, images: Tensor) -> Tensor:
        """Return images as an evaluation wants them. Default: unchanged, right for a random augmentation."""
        return images

    def fuse(self, plan: Plan, parameters: Any) -> bool:
        """Add to ``plan`` what ``apply`` would do, and return True; False if a native pass cannot. Default: it cannot.

        What both do agrees to a grey level.
        """
        return False

    def fuse_test(self, plan: Plan) -> bool:
        """Add to ``plan`` what ``test`` would do, and return True; False if a native pass cannot."""
        return type(self).test is Augmentation.test  # nothing, then


class Marginalization(Protocol):
    """Looks at an image several times in an evaluation, which scores the mean of what the model says."""

    def views(self, images: Tensor) -> Iterable[Tensor]:
        """Yield views of images [n, c, h, w] (a float type, on the device, never edited), each made when asked for.

        Row i of a view is of image i. How many there are, and their sizes, depend on the images' shape alone. What is
        drawn from torch's generators is the same in every evaluation. Default: the images, once.
        """
        yield images

    def sampling(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return the context of all the views' passes, in which the model may differ from its evaluation mode.

        It leaves the model as it was. Raises UsageError if the model has nothing to sample.
        """
        return nullcontext()


class LossFunction(Protocol):
    """The objective and the metrics that go with it; ``outputs`` is a tensor or a sequence, the main head first."""

    metrics: Mapping[str, bool]
    """Metric names, each with whether higher is better; early stopping and ``save.best`` watch the first."""
    reduction: str
    """"mean" or "sum" over the step's samples."""
    regression: bool = False
    """Whether targets are rows of numbers [n, outputs], not classes."""
    softmax: bool = False
    """Whether the outputs' softmax is the classes' probability, so that an evaluation may average probabilities."""

    def outputs(self, classes: int) -> int:
        """Return how many outputs the model needs for so many classes."""
        return classes

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the loss summed over the batch's samples, a scalar."""
        ...

    def measure(self, outputs: Any, targets: Tensor) -> Sequence[Tensor]:
        """Return each metric summed over the batch, in the order of ``metrics``; nothing waits for the device."""
        ...


class Strategy(Protocol):
    """How processes share the work: places parameters, owns forward and backward, reduces, updates.

    All processes call the methods in the same order; the defaults are those of a process that does all the work.
    """

    rank: int
    """Which share of each micro-batch this process computes, of ``world``."""
    world: int
    leads: bool = True
    """Whether this process owns the run folder and tells observers; exactly one does."""
    follows: bool = False
    """Whether this process only computes for others: then it neither evaluates nor saves, and may lack the weights."""
    equal_shares: bool = False
    """Whether every process needs as many samples of a micro-batch as the others."""
    fixed_shards: int = 0
    """If not 0, ``loss_of`` is called for so many shards of each micro-batch, numbered over all processes; torch's
    draws then depend on a shard's number, not on the process. See ``forward_backward``."""
    example: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(samples, channels, height, width) of this process's share of a micro-batch, at most: set by the engine before
    ``shard``, which may change it to what layers really get at once; kernels are planned for that."""
    precision: Precision | None = None
    """The run's numeric policy: set by the engine before ``shard``."""
    capturable: bool = False
    """Whether a CUDA graph may hold a whole step: its methods neither read numbers from the device nor seed, and all
    that they keep from one step to the next is tensors that they change in place."""
    length: int = 0
    """Steps of the run: set by the engine before ``prepare``."""

    def shard(self, model: nn.Module) -> nn.Module:
        """Place the model's parameters on this process, before the optimiser exists; it may be sharded already.

        Parameters keep their names. Raises UsageError for a model that cannot be shared in this way.
        """
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the sharded model for training; canonical parameter names stay readable through the original."""
        return model

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser of a stage, once the model is wrapped; ``key``, the same everywhere, is for draws."""
        return None

    def steps(self, loader: Loader, position: Position) -> Generator[Step]:
        """Yield the steps of this process from ``position`` on; the run ends with them. Default: the loader's."""
        return loader.steps(position)

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run every micro-batch forward and backward; gradients of ``weight`` x summed loss are complete after.

        ``loss_of(batch, index)`` gives a micro-batch's summed loss; with ``fixed_shards`` it is given part of one, and
        index is micro-batch x fixed_shards + shard. ``loss_of(batch, index, outputs)`` calls ``outputs``, not the
        network; None has no loss and counts nothing. Returns this process's summed loss, unweighted, on the device.
        """
        ...

    def agree(self, bad: Tensor) -> Tensor:
        """Return, in place, 1.0 if any process's ``bad`` is 1.0, else 0.0 (float32 scalar on the device)."""
        return bad

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their true global norm is at most ``largest``; return the norm before."""
        ...

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the true global norm of the gradients, on the device."""
        ...

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step through the precision, unless ``bad`` is 1.0."""
        precision.update(optimizer, bad)

    def sum(self, values: Tensor) -> Tensor:
        """Return ``values`` summed over all processes."""
        return values

    def share(self, value: Any) -> Any:
        """Return rank 0's ``value`` (of JSON's kinds) on every process."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (of JSON's kinds), by rank, on every process."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Return whether any process raised ``flag`` (a stop request), now or at the call before.

        All processes get the same answer.
        """
        return flag

    def evaluating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the sharded model computes by itself, without the other processes.

        Parameters and buffers have been given the values to evaluate with before, as shards.
        """
        return nullcontext()

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return what this process holds of the model's ``state``, or of tensors like its, by the same names.

        Their ``values`` are the state's own memory, so that a checkpoint can be read into them.
        """
        return wholes(state, writes=self.leads)

    def common(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what is evaluated and saved of such a state: copies if each process trains its own. Default: it."""
        return state

    def tensors(self, own: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return what else a resume needs; it reads into those that ``load`` has made and that are stored so shaped.

        own: the run's tensors that differ where processes train apart (counts, the average), for those that do.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, of JSON's kinds; that of the process that leads is kept. Default: nothing."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned; that of another strategy is not given."""
        return None

    def describe(self) -> str:
        """Return lines for the start of the run: how the work is shared. Default: none."""
        return ""

    def telemetry(self) -> dict[str, Tensor]:
        """Return scalars for the log, by tag, still on the device. Default: none."""
        return {}
