"""Data parallelism in numbers of few bits, and compiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine import Precision, UsageError
from engine.options import Model
from engine.plugins.parallel import Data, Single
from engine.plugins.precision import Bfloat16, Bfloat16SR, DynamicFixed, Fixed, Float16
from engine.testing import small_run
from engine.testing.processes import together

# Sums of products of few bits are exact in float32, in whatever order. Of others only the order of sums is another.
POLICIES: dict[str, tuple[Precision, float]] = {
    "fixed": (Fixed(), 0.0),
    "dynamic_fixed": (DynamicFixed(calibration=3, period=1, rounding="stochastic"), 0.0),
    "float16": (Float16(init_scale=2.0**23, growth_interval=3), 1e-3),
    "bfloat16": (Bfloat16(), 1e-2),
}


@dataclass
class Plain(Model):
    """A network without BatchNorm and dropout, which would see what a process has."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(inputs[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs))


def trained(out: str, parallel: Single | Data) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor], int]]:
    """Return, for each policy, a run's weights, the policy's state, and how many steps were left out."""
    found = {}
    for name, (precision, _) in POLICIES.items():
        run = small_run(
            Path(out) / name, parallel=parallel, precision=precision, model=Plain(), batch=8, accumulate=2, steps=12
        )
        run.fit()
        run.lock.close()
        found[name] = (dict(run.model.state_dict()), run.precision.state(), int(run.guard.skipped))
    return found


def test_two_processes_compute_in_few_bits_what_one_does(tmp_path: Path) -> None:
    alone = trained(str(tmp_path / "1"), Single())
    assert 0 < alone["float16"][2] < 12, "the loss scale was too large, and then was not"
    for shared in together(2, trained, str(tmp_path / "2"), Data()):
        for name, (weights, state, skipped) in alone.items():
            others, other_state, other_skipped = shared[name]
            tolerance = POLICIES[name][1]
            for key, value in weights.items():
                torch.testing.assert_close(others[key], value, rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")
            assert skipped == other_skipped
            assert state.keys() == other_state.keys()
            if "counts" in state:  # both processes count what they share: parameters, and not samples
                once, both = state["counts"], other_state["counts"]
                assert bool(((both == once) | (both == 2 * once)).all())
            assert [k for k in state if k != "counts" and not torch.equal(state[k], other_state[k])] == []


def refusal() -> str:
    with pytest.raises(UsageError) as refused:
        Data().build().shard(Bfloat16SR().build().convert(nn.Linear(2, 2)))
    return str(refused.value)


def test_gradients_wider_than_weights_are_refused() -> None:
    for message in together(2, refusal):
        assert message.endswith("choose precision=bfloat16, or parallel.canonical=2")


def losses(out: str, compiled: bool) -> list[float]:
    """Return the losses of the last step with several ways to be data-parallel."""
    found = []
    for place, parallel in enumerate((Data(), Data(batch_norm="synchronised"), Data(canonical=2), Data(sharded=True))):
        run = small_run(Path(out) / str(place), parallel=parallel, compile=compiled, accumulate=2, steps=4, log_every=9)
        run.fit()
        run.lock.close()
        found.append(float(run.metrics.sums[0]))
    return found


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_compiled_it_computes_the_same(tmp_path: Path) -> None:
    expected = together(2, losses, str(tmp_path / "eager"), False)
    for found, right in zip(together(2, losses, str(tmp_path / "compiled"), True, timeout=500), expected, strict=True):
        assert found == pytest.approx(right, rel=1e-4)
