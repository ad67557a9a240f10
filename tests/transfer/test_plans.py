"""Which layers each plan trains in each stage, and how fast: against the lecture's numbers, written out."""

from __future__ import annotations

import pytest
from networks import Branched, rates
from torch import nn

from engine import UsageError
from engine.interfaces import Factors
from engine.plugins.transfer import Full, Head, LastLayers, NoTransfer, Staged

HEAD = {"classifier.weight", "classifier.bias"} | {
    f"auxiliary.{layer}.{own}" for layer in ("hidden", "scores") for own in ("weight", "bias")
}
BEFORE = {  # from the head backwards
    "third": {"third.weight", "third.bias"},
    "second": {"second.weight", "second.bias"},
    "first": {"first.weight", "first.bias", "norm1.weight", "norm1.bias"},
}
ALL = HEAD.union(*BEFORE.values())


def planned(options, anatomy, new=HEAD, stage=0):
    """Return each parameter's factors, as where the parameters ``new`` had no weights."""
    plan = options.build()
    plan.new = None if new is None else frozenset(new)
    return dict(plan.factors(Branched(3), anatomy, plan.stages(1000)[stage]))


def trained(factors):
    return {name for name, factor in factors.items() if factor.lr > 0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Head(), HEAD),
        (LastLayers(layers=1), HEAD),
        (LastLayers(), HEAD | BEFORE["third"]),
        (LastLayers(layers=3), ALL - BEFORE["first"]),
        (LastLayers(layers=4), ALL),
        (Full(), ALL),
    ],
)
def test_what_trains(anatomy, options, expected):
    factors = planned(options, anatomy)
    assert set(factors) == ALL
    assert trained(factors) == expected


def test_three_kinds_of_layers_as_in_the_lecture(anatomy):
    factors = planned(LastLayers(), anatomy)
    assert {factors[name] for name in HEAD} == {Factors(0.1)}
    assert {factors[name] for name in BEFORE["third"]} == {Factors(0.01)}
    assert {factors[name] for name in BEFORE["second"] | BEFORE["first"]} == {Factors(0.0)}


def test_a_head_that_had_weights_is_pretrained(anatomy):
    assert {factor.lr for factor in planned(Head(), anatomy, new=()).values()} == {0.0, 0.01}


def test_without_weights_rates_are_the_optimisers(anatomy):
    assert {factor.lr for factor in planned(Full(), anatomy, new=None).values()} == {1.0}


def test_rates_are_options(anatomy):
    factors = planned(Full(new_rate=1.0, pretrained_rate=0.3), anatomy)
    assert (factors["classifier.bias"].lr, factors["first.weight"].lr) == (1.0, 0.3)


def test_layer_decay_counts_from_the_head_and_thaws_nothing(anatomy):
    factors = planned(Full(layer_decay=0.5), anatomy)
    assert {name: factors[f"{name}.weight"].lr for name in ("classifier", "third", "second", "first", "norm1")} == {
        "classifier": 0.1, "third": 0.005, "second": 0.0025, "first": 0.00125, "norm1": 0.00125,
    }  # fmt: skip
    assert factors["auxiliary.hidden.weight"].lr == 0.1
    assert trained(planned(LastLayers(layer_decay=0.5), anatomy)) == HEAD | BEFORE["third"]


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (["second:0.5"], dict.fromkeys(BEFORE["second"], 0.5)),
        (["first:0"], dict.fromkeys(BEFORE["first"], 0.0)),  # with the normalisation behind it
        (["norm1:0.2"], {"norm1.weight": 0.2, "norm1.bias": 0.2}),
        (["*.bias:2", "third.bias:3"], {n: 3.0 if n == "third.bias" else 2.0 for n in ALL if n.endswith("bias")}),
        (["third.bias:3", "*.bias:2"], {n: 2.0 for n in ALL if n.endswith("bias")}),
        (["auxiliary:0"], {n: 0.0 for n in HEAD if n.startswith("auxiliary")}),  # a block of layers
    ],
)
def test_rates_by_pattern(anatomy, lr, expected):
    plain, factors = planned(Full(), anatomy), planned(Full(lr=lr), anatomy)
    assert {n: f.lr for n, f in factors.items()} == {n: f.lr for n, f in plain.items()} | expected


def test_weight_decay_by_pattern(anatomy):
    factors = planned(Head(weight_decay=["classifier:0", "fir*:5"]), anatomy)
    assert factors["classifier.weight"] == Factors(0.1, 0.0)
    assert factors["auxiliary.scores.weight"] == Factors(0.1, 1.0)
    assert factors["first.weight"] == Factors(0.0, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Full(lr=["secnod:1"]), "transfer.lr: the model has no layer 'secnod'; did you mean 'second'\\?"),
        (Full(weight_decay=["clasifier:1"]), "transfer.weight_decay: .*did you mean 'classifier'"),
        (Head(lr=["first:1"]), "transfer.lr: first never trains here: choose transfer=full"),
        (LastLayers(layers=5), "the model has 4 layers, not 5"),
    ],
)
def test_options_that_do_not_fit_the_model(anatomy, options, message):
    with pytest.raises(UsageError, match=message):
        planned(options, anatomy)


@pytest.mark.parametrize("text", ["third", "third:", ":1", "third:-1", "third:nan", "third:fast", "third:inf"])
def test_an_entry_that_is_no_layer_with_a_factor(text):
    with pytest.raises(UsageError, match=r"is no LAYER:FACTOR"):
        Full(lr=[text]).build()


def test_stages_take_their_shares():
    stages = Staged().build().stages(1000)
    assert [(s.name, s.steps, s.patience) for s in stages] == [
        ("head", 400, None), ("last_2", 300, None), ("all", 300, None),
    ]  # fmt: skip
    for steps in range(3, 60):
        assert sum(stage.steps for stage in Staged().build().stages(steps)) == steps
    thirds = Staged(stages=["head:0.333333333", "last_3:.333333333:4", "all:0.333333334"], patience=2).build()
    assert [(s.name, s.steps, s.patience) for s in thirds.stages(10)] == [
        ("head", 3, 2),
        ("last_3", 4, 4),
        ("all", 3, 2),
    ]


def test_what_trains_in_stages(anatomy):
    found = [trained(planned(Staged(lr=["first:0"]), anatomy, stage=stage)) for stage in range(3)]
    assert found == [HEAD, HEAD | BEFORE["third"], ALL - BEFORE["first"]]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["head:0.5", "all:0.6"], "the shares add up to 1.1"),
        (["head:0.5", "head:0.5"], "head is there twice"),
        ([], "the shares add up to 0"),
        *(
            ([text], "is no stage; write head:0.4")
            for text in ("head", "last:1", "last_0:1", "all:0", "all:1:0", "a:1")
        ),
    ],
)
def test_stages_that_are_none(stages, message):
    with pytest.raises(UsageError, match=message):
        Staged(stages=stages).build()


def test_a_layer_that_computes_nothing_trains_with_all_alone(anatomy):
    class Larger(Branched):
        def __init__(self, outputs: int) -> None:
            super().__init__(outputs)
            self.spare = nn.Linear(2, 2)

    for options, rate in ((Head(), 0.0), (Full(), 1.0)):
        plan = options.build()
        assert plan.factors(Larger(3), anatomy, plan.stages(10)[0])["spare.weight"].lr == rate


def test_a_run_has_these_rates(make):
    run = make(transfer=LastLayers())
    assert set(rates(run).values()) == {0.1}, "without weights, the optimiser's own"
    none = make("none", transfer=NoTransfer())
    assert set(rates(none)) == {name for name, _ in none.model.named_parameters()}
    with pytest.raises(UsageError, match=r"no steps are left for all of 2"):
        make("short", transfer=Staged(stages=["head:0.9", "all:0.1"]), steps=2)
