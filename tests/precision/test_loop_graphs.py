"""Floating-point policies in a recorded step: replays, which run no Python, are the steps made one by one."""

from __future__ import annotations

import pytest
import torch
from floating_runs import run_of
from graphs_on_host import Host, install
from small_run import assert_same, everything
from test_loop_telemetry import Logs

from engine.cuda_graph import GraphedStep
from engine.plugins.precision import Bfloat16, Bfloat16SR, Float16, bfloat16_sr, float16

POLICIES = {
    "bfloat16": Bfloat16(),
    "float16": Float16(init_scale=2.0**24, growth_interval=4, emulate="never"),
    "stochastic": Bfloat16SR(),
    "kahan": Bfloat16SR("kahan"),
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Let torch.cuda's graphs be stand-ins that work on the CPU; float16 is computed there, slowly, as on a GPU."""
    monkeypatch.setattr(float16, "trains_in_float16", lambda: True)
    # A stand-in for a graph knows parameters as Python's objects, a graph their memory, which it keeps. For the same
    # reason there must be but one, and so all steps are logged: others would have a graph of their own.
    monkeypatch.setattr(bfloat16_sr, "give_back", lambda stand_ins: None)
    return install(monkeypatch)


@pytest.mark.parametrize(("name", "optim"), [*((name, "sgd") for name in POLICIES), ("kahan", "adamw")])
def test_replayed_steps_are_the_steps(tmp_path, host, name, optim):
    ends, losses, told = [], [], []
    for graphed in (False, True):
        watch = Logs()
        settings = {"epochs": 2, "log_every": 1, "ema": 0.9, "clip": 1.0, "evaluate_every": "never"}
        run = run_of(tmp_path / str(graphed), POLICIES[name], optim=optim, run=settings, observe={"watch": watch})
        if graphed:
            run.graphed = GraphedStep(run.device)
        assert run.fit() == "done"
        ends.append({**everything(run), **run.precision.state(), "skipped": run.guard.skipped})
        losses.append(torch.stack(watch.losses))
        told.append([{n: v for n, v in each.items() if n.startswith("precision/")} for each in watch.logs])
    assert len(host.graphs) == 1
    assert_same(*ends)
    assert torch.equal(*losses)
    assert told[0] == told[1]
    if name == "float16":
        assert 0 < ends[0]["skipped"] < 15


def test_what_may_be_recorded_is_declared():
    assert all(options.build().capturable for options in POLICIES.values())
    assert Float16().build().capturable
    assert not Float16(emulate="always").build().capturable, "rounding asks the host where a batch begins"
