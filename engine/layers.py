"""Layers that draw at random while they train, and how an evaluation lets them draw again.

A layer is stochastic if it is one of torch's dropout layers with ``p`` above 0, or says so: ``module.stochastic``
is then True, as for those below. While it evaluates, such a layer computes an expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class DropConnectLinear(nn.Linear):
    """A linear layer that, in training, drops each weight with probability ``p`` and divides the rest by 1 - p.

    While it evaluates it computes with the weights themselves, which are the mean of those it trained with. DropConnect
    is from Wan et al. 2013 ("Regularization of neural networks using DropConnect"). One mask is drawn for a pass, where
    the paper draws one for each of its images: each image's output is distributed as there, but those of one pass
    depend on each other. Biases are kept. The mask comes from torch's generator, as dropout's does. Parameters have the
    names of ``nn.Linear``'s. Raises ValueError unless 0 <= p < 1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, p: float = 0.5, **more: Any) -> None:
        super().__init__(in_features, out_features, bias, **more)
        self.p = _below_one(p)

    @property
    def stochastic(self) -> bool:
        """Whether training draws."""
        return self.p > 0

    def forward(self, input: Tensor) -> Tensor:
        """Return input W'^T + b, with the masked weights in training."""
        return functional.linear(input, functional.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"{super().extra_repr()}, p={self.p}"


class DropConnectConv2d(nn.Conv2d):
    """A convolution that, in training, drops each weight of its filters with probability ``p``: see DropConnectLinear.

    The same filters, one mask to a pass, are used at every place of all images. As its class computes in its own way,
    ``kernels=`` leaves it to torch. Parameters have the names of ``nn.Conv2d``'s. Raises ValueError unless 0 <= p < 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], *, p: float = 0.5, **more: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **more)
        self.p = _below_one(p)

    @property
    def stochastic(self) -> bool:
        """Whether training draws."""
        return self.p > 0

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, with the masked filters in training."""
        return self._conv_forward(input, functional.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"{super().extra_repr()}, p={self.p}"


class StochasticDepth(nn.Module):
    """The end of a residual branch: in training it is kept with probability ``survival``, else it gives zeros.

    While it evaluates it multiplies by ``survival``, the expectation, as Huang et al. 2016 ("Deep networks with
    stochastic depth", equation 5) do. They drop a branch for a whole mini-batch; here it is drawn for each image
    [n, ...] apart, from torch's generator, so that the device decides and a CUDA graph may hold it. Raises ValueError
    unless 0 < survival <= 1.
    """

    def __init__(self, survival: float) -> None:
        super().__init__()
        if not 0 < survival <= 1:
            raise ValueError(f"survival is {survival}, but must be above 0 and at most 1")
        self.survival = survival

    @property
    def stochastic(self) -> bool:
        """Whether training draws."""
        return self.survival < 1

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch of those images that keep it, zeros for the others; the scaled branch in evaluation."""
        if not self.stochastic:
            return branch
        if not self.training:
            return branch * self.survival
        return branch * _kept(branch, self.survival)

    def extra_repr(self) -> str:
        """Return the layer's settings."""
        return f"survival={self.survival}"


@torch.fx.wrap
def _kept(branch: Tensor, survival: float) -> Tensor:
    """Return 1 or 0 for each image, drawn; one node of a traced graph, for which an image's shape is not known."""
    return branch.new_empty((len(branch), *(1,) * (branch.ndim - 1))).bernoulli_(survival)


def _below_one(p: float) -> float:
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, but must be at least 0 and below 1")
    return p


def stochastic_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that draw while they train, in its own order."""
    return [module for module in model.modules() if _draws(module)]


def _draws(module: nn.Module) -> bool:
    said = getattr(module, "stochastic", None)
    if isinstance(said, bool):
        return said
    return isinstance(module, DROPOUTS) and module.p > 0


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Within ``with``, layers may be put into training or evaluation mode; each has its own again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def drawing(model: nn.Module) -> Iterator[None]:
    """Within ``with``, the stochastic layers draw as they do in training; all others stay in the mode they are in."""
    layers = stochastic_layers(model)
    with modes_kept(model):
        for layer in layers:
            layer.training = True  # alone: what is inside it (BatchNorm, say) keeps its mode
        yield


@contextmanager
def torch_draws_kept(device: torch.device) -> Iterator[None]:
    """Within ``with``, torch's generators may be seeded; their states are put back afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
