"""An interrupted run that goes on equals the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from small_run import Tiny, Watch, assert_same, everything

from engine import UsageError, manifest, stages
from engine.compiling import compile_in_place

FULL = {"run": {"ema": 0.9, "clip": 1.0, "accumulate": 2, "batch": 64}}


def stop_after(step: int):
    def then(run) -> None:
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    return then


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 2), (3, 5)])
def test_resumed_run_equals_the_undisturbed_one(make, registry, optim, threads, prefetch):
    data = registry.entry("data", "digits").options
    whole, first, second = Watch(), Watch(then=stop_after(7)), Watch()
    undisturbed = make("whole", optim=optim, observe={"watch": whole}, **FULL)
    assert undisturbed.fit() == "done"
    loading = {"data": data(size=8, threads=threads, prefetch=prefetch)}
    interrupted = make("parts", optim=optim, observe={"watch": first}, **FULL, **loading)
    assert interrupted.fit() == "stopped by SIGUSR1"
    assert interrupted.position.step == 7
    assert 7 % undisturbed.steps_per_epoch != 0, "the interruption should fall inside an epoch"
    interrupted.lock.close()
    resumed = make("parts", resume="auto", optim=optim, observe={"watch": second}, **FULL, **loading)
    assert resumed.fit() == "done"
    assert_same(everything(undisturbed), everything(resumed))
    for name in ("samples", "images", "losses"):
        parts = getattr(first, name) + getattr(second, name)
        assert len(parts) == len(getattr(whole, name))
        assert all(torch.equal(a, b) for a, b in zip(getattr(whole, name), parts, strict=True)), name


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_run import Watch, build_run
from engine.registry import Registry
def then(run):
    if run.position.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
build_run(Registry.load(), Path({out!r}), observe={{"watch": Watch(then=then)}}, threads=2,
          save={{"every": "4 steps"}}, run={{"ema": 0.9}}).fit()
"""


def test_run_killed_with_sigkill_resumes_bit_equal(make, tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    ended = subprocess.run([sys.executable, "-c", script], timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert manifest.checkpoints(tmp_path / "killed")[0].name == "step-00000008"
    undisturbed = make("whole", run={"ema": 0.9})
    undisturbed.fit()
    resumed = make("killed", resume="auto", run={"ema": 0.9})
    assert resumed.position.step == 8
    resumed.fit()
    assert_same(everything(undisturbed), everything(resumed))


def test_checkpoints_do_not_depend_on_compilation(make, monkeypatch):
    # With the default backend this test would compile C++ for half a minute.
    monkeypatch.setattr(stages, "compile_in_place", partial(compile_in_place, backend="aot_eager"))
    settings = {"model": Tiny(dropout=0.0)}
    finals = []
    for name, first, second in [("a", True, False), ("b", False, True)]:
        run = make(name, run={"epochs": 1, "compile": first}, **settings)
        run.fit()
        run.lock.close()
        names = set(run.model.state_dict())
        resumed = make(name, resume="auto", run={"epochs": 2, "compile": second}, **settings)
        assert resumed.position.step == run.steps
        assert set(resumed.model.state_dict()) == names
        assert not any("_orig_mod" in n for n in names)
        resumed.fit()
        finals.append(everything(resumed))
    for name, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][name], rtol=1e-3, atol=1e-4)


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(make, tmp_path, capsys):
    run = make("run", save={"every": "5 steps", "keep": 3, "best": False})
    run.fit()
    run.lock.close()
    newest, before = manifest.checkpoints(tmp_path / "run")[:2]
    weights = newest / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    resumed = make("run", resume="auto")
    assert str(resumed.position.step) == before.name.removeprefix("step-").lstrip("0")
    told = capsys.readouterr().out
    assert newest.name in told
    assert "model.safetensors was altered" in told


def test_complete_run_has_nothing_left_to_do_and_more_epochs_go_on(make):
    run = make("run", run={"epochs": 1})
    run.fit()
    run.lock.close()
    done = everything(run)
    again = make("run", resume="auto", run={"epochs": 1})
    assert again.fit() == "done"
    assert_same(done, everything(again))
    again.lock.close()
    longer = make("run", resume="auto", run={"epochs": 2})
    longer.fit()
    assert longer.position.step == 2 * run.position.step


def test_checkpoint_of_another_architecture_names_the_differing_parameters(make, tmp_path):
    run = make("run", run={"steps": 2})
    run.fit()
    run.lock.close()
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file() and p.name != "run.lock"}
    with pytest.raises(UsageError, match=r"does not fit this model: of another shape: 0\.weight is \[8, 1"):
        make("run", resume="auto", model=Tiny(width=4))
    assert before == {p: p.read_bytes() for p in before}, "a refused resume must leave the run as it was"


def test_checkpoint_of_other_data_is_refused(make, registry):
    run = make("run", run={"steps": 2})
    run.fit()
    run.lock.close()
    with pytest.raises(UsageError, match=r"was trained on other data \(1437 images"):
        make("run", resume="auto", data=registry.entry("data", "digits").options(size=16))


def test_resuming_an_older_checkpoint_over_newer_ones_asks_for_another_folder(make, tmp_path):
    run = make("run", save={"every": "5 steps", "keep": 9})
    run.fit()
    run.lock.close()
    older = manifest.folder_of(tmp_path / "run", 5)
    with pytest.raises(UsageError, match="give another out= to branch off"):
        make("run", resume=str(older))
    branch = make("branch", resume=str(older))
    assert branch.position.step == 5


def test_run_killed_before_its_first_checkpoint_can_be_started_again(make, tmp_path):
    run = make("run", run={"steps": 2})
    run.lock.close()  # its folder is claimed and holds config.yaml, but no checkpoint
    assert (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(UsageError, match="holds a run already: resume=auto"):
        make("run", run={"steps": 2})
    assert make("run", resume="auto", run={"steps": 2}).fit() == "done"


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_checkpoint_of_another_optimiser_is_refused(make, before, after):
    make("run", run={"steps": 2}, optim=before).fit()
    with pytest.raises(UsageError, match=r"was trained with \w+, this run with \w+: choose the same optim"):
        make("run", resume="auto", run={"steps": 4}, optim=after)


@pytest.mark.parametrize(("before", "after"), [("float32", "float64"), ("float64", "float32")])
def test_checkpoint_of_another_precision_is_refused(make, before, after):
    make("run", run={"steps": 2}, precision=before).fit()
    with pytest.raises(UsageError, match=rf"was trained in torch.{before}, this run computes in torch.{after}"):
        make("run", resume="auto", run={"steps": 4}, precision=after)
