"""Floating-point policies in the real loop: promises kept, interrupted runs, evaluations, compiled steps, commands."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch
from floating_runs import REGISTRY, run_of
from small_run import Watch, assert_same, everything

from engine import stages
from engine.compiling import compile_in_place
from engine.plugins.precision import Bfloat16, Bfloat16SR, Float16
from engine.testing import BrokenPromise, check_precision

POLICIES = {
    "bfloat16": Bfloat16(),
    "float16": Float16(init_scale=2.0**26, growth_interval=3, emulate="always"),
    "stochastic": Bfloat16SR(),
    "kahan": Bfloat16SR("kahan"),
    "nearest": Bfloat16SR("nearest"),
}
FULL = {"ema": 0.9, "clip": 1.0, "accumulate": 2, "batch": 64, "log_every": 3, "epochs": 2, "evaluate_every": "never"}


@pytest.mark.parametrize(
    "precision",
    [
        Bfloat16(),
        Float16(),
        Float16(emulate="always", init_scale=2.0**40, backoff_factor=0.25, growth_factor=4.0, growth_interval=2),
        Float16(emulate="always", init_scale=8.0, min_scale=8.0),
        *(Bfloat16SR(rounding) for rounding in ("stochastic", "kahan", "nearest")),
    ],
    ids=str,
)
def test_every_option_keeps_the_promises_of_a_policy(precision):
    check_precision(precision)


def test_a_remark_of_two_lines_breaks_a_promise():
    policy = Bfloat16().build()
    policy.remark = "quick\nand small"
    with pytest.raises(BrokenPromise, match="remark is text of one line"):
        check_precision(policy)


def stop_after(step):
    def then(run):
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    return then


@pytest.mark.parametrize(
    ("name", "optim"), [("bfloat16", "sgd"), ("float16", "sgd"), ("stochastic", "sgd"), ("kahan", "adamw")]
)
def test_a_run_interrupted_within_an_epoch_goes_on_bit_for_bit(tmp_path, name, optim):
    whole, first, second = Watch(), Watch(then=stop_after(8)), Watch()
    precision, settings = POLICIES[name], {"optim": optim, "run": FULL | {"channels_last": name == "kahan"}}
    undisturbed = run_of(tmp_path / "whole", precision, observe={"watch": whole}, **settings)
    assert undisturbed.fit() == "done"
    interrupted = run_of(tmp_path / "parts", precision, observe={"watch": first}, **settings)
    assert interrupted.fit() == "stopped by SIGUSR1"
    assert 8 % undisturbed.steps_per_epoch != 0
    interrupted.lock.close()
    resumed = run_of(tmp_path / "parts", precision, observe={"watch": second}, resume="auto", **settings)
    assert resumed.fit() == "done"
    assert_same(everything(undisturbed), everything(resumed))
    assert_same(undisturbed.precision.state(), resumed.precision.state())
    assert all(torch.equal(a, b) for a, b in zip(whole.losses, first.losses + second.losses, strict=True))
    if name == "float16":
        assert 0 < int(undisturbed.guard.skipped) == int(resumed.guard.skipped) < undisturbed.steps / 2


@pytest.mark.parametrize("name", ["bfloat16", "float16", "kahan"])
def test_a_compiled_step_is_the_step(tmp_path, monkeypatch, name):
    """With a backend that traces and does not generate code, so that every bit must be the same."""
    captured = []
    backend = torch._dynamo.lookup_backend("aot_eager")

    def count(graph, inputs):
        captured.append(graph)
        return backend(graph, inputs)

    monkeypatch.setattr(stages, "compile_in_place", partial(compile_in_place, backend=count))
    torch._dynamo.reset()
    runs = []
    for compile_it in (False, True):
        settings = {"steps": 4, "batch": 32, "log_every": 2, "compile": compile_it, "evaluate_every": "never"}
        run = run_of(tmp_path / str(compile_it), POLICIES[name], run=settings)
        run.fit()
        runs.append(everything(run))
        assert bool(captured) == compile_it
    assert_same(*runs)


@pytest.mark.soak
@pytest.mark.timeout(600)  # C++ is compiled
@pytest.mark.parametrize("name", list(POLICIES))
def test_a_compiled_step_of_torchs_own_compiler_learns_the_same(tmp_path, name):
    losses = []
    for compile_it in (False, True):
        watch = Watch()
        settings = {"steps": 30, "batch": 32, "compile": compile_it, "evaluate_every": "never"}
        run_of(tmp_path / str(compile_it), POLICIES[name], run=settings, observe={"watch": watch}).fit()
        losses.append(torch.stack(watch.losses[-5:]).mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


WORDS = ("data=digits", "data.size=8", "data.threads=0", "model=cnn", "model.width=8", "run.batch=64")


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory):
    """Return the accuracy of the default precision."""
    run = learnt(tmp_path_factory.mktemp("float32") / "run", "float32")
    return run.best.score


def learnt(folder, precision):
    run = run_of(folder, precision, model=REGISTRY.entry("model", "cnn").options(width=8), augment=["normalize"],
                 run={"epochs": 4, "batch": 64, "evaluate_every": "4 epochs"})  # fmt: skip
    assert run.fit() == "done"
    return run


@pytest.mark.parametrize("precision", [Bfloat16(), Float16(), Bfloat16SR()], ids=str)
def test_digits_are_learnt_as_in_float32(tmp_path, in_float32, precision):
    assert in_float32 > 0.85
    assert learnt(tmp_path / "run", precision).best.score == pytest.approx(in_float32, abs=0.03)


def test_commands_train_evaluate_and_refuse_another_policy(engine):
    words = (*WORDS, "run.epochs=1", "run.ema=0.5", "run.clip=1")
    for precision in ("bfloat16", "float16", "bfloat16_sr"):
        code, _, told = engine("train", *words, f"precision={precision}", f"out={precision}")
        assert code == 0, told
        last = next(line for line in reversed(told.splitlines()) if "test accuracy" in line)
        code, out, _ = engine("evaluate", f"checkpoint={precision}")
        assert code == 0
        accuracy = float(out.rsplit("accuracy ", 1)[1])
        assert f"test accuracy {accuracy:.2%}".replace("%", " %") in last
    code, _, err = engine("train", *words, "precision=bfloat16_sr", "out=bfloat16", "resume=auto", "run.epochs=2")
    assert code == 2
    begun, refused = err.strip().splitlines()
    assert "resuming from" in begun
    assert "was trained with Bfloat16, this run with Bfloat16SR: choose the same precision, or start" in refused
