"""BatchNorm over the samples of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import UsageError
from engine.distributed.group import Group, current


class Synchronised(_BatchNorm):
    """In training, normalises by mean and variance over all processes' samples, each sample counting the same.

    Shares may differ in size. One collective forward and one backward; all processes keep the same running statistics.
    Evaluating it is what it was. Gradients of ``weight`` and ``bias`` are of this process's samples: who trains sums
    them, as those of all parameters. The processes are those of ``current()``.
    """

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Return x [n, channels, ...] normalised."""
        group = current()
        if not self.training or group.world == 1:
            return super().forward(x)
        self._check_input_dim(x)
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._keep(mean, variance * (count / (count - 1)))
        return out

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.double() if self.momentum is None else self.momentum
        for kept, now in ((self.running_mean, mean), (self.running_var, variance)):
            kept.copy_(kept * (1 - share) + now.to(kept.dtype) * share)


class _Normalise(torch.autograd.Function):
    """Batch normalisation (Ioffe and Szegedy 2015) whose two reductions are over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the output, and the mean, biased variance and number of values of each channel over all processes."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = _statistics(wide, group)
        if x.numel() == x.shape[1] and count <= 1:  # only then is the host to wait for an answer
            raise ValueError(f"BatchNorm needs more than 1 value per channel to train, got input size {list(x.shape)}")
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight.to(wide.dtype)
        shift = -mean * scale if bias is None else bias.to(wide.dtype) - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.group, ctx.has_bias = group, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(_wide(shift, x), wide, _wide(scale, x)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of all processes' loss, and of weight and bias, of this process's samples."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        along = [axis for axis in range(x.ndim) if axis != 1]
        wide = gradient.to(mean.dtype)
        normalised = (x.to(mean.dtype) - _wide(mean, x)) * _wide(inverse, x)
        own = torch.stack([wide.sum(along), (wide * normalised).sum(along)])
        means = ctx.group.all_reduce(own.clone(), "batch norm") / count
        scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
        back = (wide - _wide(means[0], x) - normalised * _wide(means[1], x)) * _wide(scale, x)
        return (
            back.to(x.dtype),
            own[1].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None,
            own[0].to(weight.dtype) if ctx.has_bias and ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _statistics(x: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel over all processes, and how many values they are of.

    Means and sums of squared deviations are put together as by Chan, Golub and LeVeque 1979 ("Updating formulae and a
    pairwise algorithm for computing sample variances"), in the order of ranks, so that all have the same bits.
    """
    along = [axis for axis in range(x.ndim) if axis != 1]
    values = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, along, correction=0)
    own = torch.cat([mean, variance * values, mean.new_tensor([values])])
    everyone = group.all_gather(own[None], "batch norm")
    means, deviations = everyone[:, :-1].tensor_split(2, dim=1)
    counts = everyone[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    squares = (deviations + counts * (means - mean) ** 2).sum(0)
    return mean, squares / count, count


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    """Return a value for each channel in a shape that goes with [n, channels, ...]."""
    return channels.view(1, -1, *(1,) * (like.ndim - 2))


class _Synchronised1d(Synchronised, nn.BatchNorm1d): ...


class _Synchronised2d(Synchronised, nn.BatchNorm2d): ...


class _Synchronised3d(Synchronised, nn.BatchNorm3d): ...


KINDS: dict[type[nn.Module], type[Synchronised]] = {
    nn.BatchNorm1d: _Synchronised1d,
    nn.BatchNorm2d: _Synchronised2d,
    nn.BatchNorm3d: _Synchronised3d,
}


def synchronise(model: nn.Module) -> None:
    """Have the model's BatchNorm layers compute over all processes, in place; it may have been done already.

    They are the same objects, with the same parameters, buffers and names, of a class that is derived from theirs.
    Raises UsageError naming a layer of a kind that is not torch's own.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, Synchronised):
            continue
        if type(module) not in KINDS:
            raise UsageError(
                f"parallel.batch_norm=synchronised: layer '{name}' is a {type(module).__name__}, and only torch's "
                "BatchNorm1d, 2d and 3d can be synchronised: choose local"
            )
        module.__class__ = KINDS[type(module)]


def own_statistics(model: nn.Module) -> list[Tensor]:
    """Return the floating-point buffers that may differ between processes after a step."""
    same = {id(b) for layer in model.modules() if isinstance(layer, Synchronised) for b in layer.buffers()}
    return [buffer for buffer in model.buffers() if buffer.is_floating_point() and id(buffer) not in same]
