"""The dynamic programme against all choices tried one by one."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plugins.parallel.planning import program
from engine.plugins.parallel.planning.costs import Setting, link_of
from engine.plugins.parallel.planning.layers import PlannedLayer
from engine.plugins.parallel.planning.machine import Machine
from engine.plugins.parallel.planning.prediction import balanced

sizes = st.sampled_from([1, 3, 16, 64, 1000, 4096])


@st.composite
def chains(draw) -> list[PlannedLayer]:
    layers: list[PlannedLayer] = []
    width, open_chain = draw(sizes), False
    for place in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["conv", "linear", "linear", "linear", "by feature"]))
        outputs = width if kind == "by feature" else draw(sizes)
        splits = kind == "linear"
        weights = {"linear": width * outputs, "conv": 9 * outputs, "by feature": 0}[kind]
        biases = outputs * draw(st.booleans()) if weights else 0
        layers.append(
            PlannedLayer(
                f"{place}", kind, width, outputs, weights, biases, multiply_adds=weights, splits=splits,
                chained=splits and open_chain and draw(st.booleans()), input_gradient=place > 0,
                frozen=draw(st.sampled_from([0, 0, weights + biases])),
            )
        )  # fmt: skip
        open_chain = splits or (kind == "by feature" and open_chain)
        width = outputs
    return layers


@settings(max_examples=100, deadline=None)
@given(
    chains(), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 16, 512]),
    st.sampled_from(["100Mbit", "25Gbit"]),
)  # fmt: skip
def test_it_finds_what_trying_all_finds(layers, group, groups, share, rate):
    setting, link, machine = Setting(group * groups, share, group), link_of(rate, "50us"), Machine(1e11, 1e10)

    def work(layer: PlannedLayer, choice: str) -> float:
        parts = 1 if choice == program.DATA else group
        return machine.seconds(layer, share * parts, parts) + machine.update(layer.trained / parts)

    def cost(choices: tuple[str, ...]) -> float:
        exchanged = sum(map(link.seconds, program.exchanges(layers, choices, setting)))
        return exchanged + sum(map(work, layers, choices))

    plan = program.best(layers, setting, link.seconds, work)
    ways = [program.options_of(layer, setting) for layer in layers]
    assert plan.cost == pytest.approx(min(map(cost, product(*ways))))
    assert cost(plan.choices) == pytest.approx(plan.cost)


def test_a_column_parallel_layer_feeds_a_row_parallel_one_for_nothing():
    # As Megatron-LM splits a transformer's pair of matrices (Shoeybi et al. 2019): one gather before, one sum behind.
    first = PlannedLayer("first", "linear", 64, 4096, 64 * 4096, splits=True)
    second = PlannedLayer("second", "linear", 4096, 64, 64 * 4096, splits=True, chained=True)
    setting = Setting(4, 8)
    made = list(program.exchanges([first, second], (program.COLUMN, program.ROW), setting))
    assert sum(exchange.sent for exchange in made) == 4 * 4 * 3 * 8 * 64
    plan = program.best([first, second], setting, lambda exchange: exchange.sent, lambda layer, choice: 0.0)
    assert plan.choices == (program.COLUMN, program.ROW)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9), st.data())
def test_stages_are_as_equal_as_they_can_be(times, data):
    parts = data.draw(st.integers(1, len(times)))

    def longest(cuts: tuple[int, ...]) -> float:
        ends = [0, *cuts, len(times)]
        return max(sum(times[a:b]) for a, b in pairwise(ends))

    cuts = balanced(times, parts)
    assert len(cuts) == parts - 1
    assert cuts == sorted({*cuts})
    every = (cut for cut in product(range(1, len(times)), repeat=parts - 1) if list(cut) == sorted({*cut}))
    if len(times) ** (parts - 1) < 10_000:
        assert longest(tuple(cuts)) == pytest.approx(min(map(longest, every)))
