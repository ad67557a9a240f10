"""From a module to the list of its operations: a network that is one chain, whatever it is written as.

torch.fx follows the module's own forward. Layers are recognised by their class or, those of one bit, by the attributes
that ``engine.binary.modules`` lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from engine.binary.operations import Operation
from engine.errors import UsageError

IDENTITY = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
FLATTEN = (torch.flatten, "flatten")
RELU = (torch.relu, functional.relu, "relu")


class Tracer(fx.Tracer):
    """Keeps layers of one bit whole, as torch's own are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation, or a few that are known."""
        marks = ("binary_weight", "sign_activation", "fixed_point")
        return any(hasattr(m, mark) for mark in marks) or super().is_leaf_module(m, module_qualified_name)


def operations_of(model: nn.Module) -> list[Operation]:
    """Return what a model computes in evaluation mode, one after the other; weights of one bit as floats of +-1.

    Raises UsageError naming the layer or function that a packed network has no form of, or where the model is no chain.
    """
    modules = dict(model.named_modules())
    try:
        nodes = list(Tracer().trace(model).nodes)
    except Exception as error:  # whatever the model's own code raises when it meets a stand-in for a tensor
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"model: its forward cannot be followed ({reason}); format=binary takes a chain") from error
    operations: list[Operation] = []
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            raise UsageError(f"model: at {_place(node)} its layers are no chain; format=binary takes a chain of layers")
        if node.op == "output":
            break
        if node.op == "call_module":
            operations += _of_layer(str(node.target), modules[str(node.target)])
        else:
            operations += _of_function(node)
    return operations


def _place(node: fx.Node) -> str:
    return f"{node.target}" if node.op == "call_module" else node.name


def _of_layer(name: str, module: nn.Module) -> list[Operation]:
    """Return a layer's operations."""
    if getattr(module, "sign_activation", False) is True:
        return [Operation(name, "sign")]
    if isinstance(fraction := getattr(module, "fixed_point", None), int):
        return [Operation(name, "fixed_point", {}, {"fraction": fraction})]
    if isinstance(module, IDENTITY):
        return []
    binary = getattr(module, "binary_weight", False) is True
    if isinstance(module, nn.Linear | nn.Conv2d) and (binary or type(module) in (nn.Linear, nn.Conv2d)):
        return _weighted(name, module, binary)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return [_batch_norm(name, module)]
    if type(module) is nn.ReLU:
        return [Operation(name, "relu")]
    if type(module) is nn.Hardtanh:
        return [Operation(name, "hardtanh", {}, {"least": float(module.min_val), "most": float(module.max_val)})]
    if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return [Operation(name, "flatten")]
    if type(module) is nn.MaxPool2d:
        return [_max_pool(name, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)]
    if type(module) is nn.AdaptiveAvgPool2d:
        size: Any = module.output_size
        return [Operation(name, "adaptive_avg_pool2d", {}, {"size": size if isinstance(size, int) else list(size)})]
    raise UsageError(f"layer {name} ({type(module).__name__}) has no form in a packed network; leave it out to export")


def _weighted(name: str, module: nn.Linear | nn.Conv2d, binary: bool) -> list[Operation]:
    """Return a linear layer or a convolution; of one bit: sums, factor and bias apart, as such layers compute."""
    weight, bias = module.weight.detach().float(), module.bias
    if not bool(weight.isfinite().all()):
        raise UsageError(f"layer {name}: a weight is not finite; export another checkpoint")
    operation = Operation(name, "linear")
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise UsageError(f"layer {name}: padding={module.padding!r} in mode {module.padding_mode} has no form here")
        border = int(getattr(module, "padding_value", 0)) if binary else 0
        operation = Operation(name, "conv2d", {}, {"border": border, "groups": module.groups})
        for setting in ("stride", "padding", "dilation"):
            operation.settings[setting] = list(getattr(module, setting))
    if not binary:
        operation.arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach().float()}
        return [operation]
    operation.arrays, operation.settings["binary"] = {"weight": torch.where(weight >= 0, 1.0, -1.0)}, True
    result = [operation]
    if isinstance(fraction := getattr(module, "input_fraction", None), int):
        result.insert(0, Operation(name, "fixed_point", {}, {"fraction": fraction}))
    scale: Tensor | None = module.scale() if hasattr(module, "scale") else None  # type: ignore[operator]
    if scale is not None:
        result.append(Operation(name, "multiply", {"factor": scale.detach().float().flatten()}))
    if bias is not None:
        result.append(Operation(name, "add", {"bias": bias.detach().float()}))
    return result


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Operation:
    if module.running_mean is None or module.running_var is None:
        raise UsageError(
            f"layer {name}: BatchNorm without running statistics depends on the batch; it cannot be packed"
        )
    found = {
        "mean": module.running_mean, "variance": module.running_var, "weight": module.weight, "bias": module.bias
    }  # fmt: skip
    arrays = {role: value.detach().float() for role, value in found.items() if value is not None}
    if not all(bool(value.isfinite().all()) for value in arrays.values()):
        raise UsageError(f"layer {name}: a statistic or parameter is not finite; export another checkpoint")
    return Operation(name, "batch_norm", arrays, {"eps": float(module.eps)})


def _max_pool(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Operation:
    sizes = {"kernel": kernel, "stride": kernel if stride is None else stride, "padding": padding, "dilation": dilation}
    settings: dict[str, Any] = {
        key: list(size) if isinstance(size, Sequence) else [size] * 2 for key, size in sizes.items()
    }
    return Operation(name, "max_pool2d", {}, {**settings, "ceil": bool(ceil)})


def _of_function(node: fx.Node) -> list[Operation]:
    """Return the operation of a function or a tensor's method that the model calls."""
    target, settings = node.target, dict(node.kwargs)
    rest = list(node.args[1:])
    if target in RELU and not rest and settings.get("inplace", False) in (False, True):
        return [Operation(node.name, "relu")]
    if target in FLATTEN and (rest or [settings.get("start_dim")]) == [1] and settings.get("end_dim", -1) == -1:
        return [Operation(node.name, "flatten")]
    if target in (torch.mean, "mean"):
        axes: Any = rest[0] if len(rest) == 1 else settings.get("dim")
        if isinstance(axes, list | tuple) and sorted(a % 4 for a in axes) == [2, 3] and not settings.get("keepdim"):
            return [Operation(node.name, "mean")]
    if getattr(target, "__name__", "") in ("max_pool2d", "boolean_dispatch"):
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, **settings}
        given |= dict(zip(names, rest, strict=False))
        kernel, stride, padding, dilation, ceil = (given[name] for name in names)
        return [_max_pool(node.name, kernel, stride, padding, dilation, ceil)]
    if target is functional.dropout:  # in evaluation it does nothing
        return []
    raise UsageError(
        f"model: {node.name} ({node.format_node()}) has no form in a packed network; leave it out to export"
    )
