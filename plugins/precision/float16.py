"""IEEE half precision where it is quick, with float32 weights and a scaled loss; emulated where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import UsageError
from engine.quantization import Half, Quantizer, Role, RoundedPrecision

from .autocast import autocast, device_of, normalization_parameters
from .loss_scale import Growth, LossScale

HALF = Half()
OF_LAYERS = (Role.ACTIVATION, Role.ACTIVATION_GRADIENT)
OF_WEIGHTS = (Role.WEIGHT, Role.BIAS, Role.WEIGHT_GRADIENT)


class Float16(RoundedPrecision):
    """Convolutions and matrix products are float16; weights and optimiser state are float32, and the loss is scaled.

    That is torch's autocast with dynamic loss scaling. A step whose gradients overflow is left out: nothing but the
    scale changes, which falls. emulate: "always", "never" or "auto", on CPUs that torch has no quick float16 training
    for. Emulated, layers compute in float32, and what autocast would give in float16 is rounded to that: parameters
    other than those of normalising layers, what layers with parameters read and return, and all their gradients, where
    what is too large becomes infinite. A sum is then rounded once, when it is complete, and gradients of several
    micro-batches after they are added.
    """

    def __init__(self, growth: Growth | None = None, emulate: str = "auto") -> None:
        super().__init__()
        self._growth, self._emulate = growth or Growth(), emulate
        self._loss_scale: LossScale | None = None  # until a model says on which device
        self._wide: set[str] = set()  # parameters that stay float32
        self.emulated = False

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        """Whether a CUDA graph may hold a step: one that autocast makes."""
        return self._emulate != "always"

    @property
    def remark(self) -> str:  # type: ignore[override]
        """Say whether float16 is emulated."""
        return "emulated in float32" if self.emulated else ""

    def quantizer(self, role: Role, name: str) -> Quantizer | None:
        """Return what rounds to float16, where that is emulated."""
        rounded = role in OF_LAYERS or (role in OF_WEIGHTS and name not in self._wide)
        return HALF if self.emulated and rounded else None

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model with float32 weights. Raises UsageError for a device without what emulate=never asks for."""
        device = device_of(model)
        quick = device.type != "cpu" or trains_in_float16()
        if self._emulate == "never" and not quick:
            raise UsageError(
                "precision.emulate=never: torch trains in float16 on CPUs with amx_fp16 alone, which this one lacks; "
                "choose precision.emulate=auto, or precision=bfloat16"
            )
        self.emulated = self._emulate == "always" or (self._emulate == "auto" and not quick)
        self._wide = normalization_parameters(model)
        if self._loss_scale is None:
            self._loss_scale = LossScale(self._growth, device)
        if self.emulated:
            return super().convert(model)
        self.device = device
        return model.to(self.dtype)

    @contextmanager
    def forward(self, samples: Tensor | None = None) -> Iterator[None]:
        """Within ``with``, layers compute in float16: by autocast, or by rounding."""
        with super().forward(samples) if self.emulated else autocast(self.device, torch.float16):
            yield

    def scale(self) -> Tensor | None:
        """Return the loss scale, once a model is converted."""
        return None if self._loss_scale is None else self._loss_scale.value

    def unscale(self, optimizer: Optimizer) -> Tensor:
        """Round gradients, where that is emulated, and divide them; return 1.0 where one is not finite, else 0.0."""
        super().unscale(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return self._scaling.unscale(gradients)

    def update(self, optimizer: Optimizer, bad: Tensor) -> None:
        """Step unless ``bad`` is 1.0; the loss scale takes note of either."""
        super().update(optimizer, bad)
        self._scaling.update(bad)

    def telemetry(self) -> dict[str, Tensor]:
        """Return the loss scale, the steps since it changed, and where rounding is emulated what that tells."""
        scaling = self._scaling
        return super().telemetry() | {
            "precision/loss_scale": scaling.value,
            "precision/growth_tracker": scaling.tracker,
        }

    def state(self) -> dict[str, Tensor]:
        """Return the loss scale and the steps since it changed."""
        return self._scaling.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        self._scaling.load(state)

    @property
    def _scaling(self) -> LossScale:
        if self._loss_scale is None:  # a model that is only exported is not converted
            self._loss_scale = LossScale(self._growth, self.device)
        return self._loss_scale


def trains_in_float16() -> bool:
    """Return whether torch's float16 passes on this CPU, backward ones too, are done by instructions for it.

    Others have a forward pass at most (avx512_fp16); what torch falls back to for the rest takes hundreds of times as
    long as float32.
    """
    return torch.cpu._is_amx_fp16_supported()
