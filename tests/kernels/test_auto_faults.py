"""kernels=auto among kernels that fail, with too little memory, and for somebody who waits."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from timed import SHAPE, Clock, Named, choice, chooser_of, network
from torch.utils._python_dispatch import TorchDispatchMode

from engine import ConvSpec, Kernels, UsageError, measuring
from engine.measuring import filled
from engine.native import NativeKernel
from engine.ops import NATIVE, register
from engine.plugins.kernels import Auto, Native, auto


class Broken(Named):
    """torch's own, but one method raises; ``forward`` only from some call on."""

    def __init__(self, method: str, calls: int = 0) -> None:
        super().__init__("broken")
        self._method, self._calls = method, calls

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "_method"):
            if self._calls == 0:
                raise ZeroDivisionError("a defect\nof the plugin")
            self._calls -= 1
        return super().__getattribute__(name)


FAULTS = {"refuses": 0, "workspace": 0, "error": 0, "forward": 0, "forward, later": 3, "backward_weight": 0}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_raises_is_left_out_and_told_of(capsys, fault):
    """With the real clock, so that each call of a kernel is one that a measurement makes."""
    broken = Broken(fault.partition(",")[0], FAULTS[fault])
    installed = {"native": Native, "third": choice(broken, Named("quick")), "auto": Auto}
    chooser = Auto(cache="none").build(installed)
    rows = chooser.apply(network(), SHAPE)
    for row in rows:
        for direction, times in row.milliseconds.items():
            assert set(times) == {"native", "quick"} | ({"broken"} if fault in _others(direction) else set())
    lines = capsys.readouterr().err.splitlines()
    directions = {"forward, later": "forward"}.get(fault, fault)
    where = directions if directions in ("forward", "backward_weight") else "forward"
    assert (
        f"engine: kernels=auto: kernel 'broken' is left out of the {where} of images 4x3x12x10, weight 3x3x3x3: "
        "ZeroDivisionError: a defect of the plugin"
    ) in lines
    assert len(lines) == len(set(lines)), "each is told once"


def _others(direction):
    """Return the faults that do not show in a direction."""
    return {"forward", "forward, later", "backward_weight"} - (
        {"forward", "forward, later"} if direction == "forward" else {direction}
    )


def test_a_kernel_that_cannot_prepare_a_weight_is_left_out_of_evaluations(capsys):
    chooser = Auto(cache="none").build({"native": Native, "third": choice(Broken("prepare")), "auto": Auto})
    rows = chooser.apply(network(), SHAPE, training=False)
    assert [set(row.milliseconds["forward"]) for row in rows] == [{"native"}] * 3
    assert capsys.readouterr().err.count("kernel 'broken' is left out of the forward of images") == 2


def test_a_choice_that_cannot_make_its_kernels_is_left_out(monkeypatch, capsys):
    @dataclass
    class Defective(Kernels):
        """Cannot be made."""

        def candidates(self):
            raise ImportError("libfast.so is missing")

    clock = Clock({"native": 4.0, "quick": 2.0})
    monkeypatch.setattr(auto, "measure", clock)
    installed = {"a": Defective, "native": Native, "third": choice(Named("quick"), Named("a/b")), "auto": Auto}
    rows = Auto(cache="none").build(installed).apply(network(), SHAPE)
    assert [row.kernel for row in rows] == ["quick"] * 3
    told = capsys.readouterr().err
    assert "engine: kernels=auto: kernels of 'a' are left out: ImportError: libfast.so is missing\n" in told
    assert "kernels of 'third' are left out: ValueError: a kernel's name must be some letters" in told


def test_what_is_no_exception_is_not_held_up(monkeypatch):
    class Stopped(Named):
        def forward(self, *arguments):
            raise KeyboardInterrupt

    chooser = Auto(cache="none").build({"native": Native, "third": choice(Stopped("stopped")), "auto": Auto})
    with pytest.raises(KeyboardInterrupt):
        chooser.apply(network(), SHAPE)


def test_a_failure_of_torchs_own_is_nobody_elses(monkeypatch):
    def defect(*arguments):
        raise ZeroDivisionError("in torch")

    register(Named("quick"))
    monkeypatch.setattr(NativeKernel, "forward", defect)
    with pytest.raises(ZeroDivisionError, match="in torch"):
        measuring.measure(ConvSpec(1, 2, 4, 4, 2, (3, 3)), "forward", [NATIVE], failed=lambda *_: None)


@pytest.mark.parametrize("kind", ["allocator", "python", "cuda"])
def test_too_little_memory_names_the_layer_and_what_to_do(monkeypatch, kind):
    def allocate(spec):
        if kind == "allocator":
            return torch.empty(1 << 60)  # what torch says when there is none
        raise {"python": MemoryError, "cuda": torch.OutOfMemoryError}[kind]()

    chooser = Auto(cache="none").build({"native": Native, "third": choice(Named("quick")), "auto": Auto})
    monkeypatch.setattr(measuring, "filled", allocate)
    with pytest.raises(UsageError) as raised:
        chooser.apply(network(), SHAPE)
    assert str(raised.value) == (
        "kernels=auto: no memory to measure layer '0' (forward of images 4x3x12x10, weight 3x3x3x3): lower run.batch"
    )


def test_any_other_failure_stays_what_it_is(monkeypatch):
    def defect(spec):
        raise RuntimeError("something else")

    chooser = Auto(cache="none").build({"native": Native, "third": choice(Named("quick")), "auto": Auto})
    monkeypatch.setattr(measuring, "filled", defect)
    with pytest.raises(RuntimeError, match="something else"):
        chooser.apply(network(), SHAPE)


@pytest.mark.parametrize(("seconds", "terminal"), [(0.1, False), (0.7, False), (0.7, True)])
def test_long_measuring_is_told_of(monkeypatch, capsys, seconds, terminal):
    """Six measurements of so many seconds each, by a clock that only they move on."""
    chooser, clock = chooser_of(monkeypatch, {"native": 4.0, "quick": 2.0}, Named("quick"))
    monkeypatch.setattr(auto.time, "monotonic", lambda: seconds * len(clock.asked))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    chooser.apply(network(), SHAPE)
    told = capsys.readouterr().err
    line = "engine: kernels=auto: measuring 4 of 6 (2, forward)"
    expected = {(0.1, False): "", (0.7, False): f"{line}\n", (0.7, True): f"\r\x1b[K{line}\r\x1b[K"}
    assert told == expected[seconds, terminal]


class Slow(Named):
    """Takes seconds by a clock of its own."""

    def __init__(self, name: str, seconds: float, reading: dict[str, float]) -> None:
        super().__init__(name)
        self.calls, self._seconds, self._reading = 0, seconds, reading

    def forward(self, *arguments):
        self.calls += 1
        self._reading["time"] += self._seconds
        return super().forward(*arguments)


@pytest.mark.parametrize(("seconds", "calls"), [(1.1, 1 + 1 + 3), (5.0, 1 + 1), (0.001, 1 + 3 + 21)])
def test_large_layers_have_three_rounds_of_those_still_racing(monkeypatch, seconds, calls):
    """Torch's own takes one second; the other one's calls: a warm-up, trials, and rounds if it is not hopeless."""
    reading = {"time": 0.0}
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: reading["time"])
    usual = Slow("usual", min(1.0, seconds), reading)
    other = Slow("other", seconds, reading)
    for kernel in (usual, other):
        register(kernel, replace=True)
    times = measuring.measure(ConvSpec(1, 2, 4, 4, 2, (3, 3)), "forward", [usual, other])
    assert other.calls == calls
    assert times["other"] == pytest.approx(1e3 * seconds)


def test_under_autocast_the_arrays_types_are_measured():
    class Watching(Named):
        def forward(self, images, *arguments):
            seen.append(images.dtype)
            return super().forward(images, *arguments)

    seen: list[torch.dtype] = []
    register(Watching("watching"), replace=True)
    spec = ConvSpec(1, 2, 4, 4, 2, (3, 3), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        measuring.measure(spec, "forward", [Watching("watching")])
    assert set(seen) == {torch.bfloat16}


class Calls(TorchDispatchMode):
    """Keeps the ops that are called, with their arguments; not what they call themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[str(function)] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["native", "quick"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_is_part_of_what_is_measured(kernel, bias):
    """Forward adds it; its gradient torch computes with that of the weight, and the others beside it."""
    register(Named("quick"), replace=True)
    chosen = NATIVE if kernel == "native" else Named("quick")
    spec = ConvSpec(2, 3, 5, 4, 4, (3, 3), padding=(1, 1), dtype=torch.float64)
    images, weight, gradient = arrays = filled(spec)
    forward = measuring.call(spec, "forward", chosen, False, arrays, bias=bias)
    with torch.no_grad(), Calls() as calls:
        result = forward()
    assert torch.allclose(result, torch.nn.functional.conv2d(images, weight, padding=1))
    assert (calls.seen["engine.conv2d.default"][2] is not None) is bias
    to_weight = measuring.call(spec, "backward_weight", chosen, False, arrays, bias=bias)
    with torch.no_grad(), Calls() as calls:
        result = to_weight()
    assert torch.allclose(result, torch.nn.grad.conv2d_weight(images, weight.shape, gradient, padding=1))
    assert ("aten.sum.dim_IntList" in calls.seen) is (bias and kernel == "quick")
    if bias and kernel == "native":
        assert calls.seen["aten.convolution_backward.default"][-1] == [False, True, True]
