"""The base of numeric policies that round: a table of quantisers by role, and everything that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from engine.errors import UsageError
from engine.interfaces import Precision
from engine.loader import Position
from engine.masking import masked_step
from engine.quantization.layers import LayerRounding, Pass, layers_of
from engine.quantization.quantizers import Quantizer, Role
from engine.quantization.sites import Moment, Site, Sites
from engine.randomness import Key


@dataclass(frozen=True, eq=False)
class RoundedParameter:
    """A parameter and the sites of its roles; ``computed`` is that of ``weight`` or ``bias``."""

    parameter: nn.Parameter
    computed: Site | None
    stored: Site | None
    gradient: Site | None
    update: Site | None
    state: Site | None


class RoundedPrecision(Precision):
    """Float32 arithmetic whose results are rounded: a policy is what ``quantizer`` returns for a role.

    Layers with parameters round what they read and return, and the gradients of both; sums within a layer, and
    whatever has no parameters, are float32. In a step parameters are rounded to what they compute with, and are
    themselves again before the optimiser sees them. After its update they are rounded to what they are stored in, by
    draws that depend on (seed, step, parameter, element). Draws for activations depend on the sample's place in the
    step, so that processes which share a batch draw as one would; a layer that is called twice in a pass draws anew. A
    step that is left out changes nothing; draws are those of the attempted step. In evaluations, BatchNorm's statistics
    for one included, a stochastic quantiser rounds without chance, and nothing is counted.

    The hooks work within torch.compile, in one graph: see ``engine.quantization.layers``. Compiled code makes a
    micro-batch's backward pass before the next one's forward pass, as the engine's loop does. Nothing waits for the
    device.
    """

    dtype = torch.float32

    def __init__(self) -> None:
        self.device = torch.device("cpu")  # of the model, once it is converted
        self.sites = Sites()
        self._pass = Pass()
        self._step = torch.zeros(1, dtype=torch.int64)
        self._first_sample = 0
        self._handles: list[RemovableHandle] = []
        self._parameters: list[RoundedParameter] = []
        self._vanished = torch.zeros(2, dtype=torch.float64)  # of updates other than 0: those that changed nothing, all

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        """Return what rounds ``role`` of the parameter or layer ``name``, or None to leave it. Default: None."""
        return None

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model with layers that round. Raises UsageError for a layer that cannot."""
        for handle in self._handles:
            handle.remove()
        model = model.to(self.dtype)
        roundings = self._adopt(model)
        self._handles = [model.register_forward_pre_hook(self._pass.begin)]
        for layer, rounding in roundings.items():
            self._handles += rounding.hook(layer)
        self._handles.append(model.register_forward_hook(self._pass.begin))
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Return the model with its layers as they are: it computes in ``dtype``, with the weights of evaluations."""
        model = model.to(self.dtype)
        self._adopt(model)
        return model

    def prepare(self, model: nn.Module, optimizer: Optimizer, key: Key) -> None:
        """Give every site its key, and round parameters to what they are stored in."""
        for site in self.sites:
            site.key = key.at(site.role.value, site.name).value
        self.round_stored()

    @contextmanager
    def computing(self, position: Position, watched: bool) -> Iterator[None]:
        """Within ``with``, parameters are what layers compute with."""
        self._step.fill_(position.step)
        self._first_sample = position.sample
        moment = self._pass.moment = Moment(self._step, 0, True, watched)
        try:
            with self._computed(moment):
                yield
        finally:
            self._pass.moment = moment._replace(training=False)

    @contextmanager
    def forward(self, samples: Tensor | None = None) -> Iterator[None]:
        """Within ``with``, draws are for these samples, consecutive ones of the run."""
        moment = self._pass.moment
        if samples is not None and len(samples):
            self._pass.moment = moment._replace(first=int(samples[0]) - self._first_sample, samples=len(samples))
        else:
            self._pass.moment = moment._replace(first=0, samples=0)
        try:
            yield
        finally:
            self._pass.begin()

    def unscale(self, optimizer: Optimizer) -> Tensor | None:
        """Round the gradients of parameters; nothing is checked."""
        moment = self._pass.moment._replace(training=True)
        with torch.no_grad():
            for each in self._parameters:
                if each.gradient and each.parameter.grad is not None:
                    each.gradient(each.parameter.grad, moment, out=each.parameter.grad)
        return None

    @torch.no_grad()
    def update(self, optimizer: Optimizer, bad: Tensor) -> None:
        """Step unless ``bad`` is 1.0, then round the update, the optimiser's state, and what is stored."""
        moment = self._pass.moment._replace(training=True)
        trained = [each for each in self._parameters if each.parameter.grad is not None]
        kept = [each for each in trained if each.update or (each.stored and moment.watched)]
        before = [each.parameter.clone() for each in kept]
        masked_step(optimizer, bad)
        self.adapt(bad)
        steps: Sequence[Tensor] = ()
        if kept:
            steps = torch._foreach_sub([each.parameter for each in kept], before)
        for each, value, step in zip(kept, before, steps, strict=True):
            if each.update:
                torch.add(value, each.update(step, moment), out=each.parameter)
        for each in trained:
            if each.stored:
                each.stored(each.parameter, moment, out=each.parameter)
            if each.state:
                for value in _of_shape(optimizer.state[each.parameter].values(), each.parameter):
                    each.state(value, moment, out=value)
        if moment.watched:
            self._watch(kept, before, steps)

    @torch.no_grad()
    def round_stored(self) -> None:
        """Round parameters to what they are stored in, without chance; nothing is counted."""
        for each in self._parameters:
            if each.stored:
                each.stored(each.parameter, Moment(), out=each.parameter)

    def adapt(self, bad: Tensor) -> None:
        """Change quantisers, unless ``bad`` is 1.0, before what the optimiser gave is rounded. Default: nothing."""
        return None

    def evaluation_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which parameters are what layers compute with, without chance.

        Whatever they are, an average say: they are rounded to what they are stored in first.
        """
        return self._computed(Moment(), stored=True)

    def telemetry(self) -> dict[str, Tensor]:
        """Return, by role, what ``Sites.telemetry`` does.

        Also the share of updates other than zero that left their parameter as it was, in watched steps.
        """
        scalars = self.sites.telemetry()
        if any(each.stored for each in self._parameters):
            scalars["precision/vanished_updates"] = self._vanished[0] / self._vanished[1].clamp(min=1)
            self._vanished = torch.zeros_like(self._vanished)
        return scalars

    def _adopt(self, model: nn.Module) -> dict[nn.Module, LayerRounding]:
        """Make the sites of a model; return what rounds its layers."""
        self.device = next((p.device for p in model.parameters()), self.device)
        layers = layers_of(model)
        roundings = {layer: LayerRounding(name, self._site, self._pass) for name, layer in layers.items()}
        self._parameters = [self._rounded(name, p) for name, p in model.named_parameters()]
        self.sites.place(self.device)
        self._step, self._vanished = self._step.to(self.device), self._vanished.to(self.device)
        return roundings

    def _site(self, role: Role, name: str) -> Site | None:
        """Return the site of a role, the same one for the same name; None where nothing is rounded."""
        found = self.sites.get(role, name)
        if found is None and (quantizer := self.quantizer(role, name)) is not None:
            found = self.sites.add(role, name, quantizer)
        return found

    def _rounded(self, name: str, parameter: nn.Parameter) -> RoundedParameter:
        computed = Role.WEIGHT if parameter.ndim > 1 else Role.BIAS
        roles = (computed, Role.STORED_WEIGHT, Role.WEIGHT_GRADIENT, Role.UPDATE, Role.OPTIMIZER_STATE)
        return RoundedParameter(parameter, *(self._site(role, name) for role in roles))

    @contextmanager
    def _computed(self, moment: Moment, stored: bool = False) -> Iterator[None]:
        rounded = [each for each in self._parameters if each.computed or (stored and each.stored)]
        own = [each.parameter.detach().clone() for each in rounded]
        try:
            with torch.no_grad():
                for each in rounded:
                    if stored and each.stored:
                        each.stored(each.parameter, moment, out=each.parameter)
                    if each.computed:
                        each.computed(each.parameter, moment, out=each.parameter)
            yield
        finally:
            with torch.no_grad():
                for each, kept in zip(rounded, own, strict=True):
                    each.parameter.copy_(kept)

    def _watch(self, trained: Sequence[RoundedParameter], before: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        for each, value, step in zip(trained, before, steps, strict=True):
            if each.stored:
                moved = step != 0
                vanished = moved & (each.parameter == value)
                self._vanished += torch.stack([vanished.sum(), moved.sum()])


def _of_shape(values: Iterable[object], like: Tensor) -> Iterator[Tensor]:
    """Yield the floats of a parameter's shape; what belongs to a scalar cannot be told from an optimiser's counters."""
    return (v for v in values if isinstance(v, Tensor) and v.ndim and v.shape == like.shape and v.is_floating_point())


SQUARES = ("betas", "alpha", "lr_decay", "rho")
"""Hyperparameters that torch's Adam and its kin, RMSprop, Adagrad and Adadelta have, and SGD has not."""


def require_no_squares(optimizer: Optimizer, way_out: str) -> None:
    """Raise UsageError for an optimiser that divides by averages of squared gradients, which few bits round to 0."""
    if any(name in group for group in optimizer.param_groups for name in SQUARES):
        raise UsageError(
            f"optim: {type(optimizer).__name__} divides by squared gradients, which its state in fixed point rounds to "
            f"0: choose {way_out}"
        )
