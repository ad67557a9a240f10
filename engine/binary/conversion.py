"""An ordinary network made one of one bit: its layers and activations replaced, its parameters and names kept.

torch.fx follows the model's forward, to see which activations a layer of one bit reads and what stands in front of its
border; a module without modules of its own which it cannot follow is taken for something that is no activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from engine.binary.modules import BinaryConv2d, BinaryLinear, Sign
from engine.binary.tracing import Tracer
from engine.errors import UsageError
from engine.quantization.layers import UNKNOWN

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
REPLACED = (nn.ReLU, nn.Hardtanh)
FUNCTIONS = {
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "gelu", "silu",
    "mish", "softplus", "hardswish", "hardsigmoid", "prelu",
}  # fmt: skip
KEEPING_MODULES = (nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
KEEPING_FUNCTIONS = {
    "max_pool2d", "boolean_dispatch", "flatten", "reshape", "view", "getitem", "dropout", "contiguous",
}  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What becomes one bit.

    precision: the policy's name, for messages. first, last: whether the first and the last layer do. scaled: layers
    multiply by the mean of |W|. input_fraction: the bits behind the point to which a first layer of one bit rounds its
    inputs, of 8; None leaves them real.
    """

    precision: str
    first: bool = True
    last: bool = True
    scaled: bool = False
    input_fraction: int | None = None


@dataclass(eq=False)
class _Use:
    """One call in a forward pass: of a module, or of a function by its name."""

    name: str
    module: nn.Module | None = None
    function: str = ""
    inputs: list[_Use] = field(default_factory=list)
    feeds: bool = False  # whether a layer of one bit reads it, through no other layer or activation
    signs: bool = False  # whether its values are +-1 in evaluation


def binarize(model: nn.Module, how: Conversion) -> nn.Module:
    """Return the model with layers of one bit, which share the parameters of those they replace; a second time: as is.

    ReLU and Hardtanh become ``Sign`` where a layer of one bit reads what they return; elsewhere they stay. Where a
    convolution reads signs it pads with -1, else with 0. Raises UsageError naming a layer or function that has no form
    in one bit, a layer that reads no sign though another stands before it, a forward that cannot be followed, or if
    there is nothing to convert.
    """
    for name, module in model.named_modules():
        _require_known(name or type(module).__name__, module, how)
    uses = _uses(model, how)
    layers = list(dict.fromkeys(use.module for use in uses if use.module is not None and _weighted(use.module)))
    chosen = _chosen(layers, how)
    made: dict[nn.Module, nn.Module] = {module: Sign() for module in _activations(uses, chosen, how)}
    _require_signs(uses, chosen, made, how)
    real = _reading_real(uses, made)
    for layer in chosen:
        fraction = how.input_fraction if layer is layers[0] else None
        if isinstance(layer, nn.Linear) and not _is_binary(layer):
            made[layer] = BinaryLinear.of(layer, scaled=how.scaled, input_fraction=fraction)
        elif isinstance(layer, nn.Conv2d) and not _is_binary(layer):
            border = 0 if layer in real else -1
            made[layer] = BinaryConv2d.of(layer, padding_value=border, scaled=how.scaled, input_fraction=fraction)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child].train(child.training)
    return made.get(model, model)


def _chosen(layers: list[nn.Module], how: Conversion) -> set[nn.Module]:
    """Return the layers that are to be of one bit. Raises UsageError if there are none."""
    chosen = {
        layer for layer in layers
        if _is_binary(layer) or ((how.first or layer is not layers[0]) and (how.last or layer is not layers[-1]))
    }  # fmt: skip
    if not chosen:
        ends = [f"the {end} stays real without precision.binary_{end}=true" for end in ("first", "last")]
        kept = [text for text, binary in zip(ends, (how.first, how.last), strict=True) if layers and not binary]
        raise UsageError(
            f"precision={how.precision}: the model has no linear layer or convolution to binarise"
            + (f" ({', '.join(kept)})" if kept else ": choose another model")
        )
    return chosen


def binary_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the layers of one bit, by their names in the model."""
    layers = {id(module.weight) for module in model.modules() if _is_binary(module)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in layers}


def _is_binary(module: nn.Module | None) -> bool:
    return getattr(module, "binary_weight", False) is True


def _weighted(module: nn.Module | None) -> bool:
    return _is_binary(module) or type(module) in (nn.Linear, nn.Conv2d)


def _require_known(name: str, module: nn.Module, how: Conversion) -> None:
    """Raise UsageError for a layer whose weights cannot be one bit, though they are matrices or filters."""
    kind, reason, others = type(module), "", ", or precision=binary_connect"
    if isinstance(module, UNKNOWN):
        reason, others = "computes several things in one", ""
    elif kind is nn.Conv2d and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
        reason = f"has padding={module.padding!r} in mode {module.padding_mode}, and one bit takes numbers and zeros"
    elif not _weighted(module) and not isinstance(module, NORMS) and _has_matrices(module):
        reason = "has weights of its own, and only nn.Linear and nn.Conv2d can be of one bit"
    if reason:
        raise UsageError(
            f"precision={how.precision}: layer '{name}' ({kind.__name__}) {reason}: choose another model{others}"
        )


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _uses(model: nn.Module, how: Conversion) -> list[_Use]:
    """Return what a forward pass calls, in order. Raises UsageError where that cannot be known."""
    if _weighted(model):
        return [_Use("model", model)]
    modules = dict(model.named_modules())
    graph = _graph(model, how)
    uses: dict[fx.Node, _Use] = {}
    for node in graph.nodes:
        use = uses[node] = _Use(node.name, inputs=[uses[each] for each in node.all_input_nodes])
        if node.op == "call_module":
            use.name, use.module = str(node.target), modules[str(node.target)]
        elif node.op in ("call_function", "call_method"):
            use.function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return list(uses.values())


def _graph(model: nn.Module, how: Conversion) -> fx.Graph:
    """Return what torch.fx makes of a model. Raises UsageError where it cannot follow: functions would be missed."""
    try:
        return _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises when it meets a stand-in for a tensor
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"precision={how.precision}: the forward of {type(model).__name__} cannot be followed ({reason}): write "
            "one that torch.fx can follow, or nn.Sequential with modules as activations"
        ) from error


class _Tracer(Tracer):
    """Keeps whole also what has no modules of its own and cannot be followed, such as a layer that drops at random."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph."""
        modules = root.named_modules() if isinstance(root, nn.Module) else ()
        own = [m for name, m in modules if not (list(m.children()) or super(_Tracer, self).is_leaf_module(m, name))]
        self._whole = {module for module in own if not _can_be_followed(module)}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is taken as one."""
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)


def _can_be_followed(module: nn.Module) -> bool:
    try:
        Tracer().trace(module)
    except Exception:  # as above
        return False
    return True


def _activations(uses: Iterable[_Use], chosen: set[nn.Module], how: Conversion) -> list[nn.Module]:
    """Return the activations that are to be signs. Raises UsageError for one that cannot be."""
    found: dict[nn.Module, None] = {}
    for use in reversed(list(uses)):
        module = use.module
        activation = module is not None and type(module).__module__ == nn.ReLU.__module__
        if use.feeds and (use.function in FUNCTIONS or (activation and not isinstance(module, REPLACED))):
            what = f"function {use.function}" if module is None else f"layer '{use.name}' ({type(module).__name__})"
            raise UsageError(
                f"precision={how.precision}: {what} stands in front of a layer of one bit and cannot be made a sign: "
                "write a module nn.ReLU() or nn.Hardtanh() in its place"
            )
        if use.feeds and activation and module is not None:
            found[module] = None
        if module in chosen or (use.feeds and not activation and not _weighted(module) and not _is_sign(module)):
            for each in use.inputs:
                each.feeds = True
    return list(found)


def _require_signs(
    uses: Iterable[_Use], chosen: set[nn.Module], made: dict[nn.Module, nn.Module], how: Conversion
) -> None:  # fmt: skip
    """Raise UsageError for a layer to be made one bit that reads another layer's numbers and no sign."""
    layers: set[_Use] = set()  # those behind a layer, and behind a sign, through no other layer or sign
    signs: set[_Use] = set()
    for use in uses:
        behind_layer, behind_sign = (not found.isdisjoint(use.inputs) for found in (layers, signs))
        if use.module in chosen and not _is_binary(use.module) and behind_layer and not behind_sign:
            raise UsageError(
                f"precision={how.precision}: layer '{use.name}' ({type(use.module).__name__}) reads the numbers of "
                "another layer with no activation between them: put a module nn.ReLU() or nn.Hardtanh() there "
                "(model=lenet has it with model.relu=all), or choose another model"
            )
        sign, layer = use.module in made or _is_sign(use.module), _weighted(use.module)
        if sign or (behind_sign and not layer):
            signs.add(use)
        if layer or (behind_layer and not sign):
            layers.add(use)


def _is_sign(module: nn.Module | None) -> bool:
    return getattr(module, "sign_activation", False) is True


def _reading_real(uses: Iterable[_Use], made: dict[nn.Module, nn.Module]) -> set[nn.Module]:
    """Return the layers that read other numbers than signs."""
    real: set[nn.Module] = set()
    for use in uses:
        inputs = bool(use.inputs) and all(each.signs for each in use.inputs)
        if use.module is None:
            use.signs = inputs and use.function in KEEPING_FUNCTIONS
        else:
            keeps = isinstance(use.module, KEEPING_MODULES)
            use.signs = use.module in made or _is_sign(use.module) or (inputs and keeps)
        if _weighted(use.module) and use.module is not None and not inputs:
            real.add(use.module)
    return real
