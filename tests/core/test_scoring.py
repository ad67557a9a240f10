"""Evaluating weights without training: the figures of plain PyTorch, and what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_run import build_run
from torch import nn

from engine import Session, UsageError, manifest, score
from engine.options import RunOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(registry, tmp_path_factory):
    """A run of one epoch that keeps an average of its weights."""
    run = build_run(registry, tmp_path_factory.mktemp("scoring") / "run", run={"epochs": 1, "ema": 0.5})
    run.fit()
    run.lock.close()
    return run


@pytest.fixture
def session(registry, trained, tmp_path) -> Session:
    return Session(trained.options, registry, tmp_path / "unused")


def by_hand(model: nn.Module, run) -> dict[str, float]:
    """Return mean loss and accuracy of the test split by a plain loop in float64."""
    model = model.double().eval()
    loss = right = count = 0.0
    with torch.no_grad():
        for batch in run.test:
            outputs = model(batch.images.double())
            loss += nn.functional.cross_entropy(outputs, batch.targets, reduction="sum").item()
            right += (outputs.argmax(1) == batch.targets).sum().item()
            count += len(batch.targets)
    assert count == 360
    return {"test/loss": loss / count, "test/accuracy": right / count}


def copy_of(run, state: dict[str, torch.Tensor]) -> nn.Module:
    model = run.options.model.build((1, 8, 8), 10)
    model.load_state_dict(state)
    return model


def test_a_checkpoint_is_scored_with_its_average(trained, session):
    average = {**trained.model.state_dict(), **trained.average.state()}
    expected = by_hand(copy_of(trained, average), trained)
    assert expected["test/loss"] != pytest.approx(
        by_hand(copy_of(trained, trained.model.state_dict()), trained)["test/loss"]
    )
    for weights in (trained.out, manifest.checkpoints(trained.out)[0]):
        told: list[str] = []
        means, images = score(session, weights, told.append)
        assert images == 360
        assert means.keys() == expected.keys()
        assert means["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-5)
        assert means["test/accuracy"] == expected["test/accuracy"]
        folder = manifest.checkpoints(trained.out)[0]
        assert told == [
            f"evaluating {folder}, after step {trained.steps}, averaged weights",
            "kernels: 0: native (torch's own)",
        ]
    assert not session.out.exists(), "scoring writes nothing"


@pytest.mark.parametrize("batch", [1, 7, 360, 1000])
def test_somebodys_weights_are_scored_the_same_in_any_batch(trained, session, tmp_path, batch):
    state = trained.model.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    options = dataclasses.replace(session.options, run=RunOptions(batch=batch))
    means, images = score(dataclasses.replace(session, options=options), tmp_path / "w.pt", print)
    expected = by_hand(copy_of(trained, state), trained)
    assert images == 360
    assert means["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-5)
    assert means["test/accuracy"] == expected["test/accuracy"]


def refusal(session: Session, weights: Path) -> str:
    with pytest.raises(UsageError) as caught:
        score(session, weights, print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_do_not_fit_are_answered(session, tmp_path):
    path = tmp_path / "w.pt"
    assert refusal(session, path).startswith(f"{path} does not exist")
    torch.save({"0.weight": torch.ones(8, 1, 5, 5)}, path)
    line = refusal(session, path)
    assert line.startswith(f"{path} does not fit this model: missing: 1.weight, ")
    assert line.endswith("of another shape: 0.weight is [8, 1, 5, 5] instead of [8, 1, 3, 3]")


def test_a_folder_without_a_checkpoint_is_answered(session, tmp_path):
    assert "holds no valid checkpoint" in refusal(session, tmp_path)


def test_a_damaged_checkpoint_is_answered(trained, session, tmp_path):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    for file in manifest.checkpoints(trained.out)[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors has" in refusal(session, folder)


def test_a_bad_device_is_answered(session, trained):
    options = dataclasses.replace(session.options, run=RunOptions(device="tpu"))
    assert refusal(dataclasses.replace(session, options=options), trained.out).startswith("run.device=tpu: write auto")
