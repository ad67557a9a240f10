"""Training steps in bfloat16 beside the best of float32, in one thread.

Both networks read CIFAR's 3 x 32 x 32 in batches of 16: six convolutions of 64, 128 and 256 filters with BatchNorm, two
before each pooling (VGG-like), and a residual network of 8 layers whose three stages all have 64 filters. A step is
that of the engine's loop: forward pass, loss and gradients, a look at the gradients, SGD with momentum. Best of float32
is the quicker of contiguous and channels_last images. float16 is emulated on CPUs; it is measured for its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Report, Side, interleave
from torch import Tensor, nn
from torch.nn import functional

from engine import Key
from engine.guard import Guard
from engine.interfaces import Precision
from engine.loader import Position
from engine.plugins.optim.optimizers import sgd
from engine.plugins.parallel.single import SingleProcess
from engine.plugins.precision import Bfloat16, Bfloat16SR, Float16, Float32

CLASSES = 10
CPU = torch.device("cpu")
FLOAT, FLOAT_LAST, HALF, HALF_LAST = "float32", "float32, channels_last", "bfloat16", "bfloat16, channels_last"
SIDES: dict[str, tuple[Callable[[], Precision], bool]] = {
    FLOAT: (Float32().build, False),
    FLOAT_LAST: (Float32().build, True),
    HALF: (Bfloat16().build, False),
    HALF_LAST: (Bfloat16().build, True),
    "bfloat16_sr, channels_last": (Bfloat16SR().build, True),
    "bfloat16_sr, Kahan, channels_last": (Bfloat16SR("kahan").build, True),
    "float16 emulated, channels_last": (Float16(init_scale=1024.0, emulate="always").build, True),
}


def vgg(width: int = 64) -> nn.Module:
    """Return the VGG-like network; ``width``: filters of the first layers."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Residual(nn.Module):
    """Two 3x3 convolutions and the sum with their input, of which every second pixel is taken with a stride of 2."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, width, height / stride, width / stride]."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + x[:, :, :: self.stride, :: self.stride]).relu()


def resnet(width: int = 64) -> nn.Module:
    """Return the residual network."""
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Residual(width, stride) for stride in (1, 2, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "VGG-like 64-128-256": (vgg, 1.5),
    "ResNet-8 of width 64": (resnet, 1.4),
}


@dataclass
class Steps:
    """A model in training, step by step as ``Run.compute`` makes them, always on the same batch."""

    model: nn.Module
    precision: Precision
    images: Tensor

    def __post_init__(self) -> None:
        self.model = self.precision.convert(self.model)
        if self.images.is_contiguous(memory_format=torch.channels_last):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        named = dict(self.model.named_parameters())
        groups = [{"params": list(named.values()), "names": list(named), "decays": True}]
        self.optimizer = sgd(groups, 0.01, 0.9, False, 5e-4, decay_all=True)
        self.precision.prepare(self.model, self.optimizer, Key.of(0))
        self.guard = Guard(self.model, "stop", CPU, scaled=self.precision.scale() is not None)
        self.strategy = SingleProcess()
        self.samples = torch.arange(len(self.images))
        self.targets = self.samples % CLASSES
        self.weight = torch.tensor(1 / len(self.images))
        self.step = 0
        self.losses: list[Tensor] = []

    def __call__(self) -> None:
        """Make a step."""
        scale = self.precision.scale()
        with self.precision.computing(Position(self.step, 0), watched=False):
            with self.precision.forward(self.samples):
                loss = functional.cross_entropy(self.model(self.images), self.targets, reduction="sum")
            torch.autograd.backward(loss, self.weight if scale is None else self.weight * scale)
        overflow = self.precision.unscale(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        bad = self.guard.check([loss.detach(), *(gradients if overflow is None else [])], overflow, self.strategy)
        self.strategy.update(self.precision, self.optimizer, bad)
        for parameter in self.model.parameters():
            parameter.grad = None
        self.guard.settle()
        self.step += 1
        self.losses.append(loss.detach())


def measure_network(report: Report, name: str, rounds: int, width: int = 64, batch: int = 16) -> None:
    """All policies on one network. Raises RuntimeError for a side that does not learn."""
    build, target = NETWORKS[name]
    trained: dict[str, Steps] = {}
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for label, (policy, last) in SIDES.items():
        torch.manual_seed(0)
        formed = images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        trained[label] = Steps(build(width), policy(), formed)
    sides: dict[str, Side] = {**trained}
    times = interleave(sides, rounds, warmup=3)
    for label, steps in trained.items():
        if not steps.losses[-1] < steps.losses[0]:
            raise RuntimeError(f"{name}: the loss of {label} went from {steps.losses[0]:.3g} to {steps.losses[-1]:.3g}")
    best = min((FLOAT, FLOAT_LAST), key=lambda label: times.spread(label).median)
    rows = [[label, times.spread(label).text(1e3, 1), times.ratio(best, label).text(digits=2)] for label in trained]
    report.table(f"training step, {name}, batch {batch}", ["", "ms", f"times as fast as {best}"], rows)
    quickest = min((HALF, HALF_LAST), key=lambda label: times.spread(label).median)
    gain = times.ratio(best, quickest).median
    report.claim(f"step of {name} in {quickest}, over {best}", gain, target, "x", at_least=True)


def measure(report: Report, quick: bool) -> None:
    """Both networks in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in NETWORKS:
            measure_network(report, name, 3 if quick else 30)
    finally:
        torch.set_num_threads(threads)
