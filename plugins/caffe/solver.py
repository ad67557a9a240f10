"""A solver prototxt as the engine's options: how long, how fast, by which optimiser, what is saved when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import UsageError
from engine.errors import did_you_mean

from . import POLICIES
from .composing import Composition
from .graph import Graph
from .losses import loss_of
from .prototxt import Mistake, parse, read
from .schema import Message

TYPES = {"SGD": "sgd", "NESTEROV": "sgd", "ADAM": "adamw", "ADAGRAD": "adagrad"}
BY_NUMBER = ("SGD", "NESTEROV", "ADAGRAD", "RMSPROP", "ADADELTA", "ADAM")  # of solver_type, which was before type


@dataclass(frozen=True)
class Solver:
    """What a solver prototxt says. net: the prototxt of the network that it trains."""

    path: Path
    message: Message
    net: Path

    @property
    def steps(self) -> int:
        """How many updates it makes in all."""
        return int(self.message.get("max_iter"))

    def compose(self, into: Composition, graph: Graph) -> None:
        """Add the options of a run that trains as the solver does. Raises UsageError for what the engine cannot do."""
        get = self.message.get
        loss, weight, further = self._loss(graph)
        if further is not None or loss not in ("", "cross_entropy"):
            into.choices["loss"] = loss
        if further is not None:
            into.values["loss.auxiliary"] = further
        into.values["run.steps"] = self.steps
        if graph.batch:
            into.values["run.batch"] = graph.batch
        if get("iter_size") > 1:
            into.values["run.accumulate"] = get("iter_size")
        if get("clip_gradients") > 0:
            into.values["run.clip"] = get("clip_gradients") / weight
        if get("random_seed") >= 0:
            into.values["run.seed"] = get("random_seed")
        if get("display") > 0:
            into.values["run.log_every"] = get("display")
        into.values["run.evaluate_every"] = str(get("test_interval")) if get("test_interval") > 0 else "never"
        into.values["save.every"] = str(get("snapshot")) if get("snapshot") > 0 else "never"
        self._optimizer(into, weight)
        self._schedule(into)

    def _loss(self, graph: Graph) -> tuple[str, float, float | None]:
        try:
            return loss_of(graph)
        except Mistake as error:
            raise UsageError(f"{self.net}: {error}") from error

    def _optimizer(self, into: Composition, weight: float) -> None:
        """Add the optimiser. weight: of the main head's loss, by which the engine's gradients are smaller."""
        get, kind = self.message.get, kind_of(self.message)
        if kind not in TYPES:
            raise self.refuse(f"type {kind[:40]} is not supported: {', '.join(sorted(TYPES))} are")
        into.choices["optim"] = TYPES[kind]
        into.values |= {"optim.lr": get("base_lr"), "optim.weight_decay": get("weight_decay") / weight}
        into.values["optim.decay_all"] = True  # Caffe's weight decay is of biases, too
        if kind in ("SGD", "NESTEROV"):
            into.values["optim.lr"] = get("base_lr") * weight
            into.values["optim.momentum"] = get("momentum")
            if kind == "NESTEROV" and get("momentum") > 0:
                into.values["optim.nesterov"] = True
        elif kind == "ADAM":
            if get("weight_decay") > 0:
                raise self.refuse("Adam with weight_decay is not supported: Caffe's is another than optim=adamw's")
            into.values |= {
                "optim.beta1": get("momentum"), "optim.beta2": get("momentum2"), "optim.eps": get("delta") / weight,
            }  # fmt: skip
        else:
            into.values["optim.eps"] = get("delta") / weight

    def _schedule(self, into: Composition) -> None:
        get = self.message.get
        policy = get("lr_policy") or "fixed"
        if policy not in POLICIES:
            raise self.refuse(f"lr_policy '{policy[:40]}' is not supported{did_you_mean(policy, POLICIES)}")
        if policy == "fixed":
            into.choices["schedule"] = "constant"
            return
        into.choices["schedule"] = "caffe"
        into.values["schedule.policy"] = policy
        own = {
            "step": ("gamma", "stepsize"), "exp": ("gamma",), "inv": ("gamma", "power"), "multistep": ("gamma",),
            "poly": ("power",), "sigmoid": ("gamma", "stepsize"),
        }  # fmt: skip
        into.values |= {f"schedule.{name}": get(name) for name in own[policy]}
        if policy == "multistep":
            into.values["schedule.stepvalues"] = list(self.message.all("stepvalue"))
        if policy == "poly":
            into.values["schedule.max_iter"] = self.steps

    def refuse(self, reason: str) -> UsageError:
        """Return the error that names the file."""
        return UsageError(f"{self.path}: {reason}")


def kind_of(message: Message) -> str:
    """Return the kind of solver, in capitals."""
    if message.has("solver_type") and not message.has("type"):
        old: str = message.get("solver_type").upper()
        return dict(zip("012345", BY_NUMBER, strict=True)).get(old, old)
    return str(message.get("type")).upper()


def read_solver(path: Path, net: str, tell: Callable[[str], None]) -> Solver:
    """Return a solver, with ``net`` in place of the network's prototxt that it names if that is given.

    ``tell`` hears what is left out. Raises UsageError naming the file, the line, and what is wrong.
    """
    try:
        message = Message("solver", parse(read(path)))
    except Mistake as error:
        raise UsageError(f"{path}: {error}") from error
    for name, least in (("base_lr", 0.0), ("max_iter", 1)):
        value = message.get(name)
        if value is None or value <= 0 or value < least:
            raise UsageError(f"{path}: {name} must be given, and above 0")
    if message.get("regularization_type") != "L2" and message.get("weight_decay"):
        raise UsageError(
            f"{path}: regularization_type {message.get('regularization_type')[:40]} is not supported: L2 is"
        )
    if message.get("iter_size") < 1:
        raise UsageError(f"{path}: iter_size must be at least 1")
    if message.all("test_iter"):
        tell(f"{path.name}: test_iter is left out: an evaluation sees the whole test split")
    return Solver(path, message, Path(net).expanduser().absolute() if net else _net(path, message))


def _net(path: Path, message: Message) -> Path:
    """Return the network's prototxt, relative to the working folder, to the solver's, or beside it."""
    name = message.get("net") or message.get("train_net")
    if not name:
        raise UsageError(f"{path} names no net: give prototxt=FILE")
    given = Path(name)
    places = [given, *(parent / given for parent in path.absolute().parents), path.parent / given.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(f"{path}: its net '{name[:200]}' is not there: give prototxt=FILE")
    return found.absolute()
