"""check_strategy names the promise that a broken strategy breaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.testing import BrokenPromise, check_strategy
from engine.testing.small import OneProcess


class RanksFromOne(OneProcess):
    rank = 1


class RenamesParameters(OneProcess):
    def shard(self, model):
        return nn.Sequential(model)


class WrapsWrongly(OneProcess):
    def wrap(self, model):
        return nn.Sequential(model, nn.Softmax(1))


class MeanOfMeans(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        samples = sum(map(len, batches))
        total = torch.zeros_like(weight)
        for index, batch in enumerate(batches):
            loss = loss_of(batch, index)
            (loss / len(batch) / len(batches) * samples * weight).backward()
            total += loss.detach()
        return total


class ForgetsTheWeight(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        return super().forward_backward(loss_of, batches, torch.ones_like(weight))


class LastBatchOnly(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        total = torch.zeros_like(weight)
        for index, batch in enumerate(batches):
            loss = loss_of(batch, index)
            if index == len(batches) - 1:
                (loss * weight).backward()
            total += loss.detach()
        return total


class RoundsTheWeight(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        return super().forward_backward(loss_of, batches, weight.float().double())


class ReturnsTheMean(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        return super().forward_backward(loss_of, batches, weight) / sum(map(len, batches))


class ReturnsTheWeightedLoss(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        return super().forward_backward(loss_of, batches, weight) * weight


class KeepsTheGraph(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        losses = [loss_of(batch, index) for index, batch in enumerate(batches)]
        total = torch.stack(losses).sum()
        (total * weight).backward(retain_graph=True)
        return total


class SkipsAnIndex(OneProcess):
    def forward_backward(self, loss_of, batches, weight):
        return super().forward_backward(lambda batch, index: loss_of(batch, 0), batches, weight)


class NormOfNorms(OneProcess):
    def norm(self, parameters):
        return torch.stack([p.grad.norm() for p in parameters]).sum()


class ClipsEachParameter(OneProcess):
    def clip(self, parameters, largest):
        norm = self.norm(parameters)
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], largest)
        return norm


class ReturnsTheNormAfter(OneProcess):
    def clip(self, parameters, largest):
        super().clip(parameters, largest)
        return self.norm(parameters)


class ScalesUp(OneProcess):
    def clip(self, parameters, largest):
        norm = self.norm(parameters)
        for parameter in parameters:
            parameter.grad *= largest / norm
        return norm


class AgreesInACopy(OneProcess):
    def agree(self, bad):
        bad_everywhere = bad.clone()
        bad.zero_()
        return bad_everywhere


class NeverStops(OneProcess):
    def any(self, flag):
        return False


class StopsWithATensor(OneProcess):
    def any(self, flag):
        return torch.tensor(flag)


class Averages(OneProcess):
    def sum(self, values):
        return values / 2


class IgnoresTheMask(OneProcess):
    def update(self, precision, optimizer, bad):
        optimizer.step()


class MasksTheGradient(OneProcess):
    """A zero gradient is no masked update: momentum still moves the weights."""

    def update(self, precision, optimizer, bad):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad *= 1 - bad
        optimizer.step()


class NeverUpdates(OneProcess):
    def update(self, precision, optimizer, bad):
        pass


class TellsVectors(OneProcess):
    def telemetry(self):
        return {"bytes": torch.zeros(3)}


GRADIENTS = "the gradients are those of weight x summed loss"


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (RanksFromOne, "rank is within 0..world - 1"),
        (RenamesParameters, r"shard\(\) keeps parameter names"),
        (WrapsWrongly, "the wrapped model computes what the model does"),
        (MeanOfMeans, f"{GRADIENTS}.* with 3 micro-batches"),
        (ForgetsTheWeight, GRADIENTS),
        (LastBatchOnly, f"{GRADIENTS}.* with 3 micro-batches"),
        (RoundsTheWeight, GRADIENTS),
        (ReturnsTheMean, "returns this process's summed loss"),
        (ReturnsTheWeightedLoss, "returns this process's summed loss"),
        (KeepsTheGraph, "returns this process's summed loss, unweighted and without a graph"),
        (SkipsAnIndex, "calls loss_of once for each micro-batch"),
        (NormOfNorms, r"norm\(\) is the global norm"),
        (ClipsEachParameter, r"clip\(\) scales the gradients"),
        (ReturnsTheNormAfter, r"clip\(\) scales the gradients .* returns the norm before; it returns"),
        (ScalesUp, r"clip\(\) scales the gradients"),
        (AgreesInACopy, r"agree\(\) is 1.0 in place"),
        (NeverStops, r"any\(\) is whether any process raised the flag"),
        (StopsWithATensor, r"any\(\) is whether any process raised the flag"),
        (Averages, r"sum\(\) adds up all processes' values"),
        (IgnoresTheMask, r"update\(\) leaves parameters and optimiser state bit-equal"),
        (MasksTheGradient, r"update\(\) leaves parameters and optimiser state bit-equal"),
        (NeverUpdates, r"update\(\) applies the optimiser's step when bad is 0.0"),
        (TellsVectors, r"telemetry\(\) gives scalar tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_broken_strategy_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"(?s)^{broken.__name__} breaks a promise: .*{promise}"):
        check_strategy(broken())


def test_sound_strategy_passes():
    check_strategy(OneProcess())
