"""Evaluating a model that is not being trained here: a checkpoint's, or anybody's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from engine import checkpoint, huge_pages, kept_memory, manifest
from engine.batch_norm import build_statistics
from engine.building import (
    build_augmentations,
    build_chooser,
    build_loader,
    build_model,
    open_split,
    reading_of,
    require_targets,
)
from engine.compiling import compile_in_place
from engine.devices import prepare_device
from engine.evaluation import evaluate
from engine.interfaces import Precision
from engine.loader import Loader, TestLoader
from engine.marginalization import build_views
from engine.randomness import Key
from engine.session import Session
from engine.state import AVERAGE, ENGINE, MODEL
from engine.tables import kernel_table
from engine.weights import load_state, read_state

OF_PRECISION = "precision/"  # begins the names of its state


def score(session: Session, weights: Path, tell: Callable[[str], None]) -> tuple[dict[str, float], int]:
    """Return the test split's mean "test/loss" and metrics with ``weights``, and how many images that is.

    weights: a checkpoint or run folder (its averaged weights, if it kept an average), or a state dict's file.
    ``tell`` hears which weights were read. Raises UsageError naming what does not fit.
    """
    options = session.options
    device = prepare_device(options)
    precision, strategy, loss = options.precision.build(), options.parallel.build(), options.loss.build()
    given = weights_of(weights, tell, session.choices.get("precision", ""))
    test = open_split(options, "test")
    require_targets(test, loss)
    augmentations = build_augmentations(options, lambda: open_split(options, "train"))
    reading = reading_of(options, device, precision, strategy)
    batches = TestLoader(test, augmentations, **reading, reopen=partial(options.data.build, "test"))
    key = Key.of(options.run.seed)

    def training() -> Loader:  # the batches of the run that began with these options
        return build_loader(options, open_split(options, "train"), augmentations, key, reading)

    model = build_model(options, test, batches.batch_at(0), loss, key)
    views = build_views(options, model, batches, loss, device)
    statistics = build_statistics(options, model, precision, strategy, training)
    load_state(model, given.model, str(weights))
    model = precision.convert(model.to(device))
    given.tell(precision)
    first = batches.batch_at(0).images
    kernels = build_chooser(options, session.registry)
    shape = (first.shape[0], first.shape[1], first.shape[2], first.shape[3])
    with precision.forward():  # kernels are planned for the types that layers really compute in
        rows = kernels.apply(model, shape, training=False)
    for text in (kernel_table(rows), huge_pages.remark(), kept_memory.remark()):
        for line in text.splitlines():
            tell(line)
    if options.run.compile:
        compile_in_place(model)
    weights_in_use = [precision.evaluation_weights(model), kernels.prepared(model), statistics(model)]
    with closing(batches):
        return evaluate(model, batches, loss, precision, strategy, device, weights_in_use, views=views), len(test)


@dataclass(frozen=True)
class Weights:
    """What a network is evaluated with.

    model: parameters and buffers by name. precision: the state of the numeric policy that trained them, which is of
    the class ``policy``; empty where nothing is known of it.
    """

    model: Mapping[str, Tensor]
    precision: Mapping[str, Tensor] = field(default_factory=dict)
    policy: str = ""

    def tell(self, precision: Precision) -> None:
        """Give a policy that has a model its state, unless it was another that trained the weights."""
        if self.precision and self.policy == type(precision).__name__:
            precision.load(dict(self.precision))


def weights_of(path: Path, tell: Callable[[str], None], precision: str = "") -> Weights:
    """Return the weights that ``path`` means, verified; ``tell`` hears where they come from.

    precision: the policy that evaluates them, by name; ``tell`` hears also where it was another that trained them.
    """
    if not path.is_dir():
        return Weights(read_state(path))
    folder = manifest.locate(path, tell)
    facts, files = checkpoint.load(folder)
    averaged = AVERAGE in files
    trained_in = facts["choices"].get("precision", precision)
    other = f", in {precision} (trained in {trained_in})" if precision not in ("", trained_in) else ""
    tell(f"evaluating {folder}, after step {facts['step']}{', averaged weights' if averaged else ''}{other}")
    model = {**files[MODEL], **files.get(AVERAGE, {})}
    state = {n.removeprefix(OF_PRECISION): v for n, v in files[ENGINE].items() if n.startswith(OF_PRECISION)}
    return Weights(model, state, facts.get("precision", ""))
