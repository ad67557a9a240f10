"""A staged run goes on where it was stopped, bit for bit, without its first weights."""

from __future__ import annotations

import json

import pytest
from networks import everything, run_of, trained_names

from engine import UsageError
from engine.options import SaveOptions
from engine.plugins.models import SmallCNN
from engine.plugins.transfer import Full, Head, NoTransfer, Staged


@pytest.mark.parametrize("step", [2, 5, 6, 8])
def test_a_resumed_run_equals_the_undisturbed(tmp_path, step):
    source = run_of(tmp_path / "source", steps=4)
    source.fit()
    weights = tmp_path / "first"
    (tmp_path / "source").rename(weights)
    given = {
        "transfer": Staged(weights=str(weights), reinitialize=["linear"], stages=["head:0.3", "last_2:0.3", "all:0.4"]),
        "model": SmallCNN(width=4, dropout=0.3),
        "save": SaveOptions(every="1 steps", keep=20),
    }
    whole = run_of(tmp_path / "whole", **given)
    assert whole.fit() == "done"
    weights.rename(tmp_path / "gone")
    start = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
    again = run_of(tmp_path / "again", resume=str(start), **given)
    assert again.position.stage == {2: 0, 5: 1, 6: 2, 8: 2}[step]
    assert again.transfer.new == {"linear.weight", "linear.bias"}
    trains = trained_names(again)
    assert ("conv1.weight" in trains, "conv3.weight" in trains) == (step > 5, step > 2)
    assert again.fit() == "done"
    one, other = everything(whole), everything(again)
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
    assert json.loads((start / "manifest.json").read_text())["transfer"] == {"new": ["linear.bias", "linear.weight"]}


def test_a_run_without_transfer_can_be_gone_on_with_in_one(tmp_path):
    run_of(tmp_path / "first", steps=5, transfer=NoTransfer()).fit()
    start = str(tmp_path / "first")
    again = run_of(tmp_path / "full", transfer=Full(), resume=start)
    assert again.transfer.new is None
    assert again.fit() == "done"
    with pytest.raises(UsageError, match=r"optimiser state is for '.*', which does not train here"):
        run_of(tmp_path / "head", transfer=Head(), resume=start)
