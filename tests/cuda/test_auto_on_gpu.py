"""kernels=auto on a GPU that is not there: times by events, what they depend on, and what a plan says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from timed import SHAPE, Named, chooser_of, network

from engine import ConvSpec
from engine.convolutions import Layer, survey
from engine.kernels import same
from engine.measuring import race
from engine.plugins.kernels import memory
from engine.plugins.kernels.plans import difference, layer_facts


class Gpu:
    """A GPU whose clock the calls move, and the events on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.done, self.index = 0.0, [], 0
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("only an event is waited for"))

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: self.done.append("waited"))
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def call(self, name: str, *milliseconds: float):
        waiting = list(milliseconds)

        def call() -> SimpleNamespace:
            assert not torch.is_grad_enabled()
            self.done.append(name)
            self.now += waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return SimpleNamespace(is_cuda=True, device=torch.device("cuda", self.index))

        return call


def test_calls_are_timed_between_events_and_waited_for_once_a_round(monkeypatch):
    gpu = Gpu(monkeypatch)
    times = race({"a": gpu.call("a", 9, 1), "b": gpu.call("b", 7, 1.25), "c": gpu.call("c", 3)}, seconds=60, rounds=2)
    assert times == {"a": [1, 1], "b": [1.25, 1.25], "c": [3]}, "the first calls are warm-ups"
    assert gpu.done[:3] == ["a", "b", "c"]
    rounds = "".join(name[0] for name in gpu.done[3:]).split("w")
    assert [sorted(turns[1:]) for turns in rounds] == [["a", "b", "c"], ["a", "b"], ["a", "b"], []]
    for turns in rounds[:-1]:
        assert turns[0] == turns[1], "one goes ahead untimed, so that the GPU is busy"


def test_calls_of_which_one_ends_on_the_host_are_timed_by_its_clock(monkeypatch):
    gpu = Gpu(monkeypatch)
    copy = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: gpu.done.append(f"synchronised {device}"))
    race({"to the GPU": lambda: copy, "from it": lambda: torch.zeros(1)}, seconds=60, rounds=1)
    assert gpu.done == ["synchronised cuda:0"] * len(gpu.done)
    assert gpu.done


def test_calls_on_another_gpu_are_timed_by_the_hosts_clock(monkeypatch):
    gpu = Gpu(monkeypatch)
    gpu.index = 1
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: gpu.done.append(f"synchronised {device}"))
    race({"a": gpu.call("a", 1), "b": gpu.call("b", 1)}, seconds=60, rounds=1)
    assert gpu.done[3::2] == ["synchronised cuda:1"] * len(gpu.done[3::2]), "after each call but the two warm-ups"
    assert len(gpu.done) > 4


@pytest.fixture
def cudnn():
    """Return torch's settings of cuDNN, which are its defaults again after the test."""
    yield torch.backends.cudnn
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")


def test_measurements_depend_on_the_settings_of_torchs_own(here, cudnn):
    before = memory.conditions()
    assert (before["gpu"], before["tf32"], before["cudnn_benchmark"]) == ("H200", True, False)
    assert before["cuda_extension"] == "none" or len(before["cuda_extension"]) == 16
    assert json.loads(json.dumps(before)) == before
    cudnn.conv.fp32_precision = "ieee"
    cudnn.benchmark = True
    after = memory.conditions()
    assert {name for name in before if before[name] != after[name]} == {"tf32", "cudnn_benchmark"}
    torch.use_deterministic_algorithms(True)
    try:
        assert memory.conditions()["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)


def test_tf32_is_read_however_it_was_set(cudnn):
    cudnn.allow_tf32 = False
    assert memory.tf32() is False
    cudnn.allow_tf32 = True
    assert memory.tf32() is True
    cudnn.conv.fp32_precision = "ieee"
    assert memory.tf32() is False
    with pytest.raises(RuntimeError, match="mix of the legacy and new"):
        cudnn.allow_tf32  # noqa: B018


def test_the_drivers_version_is_read(monkeypatch, tmp_path):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.2.0\n"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(memory, "Path", lambda *_: tmp_path / "version")
    assert memory._driver() == "580.65.06"


def on_gpu() -> list[Layer]:
    return [replace(layer, spec=replace(layer.spec, device="cuda")) for layer in survey(network(), SHAPE)]


def planned(monkeypatch, layers: list[Layer], plan: dict | None = None) -> tuple[dict, list[str], list]:
    """Return the plan (outputs by a quick kernel, gradients by torch's own), its reasons, and what was measured."""

    def times(spec: ConvSpec, direction: str, name: str) -> float:
        return {("forward", "quick"): 1.0}.get((direction, name), 2.0)

    chooser, clock = chooser_of(monkeypatch, times, Named("quick"))
    chooser.load(json.loads(json.dumps(plan or {})))
    choices = chooser.choose(layers, True, same)
    return chooser.plan(), [choice.reason for choice in choices.values()], clock.asked


def test_a_plan_is_kept_under_another_tf32_setting_and_that_is_told(monkeypatch, cudnn):
    plan, _, asked = planned(monkeypatch, on_gpu())
    assert plan["float32"] == "TF32"
    assert asked
    assert planned(monkeypatch, on_gpu(), plan)[1:] == (["as planned before"] * 3, [])
    cudnn.conv.fp32_precision = "ieee"
    again, reasons, asked = planned(monkeypatch, on_gpu(), plan)
    assert set(reasons) == {"as planned before, but for TF32: here full float32, numbers will differ"}
    assert asked == []
    assert again["layers"] == plan["layers"]
    doubles = [replace(layer, spec=replace(layer.spec, dtype=torch.float64)) for layer in on_gpu()]
    plan["layers"] = {layer.name: [layer_facts(layer), plan["layers"][layer.name][1]] for layer in doubles}
    assert set(planned(monkeypatch, doubles, plan)[1]) == {"as planned before"}, "TF32 is for float32 alone"


def test_a_plan_for_another_device_is_measured_anew(monkeypatch):
    on_cpu = survey(network(), SHAPE)
    plan, _, _ = planned(monkeypatch, on_cpu)
    assert "float32" not in plan
    _, reasons, asked = planned(monkeypatch, on_gpu(), plan)
    assert set(reasons) == {"planned for cpu before, now cuda: measured anew"}
    assert {spec.device for spec, *_ in asked} == {"cuda"}
    plan, _, _ = planned(monkeypatch, on_gpu())
    assert set(planned(monkeypatch, on_cpu, plan)[1]) == {"planned for cuda before, now cpu: measured anew"}


def test_other_differences_are_told_on_a_gpu_too():
    first, _, other = (layer_facts(layer) for layer in on_gpu())
    assert difference(first, [*first[:3], 99, *first[4:]]) == "images of 4x3x12x10 before, now 4x3x12x99"
    assert difference(first, other) == "another filter, stride, padding, dilation or groups before"
    assert difference(first, [*first[:-2], "torch.float64", "cuda"]) == "torch.float32 before, now torch.float64"
