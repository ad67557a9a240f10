"""``engine probe``: how well a linear classifier does at every depth of a trained network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import RunFailed, Session, UsageError
from engine.folder import CONFIG, claim, record
from engine.loaded import Loaded, loaded

from .curve import Point, advice, table, write
from .logistic import fit
from .looking import AtDepths, Behind, depths_of, modules_named, pooled
from .telling import say

if TYPE_CHECKING:
    from . import Probe

Look = Callable[[Tensor], dict[str, Tensor]]

PARTS = 5  # of the training images, one of which chooses among several c


def probe(session: Session) -> None:
    """Print the curve and the advice, and write the curve into the run's folder.

    Raises UsageError for data without classes and for a network that cannot be looked into.
    """
    job: Probe = session.options.job  # type: ignore[assignment]
    if session.options.resume != "none":
        raise UsageError("resume: a probe goes on with no run; name what it looks into with checkpoint=")
    if not job.c or min(job.c) <= 0:
        raise UsageError(f"c={job.c}: give numbers above 0, as [0.01]")
    if (session.out / CONFIG).exists():
        raise UsageError(f"out={session.options.out} holds a run or a probe already: choose another out=")
    with loaded(session, job.checkpoint, say) as network, claim(session.out, resuming=True):
        if not network.classes:
            raise UsageError("probe: the data has no classes to tell apart: choose data with classes")
        begun = time.perf_counter()
        look = _looking(network, job)
        train, test = (_features(network, split, look) for split in ("train", "test"))
        passed = time.perf_counter() - begun
        points = _points(train, test, len(network.classes), sorted(job.c))
        fitted = time.perf_counter() - begun - passed
        images = len(train[1]), len(test[1])
        count = f"{images[0]:,} + {images[1]:,}"
        say(f"{count} images passed in {passed:.1f} s, {len(points)} classifiers in {fitted:.1f} s")
        record(session.out, session.config)
        print(table(points))
        print("\n".join(advice(points, *images, len(network.classes), job.few)))
        try:
            files = write(points, session.out)
        except OSError as error:
            raise RunFailed(f"out={session.out} cannot be written ({error.strerror or error}): make room") from error
        say(f"written: {', '.join(map(str, files))}, and for TensorBoard: tensorboard --logdir {session.out}")


def _looking(network: Loaded, job: Probe) -> Look:
    if job.layers:
        behind = Behind(network.model, modules_named(network.model, job.layers))
        return lambda images: {name: pooled(output) for name, output in behind(images).items()}
    graph, depths = depths_of(network.model, job.depths == "blocks", network.new)
    if not depths:
        raise UsageError("probe: no layer of the network has weights that were given: name others by checkpoint=")
    return AtDepths(network.model, graph, depths)


def _features(network: Loaded, split: str, look: Look) -> tuple[dict[str, Tensor], Tensor]:
    """Return a split's features [n, d] by layer, and its classes [n]."""
    parts: dict[str, list[Tensor]] = {}
    targets = []
    for outputs, batch in network.passes(split, look):
        for name, output in outputs.items():
            parts.setdefault(name, []).append(output.cpu())
        targets.append(batch.targets.cpu())
    return {name: torch.cat(each) for name, each in parts.items()}, torch.cat(targets)


def _points(
    train: tuple[dict[str, Tensor], Tensor],
    test: tuple[dict[str, Tensor], Tensor],
    classes: int,
    strengths: list[float],
) -> list[Point]:
    points = []
    for name, features in train[0].items():
        c = chosen(features, train[1], classes, strengths)
        classifier = fit(features, train[1], classes, c)
        right = classifier.accuracy(test[0][name], test[1]), classifier.accuracy(features, train[1])
        points.append(Point(name, features.shape[1], *right, c, classifier.gradient))
    return points


def chosen(features: Tensor, targets: Tensor, classes: int, strengths: Sequence[float]) -> float:
    """Return the c whose classifier is best on a fifth of the samples, trained on the others; of equals the smallest.

    The fifth is every fifth sample of each class.
    """
    if len(strengths) == 1:
        return strengths[0]
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    for number in range(classes):
        held_out[(targets == number).nonzero()[PARTS - 1 :: PARTS, 0]] = True
    if not held_out.any():
        raise UsageError(f"c: {len(targets)} training images are too few to choose among {len(strengths)}: give one c")

    def score(c: float) -> float:
        classifier = fit(features[~held_out], targets[~held_out], classes, c)
        return classifier.accuracy(features[held_out], targets[held_out])

    return max(strengths, key=lambda c: (score(c), -c))
