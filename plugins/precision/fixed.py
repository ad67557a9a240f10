"""Fixed point throughout, as Gupta et al. 2015 train with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import Key, UsageError
from engine.quantization import FixedPoint, Quantizer, Role, RoundedPrecision, require_no_squares

if TYPE_CHECKING:
    from . import Fixed as Options

FORMAT = "format/"


class Fixed(RoundedPrecision):
    """Parameters, what layers read and return, and all gradients are fixed point, with no other copy of the weights.

    Gupta et al., "Deep learning with limited numerical precision", ICML 2015: a sum is rounded once, when it is
    complete. Theirs are complete in 48 bits; here they are sums of float32, which are exact as long as their magnitude
    stays below 2^24 steps of the products' grid, or of ``sums``, float64, exact for every format of 16 bits and slower.

    formats: of each role that is rounded; one that is absent is left as it is. An update needs no format of its own
    where the parameter it is added to is rounded: the sum is on the grid if the parameter was.
    """

    def __init__(self, formats: Mapping[Role, FixedPoint], sums: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = sums
        self._formats = dict(formats)

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        """Return what rounds ``role``: the same in all layers."""
        return self._formats.get(role)

    def prepare(self, model: nn.Module, optimizer: Optimizer, key: Key) -> None:
        """Make ready to train. Raises UsageError for an optimiser whose state fixed point cannot hold."""
        super().prepare(model, optimizer, key)
        if Role.OPTIMIZER_STATE in self._formats:
            require_no_squares(optimizer, "precision.round_state=false, or optim=sgd")

    def state(self) -> dict[str, Tensor]:
        """Return the formats, for ``load`` to compare."""
        return {FORMAT + role: torch.tensor([f.il, f.fl]) for role, f in self._formats.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Raise UsageError where the state is of other formats."""
        theirs = {name.removeprefix(FORMAT): value.tolist() for name, value in state.items() if name.startswith(FORMAT)}
        ours = {role.value: [f.il, f.fl] for role, f in self._formats.items()}
        for role in sorted({*ours, *theirs}):
            if theirs and ours.get(role) != theirs.get(role):
                raise UsageError(
                    f"precision=fixed: the checkpoint's {role} is {_name(theirs.get(role))}, here it is "
                    f"{_name(ours.get(role))}: choose the same formats, or start a new run"
                )


def build(options: Options) -> Fixed:
    """Return the policy that options ask for. Raises UsageError, naming the option, for a format that cannot be."""
    values = _format(options, "il, fl", [options.il, options.fl], None)
    il, fl = options.weight_il, options.weight_fl
    il_fl = [options.il if il is None else il, options.fl if fl is None else fl]
    weights = _format(options, "weight_il, weight_fl", il_fl, None)
    table = {
        Role.ACTIVATION: values,
        Role.ACTIVATION_GRADIENT: _format(options, "activation_gradient", options.activation_gradient, values),
        Role.STORED_WEIGHT: weights,
        Role.WEIGHT_GRADIENT: _format(options, "weight_gradient", options.weight_gradient, None),
        Role.UPDATE: _format(options, "update", options.update, None),
        Role.OPTIMIZER_STATE: _format(options, "optimizer_state", options.optimizer_state, weights),
    }
    if not options.round_state:
        if options.optimizer_state is not None:
            raise UsageError("precision.round_state=false: leave out precision.optimizer_state, which it makes useless")
        del table[Role.OPTIMIZER_STATE]
    return Fixed({role: it for role, it in table.items() if it}, getattr(torch, options.sums))


def _format(options: Options, name: str, il_fl: list[int] | None, otherwise: FixedPoint | None) -> FixedPoint | None:
    """Return the format [il, fl], or ``otherwise`` where it is None; ``name`` is the option's."""
    if il_fl is None:
        return otherwise
    if len(il_fl) != 2:
        raise UsageError(f"precision.{name}={il_fl}: write two numbers, as [6,10]")
    try:
        return FixedPoint(il_fl[0], il_fl[1], options.rounding)
    except UsageError as error:
        raise UsageError(f"precision.{name}: {error}") from None


def _name(il_fl: list[int] | None) -> str:
    return "not rounded" if il_fl is None else f"<{il_fl[0]}, {il_fl[1]}>"
