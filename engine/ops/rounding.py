"""Rounding to the number formats of low-precision training, as ``torch.ops.engine`` knows it, on CPUs and GPUs.

``nearest`` takes the nearest number of the format, of two equally near ones the even one, as ``torch.round`` does.
``stochastic`` takes the next lower or higher one in magnitude, the higher with a probability of the distance to the
lower over the distance of the two, exact to 2^-80, so that the expected value is the number itself whatever its
magnitude (Gupta et al., "Deep learning with limited numerical precision", ICML 2015). In both, numbers of the format
stay as they are, signs are kept (that of zero too), and NaN stays NaN.

Random bits are a function of the key (64 bits), the step (an int or an int64 tensor on the device, which is read when
the kernel runs) and the element's number: ``offset`` plus its place in the order of indices. So results do not depend
on threads, memory layout, instruction set or device. Nothing here is differentiable: that is for who calls.

``counts``, an int64 tensor [5], gets added how many elements there were (``COUNTS`` names them): seen; saturated,
beyond the largest number after rounding; upper_half, larger than half the range; zeroed, not zero before and zero
after; nonfinite, infinite or NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError, did_you_mean
from engine.ops.convolution import library
from engine.ops.rounding_kernels import ADD_BFLOAT16, ADD_COMPENSATED, BFLOAT16, FIXED, FLOAT16, Call, run

COUNTS = ("seen", "saturated", "upper_half", "zeroed", "nonfinite")
MODES = ("nearest", "stochastic")
MOST_BITS = {torch.float32: 25, torch.float64: 54}
"""How many bits a fixed-point format may have with its sign, for its numbers to be exact in what carries them."""

DRAWS = "bool stochastic, int key, Tensor? step, SymInt offset, Tensor(c!)? counts"
FORMAT = "int bits, int fraction, bool symmetric, Tensor? exponent"
library.define(f"round_fixed(Tensor x, {FORMAT}, {DRAWS}) -> Tensor")
library.define(f"round_fixed_into(Tensor x, Tensor(a!) out, {FORMAT}, {DRAWS}) -> ()")
library.define(f"round_bfloat16(Tensor x, {DRAWS}) -> Tensor")
library.define(f"round_bfloat16_into(Tensor x, Tensor(a!) out, {DRAWS}) -> ()")
library.define("round_float16(Tensor x, Tensor(c!)? counts) -> Tensor")
library.define("round_float16_into(Tensor x, Tensor(a!) out, Tensor(c!)? counts) -> ()")
library.define(f"add_bfloat16_(Tensor(a!) weight, Tensor update, Tensor(b!)? compensation, {DRAWS}) -> ()")
ops = torch.ops.engine


def round_fixed(
    x: Tensor, il: int, fl: int, *, symmetric: bool = False, mode: str = "nearest", key: int = 0,
    step: Tensor | int = 0, offset: int = 0, out: Tensor | None = None, counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``x`` rounded to fixed point <il, fl>: multiples of 2^-fl from -2^(il-1) to 2^(il-1) - 2^-fl.

    il + fl bits with the sign, as Gupta et al. 2015 count them; either may be negative. Numbers beyond saturate,
    infinite ones too. symmetric: the lowest is minus the highest (Courbariaux et al. 2015). x: float32 or float64, any
    shape and layout. out: where the result goes; x itself, or memory apart from it, of its type and shape. Raises
    UsageError for a format that ``x`` cannot carry exactly and for an unknown mode, ValueError for tensors that do not
    fit.
    """
    bits, limit = il + fl, 126 if x.dtype == torch.float32 else 1022
    if abs(fl) > limit or not -limit <= il - 1 <= limit:
        raise UsageError(f"fixed point <{il}, {fl}> is beyond the exponents of {x.dtype}; take il and fl nearer to 0")
    return _fixed(x, bits, fl, f"<{il}, {fl}>", None, symmetric, mode, key, step, offset, out, counts)


def round_dynamic(
    x: Tensor, bits: int, exponent: Tensor, *, symmetric: bool = False, mode: str = "nearest", key: int = 0,
    step: Tensor | int = 0, offset: int = 0, out: Tensor | None = None, counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``x`` rounded to fixed point of ``bits`` bits with the sign and the range 2^exponent of this moment.

    Dynamic fixed point: numbers are multiples of 2^(exponent - bits + 1) from -2^exponent on. exponent: int32 with one
    element on the device of ``x``, read when the kernel runs; limited to what the carrier has exponents for. All else
    as in ``round_fixed``, where il = exponent + 1.
    """
    if exponent.dtype != torch.int32 or exponent.numel() != 1 or exponent.device != x.device:
        raise ValueError(
            f"round_dynamic: exponent must be int32 with one element on {x.device}, not {exponent.dtype} "
            f"{list(exponent.shape)} on {exponent.device}"
        )
    return _fixed(x, bits, 0, f"of {bits} bits", exponent, symmetric, mode, key, step, offset, out, counts)


def round_bfloat16(
    x: Tensor, *, mode: str = "nearest", key: int = 0, step: Tensor | int = 0, offset: int = 0,
    out: Tensor | None = None, counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return float32 ``x`` as bfloat16; beyond the largest number nearest gives infinity, stochastic that number.

    Infinity stays infinite. out: bfloat16 of the shape of ``x``. Raises as ``round_fixed``.
    """
    _check(x, out, counts, (torch.float32,), torch.bfloat16)
    draws = _draws(x, mode, key, step, offset, counts)
    if out is None:
        return (_new_bfloat16 if _plain(x) else ops.round_bfloat16)(x, *draws)
    (_bfloat16_into if _plain(x) else ops.round_bfloat16_into)(x, out, *draws)
    return out


def round_float16(x: Tensor, *, out: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """Return float32 ``x`` rounded to the nearest number of IEEE half precision, still as float32.

    Its subnormal numbers are kept, and what rounds beyond 65,504 becomes infinite: as ``x.half().float()``.
    """
    _check(x, out, counts, (torch.float32,), torch.float32)
    if out is None:
        return (_new_float16 if _plain(x) else ops.round_float16)(x, counts)
    (_float16_into if _plain(x) else ops.round_float16_into)(x, out, counts)
    return out


def add_bfloat16(
    weight: Tensor, update: Tensor, *, mode: str = "stochastic", compensation: Tensor | None = None, key: int = 0,
    step: Tensor | int = 0, offset: int = 0, counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Add float32 ``update`` to bfloat16 ``weight`` in place and return it: what is lost on average is nothing.

    The sum is one of float32. mode ``stochastic`` rounds it so; ``kahan`` rounds it to the nearest and keeps what that
    loses in ``compensation``, bfloat16 of the shape of ``weight`` and zero at first, for the next update (Kahan 1965;
    Zamirai et al., "Revisiting BFloat16 training", 2020). counts: ``zeroed`` counts updates other than 0 that left
    their weight as it was. Raises UsageError for another mode, ValueError for tensors that do not fit.
    """
    if mode not in ("stochastic", "kahan"):
        raise UsageError(f"add_bfloat16: no such mode: {mode}{did_you_mean(mode, ('stochastic', 'kahan'))}")
    if (compensation is not None) != (mode == "kahan"):
        raise ValueError("add_bfloat16: compensation is what mode 'kahan' needs, and no other takes")
    _check(update, weight, counts, (torch.float32,), torch.bfloat16)
    _check(update, compensation, counts, (torch.float32,), torch.bfloat16)
    rounding = "stochastic" if mode == "stochastic" else "nearest"
    add = _add_bfloat16 if _plain(update) and _plain(weight) else ops.add_bfloat16_
    add(weight, update, compensation, *_draws(update, rounding, key, step, offset, counts))
    return weight


def _fixed(
    x: Tensor, bits: int, fraction: int, name: str, exponent: Tensor | None, symmetric: bool, mode: str, key: int,
    step: Tensor | int, offset: int, out: Tensor | None, counts: Tensor | None,
) -> Tensor:  # fmt: skip
    _check(x, out, counts, tuple(MOST_BITS), x.dtype)
    if not 2 <= bits <= MOST_BITS[x.dtype]:
        raise UsageError(
            f"fixed point {name} has {bits} bits with the sign; {x.dtype} carries 2 to {MOST_BITS[x.dtype]} exactly"
        )
    draws = _draws(x, mode, key, step, offset, counts)
    if out is None:
        return (_new_fixed if _plain(x) else ops.round_fixed)(x, bits, fraction, symmetric, exponent, *draws)
    (_fixed_into if _plain(x) else ops.round_fixed_into)(x, out, bits, fraction, symmetric, exponent, *draws)
    return out


def _plain(x: Tensor) -> bool:
    """Return whether a kernel may be called without torch's dispatcher, which takes more time than a small tensor's.

    Nobody else has to hear of the call: no compiler, mode, transformation or profiler, and no gradient, of which
    autograd says by itself that there is none.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not (x.requires_grad and torch.is_grad_enabled())
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.autograd._profiler_enabled()
    )


def _check(
    x: Tensor, out: Tensor | None, counts: Tensor | None, types: tuple[torch.dtype, ...], to: torch.dtype
) -> None:
    """Raise ValueError for what a kernel cannot take."""
    if x.dtype not in types:
        raise ValueError(f"rounding: {' or '.join(map(str, types))} is needed, not {x.dtype}")
    if out is not None and (out.dtype != to or out.shape != x.shape or out.device != x.device):
        raise ValueError(
            f"rounding: the result must be {to} {list(x.shape)} on {x.device}, not {out.dtype} {list(out.shape)} on "
            f"{out.device}"
        )
    if counts is not None and (
        counts.dtype != torch.int64
        or counts.shape != (len(COUNTS),)
        or counts.device != x.device
        or not counts.is_contiguous()
    ):
        raise ValueError(
            f"rounding: counts must be int64 [{len(COUNTS)}] on {x.device}, not {counts.dtype} {list(counts.shape)} on "
            f"{counts.device}"
        )


def _draws(x: Tensor, mode: str, key: int, step: Tensor | int, offset: int, counts: Tensor | None) -> tuple[Any, ...]:
    """Return the last arguments of the ops."""
    if mode not in MODES:
        raise UsageError(f"rounding: no such mode: {mode}{did_you_mean(mode, MODES)}")
    if not 0 <= key < 1 << 64:
        raise ValueError(f"rounding: the key must be a number of 64 bits without a sign, not {key}")
    if offset < 0:
        raise ValueError(f"rounding: offset must be at least 0, not {offset}")
    if mode == "nearest":
        return False, 0, None, 0, counts
    if not isinstance(step, Tensor):
        step = torch.full((), step, dtype=torch.int64, device=x.device)
    if step.dtype != torch.int64 or step.numel() != 1 or step.device != x.device:
        raise ValueError(
            f"rounding: step must be int64 with one element on {x.device}, not {step.dtype} {list(step.shape)} on "
            f"{step.device}"
        )
    return True, key - (key >> 63 << 64), step, offset, counts


def _fixed_into(
    x: Tensor, out: Tensor, bits: int, fraction: int, symmetric: bool, exponent: Tensor | None, stochastic: bool,
    key: int, step: Tensor | None, offset: int, counts: Tensor | None,
) -> None:  # fmt: skip
    fixed = (bits, fraction, int(symmetric))
    run(FIXED[x.dtype], x, out, Call(stochastic, key, step, offset, counts, fixed, exponent))


def _bfloat16_into(x: Tensor, out: Tensor, *draws: Any) -> None:
    run(BFLOAT16, x, out, Call(*draws))


def _float16_into(x: Tensor, out: Tensor, counts: Tensor | None) -> None:
    run(FLOAT16, x, out, Call(counts=counts))


def _add_bfloat16(
    weight: Tensor, update: Tensor, compensation: Tensor | None, stochastic: bool, key: int, step: Tensor | None,
    offset: int, counts: Tensor | None,
) -> None:  # fmt: skip
    kind = ADD_BFLOAT16 if compensation is None else ADD_COMPENSATED
    run(kind, update, weight, Call(stochastic, key, step, offset, counts, compensation=compensation))


def _new_fixed(x: Tensor, *rest: Any) -> Tensor:
    out = torch.empty_like(x)
    _fixed_into(x, out, *rest)
    return out


def _new_bfloat16(x: Tensor, *draws: Any) -> Tensor:
    out = torch.empty_like(x, dtype=torch.bfloat16)
    _bfloat16_into(x, out, *draws)
    return out


def _new_float16(x: Tensor, counts: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    _float16_into(x, out, counts)
    return out


for _name, _function, _type in (
    ("round_fixed", _new_fixed, None),
    ("round_bfloat16", _new_bfloat16, torch.bfloat16),
    ("round_float16", _new_float16, None),
):
    library.impl(_name, _function, "CompositeExplicitAutograd")

    def _fake(x: Tensor, *rest: Any, to: torch.dtype | None = _type) -> Tensor:
        return torch.empty_like(x, dtype=to)

    torch.library.register_fake(f"engine::{_name}", _fake)

for _name, _mutating in (
    ("round_fixed_into", _fixed_into),
    ("round_bfloat16_into", _bfloat16_into),
    ("round_float16_into", _float16_into),
    ("add_bfloat16_", _add_bfloat16),
):
    library.impl(_name, _mutating, "CompositeExplicitAutograd")
    torch.library.register_fake(f"engine::{_name}", lambda *rest: None)
