"""Built-in numeric policies, from 64 bits down to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Precision, UsageError, hookimpl, option

if TYPE_CHECKING:
    from engine import interfaces
    from engine.registry import Store


@dataclass
class Float32(Precision):
    """Single precision throughout."""

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .full import Float32

        return Float32()


@dataclass
class Float64(Precision):
    """Double precision throughout, a reference to compare other numbers with."""

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .full import Float64

        return Float64()


@dataclass
class Fixed(Precision):
    """Fixed point <il, fl>, il + fl bits with the sign, rounded at random or to the nearest (Gupta et al. 2015)."""

    il: int = option(6, "bits of the whole part of activations and their gradients, the sign included")
    fl: int = option(10, "bits of their fraction")
    weight_il: int | None = option(None, "bits of the whole part of parameters and momentum; null: il")
    weight_fl: int | None = option(None, "bits of their fraction; null: fl")
    activation_gradient: list[int] | None = option(None, "[il,fl] of activations' gradients; null: as activations")
    weight_gradient: list[int] | None = option(None, "[il,fl] of parameters' gradients; null: not rounded")
    update: list[int] | None = option(None, "[il,fl] of updates; null: rounded with the parameter they are added to")
    optimizer_state: list[int] | None = option(None, "[il,fl] of momentum and the like; null: as parameters")
    round_state: bool = option(True, "whether momentum, and the like of other optimisers, is rounded at all")
    rounding: str = option("stochastic", "how numbers are rounded", choices=("stochastic", "nearest"))
    sums: str = option("float32", "what sums are computed in; float64 is exact", choices=("float32", "float64"))

    def build(self) -> interfaces.Precision:
        """Make the numeric policy. Raises UsageError, naming the option, for a format that float32 cannot carry."""
        from .fixed import build

        return build(self)


@dataclass
class BinaryConnect(Precision):
    """Weights of one bit in forward and backward passes, real ones behind them (Courbariaux et al. 2015)."""

    sign: str = option(
        "deterministic", "sign of a weight: deterministic; stochastic, drawn in each step, evaluated with real weights",
        choices=("deterministic", "stochastic"),
    )  # fmt: skip
    scale_lr: bool = option(True, "divide a layer's updates by its Glorot coefficient, as the authors' code does")

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .binary_connect import BinaryConnect

        return BinaryConnect(self.sign == "stochastic", self.scale_lr)


@dataclass
class BinaryNet(Precision):
    """Weights and activations of one bit; ReLU becomes the sign (Courbariaux, Hubara et al. 2016)."""

    input_fraction: int | None = option(
        5, "bits behind the point of the first layer's 8-bit inputs; null: real inputs", at_least=-16, at_most=16
    )
    scale_lr: bool = option(True, "divide a layer's updates by its Glorot coefficient, as the authors' code does")
    binary_first: bool = option(True, "whether the first layer has weights of one bit")
    binary_last: bool = option(True, "whether the last layer has")

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from engine.binary.conversion import Conversion

        from .binary_net import BinaryNet

        how = Conversion("binary_net", self.binary_first, self.binary_last, False, self.input_fraction)
        return BinaryNet(how, self.scale_lr)


@dataclass
class XNOR(Precision):
    """As binary_net, times the mean magnitude of a filter; first and last layer real (Rastegari et al. 2016)."""

    input_fraction: int | None = option(
        None, "bits behind the point of a first layer's 8-bit inputs, if it is binary", at_least=-16, at_most=16
    )
    scale_lr: bool = option(False, "divide a layer's updates by its Glorot coefficient, as binary_net does")
    binary_first: bool = option(False, "whether the first layer has weights of one bit too")
    binary_last: bool = option(False, "whether the last layer has")

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from engine.binary.conversion import Conversion

        from .binary_net import XNORNet

        how = Conversion("xnor", self.binary_first, self.binary_last, True, self.input_fraction)
        return XNORNet(how, self.scale_lr)


@dataclass
class Bfloat16(Precision):
    """bfloat16 convolutions and products (autocast), float32 weights; slow on CPUs without AMX or AMD's avx512_bf16."""

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .bfloat16 import Bfloat16

        return Bfloat16()


@dataclass
class Float16(Precision):
    """float16 convolutions and matrix products (autocast), float32 weights, and a loss scaled as GradScaler does."""

    init_scale: float = option(65536.0, "loss scale at the start", at_least=1)
    growth_interval: int = option(2000, "steps without an overflow after which the scale grows", at_least=1)
    growth_factor: float = option(2.0, "what it is multiplied by then", above=1)
    backoff_factor: float = option(0.5, "what it is multiplied by after an overflow", above=0, below=1)
    min_scale: float = option(1.0, "what it never falls below", at_least=1)
    emulate: str = option(
        "auto", "rounding to float16 in float32 arithmetic: always, never, or auto, where a CPU has no amx_fp16",
        choices=("auto", "always", "never"),
    )  # fmt: skip

    def build(self) -> interfaces.Precision:
        """Make the numeric policy. Raises UsageError for a scale that starts below its minimum, or falls too slowly."""
        from engine.guard import IN_A_ROW

        from .float16 import Float16
        from .loss_scale import Growth

        if self.init_scale < self.min_scale:
            raise UsageError(
                f"precision.init_scale={self.init_scale:g} is below precision.min_scale={self.min_scale:g}: raise it"
            )
        if self.init_scale * self.backoff_factor**IN_A_ROW > self.min_scale:
            raise UsageError(
                f"precision.backoff_factor={self.backoff_factor:g}: {IN_A_ROW} overflows in a row end a run; by then "
                "the scale has not fallen to precision.min_scale: lower it, or precision.init_scale"
            )
        growth = Growth(self.init_scale, self.growth_factor, self.backoff_factor, self.growth_interval, self.min_scale)
        return Float16(growth, self.emulate)


@dataclass
class Bfloat16SR(Precision):
    """bfloat16 weights without a float32 copy, rounded at random or with Kahan's compensation (Zamirai et al. 2020)."""

    rounding: str = option(
        "stochastic", "of updated weights: stochastic, kahan (what is lost is kept, in bfloat16), nearest (it is lost)",
        choices=("stochastic", "kahan", "nearest"),
    )  # fmt: skip

    def build(self) -> interfaces.Precision:
        """Make the numeric policy."""
        from .bfloat16_sr import Bfloat16SR

        return Bfloat16SR(self.rounding)


@dataclass
class DynamicFixed(Precision):
    """Fixed point whose ranges follow the numbers, 10 bits and 12 to store (Courbariaux et al. 2015)."""

    propagate: int = option(10, "bits, with the sign, of all that is computed", at_least=2, at_most=25)
    store: int = option(12, "bits, with the sign, that parameters are stored in", at_least=2, at_most=25)
    ranges: str = option(
        "dynamic", "dynamic: of each layer and role, by overflows; common: one that stays",
        choices=("dynamic", "common"),
    )  # fmt: skip
    range: int = option(5, "numbers are within +-2^range: at first, or with ranges=common for good")
    period: int = option(100, "steps between two changes of ranges", at_least=1)
    overflow: float = option(1e-4, "share of numbers beyond a range that makes it wider", at_least=0, at_most=1)
    calibration: int = option(150, "first steps, in 25 bits, which find ranges; then training starts anew", at_least=0)
    calibration_period: int = option(5, "steps between two changes of ranges in them", at_least=1)
    rounding: str = option("nearest", "how numbers are rounded", choices=("nearest", "stochastic"))

    def build(self) -> interfaces.Precision:
        """Make the numeric policy. Raises UsageError for a range that float32 has no numbers for."""
        from .dynamic_fixed import build

        return build(self)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in numeric policies."""
    store.add("precision", "float32", Float32)
    store.add("precision", "float64", Float64)
    store.add("precision", "float16", Float16)
    store.add("precision", "bfloat16", Bfloat16)
    store.add("precision", "bfloat16_sr", Bfloat16SR)
    store.add("precision", "fixed", Fixed)
    store.add("precision", "dynamic_fixed", DynamicFixed)
    store.add("precision", "binary_connect", BinaryConnect)
    store.add("precision", "binary_net", BinaryNet)
    store.add("precision", "xnor", XNOR)
