"""Test errors of networks trained in few bits beside the same in float32, with the same seeds.

What is compared, and what it is to show, is the table ``RECIPES``, stated before anything was measured. Each training
is the engine's own, of the words that ``engine train`` would take.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import Report
from inputs.photographs import real_data

from .training import Training, mean_difference, seed_noise, train

SEEDS = (0, 1, 2)
FLOAT, NEAREST, STOCHASTIC = "float32", "nearest", "stochastic"


@dataclass(frozen=True)
class Bar:
    """What a side is to show: an error at most ``points`` above that of the side ``over``, or at least with ``worse``.

    over: None for the error itself.
    """

    side: str
    over: str | None
    points: float
    worse: bool = False

    def name(self, title: str) -> str:
        """Say what is compared."""
        return f"{title}: {self.side}" + (f" less {self.over}" if self.over else "")

    def value(self, sides: Mapping[str, Sequence[Training]]) -> float:
        """Return the points, in the mean over seeds."""
        if self.over:
            return mean_difference(sides[self.side], sides[self.over])
        return statistics.fmean(one.error for one in sides[self.side])


@dataclass(frozen=True)
class Recipe:
    """A training in several number formats. data: a folder of the real data. words: of all sides. sides: their own.

    within_noise: every side is to be within the noise of the seeds of float32. long: only done when asked for by name.
    """

    title: str
    data: str
    words: tuple[str, ...]
    sides: Mapping[str, tuple[str, ...]]
    bars: tuple[Bar, ...] = ()
    within_noise: bool = False
    long: bool = False
    seeds: tuple[int, ...] = SEEDS


def by_epoch(epochs: int, gamma: float) -> tuple[str, ...]:
    """Return the words of a learning rate that is multiplied by ``gamma`` after every epoch."""
    milestones = ",".join(f"{epoch / epochs:.6f}" for epoch in range(1, epochs))
    return f"run.epochs={epochs}", "schedule=step", f"schedule.milestones=[{milestones}]", f"schedule.gamma={gamma:.6f}"


def binary_words(width: int, epochs: int, first: float, last: float) -> tuple[str, ...]:
    """Return the words of BinaryConnect's and BinaryNet's training, Adam's rate falling from epoch to epoch."""
    return (
        "model=mlp", f"model.hidden=[{width},{width},{width}]", "model.batch_norm=true", "loss=squared_hinge",
        "optim=adamw", "optim.weight_decay=0", f"optim.lr={first}", "run.batch=100",
        *by_epoch(epochs, (last / first) ** (1 / (epochs - 1))),
    )  # fmt: skip


def fixed(il: int, fl: int, rounding: str, *more: str) -> tuple[str, ...]:
    """Return the words of fixed point <il, fl>."""
    words = ("precision=fixed", f"precision.il={il}", f"precision.fl={fl}", f"precision.rounding={rounding}")
    return *words, *more


MLP = ("model=mlp", "model.hidden=[256,256]", "run.batch=100", "optim.lr=0.1", "optim.weight_decay=0")
CNN = ("model=lenet", "model.filters=[8,16]", "model.hidden=128", "model.relu=all")
IN_16_BITS = {FLOAT: (), NEAREST: fixed(6, 10, NEAREST), STOCHASTIC: fixed(6, 10, STOCHASTIC)}
DYNAMIC, COMMON = "dynamic_fixed 10/12", "10/12, one range of +-8"
CONNECT, BINARY = "binary_connect", "binary_net"

RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(
        "MLP-256, fixed <6,10>, 5 epochs", "mnist",
        (*MLP, "optim.momentum=0", "schedule=constant", "run.epochs=5"), IN_16_BITS,
        (Bar(STOCHASTIC, FLOAT, 0.35), Bar(NEAREST, FLOAT, 50, worse=True)),
    ),
    "cnn": Recipe(
        "CNN, fixed <6,10>, 3 epochs", "mnist",
        (*CNN, "augment=[]", "run.batch=100", "optim.lr=0.1", "optim.momentum=0.9", "optim.weight_decay=5e-4",
         *by_epoch(3, 0.95)),
        IN_16_BITS, (Bar(STOCHASTIC, FLOAT, 0.3), Bar(NEAREST, STOCHASTIC, 0.4, worse=True)),
    ),
    "dynamic_fixed": Recipe(
        "MLP-256, dynamic_fixed 10/12, 5 epochs", "mnist", (*MLP, "optim.momentum=0.5", *by_epoch(5, 0.9)),
        {
            FLOAT: (), DYNAMIC: ("precision=dynamic_fixed", "precision.calibration=280"),
            COMMON: ("precision=dynamic_fixed", "precision.ranges=common", "precision.range=3"),
        },
        (Bar(DYNAMIC, FLOAT, 0.35), Bar(COMMON, FLOAT, 20, worse=True)),
    ),
    "one_bit": Recipe(
        "MLP 3x512, one bit, 6 epochs", "mnist", binary_words(512, 6, 3e-3, 3e-5),
        {FLOAT: (), CONNECT: ("precision=binary_connect",), BINARY: ("precision=binary_net",)},
        (Bar(CONNECT, FLOAT, 0.5), Bar(BINARY, FLOAT, 1.3)),
    ),
    "half": Recipe(
        "resnet20 on 20,000 images of CIFAR-10, 2 epochs", "cifar10",
        ("data=cifar10", "augment=[pad_crop,flip,normalize]", "augment.pad_crop.padding=4", "model=resnet20",
         "run.batch=128", "run.epochs=2", "optim.lr=0.1", "optim.weight_decay=5e-4", "schedule=onecycle",
         "run.channels_last=true"),
        {FLOAT: (), "bfloat16": ("precision=bfloat16",), "float16": ("precision=float16",)}, within_noise=True,
    ),
    "one_bit_long": Recipe(
        "MLP 3x1024, one bit, 25 epochs", "mnist", (*binary_words(1024, 25, 3e-3, 3e-6), "model.input_dropout=0.1"),
        {
            CONNECT: ("precision=binary_connect", "model.dropout=0.2"),
            BINARY: ("precision=binary_net", "model.dropout=0.2"),
        },
        (Bar(CONNECT, None, 1.4), Bar(BINARY, None, 1.6)), long=True, seeds=(0,),
    ),
}  # fmt: skip
QUICK = Recipe(
    "MLP-256, fixed <6,10>, 1 epoch", "mnist",
    (*MLP, "optim.momentum=0", "schedule=constant", "run.epochs=1"), IN_16_BITS,
    (Bar(STOCHASTIC, FLOAT, 0.8), Bar(NEAREST, FLOAT, 50, worse=True)), seeds=(0,),
)  # fmt: skip


def words_of(recipe: Recipe, side: str, root: Path) -> tuple[str, ...]:
    """Return the words of a side's training on the data in ``root``, all but the seed's."""
    chosen = () if "data=cifar10" in recipe.words else ("data=idx",)
    return *chosen, f"data.root={root}", *recipe.words, *recipe.sides[side]


def measure(report: Report, recipe: Recipe, folder: Path) -> None:
    """Train a recipe's sides, taking turns seed by seed, and report. Records of single runs are kept in ``folder``."""
    root = real_data() / recipe.data
    if not root.is_dir():
        print(f"\n{recipe.title}: left out, no {recipe.data} found; set ENGINE_TEST_DATA to the folder that holds it")
        return
    sides: dict[str, list[Training]] = {side: [] for side in recipe.sides}
    for seed in recipe.seeds:
        for side, runs in sides.items():
            place = folder / re.sub(r"\W+", "-", f"{recipe.title} {side} {seed}")
            runs.append(train(words_of(recipe, side, root), seed, place))
    tell(report, recipe, sides)


def tell(report: Report, recipe: Recipe, sides: Mapping[str, Sequence[Training]]) -> None:
    """Report the errors of finished trainings, and what they were to show."""
    base = sides.get(FLOAT)
    rows = []
    for side, runs in sides.items():
        errors = [one.error for one in runs]
        above = f"{mean_difference(runs, base):+.2f}" if base and side != FLOAT else ""
        single = ", ".join(f"{error:.2f}" for error in errors)
        seconds = statistics.fmean(one.seconds for one in runs)
        rows.append([side, f"{statistics.fmean(errors):.2f}", single, above, f"{seconds:.0f}"])
    heads = ["numbers", "test error, %", f"of seeds {', '.join(map(str, recipe.seeds))}", "less float32's", "seconds"]
    report.table(recipe.title, heads, rows)
    for bar in recipe.bars:
        report.claim(bar.name(recipe.title), bar.value(sides), bar.points, "points" if bar.over else "%", bar.worse)
    if recipe.within_noise:
        # Two standard errors of a difference of means, of a deviation that all sides tell of.
        noise = 2 * seed_noise(*sides.values()) * (2 / len(recipe.seeds)) ** 0.5
        for bar in (Bar(side, FLOAT, noise) for side in sides if side != FLOAT):
            report.claim(f"{bar.name(recipe.title)}, at most the seeds' noise", bar.value(sides), noise, "points")
