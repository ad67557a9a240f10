"""An epoch of training a head: on features that were kept, beside running the frozen network again.

The network is SqueezeNet 1.0 at 96 pixels up to its last fire module; the head is a linear layer behind an average over
the maps, or SqueezeNet's own (dropout, a 1x1 convolution of the maps). Both sides are the engine's own loop on the same
1,000 images of noise, whose content costs no time; that they end with the same weights, to the last bit, is checked.
See docs/results/features.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from harness import Report, arguments, interleave
from torch import nn

from engine import Model, Run, Session, assemble
from engine.checks import check
from engine.options import Data, Options, RunOptions, SaveOptions
from engine.plugins.transfer import Head
from engine.registry import Registry
from engine.testing.small import SmallSource

IMAGES, CLASSES, PIXELS, BATCH = 1000, 10, 96, 50
TARGET = 150  # times as fast as running the frozen network again
LONG = 10_000  # epochs that no side comes to the end of


class Noise(SmallSource):
    """Images of noise in colour."""

    classes = tuple(map(str, range(CLASSES)))
    shape = (3, PIXELS, PIXELS)

    def __init__(self, split: str) -> None:
        self._length, self.fingerprint = IMAGES if split == "train" else BATCH, f"noise-{split}"

    def records(self, indices: Any) -> Any:
        """Return noise, the same for a record every time."""
        from engine.interfaces import Records

        images = torch.stack([self._image(index) for index in indices])
        return Records("raw", images, torch.tensor(list(indices)) % CLASSES)

    def _image(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=generator)


@dataclass
class NoiseData(Data):
    """The images."""

    def build(self, split: str) -> Noise:
        """Make them."""
        return Noise(split)


@dataclass
class Pooled(Model):
    """SqueezeNet's layers up to the last fire module, an average over the maps and a linear layer."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make the network."""
        whole = Registry.load().entry("model", "squeezenet").options().build(inputs, outputs)
        network = nn.Sequential()
        for name, layer in islice(whole.named_children(), [name for name, _ in whole.named_children()].index("drop9")):
            network.add_module(name, layer)
        network.add_module("gap", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
        network.add_module("linear", nn.Linear(512, outputs))
        return network


def run_of(registry: Registry, model: Model, cache: str) -> Run:
    """Return a run that trains the head, with its features kept in ``cache`` if that is not empty."""
    chosen: dict[str, Any] = {
        group: registry.entry(group, name).options()
        for group, name in (
            ("job", "train"), ("loss", "cross_entropy"), ("optim", "sgd"), ("schedule", "constant"),
            ("kernels", "native"), ("parallel", "single"), ("precision", "float32"),
        )
    }  # fmt: skip
    options = Options(
        **chosen, data=NoiseData(), augment={}, model=model, transfer=Head(cache=bool(cache), cache_folder=cache),
        observe={}, run=RunOptions(batch=BATCH, epochs=LONG, evaluate_every="never", device="cpu"),
        save=SaveOptions(every="never", best=False), out=tempfile.mkdtemp(dir=cache or None),
    )  # fmt: skip
    check(options)
    return assemble(Session(options, registry, Path(options.out)), tell=lambda line: None)


class Epochs:
    """A run's epochs, one at each call."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.on_batch = run.on_backward_end = run.on_step_end = ()
        run.to_train()
        run.start_clocks()
        self._steps: Iterator[Any] = run.steps_to_make()

    def __call__(self) -> None:
        """Train on every image once."""
        for step in islice(self._steps, self.run.steps_per_epoch):
            self.run.train(step)


def compare(report: Report, registry: Registry, name: str, model: Model, rounds: int, target: int | None) -> None:
    """Let both sides take turns; note the claim if there is a target for it."""
    with tempfile.TemporaryDirectory() as folder:
        frozen, kept = Epochs(run_of(registry, model, "")), Epochs(run_of(registry, model, folder))
        times = interleave({"frozen": frozen, "kept": kept}, rounds)
        same = zip(frozen.run.model.state_dict().values(), kept.run.model.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in same), "both sides train alike"
        ratio = times.ratio("frozen", "kept")
        seconds = [times.spread(side).text(1e3, 1) for side in ("frozen", "kept")]
        report.table(f"an epoch of {IMAGES:,} images, {name}, ms", ("frozen network", "kept features", "times as fast"),
                     [(*seconds, ratio.text(digits=0))])  # fmt: skip
        if target:
            report.claim(f"{name}: times as fast on kept features", ratio.median, target, "x", at_least=True)


def main() -> None:
    """Measure and report."""
    given = arguments(str(__doc__).split("\n", 1)[0])
    torch.set_num_threads(given.threads)
    registry, report = Registry.load(), Report(given.json)
    rounds = given.rounds or (1 if given.quick else 5)
    compare(report, registry, "linear head behind an average", Pooled(), rounds, TARGET)
    if not given.quick:
        own: Any = registry.entry("model", "squeezenet").options()
        compare(report, registry, "SqueezeNet's own head", own, rounds, None)
    report.close()


if __name__ == "__main__":
    main()
