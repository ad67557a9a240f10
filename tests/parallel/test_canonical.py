"""The same bits for any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import tensors, train
from torch import Tensor, nn

from engine import UsageError
from engine.distributed.group import Group, entered
from engine.interfaces import Batch
from engine.plugins.augment import GaussianNoise
from engine.plugins.optim import AdamW
from engine.plugins.parallel import Data, Single
from engine.plugins.precision import Bfloat16SR
from engine.testing import check_strategy, small_run
from engine.testing.processes import together

NOISY = {"augment": {"noise": GaussianNoise()}}


def require_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_one_two_and_four_processes_give_the_same_bits_also_when_others_go_on(tmp_path: Path) -> None:
    single = tmp_path / "single"
    train(str(single), 4, Single(canonical=4), NOISY)
    expected = tensors(single)
    assert len({value.double().sum().item() for value in expected.values()}) > 8, "it has trained"
    # The first two steps by one number of processes, the last two by another.
    for first, second in ((2, 4), (4, 2)):
        out = str(tmp_path / f"{first}-{second}")
        together(first, train, out, 2, Data(canonical=4), NOISY)
        together(second, train, out, 4, Data(canonical=4), NOISY, "auto")
        require_same_bits(tensors(Path(out)), expected)
    out = str(tmp_path / "data, one process")
    train(out, 4, Data(canonical=4), NOISY)
    require_same_bits(tensors(Path(out)), expected)


@pytest.mark.parametrize("more", [{"optim": AdamW()}, {"precision": Bfloat16SR(rounding="kahan")}])
def test_other_optimisers_and_wider_gradients_too(tmp_path: Path, more: dict[str, Any]) -> None:
    train(str(tmp_path / "1"), 3, Single(canonical=2), NOISY | more)
    together(2, train, str(tmp_path / "2"), 3, Data(canonical=2), NOISY | more)
    require_same_bits(tensors(tmp_path / "1"), tensors(tmp_path / "2"))


def gradients_of_shards(shards: int) -> list[Tensor]:
    """Return the gradients, and the running statistics, of a network over 8 samples in canonical mode."""
    network, strategy = batch_norm_network(), Data(canonical=shards).build()
    network = strategy.wrap(strategy.shard(network))
    share = 8 // strategy.world
    rows = slice(strategy.rank * share, (strategy.rank + 1) * share)
    images = samples()[rows]
    batch = Batch(images, torch.zeros(share, dtype=torch.int64), torch.arange(8)[rows])
    strategy.forward_backward(lambda part, index: loss_of(network, part.images), [batch], torch.tensor(0.5).double())
    return [*(p.grad for p in network.parameters()), *network.buffers()]  # type: ignore[misc]


def batch_norm_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def samples() -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(network: nn.Module, images: Tensor) -> Tensor:
    return (network(images) ** 2).sum()


def test_a_shard_is_computed_as_if_it_were_a_process() -> None:
    network = batch_norm_network()
    begun = [buffer.clone() for buffer in network.buffers()]
    statistics = []
    for part in samples().split(2):
        for buffer, value in zip(network.buffers(), begun, strict=True):
            buffer.copy_(value)
        (0.5 * loss_of(network, part)).backward()
        statistics.append([buffer.clone() for buffer in network.buffers()])
    expected = [p.grad for p in network.parameters()]
    means = [sum(values) / 4 for values in zip(*statistics, strict=True)]
    for found in together(2, gradients_of_shards, 4):
        for value, right in zip(found, [*expected, *means], strict=True):
            torch.testing.assert_close(value, right.to(value.dtype), rtol=1e-13, atol=1e-14)


def test_it_keeps_a_strategys_promises_where_one_shard_is_a_processs() -> None:
    together(2, check_strategy, Data(canonical=2))


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run.batch=8 cannot be cut into parallel.canonical=3"):
        small_run(tmp_path, parallel=Single(canonical=3), batch=8)
    assert not list(tmp_path.iterdir()), "refused before the folder is claimed"
    with pytest.raises(UsageError, match=r"canonical=2 does not go with parallel.compress=float16"):
        Data(canonical=2, compress="float16").build()
    with entered(Group((0, 1))), pytest.raises(UsageError, match=r"canonical=3: so many shards .* by 2 processes"):
        Data(canonical=3).build()


def test_the_number_of_threads_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    run = small_run(tmp_path, parallel=Single(canonical=2, threads=before + 1), steps=2)
    run.loss = watching(run.loss, seen)
    run.fit()
    run.lock.close()
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def watching(loss: Any, seen: list[int]) -> Any:
    class Watching(type(loss)):  # type: ignore[misc]
        def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(torch.get_num_threads())
            return super().__call__(outputs, targets)

    return Watching()
