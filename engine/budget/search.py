"""The search for the least change with which a training step fits into a budget, in a fixed order of changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import ceil

from torch.nn.modules.batchnorm import _BatchNorm

from engine.budget.fitting import Fitted, Setting, segments_of
from engine.budget.foresight import Foresight
from engine.budget.inplace import inplace_layers
from engine.budget.ledger import Memory
from engine.budget.segments import Selection, Stretches
from engine.budget.trace import Call, Trace, trace
from engine.errors import UsageError
from engine.quantization import RoundedPrecision

TRIES = 12  # selections that are looked at closely
TIGHTEST = 5  # those that seem to need least, looked at for the smallest batches
DOUBT = 0.03  # by which a selection may turn out better than it looked
NAMED = 8  # stretches that are named


class Search:
    """Foresees steps until one fits.

    unit: what the size of a micro-batch must be a multiple of; world: processes that share one.
    """

    def __init__(self, foresight: Foresight, budget: int, world: int = 1, unit: int = 1) -> None:
        self._foresight, self._budget, self._world, self._unit = foresight, budget, world, unit
        self._run = foresight.task.options.run
        data = foresight.task.options.data
        self._steps_ahead = data.prefetch if data.threads else 0
        self._seen: dict[Setting, Memory] = {}

    def fitted(self) -> Fitted:
        """Return the first setting that fits: as it is, in place, with segments, in smaller micro-batches."""
        tried = [Setting()]
        if not self._fits(tried[-1]):
            inplace = replace(tried[0], inplace=inplace_layers(self._foresight, self._share(1)))
            tried += [inplace] if self._total(inplace) < self._total(tried[0]) else []
        if not self._fits(tried[-1]):
            base, selections = tried[-1], self._selections()
            found = self._first(base, selections) or self._smaller(base, selections)
            tried += [replace(found, parts=1)] if found.selection.stretches else []
            tried += [found] if found.parts > 1 else []
        return Fitted(tried[-1], self._told(tried))

    def memory(self, setting: Setting) -> Memory:
        """Return what a step takes in a setting, the steps that are prepared ahead included."""
        if setting not in self._seen:
            with self._changed(setting):
                step = self._foresight.step(self._share(setting.parts), self._run.accumulate * setting.parts)
            self._seen[setting] = replace(step, images=step.images * (1 + self._steps_ahead))
        return self._seen[setting]

    def _share(self, parts: int) -> int:
        return ceil(self._run.batch / parts / self._world)

    def _fits(self, setting: Setting) -> bool:
        return self.memory(setting).total <= self._budget

    @contextmanager
    def _changed(self, setting: Setting) -> Iterator[None]:
        model = self._foresight.model
        layers = [model.get_submodule(name) for name in setting.inplace]
        segments = segments_of(model, setting.selection)
        for layer in layers:
            layer.inplace = True  # type: ignore[assignment]
        for segment in segments:
            segment.imagine()
        try:
            yield
        finally:
            for layer in layers:
                layer.inplace = False  # type: ignore[assignment]
            for segment in segments:
                segment.remove()

    def _selections(self) -> list[Selection]:
        """Return what may be computed twice, the least work first; nothing where that would not be the same again."""
        return [] if self._refusal else Stretches(self._trace).selections()

    @cached_property
    def _refusal(self) -> str:
        if isinstance(self._foresight.precision, RoundedPrecision):
            return "nothing is computed twice, as this precision rounds layers at random or learns from them"
        for name in ("compile", "cuda_graph"):
            if getattr(self._run, name):
                return f"nothing is computed twice, as run.{name}=true records what is computed"
        return ""

    @cached_property
    def _trace(self) -> Trace:
        """Return what each layer saves in a micro-batch."""
        with self._foresight.imagined(), self._foresight.precision.forward():
            return trace(self._foresight.model, self._foresight.images(self._share(1)))

    def _first(self, base: Setting, selections: Sequence[Selection]) -> Setting | None:
        """Return the base with the selection of the least work with which it fits, as far as some tries show."""
        most = self._budget * (1 + DOUBT)
        hopeful = [s for s in selections if self._total(base) - s.less / base.parts <= most]
        for selection in _some(hopeful, TRIES):
            setting = replace(base, selection=selection)
            if self._fits(setting):
                return setting
        return None

    def _smaller(self, base: Setting, selections: Sequence[Selection]) -> Setting:
        """Return the base in the largest micro-batches with which it fits, and then the least work."""
        by_estimate = sorted(selections, key=lambda s: -s.less)[:TIGHTEST]
        tight = min((replace(base, selection=s) for s in (Selection(), *by_estimate)), key=self._total)
        counts = [parts for parts in range(2, self._run.batch + 1) if self._divides(parts)]
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high) // 2
            fits = self._fits(replace(tight, parts=counts[middle]))
            low, high = (low, middle) if fits else (middle + 1, high)
        if low == len(counts):
            least = min((replace(tight, parts=parts) for parts in (1, *counts[-1:])), key=self._total)
            raise UsageError(
                f"memory.budget={self._foresight.task.options.memory.budget}: a step of this model takes "
                f"{size(self._total(least))} at least, in micro-batches of {self._run.batch // least.parts}: raise the "
                "budget, or choose a smaller model"
            )
        smaller = replace(base, parts=counts[low])
        if self._fits(smaller):
            return smaller
        return self._first(smaller, selections) or replace(tight, parts=counts[low])

    def _divides(self, parts: int) -> bool:
        return self._run.batch % parts == 0 and self._run.batch // parts % self._unit == 0

    def _total(self, setting: Setting) -> int:
        return self.memory(setting).total

    def _told(self, tried: Sequence[Setting]) -> str:
        """Return the table of what was changed, with what a step takes after each change."""
        budget = self._foresight.task.options.memory.budget
        before = self.memory(tried[0])
        lines = [f"memory.budget={budget}: a step takes {size(before.total)} as it is ({described(before)})"]
        for one, other in pairwise(tried):
            saved = self._total(one) - self._total(other)
            lines.append(f"  {self._change(one, other)}: {size(self._total(other))}, {size(saved)} less")
        last = tried[-1]
        if self._refusal and last.parts > 1:
            lines.append(f"  {self._refusal}")
        if last.parts > 1 and any(isinstance(m, _BatchNorm) and m.training for m in self._foresight.model.modules()):
            lines.append(
                f"  BatchNorm sees {self._share(last.parts)} images at a time instead of {self._share(1)}, "
                "so training differs"
            )
        return "\n".join(lines)

    def _change(self, one: Setting, other: Setting) -> str:
        if one.parts != other.parts:
            run, parts = self._run, other.parts
            return f"micro-batches: run.batch={run.batch // parts} run.accumulate={run.accumulate * parts}"
        if one.selection != other.selection:
            again = other.selection.work / self._trace.root.work
            names = [_name(stretch.calls) for stretch in other.selection.stretches]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            return f"computed twice, {again:.1%} of the forward pass: {', '.join(names[:NAMED])}{more}"
        count = len(other.inplace)
        return f"in place: {count} ReLU layers" if count != 1 else "in place: 1 ReLU layer"


def described(memory: Memory) -> str:
    """Return what memory is for, largest first, in words."""
    parts = {
        "parameters": memory.parameters, "gradients": memory.gradients, "optimiser": memory.optimiser,
        "average": memory.average, "images": memory.images, "saved for the backward pass": memory.saved,
        "layer at work": memory.other, "workspace": memory.workspace,
    }  # fmt: skip
    rows = sorted(((value, name) for name, value in parts.items() if value), reverse=True)
    return ", ".join(f"{name} {size(value)}" for value, name in rows)


def size(count: float) -> str:
    """Return bytes in GiB, MiB or KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if abs(count) >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count / 2**10:.1f} KiB"


def _name(calls: Sequence[Call]) -> str:
    names = [call.name for call in calls]
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def _some(selections: Sequence[Selection], most: int) -> list[Selection]:
    """Return at most so many of them, spread evenly, the first and the last among them."""
    if len(selections) <= most:
        return list(selections)
    return [selections[place * (len(selections) - 1) // (most - 1)] for place in range(most)]
