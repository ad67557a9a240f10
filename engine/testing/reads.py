"""Noticing code that reads device values, which makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What Python code calls; some of these never reach the dispatcher for a tensor on the CPU.
METHODS = {
    "__array__", "__bool__", "__complex__", "__contains__", "__float__", "__format__", "__index__", "__int__",
    "__repr__", "allclose", "cpu", "equal", "is_nonzero", "item", "numpy", "tolist",
}  # fmt: skip
# What other functions call inside. The shape of these results depends on values, so the host must know them.
OPERATORS = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique2", "unique_dim", "unique_consecutive"}


@contextmanager
def watch_reads(*host: Tensor) -> Iterator[list[str]]:
    """Within ``with``, the list given grows by the name of each call that reads a tensor's values.

    It works on a machine without a GPU, where reading costs nothing and goes unnoticed otherwise. host: tensors
    that live on the CPU by contract (``batch.samples``), which may be read.
    """
    reads: list[str] = []
    free = {tensor.untyped_storage().data_ptr() for tensor in host}
    with _Calls(reads, free), _Operators(reads, free):
        yield reads


class _Calls(TorchFunctionMode):
    def __init__(self, reads: list[str], free: set[int]) -> None:
        super().__init__()
        self.reads, self.free = reads, free

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if (name in METHODS or (name == "to" and _to_host(args[1:], kwargs or {}))) and _is_watched(args, self.free):
            self.reads.append(f"Tensor.{name}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, reads: list[str], free: set[int]) -> None:
        super().__init__()
        self.reads, self.free = reads, free

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if (name in OPERATORS or masks) and _is_watched(args, self.free):
            self.reads.append("indexing with a mask" if masks else f"aten::{name}")
        return func(*args, **(kwargs or {}))


def _to_host(places: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Return whether ``tensor.to`` is asked for the CPU in a way that waits."""
    wanted = [*places, named.get("device")]
    return any(isinstance(w, str | torch.device) and str(w) == "cpu" for w in wanted) and not named.get("non_blocking")


def _is_watched(args: tuple[Any, ...], free: set[int]) -> bool:
    return isinstance(args[0], Tensor) and args[0].untyped_storage().data_ptr() not in free
