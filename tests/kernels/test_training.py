"""Training with every kernel learns what training with torch's own does: ResNet-20 on the digits, several seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from engine import Session, assemble
from engine.options import Kernels, Options, RunOptions
from engine.plugins.augment import Normalize, PadCrop
from engine.plugins.data import Digits
from engine.plugins.jobs import Train
from engine.plugins.kernels import FFT, Auto, Im2col, Native, Winograd
from engine.plugins.losses import CrossEntropy
from engine.plugins.models import ResNet20
from engine.plugins.optim import SGD, OneCycle
from engine.plugins.parallel import Single
from engine.plugins.precision import Float32
from engine.plugins.transfer import NoTransfer
from engine.registry import Registry

SEEDS = 5
KERNELS: dict[str, Kernels] = {
    "im2col": Im2col(), "im2col, materialised": Im2col(materialise=True), "winograd 2x2": Winograd(tile="2"),
    "winograd 4x4": Winograd(tile="4"), "winograd 6x6": Winograd(tile="6"), "fft": FFT(), "auto": Auto(cache="none"),
}  # fmt: skip


def accuracy(kernels: Kernels, seed: int, out: Path) -> float:
    options = Options(
        job=Train(), data=Digits(), augment={"pad_crop": PadCrop(padding=1), "normalize": Normalize()},
        model=ResNet20(), loss=CrossEntropy(), optim=SGD(lr=0.1), schedule=OneCycle(), kernels=kernels,
        parallel=Single(), precision=Float32(), transfer=NoTransfer(), observe={},
        run=RunOptions(epochs=6, batch=64, seed=seed, device="cpu", evaluate_every="6 epochs"), out=str(out),
    )  # fmt: skip
    run = assemble(Session(options, Registry.load(), out))
    assert run.fit() == "done"
    assert run.best.latest is not None
    return run.best.latest


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_kernel_reaches_the_accuracy_of_torchs_own_within_the_noise_of_seeds(tmp_path: Path) -> None:
    native = [accuracy(Native(), seed, tmp_path / f"native{seed}") for seed in range(SEEDS)]
    print(f"native: {statistics.mean(native):.4f} ({', '.join(f'{a:.4f}' for a in native)})")
    assert statistics.mean(native) > 0.95
    noise = statistics.stdev(native)
    for name, kernels in KERNELS.items():
        ours = [accuracy(kernels, seed, tmp_path / f"{name}{seed}") for seed in range(SEEDS)]
        print(f"{name}: {statistics.mean(ours):.4f} ({', '.join(f'{a:.4f}' for a in ours)})")
        # The difference of two means of five: three of its standard deviations, with a floor of three images of 360.
        allowed = max(3 * (2 / SEEDS) ** 0.5 * max(noise, statistics.stdev(ours)), 3 / 360)
        assert abs(statistics.mean(ours) - statistics.mean(native)) <= allowed, name
