"""Which layers the hybrid finds and splits, and its formulas: against those of the literature, worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from hybrid_cases import Net, Numbers, network
from planned_models import AlexNet

from engine import Key, UsageError
from engine.distributed.group import ALONE, Group
from engine.plugins.parallel import Hybrid
from engine.plugins.parallel.hybrid import choosing
from engine.plugins.parallel.hybrid.chains import Chain, find_chains
from engine.plugins.parallel.hybrid.choosing import Setting
from engine.plugins.parallel.hybrid.layouts import Columns
from engine.plugins.parallel.hybrid.placing import Wanted
from engine.plugins.precision import BinaryConnect, Float16, Float32

HEAD = {"fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}
TRUNK = 61_100_840 - sum(n * m + m for n, m in HEAD.values())


def alexnet(scheme: str, world: int, rows: int, group: int = 0) -> tuple[int, float, list[str]]:
    """Return the group's size, what a process sends for all of AlexNet, and how its linear layers are split."""
    with torch.device("meta"):
        layers = {name: nn.Linear(*sizes) for name, sizes in HEAD.items()}
    chains, wanted = [Chain(list(HEAD))], Wanted(scheme)

    def choices_of(size: int) -> list[list[choosing.Choice]]:
        setting = Setting(world, size, rows)
        return choosing.choose(chains, layers, lambda name: wanted.kinds(name, layers[name], size), setting)

    size = choosing.best_group(world, group, choices_of)
    chosen = choices_of(size)
    return size, choosing.total(chosen) + 8 * (world - 1) / world * TRUNK, [choice.kind for choice in chosen[0]]


@pytest.mark.parametrize(("world", "rows"), [(2, 32), (4, 32), (4, 128), (8, 128)])
def test_bytes_of_alexnet_are_those_of_the_formulas(world: int, rows: int) -> None:
    shared = 8 * (world - 1) / world
    _, rowwise, kinds = alexnet("d", world, rows, world)
    biases = shared * 1000  # of the last layer, whose outputs all processes have whole
    assert kinds == ["row"] * 3
    formula = shared * TRUNK + 8 * (world - 1) * rows * (9216 / world + 4096 + 4096 + 1000)
    assert rowwise == pytest.approx(formula + biases, rel=1e-12)
    _, columnwise, kinds = alexnet("a", world, rows, world)
    if world * rows < 1000:  # all layers are cheaper split than summed
        assert kinds == ["column"] * 3
        formula = shared * TRUNK + 8 * (world - 1) * rows * (9216 + 4096 + 4096 + 1000 / world)
        assert columnwise == pytest.approx(formula, rel=1e-12)


def test_bytes_of_alexnet_beside_data_parallelism() -> None:
    def ratio(rows: int) -> float:
        return 8 * 3 / 4 * 61_100_840 / alexnet("d", 4, rows)[1]

    assert ratio(32) >= 15
    assert ratio(128) >= 7


@pytest.mark.parametrize("world", [4, 6, 16, 1024])
@pytest.mark.parametrize("rows", [8, 32, 128, 512])
@pytest.mark.parametrize("scheme", ["a", "d"])
def test_the_group_is_the_one_of_fewest_bytes(world: int, rows: int, scheme: str) -> None:
    size, sent, kinds = alexnet(scheme, world, rows)
    others = {each: alexnet(scheme, world, rows, each)[1] for each in range(2, world + 1) if world % each == 0}
    assert sent == min(others.values())
    if set(kinds) != {"replicated"}:
        assert size == max(each for each, bytes_sent in others.items() if bytes_sent == sent)


@pytest.mark.parametrize(("scheme", "inputs", "outputs"), [("a", 4096, 512), ("d", 512, 512)])
@pytest.mark.parametrize(("rows", "splits"), [(127, True), (129, False)])
def test_a_layer_by_itself_is_split_below_the_batch_of_the_rule(
    scheme: str, inputs: int, outputs: int, rows: int, splits: bool
) -> None:
    """By columns iff the group's batch is below the outputs, by rows iff below the inputs: 4 x rows against 512.

    What is wanted of the other side is counted there: outputs stay as they are, or inputs come as they are wanted.
    """
    kinds, before, after = (["column"], "batch", "feature") if scheme == "a" else (["row"], "feature", "batch")
    layer = nn.Linear(inputs, outputs, bias=False)
    ways = choosing.ways("layer", layer, kinds, before, True, Setting(4, 4, rows))
    (choice,) = (way for way in ways if way.after == after)
    assert (choice.sent < choice.summed) is splits


def test_chains_are_found_in_a_model_that_calls_functions() -> None:
    chains, reason = find_chains(Net())
    assert reason == ""
    assert [chain.layers for chain in chains] == [["fc6", "fc7", "fc8"]]
    assert chains[0].dropouts == {"drop5": 0, "drop6": 1, "drop8": 3}
    assert chains[0].gradient


class Branches(nn.Module):
    """What cannot be one chain: normalisation, a reshape, a residual sum, a layer used twice, shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.twice, self.tied = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.third.weight
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Dropout(0.1)), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = x + functional.relu(self.second(x))
        x = self.inner(self.twice(self.twice(x)))
        return self.tied(self.third(x))


def test_only_functions_of_single_elements_join_layers() -> None:
    chains, reason = find_chains(Branches())
    assert reason == ""
    assert [chain.layers for chain in chains] == [["first"], ["second"], ["inner.0", "inner.2"]]
    assert chains[2].dropouts == {"inner.1.1": 1}
    assert not chains[0].gradient
    assert chains[1].gradient


class Undecided(Net):
    """Does what depends on numbers, which no trace can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


class Auxiliary(Net):
    """Has a second output, made of what is in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.features(images).flatten(1)
        return [self.fc8(self.relu7(self.fc7(torch.relu(self.fc6(x))))), self.early(x)]


def test_layers_of_a_model_that_cannot_be_traced_stand_alone() -> None:
    chains, reason = find_chains(Undecided())
    assert reason
    assert [chain.layers for chain in chains] == [["fc6"], ["fc7"], ["fc8"]]
    strategy = Hybrid(layers=["*"]).build()
    strategy.shard(Undecided())
    assert "cannot be traced" in strategy.describe()


@pytest.mark.parametrize(("size", "world"), [(12, 4), (10, 4), (7, 3), (5, 5), (9, 1)])
def test_columns_are_shared_evenly_and_put_together_again(size: int, world: int) -> None:
    values = torch.randn(3, size)
    sharing = [Columns(Group(range(world), rank), size) for rank in range(world)]
    parts = sharing[0].spread(values)
    assert parts.shape == (world, 3, sharing[0].width)
    assert torch.equal(sharing[0].join(parts), values)
    own = [values[:, each.own] for each in sharing]
    assert torch.equal(torch.cat(own, 1), values)
    assert {len(part.T) for part in own} <= {size // world, -(-size // world)}
    for each, part, padded in zip(sharing, own, parts, strict=True):
        assert torch.equal(each.padded(part), padded)
        assert torch.equal(each.trimmed(padded), part)


def test_dropout_keeps_the_mean_and_draws_by_sample_and_feature() -> None:
    strategy = Hybrid(layers=["*"]).build()
    model = network(torch.float32, dropout=0.3)
    strategy.shard(model)
    strategy.prepare(None, Key.of(1))
    strategy.placed.now.own = strategy.placed.now.everybody = torch.arange(1000, 3000)
    made = model.drop6(torch.ones(2000, 30))
    assert made.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(made.mean()) == pytest.approx(1, abs=5 * (0.3 / 0.7 / made.numel()) ** 0.5)
    strategy.placed.now.own = strategy.placed.now.everybody = torch.arange(1100, 1200)
    assert torch.equal(model.drop6(torch.ones(100, 30)), made[100:200])
    assert not torch.equal(made[:100], made[100:200])
    assert torch.equal(model.drop6.eval()(torch.ones(7, 30)), torch.ones(7, 30))


def refused(options: Hybrid, model: nn.Module, rows: int = 4, numbers: object = None) -> str:
    try:
        strategy = options.build()
        strategy.example = (rows, 1, 6, 6)
        strategy.precision = numbers or Numbers(torch.float32)
        strategy.wrap(strategy.shard(model))
    except UsageError as refusal:
        return str(refusal)
    return "it was not refused"


def test_what_cannot_be_is_refused_in_words() -> None:
    assert "nothing to split: choose parallel=data" in refused(Hybrid(), nn.Sequential(nn.Conv2d(1, 4, 3)))
    assert "'fc9' is no linear layer" in refused(Hybrid(layers=["fc9"]), network())
    assert "did you mean 'fc8'" in refused(Hybrid(layers=["fc88"]), network())
    assert "choose parallel.scheme=c or b" in refused(Hybrid(updates="every"), network())
    assert "parallel.degree=2" in refused(Hybrid(degree=2), network())
    assert "cannot be traced" in refused(Hybrid(scheme="c", layers=["*"]), Undecided())
    normalised = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    assert "'2' normalises rows" in refused(Hybrid(scheme="b", layers=["*"]), normalised)
    assert "more than its input leads there" in refused(Hybrid(scheme="c", layers=["fc8"]), Auxiliary())
    binary = BinaryConnect().build()
    assert "BinaryConnect rounds" in refused(Hybrid(layers=["*"]), binary.convert(network(torch.float32)), 4, binary)
    scaled = Float16().build()
    model = scaled.convert(network(torch.float32))
    assert "scales the loss" in refused(Hybrid(scheme="c", layers=["*"], updates="every"), model, 4, scaled)


def test_a_batch_above_the_rule_leaves_nothing_to_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.distributed.together.current", lambda: Group(range(4), 0))
    assert "nothing to split" in refused(Hybrid(), network(), 1000, Float32().build())


def test_frozen_layers_are_left_whole() -> None:
    model = network()
    model.fc6.requires_grad_(False)
    strategy = Hybrid().build()
    strategy.example = (4, 1, 6, 6)
    strategy.shard(model)
    assert type(model.fc6) is nn.Linear
    assert {name.partition(".")[0] for name in strategy.placed.parts} == {"fc7", "fc8"}


def test_alexnets_layers_are_one_chain_on_any_device() -> None:
    with torch.device("meta"):
        chains, _ = find_chains(AlexNet())
    assert [chain.layers for chain in chains] == [["fc6", "fc7", "fc8"]]
    assert ALONE.world == 1
