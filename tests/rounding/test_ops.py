"""Rounding as torch's dispatcher and compiler see it, and what bad calls are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import UsageError
from engine.ops import add_bfloat16, instruction_sets, round_bfloat16, round_dynamic, round_fixed, round_float16
from engine.ops.extension import _cpu
from engine.ops.rounding import ops


def layer(x: Tensor, weight: Tensor, step: Tensor, exponent: Tensor, counts: Tensor) -> Tensor:
    """Round as a policy would: new tensors, in place, by a range on the device, a weight's update, all counted."""
    given: dict[str, Any] = {"mode": "stochastic", "key": (1 << 63) + 5, "step": step}
    y = round_fixed(x * 2, 6, 10, counts=counts, **given)
    y = round_dynamic(y + 0.001, 10, exponent, counts=counts, **given)
    round_fixed(y, 4, 4, out=y)
    add_bfloat16(weight, y * 0.01, key=7, step=step, counts=counts)
    return round_float16(round_bfloat16(y + weight.float(), **given).float() / 3)


def test_compiled_it_is_the_same_and_a_step_on_the_device_recompiles_nothing() -> None:
    compilations = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    step, exponent = torch.tensor(0), torch.tensor(3, dtype=torch.int32)
    x = torch.randn(8, 6, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    found: list[Tensor] = []
    for number in range(4):
        step.fill_(number)
        exponent.fill_(3 - number)
        sides = []
        for function in (layer, compiled):
            weight, counts = torch.full_like(x, 0.75, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.int64)
            sides.append((function(x, weight, step, exponent, counts), weight, counts))
        assert all(map(torch.equal, *sides))
        assert sides[0][0].stride() == sides[1][0].stride() == x.stride()
        found.append(sides[0][0])
    assert compilations == 1
    assert not torch.equal(found[0], found[1])


def test_the_ops_keep_what_their_schemas_say() -> None:
    step, counts = torch.tensor(3), torch.zeros(5, dtype=torch.int64)
    x = torch.randn(3, 4, 5)
    draws = (True, 5, step, 2, counts)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    for op, arguments in (
        (ops.round_fixed, (x, 12, 6, False, None, *draws)),
        (ops.round_fixed_into, (x, torch.empty(3, 4, 5), 12, 6, False, torch.tensor([3], dtype=torch.int32), *draws)),
        (ops.round_bfloat16, (x, *draws)),
        (ops.round_bfloat16_into, (x, torch.empty(3, 4, 5, dtype=torch.bfloat16), *draws)),
        (ops.round_float16, (x.transpose(0, 1), counts)),
        (ops.round_float16_into, (x, torch.empty(3, 4, 5), None)),
        (ops.add_bfloat16_, (x.bfloat16(), x, None, *draws)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=utilities)


def test_what_watches_torch_sees_the_calls() -> None:
    from torch.profiler import profile
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = torch.randn(10)
    with Watch():
        round_fixed(x, 6, 10)
    assert seen == ["engine.round_fixed.default"]
    with profile() as events:
        round_fixed(x, 6, 10, out=x)
    assert "engine::round_fixed_into" in {event.name for event in events.events()}
    with torch._subclasses.FakeTensorMode():
        assert round_bfloat16(torch.empty(3, 4)).dtype == torch.bfloat16


def test_autograd_is_told_of_what_is_overwritten_and_has_no_derivative() -> None:
    x = torch.randn(10, requires_grad=True)
    y = x.exp()  # whose backward needs y
    with torch.no_grad():
        round_fixed(y, 6, 10, out=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        round_fixed(x, 6, 10).sum().backward()
    with torch.inference_mode():
        z = torch.ones(3)
        round_fixed(z, 6, 10, out=z)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mode": "random"}, "no such mode: random; known: nearest, stochastic"),
        ({"mode": "neerest"}, "did you mean 'nearest'"),
    ],
)
def test_an_unknown_mode_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        round_fixed(torch.zeros(3), 6, 10, **given)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: round_fixed(x.half(), 6, 4), "torch.float32 or torch.float64 is needed, not torch.float16"),
        (lambda x: round_bfloat16(x.double()), "torch.float32 is needed, not torch.float64"),
        (
            lambda x: round_fixed(x, 6, 4, out=x.double()),
            r"must be torch.float32 \[3\] on cpu, not torch.float64 \[3\]",
        ),
        (lambda x: round_fixed(x, 6, 4, out=x[:2]), r"must be torch.float32 \[3\] on cpu, not torch.float32 \[2\]"),
        (lambda x: round_bfloat16(x, out=x), r"must be torch.bfloat16 \[3\]"),
        (lambda x: round_fixed(x, 6, 4, counts=x), r"counts must be int64 \[5\] on cpu, not torch.float32 \[3\]"),
        (lambda x: round_fixed(x, 6, 4, mode="stochastic", key=-1), "64 bits without a sign, not -1"),
        (lambda x: round_fixed(x, 6, 4, mode="stochastic", key=1 << 64), "64 bits without a sign"),
        (lambda x: round_fixed(x, 6, 4, mode="stochastic", offset=-1), "offset must be at least 0, not -1"),
        (lambda x: round_fixed(x, 6, 4, mode="stochastic", step=x), "step must be int64 with one element on cpu"),
        (lambda x: round_dynamic(x, 8, torch.tensor(3)), "exponent must be int32 with one element on cpu"),
        (lambda x: add_bfloat16(x, x), r"must be torch.bfloat16 \[3\]"),
        (lambda x: add_bfloat16(x.bfloat16(), x, mode="kahan"), "compensation is what mode 'kahan' needs"),
        (lambda x: add_bfloat16(x.bfloat16(), x, compensation=x.bfloat16()), "compensation is what mode 'kahan' needs"),
        (lambda x: add_bfloat16(x.bfloat16(), x, mode="kahan", compensation=x), r"must be torch.bfloat16 \[3\]"),
    ],
)
def test_tensors_that_do_not_fit_are_told(call: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call(torch.zeros(3))


def test_a_call_past_the_checks_is_an_error_too() -> None:
    isa = next(iter(instruction_sets()))
    nothing = (0,) * 6
    for given, told in (
        (("sse9", 0, (1, 0, 1, 0, 0, 8, 4, 0), 0, nothing, 1), "no instruction set is called sse9"),
        ((isa, 6, (1, 0, 1, 0, 0, 8, 4, 0), 0, nothing, 1), "a kind of rounding is 0 to 5"),
        ((isa, 0, (1, -1, 1, 0, 0, 8, 4, 0), 0, nothing, 1), "a size is negative"),
        ((isa, 0, (1, 0, 1, 0, 0, 8, 4, 0), 0, nothing, 0), "there must be at least 1 thread"),
    ):
        with pytest.raises(ValueError, match=told):
            _cpu.round_elements(*given)
