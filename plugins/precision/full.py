"""IEEE single and double precision throughout."""

from __future__ import annotations

import torch

from engine.interfaces import Precision


class Float32(Precision):
    """Weights, activations, gradients and optimiser state are float32; no loss scaling."""

    dtype = torch.float32
    capturable = True


class Float64(Precision):
    """Weights, activations, gradients and optimiser state are float64; no loss scaling."""

    dtype = torch.float64
    capturable = True
