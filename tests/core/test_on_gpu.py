"""On a real GPU: copies run beside kernels, replayed steps are the steps, and what cannot be recorded is told."""

from __future__ import annotations

import inspect
import json
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from small_run import Tiny, assert_same, everything
from test_cuda_graph import Keeps, PeekingTiny, ThawingOptions
from torch import nn

from engine import Batch, Observer, RunFailed, hookimpl
from engine.cuda_graph import WARM_UP
from engine.host_to_device import Layout
from engine.ops import CudaConvolution
from engine.plugins.observers import Profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

STEPS = 22
GPU = {"device": "cuda", "steps": STEPS, "deterministic": True}


@dataclass
class Repeatable(Tiny):
    """The small network without its adaptive pooling, whose gradient adds up in any order on a GPU."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        layers = super().build(inputs, outputs)
        layers[3] = nn.AvgPool2d(2)  # 8 x 8 to 4 x 4, as before
        return layers


@pytest.fixture(autouse=True)
def _deterministic_no_longer():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"run": {"clip": 0.5, "ema": 0.9}},
        {"optim": "adamw", "threads": 2, "run": {"nonfinite": "skip", "channels_last": True}},
        {"precision": "float64", "run": {"log_every": 1}},
    ],
    ids=["defaults", "clip and average", "adamw, skip, threads", "float64, log every step"],
)
def test_replayed_steps_are_the_steps_on_the_gpu(make, settings: dict[str, Any]):
    ends, told = [], []
    for name, graph in (("plain", False), ("graph", True)):
        keeps = Keeps()
        given = {**settings, "run": {**GPU, **settings.get("run", {}), "cuda_graph": graph}}
        run = make(name, model=Repeatable(), observe={"keeps": keeps}, **given)
        run.fit()
        assert (run.graphed is not None) is graph
        ends.append(everything(run))
        told.append(keeps)
    assert_same(*ends)
    plain, by_graph = told
    assert torch.equal(torch.stack(plain.losses), torch.stack(by_graph.losses))
    assert torch.equal(torch.stack(plain.applied), torch.stack(by_graph.applied))
    assert torch.equal(torch.stack(plain.norms), torch.stack(by_graph.norms))
    assert torch.equal(torch.stack(plain.masks), torch.stack(by_graph.masks))
    assert plain.logs == by_graph.logs


def test_a_resumed_run_by_graphs_ends_as_the_undisturbed_one(make):
    class Stop(Exception):
        pass

    def stop(run: Any) -> None:
        if run.position.step == 16:
            raise Stop

    settings = {"model": Repeatable(), "run": {**GPU, "cuda_graph": True}, "save": {"every": "7 steps"}}
    undisturbed = make("whole", observe={"keeps": Keeps()}, **settings)
    undisturbed.fit()
    broken = make("parts", observe={"keeps": Keeps(stop)}, **settings)
    with pytest.raises(Stop):
        broken.fit()
    broken.lock.close()
    resumed = make("parts", resume="auto", observe={"keeps": Keeps()}, **settings)
    assert resumed.position.step == 14
    resumed.fit()
    assert_same(everything(undisturbed), everything(resumed))


def test_a_network_that_waits_for_the_gpu_is_refused_while_it_is_recorded(make):
    run = make(model=PeekingTiny(), run={"device": "cuda", "steps": STEPS, "cuda_graph": True})
    with pytest.raises(RunFailed, match=r"^run.cuda_graph=true: the step cannot be recorded \(.*captur") as failure:
        run.fit()
    assert "\n" not in str(failure.value)
    assert run.position.step == WARM_UP
    assert torch.ones(2, device="cuda").sum().item() == 2, "the GPU can still be used"


@dataclass
class Detector(Observer):
    """From the log at step ``first`` to the next, and so on, whatever makes the training thread wait raises an error.

    torch's detector sees what reads a number and copies that wait; the calls that say so by their name are watched too.
    """

    first: int = 10
    intervals: int = 0
    on: bool = False

    def build(self) -> object:
        return self

    @hookimpl
    def on_log(self, run: Any) -> None:
        if run.position.step >= self.first:
            self.on = True
            torch.cuda.set_sync_debug_mode("error")

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        if self.on and run.logging:
            self.on = False
            torch.cuda.set_sync_debug_mode("default")
            self.intervals += 1

    def refuse(self, name: str, wait: Any) -> Any:
        def watched(*given: Any, **named: Any) -> Any:
            if self.on and threading.current_thread() is threading.main_thread():
                raise AssertionError(f"{name} between two logs")
            return wait(*given, **named)

        return watched


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_nothing_waits_for_the_gpu_between_two_logs(make, monkeypatch, graph: bool, nonfinite: str):
    detector = Detector()
    for owner, name in (
        (torch.cuda.Event, "synchronize"),
        (torch.cuda.Stream, "synchronize"),
        (torch.cuda, "synchronize"),
    ):
        monkeypatch.setattr(owner, name, detector.refuse(name, getattr(owner, name)))
    run = make(
        threads=2,
        observe={"detector": detector},
        run={
            "device": "cuda", "steps": 40, "cuda_graph": graph, "nonfinite": nonfinite, "ema": 0.9,
            "evaluate_every": "never",
        },
        save={"every": "never"},
    )  # fmt: skip
    try:
        run.fit()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert detector.intervals >= 5


def test_the_detector_would_see_a_step_that_waits():
    value = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            value.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(
    "check_input_liveness" not in inspect.signature(torch.cuda.graph).parameters, reason="this torch has no such check"
)
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_no_graph_reads_memory_that_was_given_back(make, monkeypatch, optim: str):
    """Before each replay torch looks whether all that the recorded step found is still there."""
    monkeypatch.setattr(torch.cuda, "graph", partial(torch.cuda.graph, check_input_liveness=True))
    run = make(optim=optim, run={"device": "cuda", "steps": STEPS, "cuda_graph": True, "nonfinite": "skip", "ema": 0.9})
    assert run.fit() == "done"


def test_steps_made_as_usual_leave_no_memory_beside_the_graphs(make):
    """All of them come before the first recording, which then has the GPU to itself."""
    reserved: dict[int, int] = {}

    def look(run: Any) -> None:
        reserved[run.position.step] = torch.cuda.memory_reserved()

    given = {"device": "cuda", "steps": STEPS, "cuda_graph": True, "evaluate_every": "never"}
    make(model=Tiny(width=512), observe={"keeps": Keeps(look)}, run=given).fit()
    activations = 128 * 512 * 8 * 8 * 4  # bytes of one convolution's output
    assert reserved[STEPS] - reserved[WARM_UP + 1] < activations


@dataclass
class DeepTiny(Repeatable):
    """The same with a second convolution, of as many channels as kernels like."""

    width: int = 32

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        layers = super().build(inputs, outputs)
        return nn.Sequential(*layers[:3], nn.Conv2d(self.width, self.width, 3, padding=1), *layers[3:])


@pytest.mark.skipif(bool(CudaConvolution("implicit").missing), reason="engine._cuda is not built")
@pytest.mark.parametrize("kernels", ["winograd", "fft"])
def test_steps_by_our_kernels_and_evaluations_with_prepared_weights_between_replays(make, kernels: str):
    ends, told = [], []
    for name, graph in (("plain", False), ("graph", True)):
        run = make(
            name, model=DeepTiny(), kernels=kernels, observe={"keeps": (keeps := Keeps())},
            run={**GPU, "cuda_graph": graph, "evaluate_every": "4 steps"},
        )  # fmt: skip
        assert kernels in run.tables[0]
        run.fit()
        ends.append((everything(run), run.best))
        told.append(torch.stack(keeps.losses))
    assert torch.equal(*told)
    assert_same(*(end for end, _ in ends))
    assert ends[0][1] == ends[1][1]


def test_each_stage_has_graphs_of_its_own_on_the_gpu(make):
    ends = []
    for name, graph in (("plain", False), ("graph", True)):
        given = {**GPU, "cuda_graph": graph}
        run = make(name, model=Repeatable(), transfer=ThawingOptions(), schedule="constant", run=given)
        run.fit()
        assert run.position.stage == 1
        ends.append(everything(run))
    assert_same(*ends)


def test_replays_are_in_a_profile(make):
    profile = Profile(wait=STEPS - 8, warmup=1, record=5)
    run = make(observe={"profile": profile}, run={"device": "cuda", "steps": STEPS, "cuda_graph": True})
    assert run.fit() == "done"
    events = traced(run)
    replays = [e for e in events if e.get("cat") == "user_annotation" and e["name"] == "replay of the step"]
    assert len(replays) == 5
    assert [e for e in events if e.get("cat") == "kernel"]


@dataclass
class Holds(Observer):
    """Gives the GPU something to do for some milliseconds before each step."""

    def build(self) -> object:
        return self

    @hookimpl
    def on_batch(self) -> None:
        torch.cuda._sleep(20_000_000)


def test_copies_run_at_the_same_time_as_kernels_of_the_training(make):
    run = make(
        model=Tiny(width=64), threads=1, observe={"holds": Holds(), "profile": Profile(wait=3, warmup=1, record=8)},
        run={"device": "cuda", "steps": 14, "evaluate_every": "never"},
    )  # fmt: skip
    run.fit()
    events = traced(run)
    copies = of_kind(events, "gpu_memcpy", "HtoD", "Pinned")
    (training,) = {event["args"]["stream"] for event in of_kind(events, "kernel", "spin")}
    assert training not in {event["args"]["stream"] for event in copies}
    kernels = [event for event in of_kind(events, "kernel") if event["args"]["stream"] == training]
    assert any(
        copy["ts"] < kernel["ts"] + kernel["dur"] and kernel["ts"] < copy["ts"] + copy["dur"]
        for copy in copies
        for kernel in kernels
    )


def traced(run: Any) -> list[dict[str, Any]]:
    (path,) = run.out.glob("*.pt.trace.json")
    return json.loads(path.read_text())["traceEvents"]


def of_kind(events: list[dict[str, Any]], kind: str, *parts: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == kind and all(part in event["name"] for part in parts)]


def test_batches_are_the_same_numbers_as_on_the_host():
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 4, 4, 4)
    batch = Batch(images, torch.arange(4), torch.arange(4))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for channels_last in (False, True):
            there, here = (
                Layout(torch.device(device), dtype, channels_last).place(batch) for device in ("cuda", "cpu")
            )
            assert torch.equal(there.images.cpu(), here.images)
            assert there.images.stride() == here.images.stride()
            assert torch.equal(there.targets.cpu(), here.targets)


def test_many_batches_handed_over_at_once_keep_their_numbers(make):
    """The GPU is held back while the loader copies on, so memory given back too early would be written over."""
    run = make(threads=2, run={"device": "cuda", "steps": STEPS})
    stream = run.loader.steps(run.position)
    sums, used = [], torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        torch.cuda._sleep(20_000_000)
        images = next(stream).batches[0].images
        sums.append(images.double().sum())
    stream.close()
    assert torch.cuda.max_memory_allocated() - used < 0.7 * STEPS * images.nbytes, "some of them at a time only"
    stream = make("again", run={"device": "cpu", "steps": STEPS}).loader.steps(run.position)
    expected = [float(next(stream).batches[0].images.double().sum()) for _ in range(STEPS)]
    assert [float(value) for value in sums] == pytest.approx(expected, rel=1e-12, abs=1e-6)
