"""BatchNorm over several processes against torch's in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import UsageError
from engine.distributed import current
from engine.plugins.parallel import Data
from engine.testing.processes import together

CASES: list[tuple[type[_BatchNorm], tuple[int, ...], dict[str, Any]]] = [
    (nn.BatchNorm1d, (3,), {}),
    (nn.BatchNorm1d, (3, 4), {"affine": False}),
    (nn.BatchNorm2d, (3, 2, 2), {"momentum": None}),
    (nn.BatchNorm2d, (3, 2, 2), {"track_running_stats": False}),
    (nn.BatchNorm2d, (3, 2, 2), {"momentum": 0.3, "eps": 0.1}),
]
STEPS = 3


def layer(case: int) -> nn.Module:
    kind, _, settings = CASES[case]
    made = nn.Sequential(kind(3, **settings)).double()
    for place, parameter in enumerate(made.parameters()):
        parameter.data = 1 + torch.arange(3).double() + place
    return made


def passes(model: nn.Module, case: int, rows: slice, samples: int) -> dict[str, list[Tensor]]:
    """Return outputs, gradients and buffers of three training passes over some of the samples, and an evaluation."""
    found: dict[str, list[Tensor]] = {"rows": [], "parameters": [], "buffers": []}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        # Far from zero, where the difference of two large sums would lose digits.
        x, factor = (torch.randn(samples, *CASES[case][1], generator=generator, dtype=torch.float64) for _ in range(2))
        x = (100 + 3 * x)[rows].requires_grad_()
        for parameter in model.parameters():
            parameter.grad = None
        out = model(x)
        (out * factor[rows] + out**3).sum().backward()
        found["rows"] += [out.detach(), x.grad]  # type: ignore[list-item]
        found["parameters"] += [p.grad for p in model.parameters()]  # type: ignore[misc]
        found["buffers"] += [buffer.clone() for buffer in model.buffers()]
    found["evaluated"] = [model.eval()(100 + torch.ones(2, *CASES[case][1], dtype=torch.float64)).detach()]
    return found


def in_this_process(shares: Sequence[int]) -> list[dict[str, list[Tensor]]]:
    rank, strategy = current().rank, Data(batch_norm="synchronised").build()
    found = []
    for case, (kind, _, _) in enumerate(CASES):
        model = layer(case)
        names = list(model.state_dict())
        for _ in range(2):  # a second stage comes with the same model
            model = strategy.shard(model)
        assert list(model.state_dict()) == names
        assert isinstance(model[0], kind)
        first = sum(shares[:rank])
        found.append(passes(model, case, slice(first, first + shares[rank]), sum(shares)))
    return found


@pytest.mark.parametrize("shares", [(5, 2), (1, 2, 2, 4)])
def test_it_is_torchs_over_the_whole_batch(shares: Sequence[int]) -> None:
    everyone = together(len(shares), in_this_process, shares)
    for case in range(len(CASES)):
        expected = passes(layer(case), case, slice(None), sum(shares))
        processes = [found[case] for found in everyone]
        for place, right in enumerate(expected["rows"]):
            whole = torch.cat([each["rows"][place] for each in processes])
            torch.testing.assert_close(whole, right, rtol=1e-10, atol=1e-10)
        for place, right in enumerate(expected["parameters"]):
            total = sum(each["parameters"][place] for each in processes)
            torch.testing.assert_close(total, right, rtol=1e-10, atol=1e-10)
        for each in processes:
            for found, right in zip(each["buffers"], expected["buffers"], strict=True):
                torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(each["evaluated"], expected["evaluated"], rtol=1e-10, atol=1e-10)
            assert all(map(torch.equal, each["buffers"], processes[0]["buffers"]))


def test_a_layer_that_is_not_torchs_own_is_refused() -> None:
    class Own(nn.BatchNorm2d): ...

    with pytest.raises(UsageError, match=r"layer '1' is a Own, and only torch's .* choose local"):
        Data(batch_norm="synchronised").build().shard(nn.Sequential(nn.ReLU(), Own(3)))
