"""The single-process strategy against plain autograd, and the plain precisions and transfer plan."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine import Batch
from engine.anatomy import Anatomy
from engine.freezing import freeze
from engine.plugins.parallel import Single
from engine.plugins.precision import Float32, Float64
from engine.plugins.transfer import NoTransfer

Command = Callable[..., tuple[int, str, str]]


def model(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 3, dtype=dtype)


def batches(sizes: tuple[int, ...], dtype: torch.dtype) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    n = sum(sizes)
    images = torch.randn(n, 6, generator=generator).to(dtype).split(sizes)
    targets = torch.randint(0, 3, (n,), generator=generator).split(sizes)
    samples = torch.arange(n).split(sizes)
    return [Batch(*parts) for parts in zip(images, targets, samples, strict=True)]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(12,), (5, 4, 3)])
def test_micro_batches_give_the_gradient_of_the_weighted_sum(sizes: tuple[int, ...], weight_dtype: torch.dtype) -> None:
    network, seen = model(torch.float64), []

    def loss_of(batch: Batch, index: int) -> Tensor:
        seen.append((index, len(batch)))
        return nn.functional.cross_entropy(network(batch.images), batch.targets, reduction="sum")

    weight = torch.tensor(0.125, dtype=weight_dtype)
    loss = Single().build().forward_backward(loss_of, batches(sizes, torch.float64), weight)
    assert seen == list(enumerate(sizes))
    reference = model(torch.float64)
    [whole] = batches((12,), torch.float64)
    expected = nn.functional.cross_entropy(reference(whole.images), whole.targets, reduction="sum")
    (expected * 0.125).backward()
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad
    for got, wanted in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_scales_to_the_global_norm(largest: float) -> None:
    strategy = Single().build()
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    before = []
    for parameter in parameters[:2]:  # the last has no gradient
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
        before.append(parameter.grad.clone())
    true = sum(float(value) ** 2 for grad in before for value in grad.flatten()) ** 0.5
    assert strategy.norm(parameters).item() == pytest.approx(true, rel=1e-6)
    assert strategy.clip(parameters, largest).item() == pytest.approx(true, rel=1e-6)
    for parameter, grad in zip(parameters[:2], before, strict=True):
        torch.testing.assert_close(parameter.grad, grad * min(1.0, largest / true), rtol=1e-5, atol=1e-7)
    assert strategy.norm(parameters).item() <= min(largest, true) * (1 + 1e-6)


def test_one_process_agrees_with_itself() -> None:
    strategy = Single().build()
    assert (strategy.rank, strategy.world) == (0, 1)
    values, bad = torch.tensor([1.0, 2.0]), torch.tensor(1.0)
    assert torch.equal(strategy.sum(values), values)
    assert strategy.agree(bad) is bad
    assert (strategy.any(True), strategy.any(False)) == (True, False)
    network = model(torch.float32)
    assert strategy.wrap(strategy.shard(network)) is network


@pytest.mark.parametrize(("options", "dtype"), [(Float32(), torch.float32), (Float64(), torch.float64)])
def test_a_precision_computes_in_its_type_throughout(options: Float32 | Float64, dtype: torch.dtype) -> None:
    precision = options.build()
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    names = list(network.state_dict())
    converted = precision.convert(network)
    assert list(converted.state_dict()) == names
    floating = [value.dtype for value in converted.state_dict().values() if value.is_floating_point()]
    assert set(floating) == {precision.dtype} == {dtype}
    with precision.forward():
        out = converted(torch.randn(2, 1, 5, 5, dtype=dtype))
    assert out.dtype == dtype
    assert precision.scale() is None
    assert precision.state() == {}


def test_several_processes_are_refused_in_a_line(engine: Command) -> None:
    code, out, error = engine("train", "parallel.processes=2")
    assert (code, out) == (2, "")
    expected = "engine: parallel.processes=2: parallel=single is one process; choose parallel=data, or another"
    assert error.splitlines() == [expected]


def test_float64_reaches_float64_accuracy() -> None:
    precision = Float64().build()
    converted = precision.convert(model(torch.float32))
    x = torch.randn(4, 6, dtype=torch.float64)
    weight, bias = (value.detach().double() for value in (converted.weight, converted.bias))
    exactly = torch.stack([(weight * row).sum(1) + bias for row in x])
    assert (converted(x) - exactly).abs().max() < 1e-14


def test_without_transfer_everything_trains_in_one_stage() -> None:
    plan = NoTransfer().build()
    [stage] = plan.stages(100)
    assert stage.steps == 100
    network = model(torch.float32)
    anatomy = Anatomy(lambda outputs: network, 6, (1, 1, 6))
    freeze(network, plan.factors(network, anatomy, stage))
    assert all(parameter.requires_grad for parameter in network.parameters())
