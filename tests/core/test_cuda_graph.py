"""Steps replayed from a graph are the steps made one by one, to the last bit; what cannot be recorded is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_run import Tiny, assert_same, everything
from torch import Tensor, nn

from engine import Kernels, Observer, RunFailed, UsageError, hookimpl, interfaces
from engine.cuda_graph import WARM_UP, GraphedStep, require_recordable, require_recordable_optimizer
from engine.options import Transfer

STEPS = 22  # epochs of 11: logs after 5, 10, 11, 15, 20 and 22


@dataclass
class Keeps(Observer):
    """Keeps what the hooks hand out, as an observer may."""

    then: Any = None

    def __post_init__(self) -> None:
        self.losses: list[Tensor] = []
        self.applied: list[Tensor] = []
        self.batches: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.logs: list[dict[str, float]] = []

    def build(self) -> object:
        return self

    @hookimpl
    def on_batch(self, batch: Any) -> None:
        batch.images.mul_(0.5)
        self.batches.append(batch.images)

    @hookimpl
    def on_step_end(self, run: Any, loss: Tensor, applied: Tensor) -> None:
        self.losses.append(loss)
        self.applied.append(applied)
        self.norms.append(run.grad_norm)
        self.masks.append(run.guard.applied)
        if self.then:
            self.then(run)

    @hookimpl
    def on_log(self, scalars: dict[str, float]) -> None:
        self.logs.append({name: value for name, value in scalars.items() if not name.startswith(("speed/", "data/"))})


def graphed(run: Any) -> Any:
    """Let a run on the CPU make its steps by (stand-in) graphs, in each of its stages."""
    enter = run.enter_stage

    def enter_stage(run: Any) -> None:
        enter(run)
        run.graphed = GraphedStep(run.device)

    run.enter_stage, run.graphed = enter_stage, GraphedStep(run.device)
    return run


def pair(make: Any, then: Any = None, **settings: Any) -> tuple[Any, Keeps, Any, Keeps]:
    """Return a finished run, the same by graphs, and what observers of them kept."""
    settings = {**settings, "run": {"steps": STEPS, **settings.get("run", {})}}
    plain, by_graph = Keeps(then), Keeps(then)
    one = make("plain", observe={"keeps": plain}, **settings)
    other = graphed(make("graphs", observe={"keeps": by_graph}, **settings))
    assert one.fit() == other.fit() == "done"
    return one, plain, other, by_graph


def assert_alike(one: Any, plain: Keeps, other: Any, by_graph: Keeps) -> None:
    assert_same(everything(one), everything(other))
    assert one.position == other.position
    assert plain.logs == by_graph.logs
    assert len(plain.logs) == 6
    assert torch.equal(torch.stack(plain.losses), torch.stack(by_graph.losses))
    assert torch.equal(torch.stack(plain.applied), torch.stack(by_graph.applied))
    assert torch.equal(torch.stack(plain.norms), torch.stack(by_graph.norms))
    assert torch.equal(torch.stack(plain.masks), torch.stack(by_graph.masks))
    assert torch.equal(one.rates.first, other.rates.first)
    assert one.best == other.best


@pytest.mark.parametrize(
    ("settings", "graphs"),
    [
        ({}, 2),
        ({"run": {"clip": 0.5, "ema": 0.9}}, 2),
        ({"optim": "adamw", "run": {"nonfinite": "skip", "channels_last": True}}, 2),
        ({"threads": 2, "precision": "float64", "run": {"log_every": 1, "clip": 1.0}, "logs": 22}, 1),
    ],
    ids=["defaults", "clip and average", "adamw, skip", "log every step"],
)
def test_replayed_steps_are_the_steps(make, host, settings, graphs):
    settings = dict(settings)
    logs = settings.pop("logs", 6)
    one, plain, other, by_graph = pair(make, **settings)
    assert len(plain.logs) == logs
    plain.logs, by_graph.logs = plain.logs[-6:], by_graph.logs[-6:]
    assert_alike(one, plain, other, by_graph)
    assert len(host.graphs) == graphs
    assert len({id(pool) for pool in host.pools}) == 1, "they share their memory"
    assert sum(len(graph.seeds) for graph in host.graphs) == STEPS - WARM_UP


def test_each_replay_begins_with_the_seed_of_its_step(make, host):
    seeds = []
    pair(make, lambda run: seeds.append(run.step_key.at(run.position.step - 1).value), run={"log_every": 1})
    assert len(set(seeds)) == STEPS
    assert host.graphs[0].seeds == seeds[WARM_UP:STEPS]


def test_batches_go_through_the_same_slots_and_observers_see_their_own(make, host):
    *_, by_graph = pair(make)
    recorded = [graph.tape.operators for graph in host.graphs]
    forward = torch.ops.aten.convolution.default
    slots = [args[0].data_ptr() for tape in recorded for func, args, *_ in tape if func is forward]
    assert len(slots) == 2
    assert len(set(slots)) == 1
    assert not set(slots) & {images.data_ptr() for images in by_graph.batches}


def test_steps_made_as_usual_run_beside_and_each_side_waits_for_the_other(make, host):
    pair(make)
    once = [("wait", "side 1", "default"), ("wait", "default", "side 1")]
    assert host.log == once * WARM_UP + [("record", "side 1")] * 2, "none of them after a recording"


class Thawing(interfaces.Transfer):
    """Trains the last layer, then everything."""

    def stages(self, steps: int) -> list[interfaces.Stage]:
        return [interfaces.Stage("head", 9), interfaces.Stage("all", steps - 9)]

    def factors(self, model: nn.Module, anatomy: Any, stage: interfaces.Stage) -> dict[str, interfaces.Factors]:
        names = [name for name, _ in model.named_parameters()]
        return {name: interfaces.Factors(float(stage.name == "all" or name.startswith("6."))) for name in names}


@dataclass
class ThawingOptions(Transfer):
    """Two stages."""

    def build(self) -> interfaces.Transfer:
        return Thawing()


def test_each_stage_has_graphs_of_its_own(make, host):
    one, plain, other, by_graph = pair(make, transfer=ThawingOptions(), schedule="constant", run={"log_every": 1})
    assert [len(graph.seeds) for graph in host.graphs] == [9 - WARM_UP, STEPS - 9 - WARM_UP]
    assert_same(everything(one), everything(other))
    assert plain.logs == by_graph.logs


def test_a_step_that_is_not_finite_is_left_out_and_the_next_is_not(make, host):
    @dataclass
    class Poisoned(Observer):
        """Makes one batch infinite."""

        def build(self) -> object:
            return self

        @hookimpl
        def on_batch(self, run: Any, batch: Any) -> None:
            if run.position.step == 12:
                batch.images.fill_(float("inf"))

    runs = []
    for name in ("plain", "graphs"):
        run = make(name, observe={"poisoned": Poisoned()}, run={"steps": STEPS, "nonfinite": "skip"})
        runs.append(graphed(run) if name == "graphs" else run)
        runs[-1].fit()
    assert_same(*(everything(run) for run in runs))
    assert [int(run.guard.skipped) for run in runs] == [1, 1]
    assert [int(run.rates.updates) for run in runs] == [STEPS - 1] * 2


def test_a_latched_run_fails_with_the_same_words(make, host):
    @dataclass
    class Poisoned(Observer):
        """Makes weights infinite."""

        def build(self) -> object:
            return self

        @hookimpl
        def on_step_end(self, run: Any) -> None:
            if run.position.step == 12:
                with torch.no_grad():
                    run.model[6].weight.fill_(float("inf"))

    words = []
    for name in ("plain", "graphs"):
        run = make(name, observe={"poisoned": Poisoned()}, run={"steps": STEPS})
        with pytest.raises(RunFailed) as failure:
            (graphed(run) if name == "graphs" else run).fit()
        words.append(str(failure.value))
    assert words[0] == words[1]
    assert words[0].startswith("step 13: '6.weight' holds values that are not finite")


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(make, host):
    whole = make("whole", run={"steps": STEPS})
    whole.fit()

    class Stop(Exception):
        pass

    def stop(run: Any) -> None:
        if run.position.step == 16:
            raise Stop

    save = {"every": "7 steps"}
    broken = graphed(make("parts", observe={"keeps": Stops(stop)}, run={"steps": STEPS}, save=save))
    with pytest.raises(Stop):
        broken.fit()
    broken.lock.close()
    resumed = graphed(make("parts", resume="auto", run={"steps": STEPS}, save=save))
    assert resumed.position.step == 14
    resumed.fit()
    assert_same(everything(whole), everything(resumed))


@dataclass
class Stops(Observer):
    """Calls ``then`` after each step."""

    then: Any = None

    def build(self) -> object:
        return self

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.then(run)


class Peeking(nn.Module):
    """Waits for the device in its forward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        return outputs * 2 if outputs.sum() > 1e9 else outputs


@dataclass
class PeekingTiny(Tiny):
    """A network that reads a number."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return Peeking(super().build(inputs, outputs))


def test_what_cannot_be_recorded_is_told_in_one_line_with_torchs_reason(make, host):
    run = graphed(make(model=PeekingTiny(), run={"steps": STEPS}))
    with pytest.raises(
        RunFailed,
        match=r"^run.cuda_graph=true: the step cannot be recorded \(operation not permitted when stream is "
        r"capturing\): run.cuda_graph=false trains without$",
    ):
        run.fit()
    assert run.position.step == WARM_UP


def test_batches_of_another_form_are_refused(make, host):
    run = graphed(make(run={"steps": STEPS}))
    steps = run.loader.steps

    def growing(position: Any) -> Any:
        for number, step in enumerate(steps(position)):
            if number == 4:
                step.batches[0].images = step.batches[0].images.repeat(1, 1, 2, 2)
            yield step

    run.loader.steps = growing
    with pytest.raises(RunFailed, match=r"^run.cuda_graph=true: a batch is \(\(128, 1, 16, 16\), .*need.* them alike"):
        run.fit()


@dataclass
class Gradients(Observer):
    """Wants gradients."""

    def build(self) -> object:
        return self

    @hookimpl
    def on_backward_end(self) -> None:
        pass


def test_on_a_cpu_it_is_refused_before_anything_is_written(make, tmp_path):
    with pytest.raises(
        UsageError,
        match=r"^run.cuda_graph=true: a graph is recorded on a GPU, not on the cpu: choose run.device=cuda, or "
        r"run.cuda_graph=false$",
    ):
        make(run={"cuda_graph": True, "device": "cpu"})
    assert not (tmp_path / "run").exists()


@dataclass
class Measuring(Kernels):
    """Kernels that must not be chosen."""

    def build(self, installed: Any = None) -> Any:
        return SimpleNamespace(apply=lambda *given, **named: pytest.fail("kernels were measured before it was refused"))


def test_it_is_refused_before_kernels_are_measured(make, tmp_path):
    with pytest.raises(UsageError, match="a graph is recorded on a GPU"):
        make(kernels=Measuring(), run={"cuda_graph": True, "device": "cpu"})
    assert not (tmp_path / "run").exists()


def test_a_stage_begins_without_the_graphs_and_the_optimiser_of_the_one_before(make, host):
    run = graphed(make(run={"steps": STEPS}))
    apply, seen = run.kernels.apply, []

    def look(*given: Any, **named: Any) -> Any:
        seen.append((run.graphed, hasattr(run, "optimizer")))
        return apply(*given, **named)

    run.kernels.apply = look
    run.enter_stage(run)
    assert seen == [(None, False)]


def named(kind: str, **attributes: Any) -> Any:
    return type(kind, (SimpleNamespace,), {})(**attributes)


REFUSED = {
    r"run.accumulate=4 makes the host seed .*: choose run.accumulate=1 with a larger run.batch": {
        "run": {"accumulate": 4, "batch": 16}
    },
    r"run.compile=true may compile anew .*: choose run.compile=false": {"run": {"compile": True}},
    r"observer 'looks' is told when gradients are complete \(on_backward_end\), .*: leave it out of observe": {
        "observe": {"looks": Gradients()}
    },
    r"parallel: Split is not declared capturable: choose another parallel": {"strategy": named("Split")},
    r"precision: Odd is not declared capturable: choose another precision": {
        "precision": named("Odd", capturable=False)
    },
    r"precision: Scaled keeps its loss scale on the host: choose another precision": {
        "precision": named("Scaled", capturable=True, scale=lambda: torch.ones(()))
    },
    r"optim: Own is not declared capturable: choose another optim": {
        "optimizer": named("Own", step_unless=lambda bad: None)
    },
    r"optim: Rprop waits for a flag in every step: choose another optim": {
        "optimizer": torch.optim.Rprop([nn.Parameter(torch.ones(1))])
    },
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_prevents_a_graph_is_named_with_what_to_do(make, reason):
    given = REFUSED[reason]
    run = make(**{name: given[name] for name in ("run", "observe") if name in given})
    run.device = torch.device("cuda", 0)
    for name in ("strategy", "precision", "optimizer"):
        setattr(run, name, given.get(name, getattr(run, name)))
    require = partial(require_recordable, run)
    if "optimizer" in given:
        require()
        require = partial(require_recordable_optimizer, run.optimizer)
    with pytest.raises(UsageError, match=rf"^run.cuda_graph=true: {reason}.*, or run.cuda_graph=false$"):
        require()


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_the_built_in_components_can_be_recorded(make, optim):
    run = make(optim=optim, observe={"keeps": Keeps()})
    run.device = torch.device("cuda", 0)
    require_recordable(run)
    require_recordable_optimizer(run.optimizer)


def test_adam_is_declared_capturable_while_it_is_recorded_only(make, host):
    said = []

    def look(run: Any) -> None:
        said.append(run.optimizer.param_groups[0]["capturable"])

    run = graphed(make(optim="adamw", observe={"keeps": Stops(look)}, run={"steps": 8, "log_every": 1}))
    step = run.optimizer.step
    during = []
    run.optimizer.step = lambda: (during.append(run.optimizer.param_groups[0]["capturable"]), step())[1]
    run.fit()
    assert during == [False] * WARM_UP + [True]
    assert said == [False] * 8
