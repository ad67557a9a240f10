"""Putting kernels into a model: its convolutions found, measured up, and handed to the kernels that take them.

A layer keeps its class, its parameters and their names. What changes is the function that it computes with
(``nn.Conv2d._conv_forward``), which then calls ``torch.ops.engine.conv2d`` with the names of its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from engine.errors import UsageError, did_you_mean
from engine.kernels import DIRECTIONS, ConvKernel, ConvSpec, KernelChooser, KernelRow, same
from engine.ops import NATIVE, register, registered
from engine.options import Kernels

TRIAL = 2  # images of the trial run that shows every layer's shape


@dataclass(eq=False)
class KernelConvolution:
    """What a layer computes with in torch's place; it knows nothing of the layer, so a layer can be copied."""

    kernels: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    border: tuple[int, ...] = ()  # what ``padding`` cannot say: (left, right, top, bottom), filled in ``mode``
    mode: str = "constant"
    prepared: dict[tuple[int, ...], Tensor] | None = None  # weights by image shape, while they cannot change

    @classmethod
    def of(cls, layer: nn.Conv2d, kernels: str) -> KernelConvolution:
        """Return what computes ``layer`` with these kernels."""
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        plain = layer.padding_mode == "zeros" and left == right and top == bottom
        return cls(
            kernels, _pair(layer.stride), (top, left) if plain else (0, 0), _pair(layer.dilation), layer.groups,
            () if plain else (left, right, top, bottom),
            "constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )  # fmt: skip

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of images [n, c, h, w] or [c, h, w]."""
        if images.dim() == 3:
            return self(images.unsqueeze(0), weight, bias).squeeze(0)
        if self.border:
            images = pad(images, self.border, mode=self.mode)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.kernels)
        if self.prepared is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            prepared = self._prepare(images, weight)
            if prepared is not None:
                return torch.ops.engine.conv2d_prepared(images, prepared, bias, weight.shape, *geometry)
        return torch.ops.engine.conv2d(images, weight, bias, *geometry)

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelConvolution:
        return replace(self, prepared=None)  # the copy's weights are its own, and nobody would forget these

    def spec(self, images: Sequence[int], weight: Tensor) -> ConvSpec:
        """Return the convolution of images of this shape, its border included."""
        n, c, h, w = images
        if self.border:
            left, right, top, bottom = self.border
            h, w = h + top + bottom, w + left + right
        return ConvSpec.of(
            (n, c, h, w), weight.shape, self.stride, self.padding, self.dilation, self.groups, dtype=weight.dtype,
            channels_last=_is_nhwc(weight), device=weight.device.type,
        )  # fmt: skip

    def _prepare(self, images: Tensor, weight: Tensor) -> Tensor | None:
        """Return the prepared weight for images of this shape, made once; None where the kernel has no such form."""
        assert self.prepared is not None
        shape = tuple(images.shape)
        if shape not in self.prepared:
            kernel = registered(self.kernels.partition("/")[0])
            fits = images.dtype == weight.dtype and images.device == weight.device and len(images) > 0
            spec = ConvSpec.of(
                shape, weight.shape, self.stride, self.padding, self.dilation, self.groups, dtype=weight.dtype,
                channels_last=_is_nhwc(images), device=weight.device.type,
            ) if fits else None  # fmt: skip
            usable = spec is not None and kernel.refuses(spec, DIRECTIONS[0]) is None
            self.prepared[shape] = kernel.prepare(weight, spec) if usable else weight  # type: ignore[arg-type]
        prepared = self.prepared[shape]
        return None if prepared is weight else prepared


@dataclass(frozen=True)
class Layer:
    """One convolution of a model, as the trial run saw it."""

    name: str
    module: nn.Conv2d
    spec: ConvSpec | None = None  # at the real batch size; None: no kernel can be planned, ``remark`` says why
    directions: tuple[str, ...] = DIRECTIONS  # those that training needs
    remark: str = ""


def survey(model: nn.Module, inputs: tuple[int, int, int, int], training: bool = True) -> list[Layer]:
    """Return the model's convolutions, in its own order, with their shapes for images of shape ``inputs``.

    The model runs once on a few black images, in evaluation mode so that its state stays as it is.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    foreign = {name: _foreign(module) for name, module in layers.items()}
    seen: dict[nn.Module, tuple[torch.Size, bool]] = {}

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.setdefault(module, (arguments[0].shape, arguments[0].requires_grad))

    modules = [module for name, module in layers.items() if not foreign[name]]
    if modules:
        _try_out(model, modules, look, inputs, training)
    found = []
    for name, module in layers.items():
        if foreign[name]:
            found.append(Layer(name, module, remark=foreign[name]))
        elif module not in seen:
            found.append(Layer(name, module, remark="an evaluation does not reach it"))
        else:
            shape, images_train = seen[module]
            each = shape[0] * inputs[0] // TRIAL if len(shape) == 4 else 1
            spec = KernelConvolution.of(module, "").spec((each, *shape[-3:]), module.weight)
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
    watches = [module.register_forward_pre_hook(look) for module in modules]
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
    """Gives every convolution one kernel, where that one refuses torch's own, and single layers what ``layers`` say."""

    def __init__(
        self, kernel: ConvKernel, layers: Sequence[str] = (), installed: Mapping[str, type[Kernels]] | None = None
    ) -> None:
        self._kernel, self._layers, self._installed = kernel, list(layers), installed or {}

    def apply(
        self,
        model: nn.Module,
        inputs: tuple[int, int, int, int],
        *,
        training: bool = True,
        share: Callable[[Any], Any] = same,
    ) -> Sequence[KernelRow]:
        """Install kernels; return a row for every convolution. Raises UsageError for ``layers`` that name nothing."""
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
        return _prepared(model)

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
        """Return a kernel by the name of a choice of ``kernels`` or of one of its candidates."""
        own = {choice: kind for choice, kind in self._installed.items() if kind.kernel is not Kernels.kernel}
        if name in own:
            return own[name]().kernel()
        every = {kernel.name: kernel for kind in self._installed.values() for kernel in kind().candidates()}
        if name not in every:
            choices = [*own, *every]
            raise UsageError(f"kernels.layers: '{entry}' names no kernel{did_you_mean(name, choices)}")
        return every[name]


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
    if isinstance(vars(layer).get("_conv_forward"), KernelConvolution):
        del layer._conv_forward
    if choice is not None and not choice.native:
        layer._conv_forward = KernelConvolution.of(layer, choice.names())  # type: ignore[method-assign,assignment]
    if channels_last and isinstance(vars(layer)["_parameters"].get("weight"), nn.Parameter):
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    ours = [
        function for module in model.modules()
        if isinstance(function := vars(module).get("_conv_forward"), KernelConvolution)
    ]  # fmt: skip
    for function in ours:
        function.prepared = {}
    try:
        yield
    finally:
        for function in ours:
            function.prepared = None


def _pair(values: Sequence[int] | int) -> tuple[int, int]:
    return (values, values) if isinstance(values, int) else (values[0], values[1])


def _is_nhwc(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
