"""Momentum from a .solverstate: Caffe's last updates as torch's running sum of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine import UsageError

from .graph import Graph
from .network import Network
from .wire import SolverState


def momentum(optimizer: torch.optim.Optimizer, graph: Graph, network: Network, state: SolverState, path: Path) -> None:
    """Give an SGD its momentum, as Caffe's solver had it, with the learning rates that the groups have by now.

    Caffe keeps V = momentum V + rate gradient and subtracts V; torch keeps B = momentum B + gradient and subtracts
    rate B. So B is V by the rate, lr_mult included. Raises UsageError where the history is of other parameters.
    """
    history = _by_name(graph, network, state, path)
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        for name, parameter in zip(group["names"], group["params"], strict=True):
            buffer = optimizer.state[parameter].get("momentum_buffer")
            if buffer is None or rate == 0:
                continue
            values = torch.from_numpy(np.array(history[name], np.float32)).view(parameter.shape)
            buffer.copy_(values / rate)


def _by_name(graph: Graph, network: Network, state: SolverState, path: Path) -> Mapping[str, np.ndarray]:
    names = [(layer, name) for layer in graph.layers for name in network.blobs.get(layer.name, ())]
    if len(state.history) != len(names):
        raise UsageError(
            f"{path} has a history of {len(state.history)} parameters, and the network has {len(names)}: only those of "
            "SGD and Nesterov, and of this network, can be gone on with"
        )
    found = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    for (layer, name), blob in zip(names, state.history, strict=True):
        if not name:
            continue
        values = blob.values
        if layer.type == "InnerProduct" and layer.settings("inner_product_param").get("transpose") and values.ndim == 2:
            values = values.T
        if values.size != np.prod(shapes[name]):
            raise UsageError(f"{path}: the history of {name} has {values.size} numbers instead of {shapes[name]}")
        found[name] = values
    return found
