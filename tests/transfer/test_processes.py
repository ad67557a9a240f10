"""Two processes that share a staged run make of it what one does."""

from __future__ import annotations

import distributed
import pytest
import torch

from engine.plugins.parallel import Data, Hybrid, Single
from engine.testing import small_run, together


@pytest.mark.parametrize("parallel", [Data(), Hybrid(layers=["3", "5"])])
def test_two_processes_do_as_one(tmp_path, parallel):
    source = small_run(tmp_path / "source", steps=2, model=distributed.Wide())
    source.fit()
    weights = str(tmp_path / "source")
    alone, stages = distributed.staged(str(tmp_path / "alone"), weights, Single())
    assert [sorted({name.partition(".")[0] for name in stage}) for stage in stages] == [
        ["7"], ["5", "7"], ["0", "3", "5", "7"],
    ]  # fmt: skip
    for found, trained in together(2, distributed.staged, str(tmp_path / "two"), weights, parallel):
        assert [sorted(stage) for stage in trained] == [sorted(stage) for stage in stages]
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
