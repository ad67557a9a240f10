"""check_precision names the promise that a broken numeric policy breaks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from engine import Precision
from engine.interfaces import Precision as Policy
from engine.testing import BrokenPromise, check_precision


class Sound(Policy):
    dtype = torch.float32


class Scaled(Sound):
    """A right one with state: the loss scale doubles every few updates, and weights decay by a step count."""

    def __init__(self):
        self.factor = torch.tensor(8.0)
        self.updates = torch.tensor(0.0)

    def scale(self):
        return self.factor

    def unscale(self, optimizer):
        bad = torch.zeros(())
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, bad, 1 / self.factor)
        return bad

    def update(self, optimizer, bad):
        super().update(optimizer, bad)
        applied = 1 - bad
        self.updates += applied
        self.factor *= torch.where(self.updates % 4 == 0, 1 + applied, 1.0)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter *= 1 - applied * 1e-5 * self.updates

    def telemetry(self):
        return {"precision/scale": self.factor}

    def state(self):
        return {"factor": self.factor, "updates": self.updates}

    def load(self, state):
        self.factor, self.updates = state["factor"].clone(), state["updates"].clone()


class LosesState(Scaled):
    def state(self):
        return {}

    def load(self, state):
        pass


class DoesNotLoad(Scaled):
    def load(self, state):
        self.factor = state["factor"].clone()


class StatesPlainNumbers(Scaled):
    def state(self):
        return {"factor": float(self.factor), "updates": float(self.updates)}


class Renames(Sound):
    def convert(self, model):
        return nn.Sequential(model)


class HalvesAgain(Sound):
    def convert(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter /= 2
        return super().convert(model)


class IntegerImages(Sound):
    dtype = torch.int8

    def convert(self, model):
        return model


class DrownsInNoise(Sound):
    def update(self, optimizer, bad):
        super().update(optimizer, bad)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter += torch.randn_like(parameter) * (1 - bad)


class Explodes(Sound):
    def update(self, optimizer, bad):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad *= -1e6
        super().update(optimizer, bad)


class OneForward(Sound):
    def __init__(self):
        self.context = self.once()

    @contextmanager
    def once(self):
        yield

    def forward(self):
        return self.context


class IgnoresTheMask(Sound):
    def update(self, optimizer, bad):
        optimizer.step()


class MasksWeightsOnly(Sound):
    def update(self, optimizer, bad):
        kept = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        optimizer.step()
        with torch.no_grad():
            for parameter, old in zip((p for g in optimizer.param_groups for p in g["params"]), kept, strict=True):
                parameter.copy_(torch.where(bad > 0, old, parameter))


class NeverUpdates(Sound):
    def update(self, optimizer, bad):
        pass


class DoesNotUnscale(Scaled):
    def unscale(self, optimizer):
        return torch.zeros(())


class UnscalesTwice(Scaled):
    def unscale(self, optimizer):
        super().unscale(optimizer)
        return super().unscale(optimizer)


class SeesNoInfinity(Scaled):
    def unscale(self, optimizer):
        return super().unscale(optimizer) * 0


class LeavesEvaluationWeights(Sound):
    @contextmanager
    def evaluation_weights(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        yield


class RestoresUnlessItFails(Sound):
    @contextmanager
    def evaluation_weights(self, model):
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        yield
        model.load_state_dict(kept)


class RestoresApproximately(Sound):
    @contextmanager
    def evaluation_weights(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
            yield
            for parameter in model.parameters():
                parameter.div_(1.1)


class LoadsIntoWhatPrepareMakes(Sound):
    """Right in training, where load() follows prepare(); an evaluation prepares nothing."""

    def prepare(self, model, optimizer, key):
        self.steps = torch.zeros(())

    def state(self):
        return {"steps": self.steps}

    def load(self, state):
        self.steps.copy_(state["steps"])


class TellsLists(Sound):
    def telemetry(self):
        return {"overflow": [1, 2]}


@dataclass
class Options(Precision):
    """Builds a policy of a class given."""

    policy: object = None

    def build(self):
        return self.policy()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (LosesState, "goes on exactly as if it had not been interrupted"),
        (DoesNotLoad, "goes on exactly as if it had not been interrupted"),
        (StatesPlainNumbers, r"state\(\) returns tensors by name"),
        (Renames, r"convert\(\) keeps the parameters' names and shapes"),
        (HalvesAgain, r"convert\(\) leaves every bit of a model that is converted already; they differ"),
        (IntegerImages, "dtype is the floating-point type of the images; it is torch.int8"),
        (DrownsInNoise, "training in these numbers learns"),
        (Explodes, "training in these numbers learns"),
        (OneForward, r"a step forward and backward works in the contexts of computing\(\) and forward\(\)"),
        (IgnoresTheMask, r"update\(\) changes nothing when bad is 1.0; the parameters changed"),
        (MasksWeightsOnly, r"update\(\) changes nothing when bad is 1.0; the optimiser's state changed"),
        (NeverUpdates, r"update\(\) applies the optimiser's step when bad is 0.0"),
        (DoesNotUnscale, r"unscale\(\) divides the gradients by scale\(\)"),
        (UnscalesTwice, r"unscale\(\) divides the gradients by scale\(\)"),
        (SeesNoInfinity, r"unscale\(\) returns 1.0 where a gradient is not finite"),
        (LeavesEvaluationWeights, r"evaluation_weights\(\) puts every bit of the model back.*; they differ$"),
        (RestoresUnlessItFails, r"evaluation_weights\(\) puts every bit of the model back.* after an exception$"),
        (RestoresApproximately, r"evaluation_weights\(\) puts every bit of the model back.*; they differ$"),
        (LoadsIntoWhatPrepareMakes, r"convert\(\) and then load\(\) are all that an evaluation"),
        (TellsLists, r"telemetry\(\) gives scalar tensors by tag"),
    ],
)
def test_broken_precision_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"(?s)^Options breaks a promise: .*{promise}"):
        check_precision(Options(policy=broken))


@pytest.mark.parametrize("sound", [Sound, Scaled])
def test_sound_precision_passes(sound):
    check_precision(Options(policy=sound))


def test_a_ready_policy_can_be_checked_too():
    check_precision(Scaled())
