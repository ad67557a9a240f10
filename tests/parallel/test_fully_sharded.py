"""Parameters, gradients and optimiser state in parts, against the same run whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved_runs import COMMON, FILES, tensors, train
from torch import Tensor, nn

from engine import Batch, UsageError, checkpoint, manifest
from engine.plugins.optim import AdamW
from engine.plugins.parallel import Data, Single
from engine.plugins.precision import Bfloat16SR, Fixed, Float64
from engine.testing import check_strategy, small_run
from engine.testing.processes import together

EXACT = {"precision": Float64()}
ADAM = {**EXACT, "optim": AdamW()}


def require_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance, msg=name)


def keep_promises() -> None:
    check_strategy(Data(sharded=True))


@pytest.mark.parametrize("world", [2, 4])  # the last layer has three outputs: the fourth process has nothing of it
def test_it_keeps_what_a_strategy_promises(world: int) -> None:
    together(world, keep_promises)


def whole_then_sharded_then_whole(out: str) -> None:
    """Train the whole model, go on with it sharded from what that saved, and then with it whole again."""
    train(out, 2, Data(), EXACT)
    train(out, 4, Data(sharded=True), EXACT, "auto")
    train(out, 6, Data(), EXACT, "auto")


def test_it_trains_as_the_whole_model_does_and_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    together(2, train, str(tmp_path / "whole"), 6, Data(), EXACT)
    together(2, whole_then_sharded_then_whole, str(tmp_path / "mixed"))
    require_close(tensors(tmp_path / "whole"), tensors(tmp_path / "mixed"), 1e-11)


def test_what_is_saved_in_parts_is_loaded_whole_in_every_bit(tmp_path: Path) -> None:
    out = tmp_path / "parts"
    together(4, train, str(out), 2, Data(sharded=True), ADAM)
    saved = tensors(out)
    newest = manifest.newest_valid(out, print)
    assert newest is not None
    assert "model-00002-of-00004.safetensors" in manifest.read(newest)["files"]
    run = small_run(tmp_path / "single", parallel=Single(), steps=4, resume=str(out), **COMMON | ADAM)
    optimizer, _ = checkpoint.optimizer_state(run.optimizer)
    assert run.average is not None
    loaded = dict(zip(FILES, (run.model.state_dict(), optimizer, run.average.state()), strict=True))
    run.lock.close()
    for file, held in loaded.items():
        assert {f"{file}/{name}" for name in held} == {name for name in saved if name.startswith(file)}
        assert all(torch.equal(value, saved[f"{file}/{name}"]) for name, value in held.items())
    together(2, loads_in_every_bit, str(out), saved)


def loads_in_every_bit(out: str, saved: dict[str, Tensor]) -> None:
    """Look whether two processes have, of what four have saved, the right parts."""
    run = small_run(Path(f"{out} again"), parallel=Data(sharded=True), steps=4, resume=out, **COMMON | ADAM)
    state, _ = checkpoint.optimizer_state(run.optimizer)
    held = checkpoint.optimizer_pieces(run.optimizer, state, run.strategy.pieces, run.strategy.leads)
    found = {f"{FILES[0]}/{n}": p for n, p in run.strategy.pieces(run.model.state_dict()).items()}
    found |= {f"{FILES[1]}/{n}": p for n, p in held.items()}
    smaller = 0
    for name, piece in found.items():
        box = tuple(slice(b, b + n) for b, n in zip(piece.offsets, piece.values.shape, strict=True))
        assert torch.equal(piece.values, saved[name][box]), name
        smaller += not piece.is_whole
    assert smaller == 6 + 2 * 6  # parameters, and two averages of each


class Reached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def refusals() -> list[str]:
    messages = []
    strategy = Data(sharded=True).build()
    model = strategy.wrap(strategy.shard(Reached()))
    batch = Batch(torch.ones(2, 3), torch.zeros(2), torch.arange(2))
    with pytest.raises(UsageError) as refused:
        strategy.forward_backward(lambda batch, index: model(batch.images).sum(), [batch], torch.tensor(1.0))
    messages.append(str(refused.value))
    for precision in (Fixed(), Bfloat16SR()):
        with pytest.raises(UsageError) as refused:
            strategy.shard(precision.build().convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))))
        messages.append(str(refused.value))
    return messages


def test_what_cannot_be_sharded_is_refused() -> None:
    for unused, *policies in together(2, refusals):
        assert "reaches unused.weight, unused.bias: take them out of the model or freeze them" in unused
        assert all("choose precision=float32, float64 or bfloat16" in message for message in policies)
    with pytest.raises(UsageError, match=r"sharded=true does not go with parallel.compress=bfloat16"):
        Data(sharded=True, compress="bfloat16").build()
