"""A training step on tensors that have shapes and no contents: what it would take, without taking it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.anatomy import Anatomy
from engine.budget.ledger import Ledger, Memory
from engine.errors import UsageError
from engine.freezing import Factors, freeze, still_layers
from engine.groups import parameter_groups
from engine.layers import torch_draws_kept
from engine.masking import masked_step
from engine.options import Options
from engine.precision import widened

STEPS = 1000  # a length that leaves every stage of a transfer some steps


@dataclass(frozen=True)
class Task:
    """What a step is of: the composed options, an image's shape (channels, height, width), outputs, the device."""

    options: Options
    image: tuple[int, int, int]
    outputs: int
    device: torch.device

    def anatomy(self) -> Anatomy:
        """Return the network's, found on the meta device."""
        return Anatomy(lambda outputs: self.options.model.build(self.image, outputs), self.outputs, self.image)


def enter_largest_stage(model: nn.Module, anatomy: Anatomy, options: Options) -> None:
    """Put a model into training, as it is in the stage of the transfer in which most parameters train.

    Of equal stages it is the first.
    """
    model.train()
    transfer = options.transfer.build()
    factors = [freeze(model, transfer.factors(model, anatomy, stage)) for stage in transfer.stages(STEPS)]
    most = max(factors, key=lambda each: _trained(model, each))
    freeze(model, most)
    for layer in still_layers(model, anatomy, most):
        layer.eval()


class Foresight:
    """A task's network, made of tensors without contents, and steps of it.

    It is in the stage of the transfer in which most parameters train. Convolutions are torch's own. Raises UsageError
    if the network, the loss or the numeric policy needs the tensors' contents.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.precision, self.loss = task.options.precision.build(), task.options.loss.build()
        with self._explained(), torch_draws_kept(torch.device("cpu")):
            self.model = self._built()
        with self.imagined():
            self.model = self._imagine()
        self._optimiser = self._optimiser_bytes()

    @contextmanager
    def imagined(self) -> Iterator[None]:
        """Within ``with``, tensors that are made have no contents; what torch raises becomes a UsageError."""
        with self._explained(), self._fake:
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        torchs = logging.getLogger("torch._subclasses.fake_tensor")  # says all that is raised, with a traceback
        said, torchs.disabled = torchs.disabled, True
        try:
            yield
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise UsageError(
                f"the memory of a step of {self.task.image} images cannot be foreseen: the model, the loss or the "
                f"precision fails on tensors without contents: {reason}"
            ) from error
        finally:
            torchs.disabled = said

    def images(self, count: int) -> Tensor:
        """Return so many images; call it within ``imagined``."""
        images = torch.zeros(count, *self.task.image, device=self.task.device, dtype=self.precision.dtype)
        return images.contiguous(memory_format=self._layout)

    def targets(self, count: int) -> Tensor:
        """Return the images' targets; call it within ``imagined``."""
        if self.loss.regression:
            return torch.zeros(count, self.task.outputs, device=self.task.device)
        return torch.zeros(count, dtype=torch.int64, device=self.task.device)

    def step(self, batch: int, accumulate: int = 1) -> Memory:
        """Return what a step of so many micro-batches takes when it takes most, in this process.

        All images of a step exist from its start. The second micro-batch and those behind it are alike.
        """
        with self.imagined(), ExitStack() as within:
            ledger = within.enter_context(Ledger())
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                ledger.own(tensor, "parameters")
            ledger.add("optimiser", self._optimiser)
            ledger.add("average", self._average_bytes())
            batches = [self.images(batch) for _ in range(min(accumulate, 2))]
            for images in batches:
                ledger.own(images, "images")
            ledger.add("images", (accumulate - len(batches)) * _size(batches[0]))
            for parameter in self.model.parameters():
                parameter.grad = None
                if parameter.requires_grad:
                    watch = parameter.register_post_accumulate_grad_hook(lambda p: ledger.own(p.grad, "gradients"))
                    within.callback(watch.remove)
            for images in batches:
                self._pass(ledger, images, self.targets(batch))
            for parameter in self.model.parameters():
                parameter.grad = None
            ledger.add("other", self._average_bytes())  # an update of the average makes the differences of all weights
            return ledger.peak

    def _pass(self, ledger: Ledger, images: Tensor, targets: Tensor) -> None:
        with ledger.saving():
            with self.precision.forward():
                made = widened(self.model(images))
            loss = self.loss(made, targets)
        loss.backward()

    def _optimiser_bytes(self) -> int:
        """Return what the optimiser keeps, found by letting it update some small parameters of each kind."""
        trains = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        small = {
            name: nn.Parameter(torch.zeros((2,) * p.ndim, dtype=p.dtype)) for name, p in trains.items()
        }  # of two values along each axis
        groups = parameter_groups(_Flat(small))
        optimizer = self.task.options.optim.build(groups)
        for parameter in small.values():
            parameter.grad = torch.zeros_like(parameter)
        masked_step(optimizer, torch.zeros(()))
        whole = 0
        for name, parameter in small.items():
            state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
            each = sum(value.element_size() * value.numel() for value in state if value.ndim or parameter.ndim == 0)
            whole += each * trains[name].numel() // parameter.numel()
        return whole

    def _average_bytes(self) -> int:
        """Return what the moving average of the weights keeps: a copy of them, and of the statistics."""
        if self.task.options.run.ema is None:
            return 0
        values = [*self.model.parameters(), *(b for b in self.model.buffers() if b.is_floating_point())]
        return sum(value.numel() * torch.promote_types(value.dtype, torch.float32).itemsize for value in values)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.task.options.run.channels_last else torch.contiguous_format

    def _built(self) -> nn.Module:
        options, image = self.task.options, self.task.image
        anatomy = self.task.anatomy()
        with torch.device("meta"):
            model = options.model.build(image, self.task.outputs)
            enter_largest_stage(model, anatomy, options)
            if options.run.channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _imagine(self) -> nn.Module:
        """Return the model, on the task's device and in the policy's numbers."""
        _replace(self.model, lambda tensor: _alike(tensor, self.task.device, tensor.dtype))
        # torch's own ``to`` cannot exchange tensors without contents.
        self.model.to = partial(_to, self.model)  # type: ignore[method-assign]
        try:
            return self.precision.convert(self.model)
        finally:
            vars(self.model).pop("to", None)


def _replace(model: nn.Module, by: Callable[[Tensor], Tensor]) -> None:
    """Put other tensors in the place of all parameters and buffers; what several modules share stays shared."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    if id(tensor) not in known:
                        known[id(tensor)] = (tensor, by(tensor))
                    own[name] = known[id(tensor)][1]  # type: ignore[assignment]


def _to(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    _replace(model, lambda t: _alike(t, t.device, dtype if t.is_floating_point() else t.dtype))
    return model


def _alike(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


class _Flat(nn.Module):
    """Parameters under names with dots in them."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self._own = parameters

    def named_parameters(self, *rest: Any, **more: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield them."""
        yield from self._own.items()


def _trained(model: nn.Module, factors: dict[str, Factors]) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if factors[name].lr > 0)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
