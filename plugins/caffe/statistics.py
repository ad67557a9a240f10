"""BatchNorm with running statistics as Caffe keeps them: right from the first update on."""

from __future__ import annotations

from math import ceil, isfinite, log, log1p

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

FULL = 1e-6  # share of the oldest batch from which on the sum of weights is taken for its limit
MOST = 2**31 - 1
MATURE = 1_000_000  # batches, of statistics of which only that is known that they are of long training


class _Summed(_BatchNorm):
    """torch's BatchNorm, whose running statistics are means of all batches so far, weighed by kept^age.

    kept: 1 - momentum, Caffe's moving_average_fraction. Caffe keeps sums, S = kept S + statistic and F = kept F + 1,
    and divides S by F (caffe/layers/batch_norm_layer.cpp); so the newest batch's share is 1/F, and with n batches
    F = (1 - kept^n) / (1 - kept). torch's share is always 1 - kept, and what it began with, 0 and 1, is in it for long.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised blob."""
        if not self.training:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        self._check_input_dim(x)
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        result = functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self._share().to(mean.dtype)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        return result

    def _share(self) -> Tensor:
        """Return the newest batch's share of the statistics, on the device, so that nothing waits for it."""
        kept, count = 1 - self.momentum, self.num_batches_tracked.double()
        if kept in (0, 1):
            return 1 / count if kept else torch.ones_like(count)
        return (kept - 1) / torch.expm1(count * log(kept))


class BatchNorm1d(_Summed, nn.BatchNorm1d):
    """Of vectors."""


class BatchNorm2d(_Summed, nn.BatchNorm2d):
    """Of images."""


def batches_of(factor: float, kept: float) -> int:
    """Return after how many batches Caffe's sum of weights is ``factor``; its limit counts as ever so many."""
    if not factor > 0:
        return 0
    if kept == 1:
        return min(round(min(factor, MOST)), MOST)
    if kept == 0:
        return 1
    left = 1 - min(factor, MOST) * (1 - kept)
    return ceil(log(FULL) / log(kept)) if left < FULL else round(log1p(left - 1) / log(kept))


def fraction_of(value: float) -> float:
    """Return a moving_average_fraction, Caffe's default where a file has one that cannot be."""
    return value if isfinite(value) and 0 <= value <= 1 else 0.999
