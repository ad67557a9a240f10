"""Fixed point with ranges that follow the numbers, as Courbariaux, Bengio and David 2015 train with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import UsageError
from engine.ops.rounding import COUNTS
from engine.quantization import DynamicFixedPoint, Quantizer, Role, RoundedPrecision, require_no_squares
from engine.randomness import Key

if TYPE_CHECKING:
    from engine.loader import Position
    from engine.quantization.layers import LayerRounding

    from . import DynamicFixed as Options

CALIBRATION_BITS = 25
"""With the sign: all that float32 carries."""
LOWEST, HIGHEST = -40, 40
"""Where ranges end, 2^LOWEST and 2^HIGHEST: numbers that are all 0 would shrink theirs for ever."""
INITIAL = "initial/"


@dataclass(frozen=True)
class Rule:
    """How ranges change: every ``period`` steps, in the first ``calibration`` steps every ``calibration_period``.

    One becomes twice as wide where more than the share ``overflow`` of its numbers was beyond it, and half as wide
    where no more than that would then have been.
    """

    period: int = 100
    overflow: float = 1e-4
    calibration: int = 150
    calibration_period: int = 5


class DynamicFixed(RoundedPrecision):
    """Each role of each layer or parameter has a power of two as its range, which follows how often it was exceeded.

    Courbariaux, Bengio and David, "Training deep neural networks with low precision multiplications", 2015. What a
    layer reads and returns, the gradients of both, parameters as they are computed with, their gradients, updates and
    momentum are of ``propagate`` bits; parameters are stored in ``store`` bits, within the range of what they compute
    with, whose numbers beyond it are counted of both. Bits include the sign, as the paper's do: the authors' code does
    not count it, so that its 9 and 11 are 10 and 12 here. Ranges are symmetric, as in that code.

    In the first ``calibration`` steps everything has 25 bits. Then parameters, buffers and the optimiser's state become
    what they were before, and training starts with the ranges that were found. These steps are steps of the run, whose
    schedule goes on through them. A step that is left out changes no range and is not counted.

    rule: how ranges change; None for one range, 2^exponent, which never does, and no calibration. exponent: of all
    ranges at first. Nothing waits for the device.
    """

    def __init__(
        self, propagate: int = 10, store: int = 12, exponent: int = 5, rounding: str = "nearest",
        rule: Rule | None = Rule(),
    ) -> None:  # fmt: skip
        super().__init__()
        self._bits, self._exponent, self._rounding, self._rule = (propagate, store), exponent, rounding, rule
        self.calibration = 0 if rule is None else rule.calibration
        self.calibrating = self.calibration > 0
        self.exponents = torch.zeros(0, dtype=torch.int32)  # one a site
        self._ranged = rule is None  # whether the ranges are those of a training
        self._counted = self._since = torch.zeros(0, len(COUNTS), dtype=torch.int64)
        self._initial: dict[str, Tensor] = {}  # what the model holds at the start
        self._initial_state: dict[Tensor, dict[str, Any]] = {}  # the optimiser's at the start

    def quantizer(self, role: Role, name: str) -> Quantizer:
        """Return what rounds ``role``, of a range of its own."""
        return DynamicFixedPoint(self._wide(role), torch.empty(0), self._rounding)

    def prepare(self, model: nn.Module, optimizer: Optimizer, key: Key) -> None:
        """Keep what the end of the calibration goes back to, and prepare as others do.

        Raises UsageError for an optimiser whose state few bits cannot hold.
        """
        require_no_squares(optimizer, "optim=sgd")
        self._model, self._optimizer, self._ranged = model, optimizer, True
        if self.calibrating:
            self._initial = self._initial or {n: value.detach().clone() for n, value in model.state_dict().items()}
            self._initial_state = {p: dict(_copied(state)) for p, state in optimizer.state.items()}
        super().prepare(model, optimizer, key)

    @contextmanager
    def computing(self, position: Position, watched: bool) -> Iterator[None]:
        """Compute as others do."""
        self._position = position
        with super().computing(position, watched):
            yield

    def update(self, optimizer: Optimizer, bad: Tensor) -> None:
        """Step unless ``bad`` is 1.0, change ranges if it is time, and round; start anew where the calibration ends.

        That is the first step after enough of them which is not left out: the device is asked once, as a rule.
        """
        super().update(optimizer, bad)
        self._count(bad)
        if self.calibrating and self._position.step + 1 >= self.calibration and not bad.item():
            self._start()

    def adapt(self, bad: Tensor) -> None:
        """Change the ranges if it is time."""
        if self._rule is None:
            return
        self._count(bad)
        period = self._rule.calibration_period if self.calibrating else self._rule.period
        if (self._position.step + 1) % period:
            return
        counts = self.sum_over_processes(torch.zeros_like(self._since).index_add_(0, self._owners, self._since))
        seen, beyond, above_half = (counts[:, COUNTS.index(name)] for name in ("seen", "saturated", "upper_half"))
        wider = beyond > self._rule.overflow * seen
        narrower = ~wider & (seen > 0) & (above_half <= self._rule.overflow * seen)
        applied = bad == 0
        self.exponents += (wider.int() - narrower.int()) * applied
        self.exponents.clamp_(LOWEST, HIGHEST)
        self._since *= ~applied

    def evaluation_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which parameters are what layers compute with. Raises UsageError without ranges."""
        if not self._ranged:
            raise UsageError(
                "precision=dynamic_fixed: these weights come without the ranges that they were trained with: give the "
                "checkpoint of a run with precision=dynamic_fixed, or choose precision=float32"
            )
        return super().evaluation_weights(model)

    def telemetry(self) -> dict[str, Tensor]:
        """Return also every range's exponent, by role and layer, and whether this is the calibration."""
        ranges = {
            f"precision/range/{site.role}/{site.name}": exponent
            for site, exponent in zip(self.sites, self.exponents.unbind(), strict=True)
            if site.role != Role.STORED_WEIGHT
        }
        calibrating = torch.tensor(float(self.calibrating), device=self.device)
        return super().telemetry() | ranges | {"precision/calibrating": calibrating}

    def state(self) -> dict[str, Tensor]:
        """Return the ranges, what was counted since they changed, the phase, and in calibration the initial values."""
        state = {
            "bits": torch.tensor(self._bits), "calibrating": torch.tensor(int(self.calibrating)),
            "exponents": self.exponents, "counts": self.sum_over_processes(self._since),
        }  # fmt: skip
        return state | {INITIAL + name: value for name, value in self._initial.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned. Raises UsageError if it is of other bits or another model."""
        if "exponents" not in state:
            return
        if (theirs := tuple(state["bits"].tolist())) != self._bits:
            raise UsageError(
                f"precision=dynamic_fixed: the checkpoint has {theirs[0]} bits and stores {theirs[1]}, here it is "
                f"{self._bits[0]} and {self._bits[1]}: choose the same, or start a new run"
            )
        if state["exponents"].shape != self.exponents.shape:
            raise UsageError(
                f"precision=dynamic_fixed: the checkpoint has {len(state['exponents'])} ranges, this model "
                f"{len(self.exponents)}: choose the same model, or start a new run"
            )
        self.exponents.copy_(state["exponents"])
        self._since.copy_(state["counts"])
        self._since *= self.leads  # they are those of all processes together, of which one goes on with them
        self._set_phase(bool(state["calibrating"]))
        self._ranged = True
        for name, value in self._initial.items():
            value.copy_(state[INITIAL + name])

    def _wide(self, role: Role) -> int:
        return CALIBRATION_BITS if self.calibrating else self._bits[role == Role.STORED_WEIGHT]

    def _set_phase(self, calibrating: bool) -> None:
        self.calibrating = calibrating
        for site in self.sites:
            site.quantizer.bits = self._wide(site.role)  # type: ignore[attr-defined]
        if not calibrating:
            self._initial, self._initial_state = {}, {}

    @torch.no_grad()
    def _start(self) -> None:
        """Go back to the initial values, with the ranges that were found."""
        for name, value in self._model.state_dict().items():
            value.copy_(self._initial[name])
        for parameter, state in self._optimizer.state.items():
            initial = self._initial_state.get(parameter, {})
            for name, value in list(state.items()):
                if name not in initial:
                    del state[name]
                elif isinstance(value, Tensor):
                    value.copy_(initial[name])  # in place: an optimiser may have kept it elsewhere
                else:
                    state[name] = initial[name]
        self._set_phase(False)
        self._since.zero_()
        self.round_stored()

    def _count(self, bad: Tensor) -> None:
        """Add what was counted since the last time, unless the step is left out."""
        self._since += (self.sites.counts - self._counted) * (bad == 0)
        self._counted.copy_(self.sites.counts)

    def _adopt(self, model: nn.Module) -> dict[nn.Module, LayerRounding]:
        roundings = super()._adopt(model)
        if (len(self.exponents), self.exponents.device) != (len(self.sites), self.device):
            self._make_ranges()
        return roundings

    def _make_ranges(self) -> None:
        """Give every site its range, the first one; a stored parameter that of what is computed."""
        rows = {(site.role, site.name): row for row, site in enumerate(self.sites)}
        owners = []
        for row, site in enumerate(self.sites):
            sharing = (rows.get((role, site.name)) for role in (Role.WEIGHT, Role.BIAS))
            owners.append(next(o for o in (*sharing, row) if o is not None) if site.role == Role.STORED_WEIGHT else row)
        self._owners = torch.tensor(owners, device=self.device)
        self.exponents = torch.full((len(owners),), self._exponent, dtype=torch.int32, device=self.device)
        self._counted, self._since = torch.zeros_like(self.sites.counts), torch.zeros_like(self.sites.counts)
        for site, owner in zip(self.sites, owners, strict=True):
            site.quantizer.exponent = self.exponents[owner : owner + 1]  # type: ignore[attr-defined]


def build(options: Options) -> DynamicFixed:
    """Return the policy that options ask for. Raises UsageError for a range that float32 has no numbers for."""
    if not LOWEST <= options.range <= HIGHEST:
        raise UsageError(f"precision.range={options.range}: write a number from {LOWEST} to {HIGHEST}")
    if options.store < options.propagate:
        raise UsageError(
            f"precision.store={options.store}: parameters are stored in no fewer bits than the "
            f"{options.propagate} that they compute with (precision.propagate)"
        )
    rule = Rule(options.period, options.overflow, options.calibration, options.calibration_period)
    dynamic = options.ranges == "dynamic"
    return DynamicFixed(options.propagate, options.store, options.range, options.rounding, rule if dynamic else None)


def _copied(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value.clone() if isinstance(value, Tensor) else value) for name, value in state.items())
