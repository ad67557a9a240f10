"""What features depend on, in JSON's kinds: other features have another key, and so never pass for these."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.interfaces import Augmentation, Source
from engine.options import Data, Options

PLAIN = (bool, int, float, str, tuple, type(None))


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def network_facts(network: fx.GraphModule) -> dict[str, Any]:
    """Return what a traced network computes: its numbers, its graph, and each layer's class, settings and kernel."""
    called = dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        "tensors": {name: _digest(value) for name, value in sorted(tensors.items())},
        "graph": network.graph.python_code("self").src,
        "layers": {
            f"{target}.{name}".rstrip("."): _layer(layer)
            for target in called
            for name, layer in network.get_submodule(target).named_modules()
        },
    }


def source_facts(source: Source, data: Data) -> dict[str, Any]:
    """Return what tells one set of records from another, and how they are read; wherever they are."""
    reads = {f.name for f in dataclasses.fields(Data)} | {"root"}
    settings = {name: repr(value) for name, value in vars(data).items() if name not in reads}
    return {
        "fingerprint": source.fingerprint, "records": len(source), "shape": list(source.shape), "settings": settings,
    }  # fmt: skip


def run_facts(options: Options, augmentations: Mapping[str, Augmentation], device: torch.device) -> dict[str, Any]:
    """Return how images are prepared and in which numbers, on which machine, by which versions."""
    from engine import __version__

    cuda = device.type == "cuda"
    return {
        "augment": [[n, _named(choice), _source(type(augmentations[n]))] for n, choice in options.augment.items()],
        "augment_on": options.data.augment_on,
        "precision": _named(options.precision),
        "channels_last": options.run.channels_last,
        "deterministic": options.run.deterministic,
        "device": torch.cuda.get_device_name(device)
        if cuda
        else [torch.backends.cpu.get_cpu_capability(), processor()],
        "threads": 0 if cuda else torch.get_num_threads(),
        "engine": __version__,
        "torch": str(torch.__version__),
    }


def processor() -> str:
    """Return the processor's own name, or its kind where the system does not tell."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))}
    return " ".join(sorted(names)) or platform.machine()


def _named(choice: Any) -> list[Any]:
    """Return a component's class and options."""
    return [f"{type(choice).__module__}.{type(choice).__qualname__}", repr(dataclasses.asdict(choice))]


def _layer(layer: nn.Module) -> list[Any]:
    kind, own = type(layer), vars(layer)
    settings = {
        name: repr(value)
        for name, value in sorted(own.items())
        if isinstance(value, PLAIN) and not name.startswith("_") and name != "training"
    }
    kernel = getattr(own.get("_conv_forward"), "kernels", "")
    return [f"{kind.__module__}.{kind.__qualname__}", layer.extra_repr(), settings, kernel, _source(kind)]


def _source(kind: type) -> str:
    """Return a digest of a class's code; torch's own goes by its version, as does what has no source."""
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{numbers.dtype} {list(numbers.shape)} ".encode())
    if numbers.numel():
        content.update(numbers.flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()
