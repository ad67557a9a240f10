"""torch.compile, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_in_place(model: nn.Module, **options: Any) -> None:
    """Have a model compiled when it is first called; parameter names, and so checkpoints, stay the same.

    ``model.compile()`` compiles nothing of a model whose class is torch's own, nn.Sequential say: it passes over the
    code of torch.nn. A function of ours that calls it is not passed over. options: those of ``torch.compile``.
    """
    call = model._call_impl

    def compiled(*inputs: Any, **named: Any) -> Any:
        return call(*inputs, **named)

    model._compiled_call_impl = torch.compile(compiled, **options)
