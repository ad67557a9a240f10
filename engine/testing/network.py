"""Checks what puts kernels into a model: a small network before and after, in training and in evaluation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.interfaces import KernelChooser, KernelRow
from engine.kernels import same
from engine.ops import NATIVE, registered
from engine.options import Kernels
from engine.registry import Registry
from engine.testing.promises import Promises

SHAPE = (2, 3, 14, 12)
LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Conv2d(3, 8, 3, padding=1),
    lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
    lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
    lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    lambda: nn.Conv2d(8, 6, 1),
    lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    lambda: nn.Conv2d(6, 4, (5, 3), padding="same"),
)


def check_network(kernels: Kernels | KernelChooser, tolerance: float | None = None) -> None:
    """Check Kernels options, or what they build, on a small network of convolutions of many kinds.

    Promises: ``apply`` leaves parameters and their names as they are and tells of layers that exist; the network's
    output and gradients agree with float64 to ``tolerance`` (default: the largest ``error`` of the kernels in use,
    for each layer), in training and in evaluation, inside ``prepared``, after its weights changed, and for a deep
    copy of the model; ``plan`` is JSON and ``load`` takes it up. Options are built as the engine builds them, with
    all installed kernels. Raises BrokenPromise.
    """
    promises = Promises(kernels)
    chooser = _build(promises, kernels)
    for training in (True, False):
        model = _network()
        reference = copy.deepcopy(model).double()
        rows = _apply(promises, chooser, model, training)
        check = _NetworkCheck(promises, chooser, tolerance or len(LAYERS) * _error(rows))
        if training:
            check.gradients(model, reference)
            check.copies(model, reference)
        check.evaluation(model, reference)
        _train_a_little(model, reference)
        check.evaluation(model, reference, " after its weights changed")
    _check_plan(promises, kernels, chooser)


class _NetworkCheck:
    def __init__(self, promises: Promises, chooser: KernelChooser, tolerance: float) -> None:
        self.promises, self.chooser, self.tolerance = promises, chooser, tolerance

    def gradients(self, model: nn.Module, reference: nn.Module) -> None:
        """Compare the output and all gradients of a training step."""
        images = _images()
        mine, expected = _results(model.train(), images), _results(reference.train(), images.double())
        for name, result in mine.items():
            self._compare(name, result, expected[name])

    def evaluation(self, model: nn.Module, reference: nn.Module, words: str = "") -> None:
        """Compare the output of an evaluation, of its first batch and of the next, smaller one."""
        images = _images()
        with torch.no_grad(), self.chooser.prepared(model.eval()):
            for name, some in (("output in evaluation", images), ("output of a smaller batch", images[:1])):
                self._compare(f"{name}{words}", model(some), reference.eval()(some.double()))
                self._compare(f"second {name}{words}", model(some), reference(some.double()))

    def copies(self, model: nn.Module, reference: nn.Module) -> None:
        """Compare the output of a deep copy with weights of its own."""
        copied, expected, images = copy.deepcopy(model), copy.deepcopy(reference), _images()
        _train_a_little(copied, expected)
        with torch.no_grad():
            self._compare("output as a deep copy with other weights", copied(images), expected(images.double()))

    def _compare(self, name: str, result: Tensor, expected: Tensor) -> None:
        promise = f"the network's {name} has the right shape"
        seen = f"it is {list(result.shape)} instead of {list(expected.shape)}"
        self.promises.expect(result.shape == expected.shape, promise, seen)
        error = relative_error(result, expected)
        promise = f"the network's {name} agrees with float64 to a relative L2 error of {self.tolerance:g}"
        self.promises.expect(error <= self.tolerance, promise, f"the error is {error:.3g}")


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return ||result - expected|| / ||expected||; for an expectation of zeros, ||result||."""
    difference = float((result.double().cpu() - expected).norm())
    return difference / (float(expected.norm()) or 1.0)


def _build(promises: Promises, kernels: Kernels | KernelChooser) -> KernelChooser:
    if not isinstance(kernels, Kernels):
        return kernels
    registry = Registry.load()
    installed: Mapping[str, Any] = {n: registry.entry("kernels", n).options for n in registry.names("kernels")}
    with promises.works("build() makes the chooser"):
        return kernels.build(installed)


def _apply(promises: Promises, chooser: KernelChooser, model: nn.Module, training: bool) -> Sequence[KernelRow]:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with promises.works("apply() takes any model with convolutions"):
        rows = chooser.apply(model, SHAPE, training=training, share=same)
    after = dict(model.named_parameters())
    kept = list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    promises.expect(kept, "apply() leaves the parameters and their names as they are", f"they are {list(after)}")
    unknown = {row.layer for row in rows} - {name for name, _ in model.named_modules()}
    promises.expect(not unknown, "apply() tells of layers that the model has", f"it has no {sorted(unknown)}")
    return rows


def _error(rows: Sequence[KernelRow]) -> float:
    """Return the largest error of the kernels in use; a name that the ops do not know counts as torch's own."""
    errors = [NATIVE.error]
    for name in (name for row in rows for name in row.kernel.split(" / ")):
        try:
            errors.append(registered(name).error)
        except ValueError:  # a chooser that installs kernels in its own way
            continue
    return max(errors)


def _check_plan(promises: Promises, kernels: Kernels | KernelChooser, chooser: KernelChooser) -> None:
    """Let another chooser, where there are options to build one, take up the plan through JSON."""
    plan = chooser.plan()
    promise = "plan() returns a dictionary of JSON values"
    with promises.works(promise):
        read = json.loads(json.dumps(plan))
    promises.expect(isinstance(plan, dict) and read == plan, promise, f"it returns {plan!r}")
    other = _build(promises, kernels)
    with promises.works("load() takes up what plan() returned"):
        other.load(read)
    _apply(promises, other, _network(), training=False)
    promises.expect(other.plan() == plan, "a loaded plan is kept", f"{plan!r} becomes {other.plan()!r}")


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in LAYERS))


def _images() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def _train_a_little(model: nn.Module, reference: nn.Module) -> None:
    """Change the weights in place, as an optimiser does, and give the reference the same."""
    with torch.no_grad():
        for parameter, copied in zip(model.parameters(), reference.parameters(), strict=True):
            parameter.mul_(1.5).add_(0.01)
            copied.copy_(parameter)


def _results(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the output and the gradients of the images and every parameter, by name."""
    images = images.clone().requires_grad_()
    model.zero_grad()
    output = model(images)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    gradients = {name: p.grad for name, p in [("images", images), *model.named_parameters()]}
    return {"output": output.detach(), **{f"gradient of {name}": g for name, g in gradients.items() if g is not None}}
