"""small_run is a real run: it learns, takes other components by group, and says what it does not know."""

from __future__ import annotations

import pytest

from engine import Run, UsageError, hookimpl
from engine.testing import small_run
from engine.testing.observer import _Probing
from engine.testing.promises import Promises


class Collector:
    def __init__(self):
        self.losses, self.outcomes = [], []

    @hookimpl
    def on_log(self, scalars):
        self.losses.append(scalars["train/loss"])

    @hookimpl
    def on_fit_end(self, outcome):
        self.outcomes.append(outcome)


class Watching(_Probing):
    def build(self):
        return self.promises


def test_a_small_run_learns_and_leaves_a_checkpoint(tmp_path):
    collector = Collector()
    run = small_run(tmp_path, steps=60, observe={"collector": Watching(promises=collector)})
    assert isinstance(run, Run)
    assert run.fit() == "done"
    assert collector.losses[-1] < 0.3 * collector.losses[0]
    assert collector.outcomes == ["done"]
    assert (tmp_path / "checkpoints" / "step-00000060" / "manifest.json").is_file()


def test_two_small_runs_are_bit_equal_and_another_seed_is_not(tmp_path):
    weights = []
    for name, settings in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        run = small_run(tmp_path / name, steps=3, **settings)
        run.fit()
        weights.append(run.model[0].weight.detach().clone())
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(TypeError, match="modle"):
        small_run(tmp_path, modle=None)


def test_options_are_checked(tmp_path):
    with pytest.raises(UsageError, match=r"run\.batch=0: must be at least 1"):
        small_run(tmp_path, batch=0)


def test_a_broken_promise_names_component_promise_and_what_was_seen():
    with pytest.raises(AssertionError, match=r"^int breaks a promise: it is even; it is 3$"):
        Promises(3).expect(False, "it is even", "it is 3")
