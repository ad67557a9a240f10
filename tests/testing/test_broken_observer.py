"""check_observer names the promise that a broken observer breaks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from engine import Observer, hookimpl
from engine.testing import BrokenPromise, check_observer


class Sound:
    """Keeps sums on the device and reads them in on_log."""

    def __init__(self):
        self.total = None
        self.seen = []
        self.saved = 0

    @hookimpl
    def on_load_checkpoint(self, state):
        self.saved = state["saved"]

    @hookimpl
    def on_batch(self, run, batch):
        self.seen.append(batch.samples.tolist())  # on the CPU by contract

    @hookimpl
    def on_backward_end(self, run):
        self.norms = torch.stack([p.grad.norm() for p in run.parameters])

    @hookimpl
    def on_step_end(self, run, loss, applied):
        part = torch.where(applied, loss, 0.0)
        self.total = part if self.total is None else self.total + part

    @hookimpl
    def on_log(self, scalars):
        self.numbers = [float(self.total), *self.norms.tolist(), scalars["train/loss"]]

    @hookimpl
    def on_save_checkpoint(self, run, state):
        self.saved += 1
        state["saved"] = self.saved


class Halves:
    """Its documentation would have to say that it halves what is learnt."""

    @hookimpl
    def on_backward_end(self, run):
        for parameter in run.parameters:
            parameter.grad *= 0.5


class EditsBatches:
    @hookimpl
    def on_batch(self, batch):
        batch.images += 0.1


class EditsWeightsOnceResumed:
    @hookimpl
    def on_load_checkpoint(self, run):
        with torch.no_grad():
            next(run.model.parameters()).add_(0.1)


class LeavesTheModelEvaluating:
    @hookimpl
    def on_step_end(self, run):
        run.model.eval()


class WatchesOnlyHalfway:
    @hookimpl
    def on_log(self, run):
        if run.position.step == 8:
            raise ValueError("cannot draw a chart")


class FailsWhenResumed:
    @hookimpl
    def on_fit_start(self, run):
        if run.position.step:
            raise ValueError("the file exists")


class FailsAtTheEnd:
    @hookimpl
    def on_fit_end(self, outcome):
        if outcome == "failed":
            raise ValueError("no such outcome")


class SavesATensor:
    @hookimpl
    def on_save_checkpoint(self, state):
        state["loss"] = torch.zeros(())


class SavesATuple:
    @hookimpl
    def on_save_checkpoint(self, state):
        state["sizes"] = (1, 2)


class SavesInfinity:
    @hookimpl
    def on_save_checkpoint(self, state):
        state["best"] = float("inf")


class Misspelt:
    @hookimpl
    def on_step_ended(self, run):
        pass


class AsksForTooMuch:
    @hookimpl
    def on_step_end(self, run, accuracy):
        pass


class Wraps:
    @hookimpl(wrapper=True)
    def on_step_end(self):
        return (yield)


@dataclass
class Options(Observer):
    """Builds an observer of a class given."""

    observer: object = None

    def build(self):
        return self.observer()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Halves, "an observer changes nothing of the mathematics; the weights differ"),
        (EditsBatches, "an observer changes nothing of the mathematics; the weights differ"),
        (LeavesTheModelEvaluating, "an observer changes nothing of the mathematics; the weights differ"),
        (
            EditsWeightsOnceResumed,
            "an observer changes nothing of the mathematics; the weights of a resumed run differ",
        ),
        (WatchesOnlyHalfway, "it takes part in a whole run; ValueError: cannot draw a chart"),
        (FailsWhenResumed, "it takes part in a run that was interrupted and resumed; ValueError: the file exists"),
        (FailsAtTheEnd, "an exception of the run reaches the caller; ValueError: no such outcome"),
        (SavesATensor, "JSON values.*not JSON serializable"),
        (SavesATuple, "JSON values.*which come back as they were"),
        (SavesInfinity, "JSON values.*not JSON compliant"),
        (Misspelt, "its hooks exist.*no hook is called 'on_step_ended'; did you mean 'on_step_end'"),
        (AsksForTooMuch, "its hooks exist.*on_step_end has no argument {'accuracy'}"),
        (Wraps, "wrap nothing that is called every step.*on_step_end is called every step, so it cannot wrap"),
    ],
)
def test_broken_observer_is_named(broken, promise):
    with pytest.raises(BrokenPromise, match=f"^Options breaks a promise: .*{promise}"):
        check_observer(Options(observer=broken))


READS = {
    "item": lambda loss, applied: loss.item(),
    "float": lambda loss, applied: float(loss),
    "int": lambda loss, applied: int(loss),
    "if": lambda loss, applied: 1 if applied else 0,
    "comparison": lambda loss, applied: loss < 0 or 1,
    "format": lambda loss, applied: f"{loss:.3f}",
    "print": lambda loss, applied: str(loss),
    "tolist": lambda loss, applied: loss.tolist(),
    "numpy": lambda loss, applied: loss.numpy(),
    "cpu": lambda loss, applied: loss.cpu(),
    "to": lambda loss, applied: loss.to("cpu"),
    "in": lambda loss, applied: 0.0 in loss.view(1),
    "equal": lambda loss, applied: torch.equal(loss, loss),
    "allclose": lambda loss, applied: torch.allclose(loss, loss),
    "nonzero": lambda loss, applied: loss.view(1).nonzero(),
    "mask": lambda loss, applied: loss.view(1)[loss.view(1) > 0],
    "where": lambda loss, applied: torch.where(loss.view(1) > 0),
    "unique": lambda loss, applied: loss.view(1).unique(),
    "inside a function": lambda loss, applied: torch.full((2,), loss),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_a_device_value_in_a_hot_hook_is_named(read):
    class Reads:
        @hookimpl
        def on_step_end(self, loss, applied):
            read(loss, applied)

    with pytest.raises(BrokenPromise, match="what is called every step never reads device values; on_step_end calls"):
        check_observer(Options(observer=Reads))


def test_building_the_same_object_twice_is_named():
    shared = Sound()
    with pytest.raises(BrokenPromise, match="a new object each time, because every run needs its own"):
        check_observer(Options(observer=lambda: shared))


def test_sound_observer_passes():
    check_observer(Options(observer=Sound))


def test_an_observer_may_be_declared_to_change_training():
    check_observer(Options(observer=Halves), changes_training=True)
