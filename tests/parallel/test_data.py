"""Data parallelism against plain autograd, on several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import Batch, hookimpl
from engine.distributed import current
from engine.distributed.watch import ProcessLost
from engine.options import Model, Observer
from engine.plugins.parallel import Data, Single
from engine.plugins.precision import Float64
from engine.testing import check_strategy, small_run
from engine.testing.processes import together


@pytest.mark.parametrize("world", [2, 4])
def test_it_keeps_what_a_strategy_promises(world: int) -> None:
    together(world, check_strategy, Data())


# Shares of different sizes


@dataclass
class Plain(Model):
    """A network without BatchNorm and dropout, which would see what a process has."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(inputs[0], 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, outputs))


class Kept(Observer):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def build(self) -> Kept:
        return self

    @hookimpl
    def on_backward_end(self, run: Any) -> None:
        self.gradients += [p.grad.clone() for p in run.parameters]


def gradients_of_a_run(out: str, parallel: Single | Data) -> tuple[list[int], list[Tensor]]:
    """Return how many samples this process had of each micro-batch, and the gradients of each step."""
    kept, sizes = Kept(), []
    run = small_run(
        Path(out), parallel=parallel, batch=8, accumulate=2, steps=3, model=Plain(), precision=Float64(),
        observe={"kept": kept},
    )  # fmt: skip
    inner = run.loss_of
    run.loss_of = lambda batch, *more: sizes.append(len(batch)) or inner(batch, *more)  # type: ignore[method-assign]
    run.fit()
    run.lock.close()
    return sizes, kept.gradients


def test_shares_that_differ_by_a_sample_count_by_their_samples(tmp_path: Path) -> None:
    _, expected = gradients_of_a_run(str(tmp_path / "1"), Single())
    found = together(3, gradients_of_a_run, str(tmp_path / "3"), Data())
    assert [sizes[:2] for sizes, _ in found] == [[2, 2], [3, 3], [3, 3]]
    assert len(found[0][1]) == len(expected) == 3 * 4
    for gradient, right in zip(found[0][1], expected, strict=True):
        assert (gradient - right).norm() <= 1e-12 * right.norm()


# What is sent


def network(inputs: int = 48, outputs: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs))


def passes(model: nn.Module, options: Data, samples: list[Tensor]) -> tuple[list[list[Tensor]], list[float]]:
    """Return the gradients of a step for each of ``samples``, this process's, and how many bytes each step sent."""
    strategy = options.build()
    wrapped = strategy.wrap(strategy.shard(model))
    gradients, sent = [], []
    strategy.group.traffic.read(1)
    for images in samples:
        batch = Batch(images, torch.zeros(len(images)), torch.arange(len(images)))
        strategy.forward_backward(lambda batch, index: wrapped(batch.images).square().sum(), [batch], torch.tensor(0.5))
        gradients.append([p.grad.clone() for p in model.parameters()])
        sent.append(strategy.group.traffic.read(1)["communication/all_reduce_bytes"])
        for parameter in model.parameters():
            parameter.grad = None
    return gradients, sent


def images_of(rank: int, step: int, samples: int = 1, inputs: int = 48) -> Tensor:
    return torch.randn(samples, inputs, generator=torch.Generator().manual_seed(10 * step + rank))


def own_gradients(rank: int, step: int) -> list[Tensor]:
    model = network()
    (0.5 * model(images_of(rank, step)).square().sum()).backward()
    return [p.grad for p in model.parameters()]  # type: ignore[misc]


def sent_in_every_way(steps: int) -> dict[str, tuple[list[list[Tensor]], list[float]]]:
    rank = current().rank
    samples = [images_of(rank, step) for step in range(steps)]
    return {
        compress: passes(network(), Data(compress=compress, compress_rank=2, compress_after=2), samples)
        for compress in ("none", "float16", "bfloat16", "powersgd")
    }


def test_what_is_sent_is_summed_and_counted() -> None:
    steps, numbers = 4, 48 * 32 + 32
    everyone = together(2, sent_in_every_way, steps)
    expected = [[own_gradients(rank, step) for rank in range(2)] for step in range(steps)]
    for found in everyone:
        assert found["none"][1] == [4 * numbers] * steps  # 2 (K - 1) / K times the bytes, for K = 2
        assert found["float16"][1] == found["bfloat16"][1] == [2 * numbers] * steps
        # PowerSGD sends the first two whole, and then two matrices of 2 columns, and the bias as it is.
        assert found["powersgd"][1] == [4 * numbers] * 2 + [4 * ((48 + 32) * 2 + 32)] * 2
        for step in range(steps):
            for place, (one, other) in enumerate(zip(*expected[step], strict=True)):
                assert torch.equal(found["none"][0][step][place], one + other)
                for dtype in (torch.float16, torch.bfloat16):
                    gradient = found[str(dtype).removeprefix("torch.")][0][step][place]
                    assert torch.equal(gradient, (one.to(dtype) + other.to(dtype)).float())
                # One sample in each process makes a matrix of rank 2, which two columns hold.
                torch.testing.assert_close(found["powersgd"][0][step][place], one + other, rtol=1e-4, atol=1e-4)


def after_a_bad_step() -> list[bool]:
    strategy = Data(compress="powersgd", compress_after=2).build()
    model = network()
    wrapped = strategy.wrap(model)
    finite = []
    for step in range(5):
        images = images_of(0, step) * (float("nan") if step == 3 else 1.0)
        batch = Batch(images, torch.zeros(1), torch.arange(1))
        strategy.forward_backward(lambda batch, index: wrapped(batch.images).square().sum(), [batch], torch.tensor(1.0))
        finite.append(all(bool(p.grad.isfinite().all()) for p in model.parameters()))  # type: ignore[union-attr]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
        strategy.update(Float64().build(), optimizer, torch.tensor(float(not finite[-1])))
        optimizer.zero_grad()
    return finite


def test_a_step_that_is_not_finite_spoils_no_later_one_of_powersgd() -> None:
    assert together(2, after_a_bad_step) == [[True, True, True, False, True]] * 2


# Parameters that no gradient reaches


class Branches(nn.Module):
    """Two layers, the second of which takes part when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes = (nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
        self.both = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.always(x)
        return out + self.sometimes(x) if self.both else out


def used_in(model: nn.Module, both: list[bool]) -> Callable[..., Tensor]:
    """Return the loss of micro-batches in some of which both layers take part; it knows the model by its wrapping."""

    def loss_of(batch: Batch, index: int) -> Tensor:
        inner = model.module if hasattr(model, "module") else model
        inner.both = both[index]  # type: ignore[assignment]
        return model(batch.images).square().sum()

    return loss_of


def micro_batches(rank: int, count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(rank)
    images = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [Batch(each, torch.zeros(2), torch.arange(2)) for each in images]


def use_the_second_layer_on_rank_0(micro: int) -> None:
    strategy = Data().build()
    both = [True] * (micro - 1) + [current().rank == 0]
    loss_of = used_in(strategy.wrap(Branches()), both)
    strategy.forward_backward(loss_of, micro_batches(0, micro), torch.tensor(1.0).double())


@pytest.mark.parametrize("micro", [1, 2])  # with two, the first of them reaches all
def test_parameters_that_no_gradient_reaches_are_named(micro: int) -> None:
    with pytest.raises(AssertionError) as failed:
        together(2, use_the_second_layer_on_rank_0, micro, lost=[0])
    *_, line = str(failed.value).strip().split("\n")
    assert line.startswith("engine.errors.UsageError: parallel=data: no gradient of rank 1 reaches sometimes.weight, ")
    assert line.endswith("take them out of the model, freeze them, or set parallel.find_unused=true (slower)")


USED = [[[True, False], [False, False]], [[False, True], [True, False]]]  # by case, process and micro-batch


def with_unused() -> list[list[Tensor | None]]:
    """Return, for each case, the gradients of a second step."""
    found, rank = [], current().rank
    for both in USED:
        strategy, model = Data(find_unused=True).build(), Branches()
        loss_of = used_in(strategy.wrap(model), both[rank])
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = None
            strategy.forward_backward(loss_of, micro_batches(rank, 2), torch.tensor(1.0).double())
        found.append([p.grad for p in model.parameters()])
    return found


def test_find_unused_lets_some_processes_and_micro_batches_do_without() -> None:
    for case, found in enumerate(zip(*together(2, with_unused), strict=True)):
        reference = Branches()
        for rank in range(2):
            loss_of = used_in(reference, USED[case][rank])
            for index, batch in enumerate(micro_batches(rank, 2)):
                loss_of(batch, index).backward()
        for gradients in found:
            for gradient, parameter in zip(gradients, reference.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12)


# Processes that are lost, and what is told


def lost_in_backward() -> str:
    strategy = Data().build()
    loss_of = used_in(strategy.wrap(Branches()), [True])
    if current().rank == 1:  # ends before the step
        return ""
    with pytest.raises(ProcessLost) as lost:
        strategy.forward_backward(loss_of, micro_batches(0, 1), torch.tensor(1.0).double())
    return str(lost.value)


def test_a_process_that_is_lost_in_a_backward_pass_is_named() -> None:
    message, _ = together(2, lost_in_backward)
    assert "rank 0: all_reduce gradients failed" in message
    assert "rank 1 does not answer" in message


def told() -> list[dict[str, float]]:
    strategy = Data().build()
    model, found = strategy.wrap(Branches()), []
    strategy.telemetry()
    for micro in (1, 3):
        loss_of = used_in(model, [True] * micro)
        for _ in range(2):
            strategy.forward_backward(loss_of, micro_batches(0, micro), torch.tensor(1.0).double())
            strategy.update(Float64().build(), torch.optim.SGD(model.parameters(), fused=True), torch.tensor(0.0))
        found.append({tag: value.item() for tag, value in strategy.telemetry().items()})
    return found


def test_gradients_are_sent_once_a_step_however_many_micro_batches() -> None:
    for scalars in chain.from_iterable(together(2, told)):
        assert scalars["communication/bytes"] == scalars["communication/all_reduce_bytes"] == 8 * 24
        assert scalars["communication/busy_ms"] > 0
        assert 0 <= scalars["communication/overlap"] <= 1
