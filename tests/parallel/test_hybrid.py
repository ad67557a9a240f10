"""The hybrid against one process on the global batch, and against torch's own tensor parallelism."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
import hybrid_cases

from engine.plugins.parallel import Hybrid
from engine.testing import check_strategy, together


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (2, Hybrid(scheme="a", layers=["*"])),
        (2, Hybrid(scheme="b", layers=["*"])),
        (2, Hybrid(scheme="c", layers=["*"])),
        (3, Hybrid(scheme="d", layers=["*"])),
        (4, Hybrid(scheme="d", layers=["*"], degree=2)),
    ],
)
def test_it_keeps_what_a_strategy_promises(world: int, options: Hybrid) -> None:
    together(world, check_strategy, options)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_gradients_are_those_of_one_process_on_the_global_batch(world: int) -> None:
    for rank in together(world, hybrid_cases.gradients, torch.float64):
        for options, *errors in rank:
            assert max(errors) <= 1e-12, options


def test_gradients_in_single_precision() -> None:
    for rank in together(2, hybrid_cases.gradients, torch.float32):
        for options, *errors in rank:
            assert max(errors) <= 5e-6, options


def test_gradients_are_those_of_torchs_tensor_parallelism() -> None:
    for found in together(2, hybrid_cases.beside_dtensor):
        assert set(found) == {f"{scheme} fc{layer}" for scheme in "ad" for layer in (6, 7, 8)}
        for name, (kind, error) in found.items():
            assert kind == ("column" if name[0] == "a" else "row")
            assert error <= 1e-12


@pytest.mark.parametrize(("world", "schemes"), [(2, "bc"), (4, "c")])
def test_updates_of_every_pass_are_those_made_by_hand(world: int, schemes: str) -> None:
    for errors in together(world, hybrid_cases.updated_each_pass, schemes):
        assert max(errors) <= 1e-12


@pytest.mark.parametrize("world", [2, 4])
def test_dropout_masks_are_the_same_for_any_number_of_processes(world: int) -> None:
    alone = hybrid_cases.masked("d")
    plain = hybrid_cases.network(dropout=0.0)
    batch = hybrid_cases.micro_batches(torch.float64, 1, (16,))[0]
    without = functional.cross_entropy(plain(batch.images), batch.targets, reduction="sum")
    assert abs(alone[0] - float(without)) > 1e-3
    for losses in together(world, hybrid_cases.all_masked):
        for loss, norms in losses:
            assert loss == pytest.approx(alone[0], rel=1e-12)
            assert norms == pytest.approx(alone[1], rel=1e-11)


def test_an_evaluation_is_each_processs_own() -> None:
    for plain, same, error in together(3, hybrid_cases.whole_again):
        assert plain
        assert same
        assert error <= 1e-14


def test_a_part_that_is_not_its_replicas_is_noticed() -> None:
    said = together(4, hybrid_cases.spoilt)
    assert [text[:2] == "1:" and "'fc7.weight'" in text for text in said] == [False, True, False, True]
