"""Checks a numeric policy: it trains, it forgets nothing, and a masked update changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.checkpoint import load_optimizer_state, optimizer_state
from engine.interfaces import Precision
from engine.loader import Position
from engine.options import Precision as PrecisionOptions
from engine.randomness import Key, seed_torch
from engine.testing.promises import Promises
from engine.testing.small import momentum_sgd
from engine.testing.strategy import same_bits

STEPS = 40
SAMPLES = 64

CONVERTED = "convert() keeps the parameters' names and shapes"
AGAIN = "convert() leaves every bit of a model that is converted already"
LEARNS = "training in these numbers learns"
RESUMED = "a run that takes up state() goes on exactly as if it had not been interrupted"
MASKED = "update() changes nothing when bad is 1.0"
UNSCALED = "unscale() divides the gradients by scale()"
FLAGGED = "unscale() returns 1.0 where a gradient is not finite, else 0.0, or always None"
EVALUATED = "evaluation_weights() puts every bit of the model back, also after an exception"
LOADED = "{}() and then load() are all that an evaluation, or an export, of a checkpoint needs"
TELLS = "telemetry() gives scalar tensors by tag"
REMARK = "remark is text of one line, for a converted model"


def check_precision(precision: PrecisionOptions | Precision, *, learns: float = 0.5) -> None:
    """Check a numeric policy by a regression with a small ConvNet.

    Promises: convert keeps names and shapes, and every bit of what is converted already; 40 steps bring the loss below
    ``learns`` times what it was; state and load round trip: a resumed training ends bit-equal; a masked update leaves
    parameters and optimiser state bit-equal; unscale divides by the scale and flags what is not finite; evaluation
    weights are put back; a checkpoint's state is taken up after convert or export alone; telemetry is scalars, remark a
    line. Options are built anew for each run; a ready policy must load its own state. A policy with a loss scale may
    leave steps out until it has found it. Raises BrokenPromise.
    """
    promises = Promises(precision)

    def build() -> Precision:
        return precision.build() if isinstance(precision, PrecisionOptions) else precision

    with torch.random.fork_rng(devices=[]):
        _check_unscale(promises, _Training(promises, build()))
        _check_mask(promises, _Training(promises, build()))
        _check_learning(promises, _Training(promises, build()), learns)
        _check_resume(promises, build)
        _check_evaluation(promises, _Training(promises, build()))
        _check_checkpoint(promises, build)


class _Training:
    """A regression, step by step as the engine's loop makes them."""

    def __init__(self, promises: Promises, precision: Precision) -> None:
        self.promises, self.precision, self.steps = promises, precision, 0
        torch.manual_seed(0)
        plain = _network()
        shapes = {name: p.shape for name, p in plain.named_parameters()}
        with promises.works("convert() returns the model"):
            self.model = precision.convert(plain)
        converted = {name: p.shape for name, p in self.model.named_parameters()}
        promises.expect(converted == shapes, CONVERTED, f"{converted} instead of {shapes}")
        once = copy.deepcopy(self.model.state_dict())
        with promises.works("convert() takes a model that it has converted, as each stage begins"):
            self.model = precision.convert(self.model)
        promises.expect(same_bits(once, self.model.state_dict()), AGAIN, "they differ")
        remark = precision.remark
        promises.expect(isinstance(remark, str) and "\n" not in remark, REMARK, f"it is {remark!r}")
        floats = isinstance(precision.dtype, torch.dtype) and precision.dtype.is_floating_point
        promises.expect(floats, "dtype is the floating-point type of the images", f"it is {precision.dtype}")
        named = dict(self.model.named_parameters())
        self.optimizer = momentum_sgd([{"params": list(named.values()), "names": list(named)}], 0.05)
        with promises.works("prepare() takes the model, its optimiser and a key"):
            precision.prepare(self.model, self.optimizer, Key.of(1))
        images = torch.randn(SAMPLES, 1, 6, 6)
        rule = torch.randn(36, 2) / 6
        self.images = images.to(precision.dtype)
        self.targets = (images.flatten(1) @ rule).to(precision.dtype)

    def loss(self) -> Tensor:
        """Return the summed loss, drawing as the loop does what is drawn at random."""
        seed_torch(Key.of(0).at(self.steps), torch.device("cpu"))
        with self.precision.forward(self.position.sample + torch.arange(SAMPLES)):
            outputs = self.model(self.images)
            return functional.mse_loss(outputs, self.targets.to(outputs.dtype), reduction="sum")

    @property
    def position(self) -> Position:
        """Where the next step begins."""
        return Position(self.steps, self.steps * SAMPLES)

    def backward(self) -> tuple[float, Tensor | None]:
        """Leave scaled gradients; return the mean loss and the scale."""
        self.optimizer.zero_grad(set_to_none=True)
        within = "a step forward and backward works in the contexts of computing() and forward()"
        with self.promises.works(within), self.precision.computing(self.position, watched=True):
            scale, loss = self.precision.scale(), self.loss()
            weight = torch.tensor(1 / SAMPLES, dtype=torch.promote_types(self.precision.dtype, torch.float32))
            torch.autograd.backward(loss, weight if scale is None else weight * scale)
        return float(loss.detach()) / SAMPLES, scale

    def update(self, bad: float | None = None) -> None:
        """Unscale and update; ``bad`` stands for a flag that another part of the run raised."""
        with self.promises.works("unscale() and update() take the optimiser and a flag"):
            flag = self.precision.unscale(self.optimizer)
            own = torch.zeros(()) if flag is None else flag
            self.precision.update(self.optimizer, own if bad is None else torch.tensor(bad))
        self.steps += 1

    def find_scale(self) -> None:
        """Make steps until one does not overflow, as a loss scale finds its size; none where there is no scale."""
        for _ in range(STEPS):
            _, scale = self.backward()
            if scale is None:
                break
            with self.promises.works("unscale() and update() take the optimiser and a flag"):
                flag = self.precision.unscale(self.optimizer)
                self.precision.update(self.optimizer, torch.zeros(()) if flag is None else flag)
            self.steps += 1
            if flag is None or not float(flag):
                break

    def train(self, steps: int) -> list[float]:
        """Return the mean loss of each of some steps."""
        losses = []
        for _ in range(steps):
            losses.append(self.backward()[0])
            self.update()
        return losses

    def state(self) -> Any:
        """Return a copy of all that a step may change but the precision's own state."""
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()["state"]))

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def _network() -> nn.Sequential:
    """Return two convolutions and a linear layer, each with BatchNorm, as networks of one bit need it."""
    first = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    middle = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *middle, nn.Linear(128, 2, bias=False), nn.BatchNorm1d(2))


def _check_learning(promises: Promises, training: _Training, learns: float) -> None:
    losses = training.train(STEPS)
    went = f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {STEPS} steps"
    promises.expect(losses[-1] < learns * losses[0], f"{LEARNS}: the loss falls to {learns:g} times what it was", went)
    with promises.works(TELLS):
        sizes = {tag: value.numel() for tag, value in training.precision.telemetry().items()}
    promises.expect(set(sizes.values()) <= {1}, TELLS, f"sizes {sizes}")


def _check_resume(promises: Promises, build: Callable[[], Precision]) -> None:
    training = _Training(promises, build())
    training.train(5)
    weights, moments = copy.deepcopy((training.model.state_dict(), optimizer_state(training.optimizer)))
    with promises.works("state() returns tensors by name"):
        state = {name: value.detach().clone() for name, value in training.precision.state().items()}
    training.train(5)
    undisturbed = training.state()
    resumed = _Training(promises, build())
    resumed.steps = 5
    resumed.model.load_state_dict(weights)
    load_optimizer_state(resumed.optimizer, *moments)  # as a checkpoint is read: torch's own would change types
    with promises.works("load() takes what state() returned"):
        resumed.precision.load(state)
    resumed.train(5)
    promises.expect(same_bits(undisturbed, resumed.state()), RESUMED, "the weights differ after five more steps")


def _check_mask(promises: Promises, training: _Training) -> None:
    training.find_scale()
    for bad in (1.0, 0.0, 1.0):
        training.backward()
        before, weights = training.state(), training.parameters()
        training.update(bad)
        if bad:
            same = same_bits(weights, training.parameters())
            promises.expect(same, MASKED, "the parameters changed")
            promises.expect(same_bits(before, training.state()), MASKED, "the optimiser's state changed")
        else:
            moved = not same_bits(weights, training.parameters())
            promises.expect(moved, "update() applies the optimiser's step when bad is 0.0", "no parameter changed")


def _check_unscale(promises: Promises, training: _Training) -> None:
    training.find_scale()
    _, scale = training.backward()
    before = [p.grad.double() for p in training.model.parameters() if p.grad is not None]
    with promises.works(UNSCALED):
        flag = training.precision.unscale(training.optimizer)
    factor = 1.0 if scale is None else 1 / float(scale)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    for gradient, scaled in zip(gradients, before, strict=True):
        error = float((gradient.double() - factor * scaled).norm() / ((factor * scaled).norm() + 1e-30))
        promises.expect(error < 1e-2, UNSCALED, f"with scale {1 / factor:g} a gradient is off by {error:.3g}")
    promises.expect(flag is None or float(flag) == 0.0, FLAGGED, f"with finite gradients it returns {flag}")
    for value in (float("inf"), float("nan")):
        training.backward()
        next(p.grad for p in training.model.parameters() if p.grad is not None).view(-1)[0] = value
        flag = training.precision.unscale(training.optimizer)
        promises.expect(flag is None or float(flag) == 1.0, FLAGGED, f"with a gradient of {value} it returns {flag}")


def _check_evaluation(promises: Promises, training: _Training) -> None:
    training.train(3)
    before = copy.deepcopy(training.model.state_dict())
    model = training.model.eval()
    promise = "the model evaluates within evaluation_weights()"
    with promises.works(promise), training.precision.evaluation_weights(model):
        with training.precision.forward(), torch.no_grad():
            outputs = model(training.images)
        promises.expect(bool(outputs.isfinite().all()), promise, "its outputs are not finite")
    promises.expect(same_bits(before, model.state_dict()), EVALUATED, "they differ")
    with suppress(_Interruption), training.precision.evaluation_weights(model):
        raise _Interruption
    promises.expect(same_bits(before, model.state_dict()), EVALUATED, "they differ after an exception")


def _check_checkpoint(promises: Promises, build: Callable[[], Precision]) -> None:
    training = _Training(promises, build())
    training.train(3)
    weights = copy.deepcopy(training.model.state_dict())
    state = {name: value.detach().clone() for name, value in training.precision.state().items()}
    for way in ("convert", "export"):
        precision, model = build(), _network()
        with promises.works(LOADED.format(way)):
            model.load_state_dict(weights)
            model = getattr(precision, way)(model).eval()
            precision.load(state)
            with precision.evaluation_weights(model), precision.forward(), torch.no_grad():
                model(training.images)


class _Interruption(Exception):
    pass
