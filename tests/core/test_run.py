"""The loop: what a step computes, what happens in which order, and what it does when numbers go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from small_run import Tiny, Watch, assert_same, everything
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine import Observer, RunFailed, UsageError, hookimpl, interfaces, manifest
from engine.interfaces import Stage
from engine.loader import Position
from engine.options import Transfer

STILL = Tiny(dropout=0.0)


def plain_training(run, steps: int) -> None:
    """Train ``run.model`` by the textbook loop, on the run's own batches."""
    model, optimizer = run.model, torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
    stream = run.loader.steps(Position())
    for _ in range(steps):
        step = next(stream)
        optimizer.zero_grad()
        images = torch.cat([batch.images for batch in step.batches])
        targets = torch.cat([batch.targets for batch in step.batches])
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


def sgd(registry, **settings):
    return registry.entry("optim", "sgd").options(
        **{"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, **settings}
    )


def test_training_is_the_textbook_loop(make, registry):
    """Ten float64 steps of the engine equal ten of plain PyTorch, to rounding."""
    settings = {"model": STILL, "precision": "float64", "optim": sgd(registry), "schedule": "constant"}
    engine = make("a", run={"steps": 10}, **settings)
    plain = make("b", run={"steps": 10}, **settings)
    engine.fit()
    plain.model.train()
    plain_training(plain, 10)
    for name, value in engine.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-11, atol=1e-12)


def test_accumulation_has_the_gradient_of_the_whole_batch(make, registry):
    """Without BatchNorm, which sees micro-batches, 4 x 32 samples are 128 samples."""

    class Plain(Tiny):
        def build(self, inputs: Any, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, outputs))

    settings = {"model": Plain(), "precision": "float64", "optim": sgd(registry), "schedule": "constant"}
    whole = make("a", run={"steps": 6, "batch": 128}, **settings)
    split = make("b", run={"steps": 6, "batch": 32, "accumulate": 4}, **settings)
    whole.fit()
    split.fit()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, split.model.state_dict()[name], rtol=1e-11, atol=1e-13)


def test_clipping_bounds_the_norm_of_the_whole_gradient(make):
    norms = []

    class Norms(Watch):
        @hookimpl
        def on_backward_end(self, run) -> None:
            grads = [p.grad.double() for p in run.model.parameters()]
            norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    make("a", observe={"n": Norms()}, run={"steps": 4}).fit()
    largest = min(norms) / 2
    seen: list[dict[str, float]] = []

    @dataclass
    class Logs(Observer):
        """Keeps the logs."""

        def build(self) -> object:
            return self

        @hookimpl
        def on_log(self, scalars: dict[str, float]) -> None:
            seen.append(scalars)

    norms.clear()
    bound = make("b", observe={"n": Norms(), "l": Logs()}, run={"steps": 4, "clip": largest, "log_every": 1})
    before = [p.detach().clone() for p in bound.model.parameters()]
    bound.fit()
    assert [round(s["train/grad_norm"], 4) for s in seen] == pytest.approx([round(n, 4) for n in norms], rel=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, bound.model.parameters(), strict=True))


def test_average_of_weights_is_what_evaluations_see(make):
    run = make(run={"steps": 6, "ema": 0.5}, model=STILL)
    history = []
    start = {n: v.clone() for n, v in run.model.state_dict().items() if v.is_floating_point()}
    original = run.train

    def train(step) -> None:
        original(step)
        history.append({n: v.clone() for n, v in run.model.state_dict().items() if v.is_floating_point()})

    run.train = train
    seen_weights = []
    run.model.register_forward_hook(
        lambda module, inputs, output: None if module.training else seen_weights.append(module[0].weight.clone())
    )
    run.fit()
    expected = {n: v.double() for n, v in start.items()}
    for updates, state in enumerate(history, 1):
        kept = min(0.5, (1 + updates) / (10 + updates))
        expected = {n: kept * expected[n] + (1 - kept) * state[n].double() for n in expected}
    for name, value in run.average.state().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert seen_weights
    torch.testing.assert_close(seen_weights[-1].double(), expected["0.weight"], rtol=1e-5, atol=1e-6)
    assert torch.equal(run.model[0].weight, history[-1]["0.weight"]), "training goes on with its own weights"


@dataclass
class Events(Observer):
    """Writes every event down."""

    def __post_init__(self) -> None:
        self.events: list[str] = []

    def build(self) -> object:
        return self

    @hookimpl
    def on_fit_start(self, run) -> None:
        self.events.append(f"fit_start at {run.position.step}")

    @hookimpl
    def on_epoch_start(self, epoch: int) -> None:
        self.events.append(f"epoch_start {epoch}")

    @hookimpl
    def on_batch(self) -> None:
        self.events.append("batch")

    @hookimpl
    def on_backward_end(self) -> None:
        self.events.append("backward_end")

    @hookimpl
    def on_step_end(self, run) -> None:
        self.events.append(f"step_end {run.position.step}")

    @hookimpl
    def on_log(self, scalars: dict[str, float]) -> None:
        self.events.append("log")

    @hookimpl
    def on_evaluate_end(self, scalars: dict[str, float]) -> None:
        self.events.append("evaluate_end")

    @hookimpl
    def on_epoch_end(self, epoch: int) -> None:
        self.events.append(f"epoch_end {epoch}")

    @hookimpl
    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        state["events"] = len(self.events)
        self.events.append("save_checkpoint")

    @hookimpl
    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        self.events.append(f"load_checkpoint {state['events']}")

    @hookimpl
    def on_exception(self, error: BaseException) -> None:
        self.events.append(f"exception {error}")

    @hookimpl
    def on_fit_end(self, outcome: str) -> None:
        self.events.append(f"fit_end {outcome}")


def test_events_come_in_the_documented_order(make):
    events = Events()
    # 1,437 images in steps of 700: two steps an epoch, the second of which logs, evaluates and saves.
    settings = {"batch": 350, "accumulate": 2, "log_every": 2}
    run = make(observe={"events": events}, run={**settings, "epochs": 2})
    run.fit()
    micro = ["batch", "batch", "backward_end"]
    epoch_end = ["log", "evaluate_end", "epoch_end {0}", "save_checkpoint"]
    expected = ["fit_start at 0"]
    for epoch in range(2):
        first = 2 * epoch + 1
        expected += [f"epoch_start {epoch}", *micro, f"step_end {first}", *micro, f"step_end {first + 1}"]
        expected += [text.format(epoch) for text in epoch_end]
    assert events.events == [*expected, "fit_end done"]
    run.lock.close()
    again = Events()
    resumed = make(resume="auto", observe={"events": again}, run={**settings, "epochs": 3})
    resumed.fit()
    # on_load_checkpoint fires when the run is assembled, before the fit, with what was saved under our name
    assert again.events[:3] == [f"load_checkpoint {len(expected) - 1}", "fit_start at 4", "epoch_start 2"]


@dataclass
class Stages(Transfer):
    """Three stages of 4, 4 and the remaining steps; notes which of them are begun."""

    def __post_init__(self) -> None:
        self.begun: list[str] = []

    def build(self) -> Any:
        class Noting(interfaces.Transfer):
            def stages(self, steps: int) -> list[Stage]:
                return [Stage("first", 4), Stage("second", 4), Stage("third", steps - 8)]

            def factors(_, model: nn.Module, anatomy: Any, stage: Stage) -> dict[str, Any]:  # noqa: N805
                self.begun.append(stage.name)
                return {}

        return Noting()


def test_every_stage_is_entered_once_and_a_resume_goes_on_in_its_own(make):
    settings = {"schedule": "constant", "save": {"every": "3 steps", "keep": 9}}
    whole, again = Stages(), Stages()
    seen: list[int] = []
    watch = Watch(then=lambda run: seen.append(run.position.stage))
    run = make("whole", transfer=whole, observe={"watch": watch}, run={"steps": 14}, **settings)
    run.fit()
    assert whole.begun == ["first", "second", "third"]
    assert seen == [0] * 4 + [1] * 4 + [2] * 6
    checkpoint = run.out / "checkpoints" / "step-00000006"
    resumed = make("again", resume=str(checkpoint), transfer=again, run={"steps": 14}, **settings)
    resumed.fit()
    assert again.begun == ["second", "third"]
    assert_same(everything(run), everything(resumed))


def test_exception_reaches_observers_and_then_the_caller(make):
    events = Events()

    def fail(run) -> None:
        raise ZeroDivisionError("observer's own mistake")

    run = make(observe={"watch": Watch(then=fail), "events": events}, run={"steps": 3})
    with pytest.raises(ZeroDivisionError):
        run.fit()
    assert events.events[-2:] == ["exception observer's own mistake", "fit_end failed"]


class Poison(Watch):
    """Makes the batch of chosen steps infinite."""

    steps: tuple[int, ...] = ()

    @hookimpl
    def on_batch(self, run, batch) -> None:
        if run.position.step in self.steps:
            batch.images.fill_(float("inf"))


def poison(*steps: int) -> Poison:
    watch = Poison()
    watch.steps = steps
    return watch


class Exploding(Tiny):
    """Its third layer returns infinity in the training steps whose torch seeds are in ``seeds``."""

    seeds: ClassVar[set[int]] = set()

    def build(self, inputs: Any, outputs: int) -> nn.Module:
        seeds = self.seeds

        class Overflow(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * (float("inf") if torch.initial_seed() in seeds else 1.0)

        return nn.Sequential(nn.Conv2d(inputs[0], 4, 3), nn.Flatten(), Overflow(), nn.Linear(4 * 36, outputs))


def test_loss_that_is_not_finite_stops_with_the_layer_named_and_weights_of_before(make, tmp_path):
    """Layer 2 overflows in step 7 only; the log after step 10 tells, the weights are still those after step 6."""
    model = Exploding()
    run = make("a", model=model, run={"steps": 20, "log_every": 10}, save={"every": "5 steps"})
    model.seeds.add(run.step_key.at(6).value)
    weights: dict[int, dict[str, torch.Tensor]] = {}
    original = run.train

    def train(step) -> None:
        original(step)
        weights[run.position.step] = everything(run)

    run.train = train
    with pytest.raises(RunFailed, match=r"step 7: the output of layer '2' is the first that is not finite"):
        run.fit()
    assert sorted(weights) == list(range(1, 11))
    assert_same(weights[6], weights[7])
    assert_same(weights[6], weights[10])
    assert manifest.newest_valid(tmp_path / "a", print).name == "step-00000005"


def test_batch_that_is_not_finite_is_skipped_counted_and_leaves_no_trace(make):
    """Skipping steps 3 and 5 ends in the same state as never having made them: BatchNorm and rates included."""
    logs: list[dict[str, float]] = []

    class Logs(Poison):
        @hookimpl
        def on_log(self, scalars: dict[str, float]) -> None:
            logs.append(scalars)

    observer = Logs()
    observer.steps = (3, 5)
    skipping = make("a", model=STILL, observe={"p": observer}, run={"steps": 9, "nonfinite": "skip", "log_every": 9})
    skipping.fit()
    reference = make("b", model=STILL, run={"steps": 9, "nonfinite": "skip"})
    stream = reference.loader.steps(Position())
    reference.on_batch = reference.on_backward_end = reference.on_step_end = ()
    reference.model.train()
    for number in range(9):
        step = next(stream)
        if number not in observer.steps:
            reference.train(step)
    assert_same(everything(skipping), everything(reference))
    assert logs[-1]["train/skipped"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in logs[-1].values())
    assert skipping.rates.updates.item() == 7


def test_early_stopping_after_patience_evaluations_without_improvement(make, registry):
    still = sgd(registry, lr=1e-30)
    run = make(optim=still, run={"epochs": 30, "patience": 3}, model=STILL, save={"keep": 1})
    assert run.fit() == "early stop"
    assert run.best.stale == 3
    assert run.position.step <= 6 * run.steps_per_epoch


def test_max_time_stops_with_a_checkpoint(make, tmp_path):
    run = make(run={"epochs": 50, "max_time": "0.000001"})
    assert run.fit() == "max_time"
    assert manifest.newest_valid(tmp_path / "run", print) is not None
    with pytest.raises(UsageError, match=r"run\.max_time=soon: write a time such as 90s"):
        make("other", run={"max_time": "soon"})


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0, "ema": 0.9}, {"nonfinite": "skip", "accumulate": 2}])
def test_nothing_on_the_path_of_a_step_reads_a_device_value(make, registry, settings):
    """Between logs no value is read; fused optimisers read the rate in C++ on a CPU only, from the host's memory."""
    run = make(
        observe={name: registry.entry("observe", name).options() for name in ("progress", "tensorboard", "csv")},
        run={"steps": 12, "batch": 64, "log_every": 100, "evaluate_every": "never", **settings},
        save={"every": "never"},
    )
    with Reads() as reads:
        float(torch.ones(()))
        assert reads.count == 1, "the detector sees a read"
    counts = []
    original = run.train

    def train(step) -> None:
        with Reads() as reads:
            original(step)
        counts.append(reads.count)

    run.train = train
    run.fit()
    assert counts[:-1] == [0] * (len(counts) - 1)


def test_channels_last_and_deterministic_mode_compute_the_same(make):
    plain = make("a", run={"steps": 5}, model=STILL)
    plain.fit()
    try:
        other = make("b", run={"steps": 5, "channels_last": True, "deterministic": True}, model=STILL)
        assert torch.are_deterministic_algorithms_enabled()
        assert other.model[0].weight.is_contiguous(memory_format=torch.channels_last)
        other.fit()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_last_step_logs_evaluates_and_saves_whatever_the_rhythm(make, tmp_path):
    events = Events()
    run = make(
        observe={"events": events},
        run={"steps": 3, "evaluate_every": "500 steps", "log_every": 1000},
        save={"every": "500 steps"},
    )
    run.fit()
    assert [e for e in events.events if not e.startswith(("batch", "backward", "step"))] == [
        "fit_start at 0", "epoch_start 0", "log", "evaluate_end", "save_checkpoint", "fit_end done",
    ]  # fmt: skip
    never = Events()
    make("never", observe={"e": never}, run={"steps": 3, "evaluate_every": "never"}).fit()
    assert "evaluate_end" not in never.events


def test_digits_are_learnt(make, registry):
    """The default network reaches 95 % in three epochs; the full figure is `make train`'s."""
    run = make(model=registry.entry("model", "cnn").options(), augment=["normalize"], run={"epochs": 4, "batch": 32})
    run.fit()
    assert run.best.score > 0.95
