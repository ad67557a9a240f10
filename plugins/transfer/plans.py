"""Plans that start from somebody's weights: what trains in which stage, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from engine import UsageError
from engine.interfaces import Anatomy, Factors, Shortcut, Stage, Transfer
from engine.pixels import Pixels

from . import FromWeights
from .images import differences
from .loading import take
from .patterns import factors_of, parameters_of, parse_factors
from .stages import Share, depths, steps_of, training
from .weights import Given, read_weights


class Plan(Transfer):
    """Trains the layers that each stage names: new ones at new_rate, pretrained ones at pretrained_rate.

    A layer's normalisations go with it, auxiliary heads with the head. shares: the stages. Where there are no weights,
    what trains has the optimiser's own rate.
    """

    def __init__(self, options: FromWeights, shares: Sequence[Share]) -> None:
        self._options, self._shares = options, shares
        self._rates = parse_factors(options.lr, "transfer.lr")
        self._decays = parse_factors(options.weight_decay, "transfer.weight_decay")
        self._given: Given | None = None

    def start(self, model: nn.Module, anatomy: Anatomy) -> Sequence[str]:
        """Give the model the weights, and return what was taken, what is new, and what was left.

        Raises UsageError for weights that cannot be had, or are another model's.
        """
        options = self._options
        self._require_effect(anatomy)
        if not options.weights:
            return self._without_weights(anatomy)
        taking_none = {n for p in options.reinitialize for n in parameters_of(anatomy, p, "transfer.reinitialize")}
        self._given = read_weights(options.weights, options.sha256)
        self.new, lines = take(model, anatomy, self._given, taking_none)
        rates = f"new layers train at {options.new_rate:g} of optim.lr, pretrained ones at {options.pretrained_rate:g}"
        return [f"transfer: {line}" for line in (*self._given.remarks, *lines, rates)]

    def _without_weights(self, anatomy: Anatomy) -> list[str]:
        for name in ("sha256", "reinitialize"):
            if getattr(self._options, name):
                raise UsageError(f"transfer.{name} is about transfer.weights: give these too")
        first = training(self._shares[0][0], anatomy)
        kept = "; what is frozen keeps its random numbers" if len(first) < len(anatomy.layers) else ""
        return [f"transfer: without transfer.weights nothing is pretrained, so what trains does at optim.lr{kept}"]

    def compare(self, seen: Pixels) -> Sequence[str]:
        """Return a line for what the weights' card says of images that is not so here."""
        return [f"transfer: {line}" for line in differences(self._given, seen)] if self._given else []

    def stages(self, steps: int) -> Sequence[Stage]:
        """Return the stages by their shares of the run."""
        return steps_of(self._shares, steps)

    def factors(self, model: nn.Module, anatomy: Anatomy, stage: Stage) -> Mapping[str, Factors]:
        """Return every parameter's factors. Raises UsageError for a pattern that names nothing, or never trains."""
        trains, away = training(stage.name, anatomy), depths(anatomy)
        rates = factors_of(anatomy, self._rates, "transfer.lr")
        decays = factors_of(anatomy, self._decays, "transfer.weight_decay")
        self._require_effect(anatomy)
        # What only an evaluation computes with is in no layer; it is further from the head than all of them.
        least = self._options.layer_decay ** (max(away.values()) + 1) if stage.name == "all" else 0.0
        whole = {name: Factors(least * self._rate(name)) for name, _ in model.named_parameters()}
        for layer in anatomy.layers:
            share = self._options.layer_decay ** away[layer.name]
            for name in layer.parameters:
                rate = rates.get(name, share * self._rate(name)) if layer.name in trains else 0.0
                whole[name] = Factors(rate, decays.get(name, 1.0))
        return whole

    def shortcut(self, run: Any, stage: Stage) -> Shortcut | None:
        """Return what trains on kept outputs of what is frozen, with ``cache``. Raises UsageError where that cannot."""
        if not self._options.cache:
            return None
        from engine.features.cache import cached_shortcut

        return cached_shortcut(run, self._options.cache_folder, self._options.cache_views)

    def _rate(self, name: str) -> float:
        if self.new is None:
            return 1.0
        return self._options.new_rate if name in self.new else self._options.pretrained_rate

    def _require_effect(self, anatomy: Anatomy) -> None:
        """Raise UsageError for a rate that is for layers which no stage trains."""
        ever = set().union(*(training(what, anatomy) for what, _, _ in self._shares))
        reached = {name for layer in anatomy.layers if layer.name in ever for name in layer.parameters}
        for pattern, factor in self._rates.items():
            if factor > 0 and reached.isdisjoint(parameters_of(anatomy, pattern, "transfer.lr")):
                raise UsageError(
                    f"transfer.lr: {pattern} never trains here: choose transfer=full, more transfer.layers, or "
                    "another stage"
                )
