"""Putting kernels into a model: its convolutions found, measured up, and handed to the kernels that take them.

A layer keeps its class, its parameters and their names. What changes is the function that it computes with
(``nn.Conv2d._conv_forward``), which then calls ``torch.ops.engine.conv2d`` with the names of its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from engine.budget.recompute import Part
from engine.errors import UsageError, did_you_mean
from engine.kernels import DIRECTIONS, ConvKernel, ConvSpec, KernelChooser, KernelRow, same
from engine.ops import NATIVE, KernelConvolution, prepared_weights, register, registered
from engine.options import Kernels

TRIAL = 2  # images of the trial run that shows every layer's shape
TURNED = "_filters_turned"  # an attribute of a layer whose filters ``install`` put into NHWC order


@dataclass(frozen=True)
class Layer:
    """One convolution of a model, as the trial run saw it."""

    name: str
    module: nn.Conv2d
    spec: ConvSpec | None = None  # at the real batch size; None: no kernel can be planned, ``remark`` says why
    directions: tuple[str, ...] = DIRECTIONS  # those that training needs
    remark: str = ""
    foreign: bool = False  # whether it computes in a way of its own, or is not complete: not ours to touch


def survey(model: nn.Module, inputs: tuple[int, int, int, int], training: bool = True) -> list[Layer]:
    """Return the model's convolutions, in its own order, with their shapes for images of shape ``inputs``.

    The model runs once on a few black images, in evaluation mode so that its state stays as it is. A spec's dtype is
    what the layer then computed in, so call this in the precision's forward context.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    foreign = {name: _foreign(module) for name, module in layers.items()}
    seen: dict[nn.Module, tuple[torch.Size, bool, torch.dtype]] = {}

    def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        images = arguments[0] if arguments else named["input"]
        seen.setdefault(module, (images.shape, images.requires_grad, output.dtype))

    modules = [module for name, module in layers.items() if not foreign[name]]
    if modules:
        _try_out(model, modules, look, inputs, training)
    found = []
    for name, module in layers.items():
        if foreign[name]:
            found.append(Layer(name, module, remark=foreign[name], foreign=True))
        elif module not in seen:
            found.append(Layer(name, module, remark="an evaluation does not reach it"))
        else:
            shape, images_train, dtype = seen[module]
            each = shape[0] * inputs[0] // TRIAL if len(shape) == 4 else 1
            spec = KernelConvolution.of(module, "").spec((each, *shape[-3:]), module.weight)
            spec = replace(spec, dtype=dtype)  # under autocast not the weight's own
            wanted = (True, training and images_train, training and module.weight.requires_grad)
            needed = tuple(direction for direction, needs in zip(DIRECTIONS, wanted, strict=True) if needs)
            found.append(Layer(name, module, spec, needed))
    return found


def _try_out(
    model: nn.Module, modules: Sequence[nn.Module], look: Callable[..., None], inputs: Sequence[int], training: bool
) -> None:
    weight: Tensor = modules[0].weight  # type: ignore[assignment]
    images = torch.zeros(TRIAL, *inputs[1:], dtype=weight.dtype, device=weight.device)
    modes = {module: module.training for module in model.modules()}
    watches = [module.register_forward_hook(look, prepend=True, with_kwargs=True) for module in modules]
    try:
        # With gradients, so that each layer tells whether its images need one.
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
            model.eval()(images)
    finally:
        for watch in watches:
            watch.remove()
        for module, mode in modes.items():
            module.training = mode


def _foreign(module: nn.Conv2d) -> str:
    """Return why a layer is not ours to compute, or ""."""
    kind = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known yet (a lazy layer)"
    if kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward:
        return f"its class {kind.__name__} computes in its own way"
    own = vars(module)
    replaced = "forward" in own and not isinstance(own["forward"], Part)
    if replaced or ("_conv_forward" in own and not isinstance(own["_conv_forward"], KernelConvolution)):
        return f"its {'forward' if replaced else '_conv_forward'} was replaced by another function"
    return ""


@dataclass(frozen=True)
class Choice:
    """What computes a layer: a kernel's name for each direction that is needed, and why these."""

    kernels: Mapping[str, str]
    reason: str
    milliseconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether nothing but torch's own is used."""
        return set(self.kernels.values()) == {NATIVE.name}

    def names(self) -> str:
        """Return the names as the ops take them; a direction that is not needed now is torch's own."""
        return "/".join(self.kernels.get(direction, NATIVE.name) for direction in DIRECTIONS)

    def text(self) -> str:
        """Return one name, or those of the needed directions with slashes between."""
        names = list(self.kernels.values())
        return names[0] if len(set(names)) == 1 else " / ".join(names)


class Chooser(KernelChooser):
    """Gives every convolution one kernel, where that one refuses torch's own, and single layers what ``layers`` say.

    installed: the choices of ``kernels`` that ``layers`` may name; choice: the one that ``kernel`` is of.
    """

    def __init__(
        self,
        kernel: ConvKernel,
        layers: Sequence[str] = (),
        installed: Mapping[str, type[Kernels]] | None = None,
        choice: type[Kernels] | None = None,
    ) -> None:
        self._kernel, self._layers, self._installed, self._choice = kernel, list(layers), installed or {}, choice

    def apply(
        self,
        model: nn.Module,
        inputs: tuple[int, int, int, int],
        *,
        training: bool = True,
        share: Callable[[Any], Any] = same,
    ) -> Sequence[KernelRow]:
        """Install kernels; return a row for every convolution. Raises UsageError for ``layers`` that name nothing."""
        restore(model)  # so that a stage is planned and laid out as by a run that begins with it
        layers = survey(model, inputs, training)
        named = self._named([layer.name for layer in layers])
        planned = [layer for layer in layers if layer.spec is not None]
        free = [layer for layer in planned if layer.name not in named]
        choices = {
            layer.name: assign(named[layer.name], layer, "kernels.layers") for layer in planned if layer.name in named
        }
        choices |= self.choose(free, training, share)
        nhwc = any(registered(name).channels_last for c in choices.values() for name in c.kernels.values())
        for layer in layers:
            if not layer.foreign:
                install(layer.module, choices.get(layer.name), nhwc)
        return [
            KernelRow(layer.name, c.text(), c.reason, c.milliseconds)
            if (c := choices.get(layer.name))
            else KernelRow(layer.name, NATIVE.name, layer.remark)
            for layer in layers
        ]

    def choose(self, layers: Sequence[Layer], training: bool, share: Callable[[Any], Any]) -> dict[str, Choice]:
        """Return what computes each of the layers that ``kernels.layers`` do not name."""
        return {layer.name: assign(self._kernel, layer, "chosen") for layer in layers}

    def prepared(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which prepared weights are kept from their first use on."""
        return prepared_weights(model)

    def _named(self, layers: Sequence[str]) -> dict[str, ConvKernel]:
        """Return the kernels that ``kernels.layers`` give to single layers; a later entry wins."""
        named: dict[str, ConvKernel] = {}
        for entry in self._layers:
            pattern, colon, name = entry.rpartition(":")
            if not colon or not pattern:
                raise UsageError(f"kernels.layers: '{entry}' must be LAYER:KERNEL, as in 'layer1.*:winograd'")
            matching = [layer for layer in layers if fnmatchcase(layer, pattern)]
            if not matching:
                raise UsageError(f"kernels.layers: no convolution is called '{pattern}'{did_you_mean(pattern, layers)}")
            kernel = self._find(name, entry)
            named |= dict.fromkeys(matching, kernel)
        return named

    def _find(self, name: str, entry: str) -> ConvKernel:
        """Return a kernel by the name of a choice of ``kernels`` or by its own; ours as it is, others by default."""
        if name == self._kernel.name or (self._choice is not None and self._installed.get(name) is self._choice):
            return self._kernel
        known = nameable(self._installed)
        if name not in known:
            raise UsageError(f"kernels.layers: '{entry}' names no kernel{did_you_mean(name, known)}")
        return known[name]


def supplied(options: Kernels) -> list[ConvKernel]:
    """Return the kernels of a choice: its own, where it has one, and its candidates; each name once."""
    own = [] if type(options).kernel is Kernels.kernel else [options.kernel()]
    return list({kernel.name: kernel for kernel in (*options.candidates(), *own)}.values())


def offered(installed: Mapping[str, type[Kernels]]) -> dict[str, ConvKernel]:
    """Return what ``kernels=auto`` may choose among, by name: the candidates of all installed choices."""
    return {kernel.name: kernel for choice in sorted(installed) for kernel in installed[choice]().candidates()}


def nameable(installed: Mapping[str, type[Kernels]]) -> dict[str, ConvKernel]:
    """Return what ``kernels.layers`` may name: all kernels by their own names, and by their choices' where it is one.

    A choice's name means its kernel by default, ``kernel()`` of options that nobody set.
    """
    choices = {name: kind() for name, kind in installed.items()}
    known = {kernel.name: kernel for options in choices.values() for kernel in supplied(options)}
    return known | {n: o.kernel() for n, o in choices.items() if type(o).kernel is not Kernels.kernel}


def assign(kernel: ConvKernel, layer: Layer, reason: str) -> Choice:
    """Return a layer's choice: the kernel in the directions that it takes, torch's own in those that it refuses."""
    assert layer.spec is not None
    register(kernel)
    refused = {d: r for d in layer.directions if (r := kernel.refuses(layer.spec, d))}
    if refused:
        where = "" if len(refused) == len(layer.directions) else f" in {' and '.join(refused)}"
        reason = f"{kernel.name} refuses it{where}: {'; '.join(dict.fromkeys(refused.values()))}"
    return Choice({d: NATIVE.name if d in refused else kernel.name for d in layer.directions}, reason)


def install(layer: nn.Conv2d, choice: Choice | None, channels_last: bool) -> None:
    """Let a layer compute with its chosen kernels, or as torch does; its filters in NHWC order if that is wanted."""
    if choice is not None and not choice.native:
        layer._conv_forward = KernelConvolution.of(layer, choice.names())  # type: ignore[method-assign,assignment]
    weight = vars(layer)["_parameters"].get("weight")
    if channels_last and weight is not None and not weight.is_contiguous(memory_format=torch.channels_last):
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        setattr(layer, TURNED, True)


def restore(model: nn.Module) -> None:
    """Take back what ``install`` did: layers compute as torch does, with filters in the order that they had before."""
    for layer in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        own = vars(layer)
        if isinstance(own.get("_conv_forward"), KernelConvolution):
            del layer._conv_forward
        if own.pop(TURNED, False) and (weight := own["_parameters"].get("weight")) is not None:
            weight.data = weight.data.contiguous()
