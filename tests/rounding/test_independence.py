"""What changes no bit: threads, the layout in memory, in place or not, parts of a tensor, instruction set, device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import instruction_sets
from engine.ops.rounding import add_bfloat16, round_bfloat16, round_fixed, round_float16
from engine.ops.rounding_kernels import ADD_BFLOAT16, ADD_COMPENSATED, BFLOAT16, FIXED, FLOAT16, Call, memory_order, run

KEY = 0x9E3779B97F4A7C15
RAW = KEY - (1 << 64)  # as the kernels are given it
STOCHASTIC = {"mode": "stochastic", "key": KEY, "step": 11}
SETS = [name for name, here in instruction_sets().items() if here]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers of all magnitudes around the formats, with special ones among them."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (x * 2.0 ** torch.randint(-16, 7, shape, generator=generator)).to(dtype)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-45, 3.4e38])
    flat = x.view(-1)
    places = torch.randint(0, flat.numel(), (min(len(special), flat.numel()),), generator=generator)
    flat[places] = special[: len(places)].to(dtype)
    return x


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(bits(a), bits(b))


Kernel = tuple[int, torch.dtype, torch.dtype, bool]
KERNELS: dict[str, Kernel] = {
    "fixed nearest": (FIXED[torch.float32], torch.float32, torch.float32, False),
    "fixed stochastic": (FIXED[torch.float32], torch.float32, torch.float32, True),
    "fixed float64 nearest": (FIXED[torch.float64], torch.float64, torch.float64, False),
    "fixed float64 stochastic": (FIXED[torch.float64], torch.float64, torch.float64, True),
    "bfloat16 nearest": (BFLOAT16, torch.float32, torch.bfloat16, False),
    "bfloat16 stochastic": (BFLOAT16, torch.float32, torch.bfloat16, True),
    "float16": (FLOAT16, torch.float32, torch.float32, False),
    "add stochastic": (ADD_BFLOAT16, torch.float32, torch.bfloat16, True),
    "add compensated": (ADD_COMPENSATED, torch.float32, torch.bfloat16, False),
}


def results(kernel: str, x: Tensor, offset: int = 0, counting: bool = True, **how: object) -> list[Tensor]:
    """Return all that a kernel writes: its result, its compensation, its counts."""
    kind, dtype, to, stochastic = KERNELS[kernel]
    adds = kind in (ADD_BFLOAT16, ADD_COMPENSATED)
    x = x.to(dtype)
    out = torch.empty_like(x, dtype=to).copy_(x.flip(0) * 3) if adds else torch.empty_like(x, dtype=to)
    rest = torch.empty_like(out).copy_(x.flip(0) * 0.002) if kind == ADD_COMPENSATED else None
    counts = torch.zeros(5, dtype=torch.int64) if counting else None
    call = Call(stochastic, RAW, torch.tensor(11), offset, counts, (16, 10, 0), None, rest)
    run(kind, x, out, call, **how)  # type: ignore[arg-type]
    return [t for t in (out, rest, counts) if t is not None]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("offset", [0, 3, 128, 2**33 + 77])
def test_instruction_sets_and_gpus_give_the_same_bits(kernel: str, offset: int, host: ModuleType) -> None:
    for shape in [(1,), (129,), (5, 37, 29), (3, 40_000)]:
        x = values(*shape)
        first = results(kernel, x, offset, isa="baseline")
        assert int(first[-1][0]) == x.numel()
        for isa in SETS:
            assert all(map(same, results(kernel, x, offset, isa=isa), first)), isa
            assert all(map(same, results(kernel, x, offset, counting=False, isa=isa), first[:-1])), isa
        for seed in (0, 5) if x.numel() < 10_000 else (0,):
            host.shuffle(seed)
            assert all(map(same, results(kernel, x, offset, code=host), first)), f"order of threads {seed}"
        host.shuffle(0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (3, 64, 9, 9), (2, 20, 40, 40), (70, 1, 3, 3), (1, 33, 1, 5), (4, 8, 1, 1)]
)
def test_channels_last_is_the_same_elements_elsewhere(kernel: str, shape: tuple[int, ...], host: ModuleType) -> None:
    plain = values(*shape)
    last = plain.contiguous(memory_format=torch.channels_last)
    for offset in (0, 1000):
        expected = results(kernel, plain, offset)
        for isa in SETS:
            found = results(kernel, last, offset, isa=isa)
            assert found[0].stride() == last.stride()
            assert all(map(same, found, expected)), isa
        assert all(map(same, results(kernel, last, offset, code=host), expected))


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_change_nothing(kernel: str) -> None:
    for x in (values(300_001), values(6, 50, 30, 30).contiguous(memory_format=torch.channels_last)):
        one = results(kernel, x, threads=1)
        for threads in (2, 3, 7):
            assert all(map(same, results(kernel, x, threads=threads), one)), threads


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    cut=st.booleans(),
    offset=st.integers(0, 300),
)
def test_any_strides(sizes: list[int], order, cut: bool, offset: int) -> None:  # type: ignore[no-untyped-def]
    dims = list(range(len(sizes)))
    order.shuffle(dims)
    x = values(*sizes).permute(dims)
    plain = x.contiguous()
    if cut:
        x = torch.stack([x, x], -1)[..., 0]
    rounded = round_fixed(plain, 6, 10, offset=offset, **STOCHASTIC)
    assert same(round_fixed(x, 6, 10, offset=offset, **STOCHASTIC).contiguous(), rounded)
    out = torch.empty_like(plain)
    assert round_fixed(x, 6, 10, offset=offset, out=out, **STOCHASTIC) is out
    assert same(out, rounded)
    other = torch.full((*x.shape, 2), 7.5)
    round_fixed(plain, 6, 10, offset=offset, out=other[..., 1], **STOCHASTIC)
    assert same(other[..., 1].contiguous(), rounded)
    assert (other[..., 0] == 7.5).all()
    weight, spread = torch.zeros_like(plain, dtype=torch.bfloat16), torch.zeros(*x.shape, 2, dtype=torch.bfloat16)
    rest, spread_rest = torch.zeros_like(weight), torch.zeros_like(spread)
    for update in (plain, plain * 0.01):
        add_bfloat16(weight, update, mode="kahan", compensation=rest)
        add_bfloat16(spread[..., 1], update, mode="kahan", compensation=spread_rest[..., 0])
    assert same(spread[..., 1].contiguous(), weight)
    assert same(spread_rest[..., 0].contiguous(), rest)
    round_fixed(x, 6, 10, offset=offset, out=x, **STOCHASTIC)
    assert same(x.contiguous(), rounded)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_the_order_in_memory_is_the_one_that_is_told(sizes: list[int], order) -> None:  # type: ignore[no-untyped-def]
    dims = list(range(len(sizes)))
    order.shuffle(dims)
    x = torch.empty([sizes[dim] for dim in dims]).permute([dims.index(dim) for dim in range(len(dims))])
    found = memory_order(tuple(x.shape), x.stride())
    if found is None:
        return
    batches, rows, columns = found
    x.copy_(torch.arange(x.numel()).view(x.shape))
    in_memory = x.as_strided((x.numel(),), (1,))
    numbers = torch.arange(x.numel()).view(batches, columns, rows).transpose(1, 2).reshape(-1)
    assert torch.equal(in_memory, numbers.float())


def test_layouts_of_networks_are_taken_as_they_are() -> None:
    images = torch.empty(4, 16, 5, 5)
    assert memory_order(tuple(images.shape), images.stride()) == (1, 1600, 1)
    assert memory_order((4, 16, 5, 5), (400, 1, 80, 16)) == (4, 25, 16)
    assert memory_order((30, 20), (1, 30)) == (1, 20, 30)
    assert memory_order((3, 0, 2), (0, 2, 1)) == (1, 0, 1)
    assert memory_order((), ()) == (1, 1, 1)
    assert memory_order((4, 5), (10, 1)) is None
    assert memory_order((4, 5), (0, 1)) is None


@pytest.mark.parametrize(
    "rounding",
    [
        lambda x, **given: round_fixed(x, 6, 10, **given, **STOCHASTIC),
        lambda x, **given: round_fixed(x, 6, 10, **given),
        lambda x, out=None, offset=0: round_float16(x, out=out),
    ],
    ids=["stochastic", "nearest", "float16"],
)
def test_in_place_and_in_parts_is_the_same(rounding: Callable[..., Tensor]) -> None:
    x = values(1000)
    expected = rounding(x)
    for cut in (0, 1, 127, 500):
        parts = [rounding(x[:cut].clone()), rounding(x[cut:].clone(), offset=cut)]
        assert same(torch.cat(parts), expected)
    assert rounding(x, out=x) is x
    assert same(x, expected)


def test_bfloat16_in_parts_is_the_same() -> None:
    x = values(1000)
    expected = round_bfloat16(x, **STOCHASTIC)
    assert same(
        torch.cat([round_bfloat16(x[:77], **STOCHASTIC), round_bfloat16(x[77:], offset=77, **STOCHASTIC)]), expected
    )


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()])
def test_nothing_and_a_single_number_are_tensors_too(shape: tuple[int, ...]) -> None:
    counts = torch.zeros(5, dtype=torch.int64)
    x = torch.full(shape, 1.25)
    rounded = round_fixed(x, 6, 1, counts=counts, **STOCHASTIC)
    assert rounded.shape == shape
    assert ((rounded == 1) | (rounded == 1.5)).all()
    assert counts.tolist() == [x.numel(), 0, 0, 0, 0]
    assert round_bfloat16(x).shape == round_float16(x).shape == shape
