"""Options of every component group: dataclasses whose fields are the schema that Hydra checks.

A component is chosen by name in its group (``model=lenet``) and configured by its fields
(``model.dropout=0.5``). ``build()`` makes the object the engine works with and is the place for heavy
imports: this module and every plugin's entry-point module stay free of torch, so that ``engine --help``
and Tab completion answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from engine.checks import check as check  # beside what it checks, for those who import it
from engine.fields import default_of as default_of  # and these with what they make
from engine.fields import option as option
from engine.fields import required as required

if TYPE_CHECKING:
    import torch

    from engine import interfaces
    from engine.session import Session


@dataclass
class Component:
    """One choice within a group; its first docstring line is what ``engine --help`` prints beside its name."""

    group: ClassVar[str] = ""
    many: ClassVar[bool] = False  # an ordered list may be chosen (augment, observe)


@dataclass
class Job(Component):
    """What a command does: ``engine NAME`` is short for ``job=NAME``, ``engine NAME x=1`` for ``job.x=1``."""

    group: ClassVar[str] = "job"
    keeps_output: ClassVar[bool] = False  # True: the job owns the run folder and writes into it
    chooses: ClassVar[Mapping[str, str]] = MappingProxyType({})  # group -> choice, where the command makes none
    several: ClassVar[Mapping[str, str]] = MappingProxyType({})  # group -> field that takes all of group=a,b

    def build(self) -> Callable[[Session], None]:
        """Return the function that does the work of one command."""
        raise NotImplementedError


@dataclass
class Data(Component):
    """Where images and targets come from, in which order, and how many threads or processes prepare them."""

    group: ClassVar[str] = "data"
    threads: int = option(1, "loader threads, or processes; 0 loads in the training thread", at_least=0)
    workers: str = option("threads", "threads, or processes for slow Python code", choices=("threads", "processes"))
    prefetch: int = option(4, "steps prepared ahead of the one being computed", at_least=1)
    shuffle: str = option("full", "full, or blocks of neighbours, read and mixed together", choices=("full", "blocks"))
    block: int = option(256, "records of a block, which are read in one request", at_least=1)
    blocks_mixed: int = option(32, "blocks in memory whose records are shuffled together", at_least=1)
    augment_on: str = option(
        "host", "where augmentations run: host; device, to which bytes travel; resident, where all bytes stay as well",
        choices=("host", "device", "resident"),
    )  # fmt: skip

    def build(self, split: str) -> interfaces.Source:
        """Open the records of ``split`` ("train" or "test"). Raises UsageError naming a missing or bad file."""
        raise NotImplementedError


@dataclass
class Augment(Component):
    """One step of the batch's preparation, drawn at random for training or fixed (normalisation)."""

    group: ClassVar[str] = "augment"
    many: ClassVar[bool] = True

    def build(self) -> interfaces.Augmentation:
        """Make the augmentation; the engine then gives it the training source if it asks (``prepare``)."""
        raise NotImplementedError


@dataclass
class Model(Component):
    """A network."""

    group: ClassVar[str] = "model"

    def build(self, inputs: tuple[int, int, int], outputs: int) -> torch.nn.Module:
        """Make the network for images of shape ``inputs`` = (channels, height, width) and so many outputs."""
        raise NotImplementedError


@dataclass
class Loss(Component):
    """What training minimises, with the metrics that belong to it."""

    group: ClassVar[str] = "loss"

    def build(self) -> interfaces.LossFunction:
        """Make the loss function."""
        raise NotImplementedError


@dataclass
class Optim(Component):
    """The optimiser; ``lr`` is the peak rate that the schedule scales."""

    group: ClassVar[str] = "optim"
    lr: float = option(0.1, "learning rate that the schedule's factor multiplies", above=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimiser over parameter groups (each with ``params``, ``names`` and its own settings)."""
        raise NotImplementedError


@dataclass
class Schedule(Component):
    """How the learning rate moves over the run."""

    group: ClassVar[str] = "schedule"

    def build(self, updates: int) -> Callable[[int], float]:
        """Return the pure function from an update's number (0 to ``updates`` - 1) to the rate's factor."""
        raise NotImplementedError


@dataclass
class Kernels(Component):
    """Which algorithm computes the convolutions."""

    group: ClassVar[str] = "kernels"
    layers: list[str] = option(
        [],
        "other kernels for some layers, as LAYER:KERNEL; LAYER may be a pattern: 'kernels.layers=[conv1:fft,"
        "layer1.*:winograd]'. KERNEL: a choice of kernels, with its default options unless it is the run's own, or a "
        "kernel's own name",
    )

    def kernel(self) -> interfaces.ConvKernel:
        """Make the kernel that computes every convolution it does not refuse."""
        raise NotImplementedError

    def candidates(self) -> Sequence[interfaces.ConvKernel]:
        """Make the kernels that ``kernels=auto`` may choose among and ``layers`` may name; default: the one, if any."""
        return [] if type(self).kernel is Kernels.kernel else [self.kernel()]

    def build(self, installed: Mapping[str, type[Kernels]] = MappingProxyType({})) -> interfaces.KernelChooser:
        """Make the object that puts kernels into a model; ``installed`` are the choices of this group, by name."""
        from engine.convolutions import Chooser

        return Chooser(self.kernel(), self.layers, installed, type(self))


@dataclass
class Parallel(Component):
    """How processes share the work, and how they are started."""

    group: ClassVar[str] = "parallel"
    shares_samples: ClassVar[bool] = True  # whether processes share each micro-batch by its samples
    takes_shortcuts: ClassVar[bool] = False  # whether ``wrap`` may be given part of the model that ``shard`` was given
    processes: int = option(1, "processes to start on this machine; 1 where torchrun, srun or mpirun starts them",
                            at_least=1)  # fmt: skip
    launcher: str = option("elastic", "what starts them: torch's elastic launcher here, or a Ray cluster",
                           choices=("elastic", "ray"))  # fmt: skip
    threads: int = option(0, "compute threads of each process; 0: its share of the cores", at_least=0)
    timeout: float = option(60.0, "seconds after which a process that does not answer is given up", above=0)
    shutdown: float = option(60.0, "seconds that a process gets to save once it is asked to stop", above=0)
    restarts: int = option(3, "times to start again, from the newest checkpoint, after a process was lost", at_least=0)
    interface: str = option("", "network interface, as eth0; by default the one towards rank 0's machine")

    def build(self) -> interfaces.Strategy:
        """Make this process's strategy, for the processes of ``engine.distributed.current()``."""
        raise NotImplementedError

    def perform(self, session: Session, work: Callable[[Session], None]) -> None:
        """Do ``work(session)`` in the processes that share it: start them, or be one of them.

        Default: as many as ``processes`` on this machine, or those that a launcher has started.
        """
        from engine.distributed.launching import perform

        perform(session, work)


@dataclass
class Precision(Component):
    """In which numbers training computes."""

    group: ClassVar[str] = "precision"

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        raise NotImplementedError


@dataclass
class Transfer(Component):
    """Which parameters train, in which stage of the run."""

    group: ClassVar[str] = "transfer"

    def build(self) -> interfaces.Transfer:
        """Make the transfer plan."""
        raise NotImplementedError


@dataclass
class Observer(Component):
    """Somebody told about the run's events (see ``engine/hookspecs.py``)."""

    group: ClassVar[str] = "observe"
    many: ClassVar[bool] = True

    def build(self) -> object:
        """Make the object whose ``@hookimpl`` methods are called."""
        raise NotImplementedError


@dataclass
class Marginalize(Component):
    """One way to look at an image several times in an evaluation, whose scores are averaged."""

    group: ClassVar[str] = "marginalize"
    many: ClassVar[bool] = True

    def build(self) -> interfaces.Marginalization:
        """Make what gives the views."""
        raise NotImplementedError


@dataclass
class RunOptions:
    """How long to train, on what, and what to do on the way."""

    epochs: int = option(20, "passes over the training set", at_least=1)
    steps: int | None = option(None, "length in steps, instead of epochs", at_least=1)
    batch: int = option(64, "samples per micro-batch, over all processes", at_least=1)
    accumulate: int = option(1, "micro-batches per step", at_least=1)
    seed: int = option(0, "key of every random draw", at_least=0, at_most=2**63 - 1)
    device: str = option("auto", "where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N")
    clip: float | None = option(None, "largest global norm of the gradient; null: no clipping", above=0)
    ema: float | None = option(
        None, "decay of the weights' moving average, warmed up over the first updates; null: none", above=0, below=1
    )
    nonfinite: str = option(
        "stop", "a loss or gradient not finite: stop and name the layer, or skip and count", choices=("stop", "skip")
    )
    patience: int | None = option(
        None, "stop after so many evaluations without improvement, in the last stage if there are several", at_least=1
    )
    max_time: str | None = option(None, "stop with a checkpoint after this long: 90s, 30m, 8h")
    evaluate_every: str = option("1 epoch", "evaluate every '2 epochs', '500 steps', or never")
    log_every: int = option(50, "steps between two readings of the metrics", at_least=1)
    compile: bool = option(False, "compile the model with torch.compile")
    cuda_graph: bool = option(False, "record the step as a CUDA graph and replay it: one launch instead of hundreds")
    channels_last: bool = option(False, "keep images and filters in NHWC order")
    huge_pages: bool = option(True, "let torch's allocator ask for huge pages, where the system has them")
    keep_memory: bool = option(True, "keep freed memory for the next step: faster, takes more (glibc)")
    deterministic: bool = option(False, "refuse operations whose result may vary between runs")


@dataclass
class EvaluateOptions:
    """How an evaluation scores, in training and on its own."""

    average: str = option(
        "softmax",
        "what is averaged over the views of marginalize: softmax (probabilities, where the loss is of such) or logits",
        choices=("softmax", "logits"),
    )
    batch_norm: int = option(
        0, "estimate BatchNorm's statistics anew, over so many training batches; 0: those of training", at_least=0
    )


@dataclass
class SaveOptions:
    """When to save checkpoints and which of them to keep."""

    every: str = option("1 epoch", "save every '2 epochs', '500 steps', or never (a stop still saves)")
    keep: int = option(2, "newest checkpoints kept", at_least=1)
    best: bool = option(True, "also keep the checkpoint with the best evaluation")
    background: bool = option(False, "copy what is to be saved, and train on while it is written")


@dataclass
class MemoryOptions:
    """How much memory a training step may take."""

    budget: str = option(
        "", "memory for a step, as 3GiB: ReLUs in place, layers computed twice, smaller micro-batches; none: no limit"
    )


@dataclass
class Options:
    """The whole composed configuration of a command."""

    job: Job
    data: Data
    augment: dict[str, Augment]
    model: Model
    loss: Loss
    optim: Optim
    schedule: Schedule
    kernels: Kernels
    parallel: Parallel
    precision: Precision
    transfer: Transfer
    observe: dict[str, Observer]
    run: RunOptions = field(default_factory=RunOptions)
    save: SaveOptions = field(default_factory=SaveOptions)
    marginalize: dict[str, Marginalize] = field(default_factory=dict)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    out: str = option("", "folder of the run; by default a new one under runs/")
    resume: str = option("none", "none, auto (newest valid checkpoint), or a run or checkpoint folder")


GROUPS: dict[str, type[Component]] = {
    base.group: base
    for base in (
        Job, Data, Augment, Model, Loss, Optim, Schedule, Kernels, Parallel, Precision, Transfer, Marginalize,
        Observer,
    )
}  # fmt: skip
