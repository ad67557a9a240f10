"""float16: its loss scale against torch's GradScaler, its emulation against explicit rounding in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import Key, UsageError
from engine.loader import Position
from engine.plugins.precision import Float16, float16, loss_scale

INF, NAN = float("inf"), float("nan")
START = Position(0, 0)


def steps(count: int, chance: float, seed: int) -> list[float]:
    """Return what is put into a gradient, step by step: 1.0, or now and then something that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    bad = (torch.rand(count, generator=generator) < chance).tolist()
    return [(INF, -INF, NAN)[n % 3] if b else 1.0 for n, b in enumerate(bad)]


@pytest.mark.parametrize(("interval", "growth", "backoff"), [(3, 2.0, 0.5), (1, 1.5, 0.25), (7, 4.0, 0.75)])
def test_scales_gradients_and_weights_go_with_torchs_grad_scaler(interval, growth, backoff):
    """60 steps, a fifth of which overflow; GradScaler on a CPU, driven as its documentation says."""
    options = Float16(
        init_scale=1024.0, growth_interval=interval, growth_factor=growth, backoff_factor=backoff, emulate="always"
    )
    policy, (ours, theirs) = options.build(), (nn.Linear(3, 2), nn.Linear(3, 2))
    ours = policy.convert(ours)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.125, momentum=0.5, fused=True) for m in (ours, theirs)]
    for optimizer in optimizers:
        for parameter in optimizer.param_groups[0]["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    policy.prepare(ours, optimizers[0], Key.of(0))
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=1024.0, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    scaler.scale(torch.ones(()))  # makes its scale
    met = set()
    for number, value in enumerate(steps(60, 0.2, seed=interval)):
        if scaler.get_scale() < 1:
            scaler.update(1024.0)
            policy.load({"loss_scale": torch.tensor(1024.0), "growth_tracker": scaler._growth_tracker.clone()})
        for model in (ours, theirs):
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.randint(-8, 9, parameter.shape, generator=generator) * value * 64.0
        with policy.computing(START, watched=False):
            pass
        flag = policy.unscale(optimizers[0])
        scaler.unscale_(optimizers[1])
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one.grad.nan_to_num(7.0), other.grad.nan_to_num(7.0))
        policy.update(optimizers[0], flag)
        scaler.step(optimizers[1])
        scaler.update()
        assert policy.scale().item() == max(scaler.get_scale(), 1.0)
        assert policy.state()["growth_tracker"].item() == scaler._get_growth_tracker()
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        met.add(scaler.get_scale())
    assert len(met) > 3


def test_the_scale_never_falls_below_its_floor():
    scale = loss_scale.LossScale(loss_scale.Growth(init_scale=100.0, minimum=3.0), torch.device("cpu"))
    seen = []
    for _ in range(8):
        scale.update(torch.ones(()))
        seen.append(scale.value.item())
    assert seen == [50.0, 25.0, 12.5, 6.25, 3.125, 3.0, 3.0, 3.0]


def test_a_scale_that_starts_below_its_floor_is_refused():
    with pytest.raises(UsageError, match=r"^precision.init_scale=8 is below precision.min_scale=16: raise it$"):
        Float16(init_scale=8, min_scale=16).build()
    with pytest.raises(UsageError, match=r"^precision.backoff_factor=0.9: 32 overflows in a row end a run"):
        Float16(init_scale=2.0**26, backoff_factor=0.9).build()


class Explicit(torch.autograd.Function):
    """x.half() on the way there, gradient.half() on the way back, in whatever type they come."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.float().half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.float().half().to(gradient.dtype)


half = Explicit.apply


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 5)).train()


def reference(model: nn.Sequential, images: Tensor, targets: Tensor, scale: float, rounding: Any) -> list[Tensor]:
    """Return the outputs and all gradients, scaled, of the network written out in float64."""
    conv, norm, linear = model[0], model[1], model[5]
    own = [p.detach().double().requires_grad_() for p in model.parameters()]
    x = functional.conv2d(rounding(images.double()), rounding(own[0]), rounding(own[1]), padding=conv.padding)
    x = functional.batch_norm(rounding(x), None, None, own[2], own[3], training=True, eps=norm.eps)
    x = functional.avg_pool2d(rounding(x).relu(), 2).flatten(1)
    assert linear.in_features == x.shape[1]
    outputs = rounding(functional.linear(rounding(x), rounding(own[4]), rounding(own[5])))
    (functional.cross_entropy(outputs, targets, reduction="sum") * scale).backward()
    return [outputs.detach(), *(p.grad for p in own)]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("watched", [False, True])
def test_emulation_is_float64_with_rounding_written_out(watched):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(32, 2, 6, 6, generator=generator)
    targets = torch.randint(0, 5, (32,), generator=generator)
    model, scale = network(), 256.0
    expected = reference(model, images, targets, scale, half)
    unrounded = reference(model, images, targets, scale, lambda x: x)
    policy = Float16(init_scale=scale, emulate="always").build()
    model = policy.convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy.prepare(model, optimizer, Key.of(0))
    before = [p.detach().clone() for p in model.parameters()]
    with policy.computing(START, watched), policy.forward(torch.arange(32)):
        within = [p.detach().clone() for p in model.parameters()]
        outputs = model(images)
        functional.cross_entropy(outputs, targets, reduction="sum").mul(policy.scale()).backward()
    for number, (own, computed) in enumerate(zip(before, within, strict=True)):
        normalising = number in (2, 3)
        assert torch.equal(computed, own if normalising else own.half().float())
    assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))
    assert policy.unscale(optimizer).item() == 0.0
    ours = [outputs.detach(), *(p.grad * scale for p in model.parameters())]
    # A float32 sum may fall on the other side of a midpoint than the float64 one, now and then. The first bias is left
    # to itself: BatchNorm takes it out again, and what remains is noise.
    for number, (one, exact, plain) in enumerate(zip(ours, expected, unrounded, strict=True)):
        if number == 2:
            continue
        assert distance(one, exact) < 0.3 * distance(plain, exact), number
        if number not in (3, 4):
            assert torch.equal(one, one.half().float())
    same = ours[0].double() == expected[0]
    assert same.double().mean() > 0.95


def test_what_overflows_on_the_way_is_flagged_and_leaves_the_weights():
    policy = Float16(init_scale=2.0**20, emulate="always").build()
    model = policy.convert(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy.prepare(model, optimizer, Key.of(0))
    before = [p.detach().clone() for p in model.parameters()]
    with policy.computing(START, False), policy.forward(torch.arange(2)):
        (model(torch.ones(2, 4)).sum() * policy.scale()).backward()  # 2^20 is beyond 65504
    flag = policy.unscale(optimizer)
    assert flag.item() == 1.0
    policy.update(optimizer, flag)
    assert policy.scale().item() == 2.0**19
    assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("emulate", "quick", "emulated"),
    [("auto", False, True), ("auto", True, False), ("always", True, True), ("never", True, False)],
)
def test_a_cpu_emulates_where_it_lacks_the_units(monkeypatch, emulate, quick, emulated):
    monkeypatch.setattr(float16, "trains_in_float16", lambda: quick)
    policy = Float16(emulate=emulate).build()
    assert policy.scale() is None
    model = policy.convert(nn.Linear(4, 2))
    with policy.forward():
        assert model(torch.ones(1, 4)).dtype == (torch.float32 if emulated else torch.float16)
    assert ("emulated" in policy.remark) == emulated


def test_a_cpu_without_the_units_is_refused_where_nothing_may_be_emulated(monkeypatch):
    monkeypatch.setattr(float16, "trains_in_float16", lambda: False)
    with pytest.raises(UsageError, match=r"^precision.emulate=never: .* lacks; choose precision.emulate=auto, or"):
        Float16(emulate="never").build().convert(nn.Linear(4, 2))
