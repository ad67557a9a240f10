"""Hooks: each documented and tested, called in the order that hookspecs.py tells, in the order of the configuration."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine import Observer, UsageError, hookimpl, hookspecs
from engine.options import SaveOptions
from engine.registry import bind, observers
from engine.testing import small_run

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "engine_spec")}


def test_there_are_hooks():
    assert {"engine_options", "on_fit_start", "on_step_end", "on_fit_end"} <= set(HOOKS)
    assert set(hookspecs.HOT) <= set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_explained_where_it_is_specified(hook):
    assert inspect.getdoc(HOOKS[hook])
    assert re.search(rf"\b{hook}\b", hookspecs.__doc__), "the run, told as hooks, has a line for it"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook):
    arguments = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"`{hook}({arguments})`" in (ROOT / "docs" / "plugins.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_implemented_in_some_test(hook):
    tests = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert any(re.search(rf"^ +def {hook}\(", text, re.MULTILINE) for text in tests)


class Diary:
    """Implements every on_* hook with all of its arguments, and writes down what it is told."""

    def __init__(self, name="diary", pages=None):
        self.name, self.pages = name, [] if pages is None else pages

    def write(self, *words):
        self.pages.append((self.name, *words))

    @hookimpl
    def on_fit_start(self, run):
        self.write("fit_start", run.position.step)

    @hookimpl
    def on_stage_start(self, run):
        self.write("stage_start", run.stage.name)

    @hookimpl
    def on_epoch_start(self, run, epoch):
        self.write("epoch_start", epoch)

    @hookimpl
    def on_batch(self, run, batch):
        self.write("batch", batch.samples.tolist())

    @hookimpl
    def on_backward_end(self, run):
        assert all(parameter.grad is not None for parameter in run.parameters)
        self.write("backward_end")

    @hookimpl
    def on_step_end(self, run, loss, applied):
        assert loss.shape == applied.shape == ()
        self.write("step_end", run.position.step, bool(applied))

    @hookimpl
    def on_log(self, run, scalars):
        assert {"train/loss", "train/accuracy", "train/lr", "train/grad_norm"} <= set(scalars)
        assert all(isinstance(value, float) for value in scalars.values())
        self.write("log", run.position.step)

    @hookimpl
    def on_evaluate_end(self, run, scalars):
        assert {"test/loss", "test/accuracy"} <= set(scalars)
        self.write("evaluate_end", run.position.step)

    @hookimpl
    def on_epoch_end(self, run, epoch):
        self.write("epoch_end", epoch)

    @hookimpl
    def on_save_checkpoint(self, run, state):
        state[self.name] = {"step": run.position.step}
        self.write("save_checkpoint", run.position.step)

    @hookimpl
    def on_load_checkpoint(self, run, state):
        self.write("load_checkpoint", run.position.step, state[self.name]["step"])

    @hookimpl
    def on_exception(self, run, error):
        self.write("exception", str(error))

    @hookimpl
    def on_fit_end(self, run, outcome):
        self.write("fit_end", outcome)


@dataclass
class Given(Observer):
    """Stands for an object that exists already."""

    observer: object = None

    def build(self):
        return self.observer


def pages_of(out, diary, **settings):
    run = small_run(out, observe={"diary": Given(diary)}, **settings)
    try:
        run.fit()
    finally:
        run.lock.close()
    return [words[1:] if len(words) > 2 else words[1] for words in diary.pages]


def test_the_hooks_of_a_run_come_in_the_documented_order(tmp_path):
    # Two epochs of two steps of two micro-batches of five images.
    pages = pages_of(
        tmp_path, Diary(), steps=4, batch=5, accumulate=2, log_every=1, save=SaveOptions(every="2 steps", best=False)
    )

    def step(number):
        first = 10 * (number - 1)
        batches = [("batch", list(range(begin, begin + 5))) for begin in (first, first + 5)]
        return [*batches, "backward_end", ("step_end", number, True), ("log", number)]

    assert pages == [
        ("fit_start", 0),
        ("stage_start", "all"),
        ("epoch_start", 0),
        *step(1),
        *step(2),
        ("evaluate_end", 2),
        ("epoch_end", 0),
        ("save_checkpoint", 2),
        ("epoch_start", 1),
        *step(3),
        *step(4),
        ("evaluate_end", 4),
        ("epoch_end", 1),
        ("save_checkpoint", 4),
        ("fit_end", "done"),
    ]


def test_an_exception_is_told_then_raised_and_a_resume_hands_the_state_back(tmp_path):
    class Stumbling(Diary):
        @hookimpl
        def on_epoch_start(self, run, epoch):
            if epoch == 1:
                raise RuntimeError("stumbled")

    diary = Stumbling()
    with pytest.raises(RuntimeError, match="stumbled"):
        pages_of(tmp_path, diary)
    assert [words[1:] for words in diary.pages[-2:]] == [("exception", "stumbled"), ("fit_end", "failed")]
    pages = pages_of(tmp_path, Diary(), resume="auto")
    begun = [("load_checkpoint", 5, 5), ("fit_start", 5), ("stage_start", "all"), ("epoch_start", 1)]
    assert pages[:5] == [*begun, ("batch", [20, 21, 22, 23])]
    assert pages[-1] == ("fit_end", "done")


def test_observers_are_told_in_the_order_of_the_configuration(tmp_path):
    pages = []
    watching = {name: Given(Diary(name, pages)) for name in ("last", "first", "middle")}
    run = small_run(tmp_path, steps=1, observe=watching)
    run.fit()
    assert len(pages) % 3 == 0
    for told in zip(pages[::3], pages[1::3], pages[2::3], strict=True):
        assert [words[0] for words in told] == ["last", "first", "middle"]
        assert len({str(words[1:]) for words in told}) == 1


def test_bound_functions_pass_the_arguments_that_are_wanted_by_name():
    told = []

    class Everything:
        @hookimpl
        def on_step_end(self, run, loss, applied):
            told.append((run, loss, applied))

    class Some:
        @hookimpl
        def on_step_end(self, applied, run):
            told.append((applied, run))

    class Nothing:
        @hookimpl
        def on_step_end(self):
            told.append(())

    bound = bind(observers({"everything": Everything(), "some": Some(), "nothing": Nothing()}), "on_step_end")
    for function in bound:
        function("run", "loss", "applied")
    assert told == [("run", "loss", "applied"), ("applied", "run"), ()]
    assert bind(observers({"some": Some()}), "on_batch") == ()


@pytest.mark.parametrize("kind", ["wrapper", "hookwrapper"])
def test_a_wrapper_around_a_hot_hook_is_refused(kind):
    class Wrapping:
        @hookimpl(**{kind: True})
        def on_batch(self):
            yield

    with pytest.raises(UsageError, match=r"^observer 'clever': on_batch is called every step, so it cannot wrap$"):
        bind(observers({"clever": Wrapping()}), "on_batch")


def test_a_hook_that_does_not_exist_is_refused():
    class Misspelt:
        @hookimpl
        def on_epoch_ends(self):
            pass

    with pytest.raises(
        UsageError, match=r"^plugin 'mine': no hook is called 'on_epoch_ends'; did you mean 'on_epoch_end'\?$"
    ):
        observers({"mine": Misspelt()})


def test_an_argument_that_does_not_exist_is_refused():
    class Greedy:
        @hookimpl
        def on_log(self, run, metrics):
            pass

    with pytest.raises(
        UsageError, match=r"^plugin 'mine': on_log has no argument \{'metrics'\}; it offers: run, scalars$"
    ):
        observers({"mine": Greedy()})


def test_engine_trace_tells_every_call_the_hot_ones_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINE_TRACE", "1")
    pages_of(tmp_path, Diary(), steps=1)
    lines = capsys.readouterr().err.splitlines()
    expected = [
        "on_fit_start", "on_stage_start", "on_epoch_start", "on_batch", "on_backward_end", "on_step_end", "on_log",
        "on_evaluate_end", "on_save_checkpoint", "on_fit_end",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("engine trace:")] == [
        f"engine trace: {hook} -> diary" for hook in expected
    ]


def test_without_engine_trace_nothing_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ENGINE_TRACE", raising=False)
    pages_of(tmp_path, Diary(), steps=1)
    assert "trace" not in capsys.readouterr().err


def test_edits_that_the_documentation_allows_are_seen(tmp_path):
    """on_batch may edit the batch, on_backward_end the gradients: without gradients, SGD moves nothing."""

    class Erasing:
        @hookimpl
        def on_backward_end(self, run):
            for parameter in run.parameters:
                parameter.grad.zero_()

    class Blanking:
        @hookimpl
        def on_batch(self, batch):
            batch.images.zero_()

    run = small_run(tmp_path / "erased", observe={"erasing": Given(Erasing())})
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.fit()
    assert all(map(torch.equal, before, run.parameters))
    run = small_run(tmp_path / "blank", observe={"blanking": Given(Blanking())})
    filters = run.model[0].weight.detach().clone()
    run.fit()
    assert torch.equal(filters, run.model[0].weight), "filters over black images have no gradient"
