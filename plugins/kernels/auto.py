"""``kernels=auto``: every kernel that may be chosen is timed on every layer, and the fastest is taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from engine import UsageError
from engine.convolutions import Choice, Chooser, Layer, offered
from engine.interfaces import ConvKernel, ConvSpec
from engine.measuring import lacks_memory, measure
from engine.ops import NATIVE, register

from .compiled import CompiledKernel
from .memory import Memory, versions
from .plans import difference, layer_facts, numerics, other_numbers

if TYPE_CHECKING:
    from engine import Kernels

    from . import Auto

TRAINING, EVALUATION = 1e-5, 2e-5  # error budgets: the first leaves out Winograd's 6x6 tiles
GAIN = 0.9  # of torch's own time that another kernel must stay below: measured again, a call varies by this much
HOST = {True: 0.1, False: 0.02}  # ms a layer's gain must exceed in training or not: its op costs the host so much more
QUIET = 2.0  # seconds of measuring between two lines that tell of it


@dataclass(frozen=True)
class Question:
    """What is measured once for all layers that have it: one direction of a shape, a bias with it or not."""

    spec: ConvSpec
    direction: str
    bias: bool

    @classmethod
    def of(cls, layer: Layer, direction: str) -> Question:
        """Return a layer's; the gradient of a bias counts where torch computes it with that of the weight."""
        bias = layer.module.bias
        counts = {"forward": bias is not None, "backward_weight": bias is not None and bias.requires_grad}
        return cls(_spec(layer), direction, counts.get(direction, False))

    def __str__(self) -> str:
        """Return it in words."""
        images, weight = ("x".join(map(str, shape)) for shape in (self.spec.input_shape, self.spec.weight_shape))
        return f"{self.direction} of images {images}, weight {weight}"


Verdicts = Mapping[Question, Mapping[str, str | None]]  # of each candidate, why it may not compute, or None if it may


class AutoChooser(Chooser):
    """Times all candidates that the budgets allow on the real shapes; the fastest computes, torch's own among them.

    Rank 0 measures, its plan holds for all processes. A kernel that raises an Exception is told of on stderr and left
    out there. Raises UsageError where torch's own finds no memory for a layer.
    """

    def __init__(self, options: Auto, installed: Mapping[str, type[Kernels]]) -> None:
        super().__init__(NATIVE, options.layers, installed)
        self._options = options
        self._candidates = _candidates(installed)
        self._memory = Memory(options.cache, versions(self._candidates.values()))
        self._plan: dict[str, Any] = {}
        self._told: set[tuple[str, ConvSpec, str]] = set()  # which failures of kernels

    def plan(self) -> dict[str, Any]:
        """Return each layer's shape and kernels, and what numbers depend on beside; nothing where no layers are."""
        return self._plan

    def load(self, plan: dict[str, Any]) -> None:
        """Take up a plan: layers that it fits get the same kernels, unmeasured; the reasons of others say why not."""
        self._plan = dict(plan) if isinstance(plan.get("layers"), dict) else {}

    def choose(self, layers: Sequence[Layer], training: bool, share: Callable[[Any], Any]) -> dict[str, Choice]:
        """Return the kernels of each layer: those planned before, else the fastest; like layers are measured once."""
        for kernel in self._candidates.values():
            register(kernel)  # another chooser may have taken the name meanwhile
        before, token = self._plan, uuid4().hex
        first = share(token) == token  # only rank 0 gets its own back; the others wait and disturb no measurement
        choices = self._decide(layers, training) if first else {}
        entries = {layer.name: [layer_facts(layer), dict(choices[layer.name].kernels)] for layer in layers if first}
        self._plan = share({**numerics(layers), "layers": entries} if entries else {})
        return choices if first else {layer.name: self._as_shared(layer, before) for layer in layers}

    def _decide(self, layers: Sequence[Layer], training: bool) -> dict[str, Choice]:
        """Return what computes each layer, by the plan or measured now."""
        causes = {layer.name: self._unplanned(layer, training) for layer in layers}
        anew = [layer for layer in layers if causes[layer.name] is not None]
        verdicts: Verdicts = {
            question: {name: self._against(kernel, question, training) for name, kernel in self._candidates.items()}
            for question in dict.fromkeys(Question.of(layer, d) for layer in anew for d in layer.directions)
        }
        contested = [
            layer for layer in anew if any(None in verdicts[Question.of(layer, d)].values() for d in layer.directions)
        ]  # fmt: skip
        times = self._times(contested, verdicts, training)
        return {layer.name: self._chosen(layer, causes[layer.name], verdicts, times, training) for layer in layers}

    def _chosen(
        self,
        layer: Layer,
        cause: str | None,
        verdicts: Verdicts,
        times: Mapping[Question, Mapping[str, float]],
        training: bool,
    ) -> Choice:
        """Return what computes a layer; ``cause`` as ``_unplanned`` returns it."""
        _, planned = self._planned(layer)
        if cause is None:
            return Choice(planned, self._as_planned(layer))
        questions = {direction: Question.of(layer, direction) for direction in layer.directions}
        if not all(question in times for question in questions.values()):
            every = dict.fromkeys(r for question in questions.values() for r in verdicts[question].values() if r)
            why = f"no other kernel may: {'; '.join(every)}" if every else "there is no other kernel"
            return Choice(dict.fromkeys(questions, NATIVE.name), f"{cause}; now {why}" if cause else why)
        measured = {direction: times[question] for direction, question in questions.items()}
        kernels, reason = _decided(measured, training)
        if not cause:
            return Choice(kernels, reason, measured)
        differ = ", numbers will differ" if kernels != planned else ""
        return Choice(kernels, f"{cause}: measured anew{differ}")  # a row with times would not show its reason

    def _planned(self, layer: Layer) -> tuple[list[Any], dict[str, str]]:
        """Return what the plan says of a layer's shape and kernels, in its directions' order; empty if nothing."""
        facts, kernels = self._plan.get("layers", {}).get(layer.name, ([], {}))
        return facts, {d: kernels[d] for d in (*layer.directions, *kernels) if d in kernels}

    def _as_planned(self, layer: Layer) -> str:
        """Return the reason of a layer that is computed as the plan says."""
        kernels = self._planned(layer)[1].values()
        compiled = any(isinstance(self._candidates.get(name), CompiledKernel) for name in kernels)
        return "as planned before" + other_numbers(self._plan, layer, compiled, NATIVE.name in kernels)

    def _unplanned(self, layer: Layer, training: bool) -> str | None:
        """Return why the plan does not hold for a layer: "" if it says nothing of it, None if it holds."""
        facts, kernels = self._planned(layer)
        if not facts:
            return ""
        if facts != layer_facts(layer):
            return f"planned for {difference(facts, layer_facts(layer))}"
        if set(kernels) != set(layer.directions):
            return f"planned for {', '.join(kernels)} before, now needed for {', '.join(layer.directions)}"
        for direction, name in kernels.items():
            if name != NATIVE.name and name not in self._candidates:
                return f"planned '{name}' before, which no installed plugin supplies"
            if name != NATIVE.name:
                reason = self._against(self._candidates[name], Question.of(layer, direction), training)
                if reason is not None:
                    return f"planned '{name}' before, which is not allowed now ({reason})"
        return None

    def _against(self, kernel: ConvKernel, question: Question, training: bool) -> str | None:
        """Return why a kernel may not compute, as a phrase, or None if it may."""
        spec, direction = question.spec, question.direction
        budget = self._options.error_budget or (TRAINING if training else EVALUATION)
        try:
            if reason := kernel.refuses(spec, direction):
                return reason
            if spec.dtype != torch.float64 and kernel.error > budget:  # errors are stated for float32
                return f"its error of {kernel.error:.1e} exceeds the budget of {budget:.1e}"
            needed = kernel.workspace(spec, direction)
        except Exception as error:
            self._leave_out(question, kernel, error)
            return f"it fails with {type(error).__name__}"
        if needed > self._options.workspace << 20:
            return f"it needs {needed / 2**20:.1f} MiB, more than kernels.workspace={self._options.workspace}"
        return None

    def _times(
        self, layers: Sequence[Layer], verdicts: Verdicts, training: bool
    ) -> dict[Question, Mapping[str, float]]:
        """Return the milliseconds of all that is allowed, from memory or measured now."""
        asked: dict[Question, Layer] = {}
        for layer in layers:
            for direction in layer.directions:
                asked.setdefault(Question.of(layer, direction), layer)
        kernels = {q: [NATIVE, *(self._candidates[n] for n, r in verdicts[q].items() if r is None)] for q in asked}
        times: dict[Question, Mapping[str, float]] = {}
        for question in asked:
            names = [kernel.name for kernel in kernels[question]]
            known = self._memory.recall(question.spec, question.direction, training, names, question.bias)
            if known is not None:
                times[question] = known
        todo = [question for question in asked if question not in times]
        progress = Progress(len(todo))
        for question in todo:
            progress.tell(f"{asked[question].name}, {question.direction}")
            found = times[question] = self._measure(question, kernels[question], asked[question], training)
            self._memory.note(question.spec, question.direction, training, found, question.bias)
        progress.clear()
        self._memory.keep()
        return times

    def _measure(
        self, question: Question, kernels: Sequence[ConvKernel], layer: Layer, training: bool
    ) -> Mapping[str, float]:
        left_out = partial(self._leave_out, question)
        try:
            return measure(question.spec, question.direction, kernels, not training, question.bias, left_out)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            raise UsageError(
                f"kernels=auto: no memory to measure layer '{layer.name}' ({question}): lower run.batch"
            ) from error

    def _leave_out(self, question: Question, kernel: ConvKernel, error: Exception) -> None:
        """Tell, once, that a kernel fails."""
        failure = (kernel.name, question.spec, question.direction)
        if failure not in self._told:
            self._told.add(failure)
            _say(f"kernel '{kernel.name}' is left out of the {question}: {_in_a_line(error)}")

    def _as_shared(self, layer: Layer, before: Mapping[str, Any]) -> Choice:
        """Return rank 0's choice for a layer. Raises UsageError if a kernel is not installed here."""
        _, kernels = self._planned(layer)
        for name in kernels.values():
            if name not in (NATIVE.name, *self._candidates):
                raise UsageError(
                    f"kernels=auto: rank 0 computes '{layer.name}' with '{name}', which no plugin supplies here: "
                    "install the same plugins for all processes"
                )
        as_before = before.get("layers", {}).get(layer.name) == self._plan["layers"][layer.name]
        return Choice(kernels, "as planned before" if as_before else "as rank 0 measured")


class Progress:
    """Tells every few seconds how far measuring is: on a terminal in one line, which is gone at the end."""

    def __init__(self, total: int) -> None:
        self._total, self._number = total, 0
        self._told_at = time.monotonic()

    def tell(self, text: str) -> None:
        """Count the next measurement, and tell of it if it is time to."""
        self._number += 1
        if time.monotonic() - self._told_at >= QUIET:
            self._told_at = time.monotonic()
            _say(f"measuring {self._number} of {self._total} ({text})", end="" if sys.stderr.isatty() else "\n")

    def clear(self) -> None:
        """Take the line off the terminal."""
        print(_fresh_line(), end="", file=sys.stderr, flush=True)


def fastest(times: Mapping[str, float]) -> str:
    """Return the kernel with the least time; torch's own unless another gains more than the noise."""
    best = min(times, key=lambda name: times[name])
    return best if times[best] < GAIN * times[NATIVE.name] else NATIVE.name


def _decided(times: Mapping[str, Mapping[str, float]], training: bool) -> tuple[dict[str, str], str]:
    """Return the fastest kernel of each direction, and why; torch's own in all where they gain less than the op costs.

    A layer that is torch's own in every direction does without the op.
    """
    kernels = {direction: fastest(t) for direction, t in times.items()}
    gain = sum(t[NATIVE.name] - t[kernels[direction]] for direction, t in times.items())
    if 0 < gain < HOST[training]:
        return dict.fromkeys(times, NATIVE.name), f"others gain {1e3 * gain:.0f} us, less than their call costs"
    return kernels, "fastest as measured"


def _candidates(installed: Mapping[str, type[Kernels]]) -> dict[str, ConvKernel]:
    """Return all candidates but torch's own; a choice that cannot make its own is told of."""
    found: dict[str, ConvKernel] = {}
    for choice in sorted(installed):
        try:
            for name, kernel in offered({choice: installed[choice]}).items():
                if name != NATIVE.name:
                    register(kernel)
                    found[name] = kernel
        except Exception as error:
            _say(f"kernels of '{choice}' are left out: {_in_a_line(error)}")
    return found


def _spec(layer: Layer) -> ConvSpec:
    assert layer.spec is not None
    return layer.spec


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _fresh_line() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def _say(text: str, end: str = "\n") -> None:
    print(f"{_fresh_line()}engine: kernels=auto: {text}", end=end, file=sys.stderr, flush=True)
