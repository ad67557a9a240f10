"""What a transfer plan can rely on: a network's layers and head, what freezing means, stages and their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import Watch, assert_same, everything
from torch import Tensor, nn

from engine import Model, Observer, UsageError, hookimpl, interfaces, manifest
from engine.anatomy import Anatomy
from engine.freezing import Factors, freeze, frozen_prefix, still_layers
from engine.interfaces import Shortcut, Stage
from engine.metrics import Best
from engine.options import Transfer
from engine.start import first_weights


class Branched(nn.Module):
    """Layers named and registered in another order than they compute in; an auxiliary head in training."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, outputs)
        self.auxiliary = nn.Linear(6, outputs)
        self.second = nn.Conv2d(6, 8, 1)
        self.behind_second, self.behind_first = nn.BatchNorm2d(8), nn.BatchNorm2d(6, affine=False)
        self.first = nn.Conv2d(1, 6, 3)
        self.input_noise, self.noise, self.late_noise = nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Any:
        x = self.behind_first(self.first(self.input_noise(images))).relu()
        early = self.auxiliary(x.mean((2, 3)))
        x = self.behind_second(self.second(self.noise(x))).mean((2, 3))
        scores = self.classifier(self.late_noise(x))
        return [scores, early] if self.training else scores


@pytest.fixture
def anatomy() -> Anatomy:
    return Anatomy(Branched, 3, (1, 8, 8))


def test_layers_are_known_in_the_order_in_which_they_compute(anatomy):
    assert [layer.name for layer in anatomy.layers] == ["first", "auxiliary", "second", "classifier"]
    first, auxiliary, second, classifier = anatomy.layers
    assert first.modules == ("input_noise", "first", "behind_first")
    assert auxiliary.modules == ("auxiliary", "noise")
    assert second.parameters == ("second.weight", "second.bias", "behind_second.weight", "behind_second.bias")
    assert classifier.modules == ("classifier",)


def test_the_head_is_what_depends_on_the_number_of_classes(anatomy):
    assert anatomy.head == {"classifier.weight", "classifier.bias", "auxiliary.weight", "auxiliary.bias"}
    assert [anatomy.is_head(layer) for layer in anatomy.layers] == [False, True, False, True]


def test_a_network_without_head_or_layers_is_answered():
    with pytest.raises(UsageError, match="same parameters for any number of classes"):
        _ = Anatomy(lambda outputs: nn.Linear(4, 2), 2, (1, 2, 2)).head
    with pytest.raises(UsageError, match="no layer with filters or a matrix"):
        _ = Anatomy(lambda outputs: nn.Flatten(), 2, (1, 2, 2)).layers


def names_of(model: nn.Module, layers: Sequence[nn.Module]) -> set[str]:
    return {name for name, module in model.named_modules() if any(module is layer for layer in layers)}


@pytest.mark.parametrize(
    ("trains", "still"),
    [
        # behind the auxiliary head, which trains, draws are part of what trains; what is frozen is frozen
        (["classifier", "auxiliary"], {"input_noise", "behind_first", "behind_second"}),
        (["classifier"], {"input_noise", "noise", "behind_first", "behind_second"}),
        (["classifier", "behind_second"], {"input_noise", "behind_first"}),
        (["first", "classifier", "auxiliary"], {"behind_second"}),
        (["first", "second", "behind_second", "classifier", "auxiliary"], set()),
    ],
)
def test_frozen_normalisations_and_what_draws_before_them_stay_still(anatomy, trains, still):
    model = Branched(3)
    factors = {n: Factors(float(n.partition(".")[0] in trains)) for n, _ in model.named_parameters()}
    whole = freeze(model, factors)
    found = names_of(model, still_layers(model, anatomy, whole))
    assert found == still


def test_the_frozen_prefix_ends_behind_the_last_parameters_before_what_trains(anatomy):
    assert frozen_prefix(anatomy, {"classifier.weight"})[-1] == "behind_second"
    assert "late_noise" not in frozen_prefix(anatomy, {"classifier.weight"})
    assert frozen_prefix(anatomy, {"first.bias"}) == []


def test_a_models_own_multipliers_count_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.multipliers = {"0.bias": (2.0, 0.0), "1.weight": (0.0, 1.0)}
    whole = freeze(model, {"0.bias": Factors(0.1), "0.weight": Factors(0.5, 3.0)})
    assert whole == {
        "0.weight": Factors(0.5, 3.0), "0.bias": Factors(0.2, 0.0), "1.weight": Factors(0.0, 1.0),
        "1.bias": Factors(1.0, 1.0),
    }  # fmt: skip
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]


@dataclass
class Plan(Transfer):
    """Stages, and which layers train in each; notes in what state it is asked."""

    stages: Sequence[Stage] = ()
    rates: Mapping[str, Mapping[str, Factors]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    def build(self) -> Any:
        return Planned(self)


class Planned(interfaces.Transfer):
    def __init__(self, options: Plan) -> None:
        self.options = options

    def start(self, model: nn.Module, anatomy: Anatomy) -> Sequence[str]:
        self.options.started.append("start")
        with torch.no_grad():
            model.get_parameter("0.weight").fill_(0.125)
        return ["first weights given"]

    def stages(self, steps: int) -> Sequence[Stage]:
        return self.options.stages

    def factors(self, model: nn.Module, anatomy: Anatomy, stage: Stage) -> Mapping[str, Factors]:
        return self.options.rates[stage.name]

    def shortcut(self, run: Any, stage: Stage) -> Shortcut | None:
        return None


FROZEN = {name: Factors(0.0) for name in ("0.weight", "1.weight", "1.bias")}
SLOW = {name: Factors(0.01, 2.0) for name in FROZEN} | {"6.weight": Factors(0.1)}


def plan(*patience: int | None) -> Plan:
    ends = [*patience, None, None][:2]
    return Plan([Stage("head", 6, ends[0]), Stage("all", 8, ends[1])], {"head": FROZEN, "all": SLOW})


def test_the_frozen_part_keeps_every_bit_and_is_in_no_group(make):
    seen: list[tuple[int, dict[str, Tensor], list[str]]] = []

    def look(run: Any) -> None:
        state = {name: value.clone() for name, value in run.model.state_dict().items()}
        seen.append((run.position.stage, state, [n for g in run.optimizer.param_groups for n in g["names"]]))

    run = make(transfer=plan(), observe={"watch": Watch(then=look)}, run={"ema": 0.9})
    assert float(run.model.get_parameter("0.weight")[0, 0, 0, 0]) == 0.125, "start gave it"
    first = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.fit()
    head = [state for stage, state, _ in seen if stage == 0]
    assert [len(head), len(seen)] == [6, 14]
    for state in head:
        for name in first:
            frozen = name.startswith(("0.", "1."))
            assert torch.equal(state[name], first[name]) == frozen, name
    assert sorted(seen[0][2]) == ["6.bias", "6.weight"]
    assert sorted(seen[-1][2]) == sorted(name for name, _ in run.model.named_parameters())
    moved = [n for n, value in seen[-1][1].items() if not torch.equal(value, first[n])]
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked"} <= set(moved), "thawed in the second stage"


def test_factors_multiply_rate_and_weight_decay(make):
    run = make(transfer=plan(), schedule="constant", run={"steps": 14})
    run.fit()
    found = {
        name: (float(group["lr"]), group["weight_decay"])
        for group in run.optimizer.param_groups for name in group["names"]
    }  # fmt: skip
    assert found["6.bias"] == (0.02, 0.0)
    assert found["6.weight"] == (pytest.approx(0.002), 5e-4)
    assert found["0.weight"] == (pytest.approx(2e-4), 1e-3)
    assert found["1.bias"] == (pytest.approx(2e-4), 0.0)
    assert float(run.rates.first) == 0.02, "the highest rate is what the log shows"


def test_a_stage_ends_early_when_evaluations_bring_nothing(make):
    stages: list[tuple[int, int]] = []

    def look(run: Any) -> None:
        stages.append((run.position.stage, run.steps))

    # No update is large enough to change a class, so no evaluation is better than the first.
    settings = {"schedule": "constant", "run": {"evaluate_every": "1 steps", "log_every": 100}}
    still = {"head": FROZEN | {"6.weight": Factors(1e-12), "6.bias": Factors(1e-12)}, "all": SLOW}
    early = Plan([Stage("head", 100, 2), Stage("all", 4)], still)
    run = make(transfer=early, observe={"watch": Watch(then=look)}, **settings)
    run.fit()
    # the first evaluation is the best, two in vain follow; then the second stage's four steps
    assert [stage for stage, _ in stages] == [0, 0, 0, 1, 1, 1, 1]
    assert stages[0] == (0, 104)
    assert run.steps == run.position.step == 7
    assert run.outcome == "done"


def test_a_resume_knows_when_its_stage_began(make):
    settings = {"schedule": "constant", "save": {"every": "1 steps", "keep": 20}}
    still = {"head": FROZEN | {"6.weight": Factors(1e-12), "6.bias": Factors(1e-12)}, "all": SLOW}
    stages = [Stage("head", 100, 2), Stage("all", 6)]
    whole = make("whole", transfer=Plan(stages, still), run={"evaluate_every": "1 steps"}, **settings)
    whole.fit()
    again = Plan(stages, still)
    for name in ("step-00000002", "step-00000005"):  # within the first stage, and within the second
        start = str(whole.out / "checkpoints" / name)
        resumed = make(f"from-{name}", resume=start, transfer=again, run={"evaluate_every": "1 steps"}, **settings)
        resumed.fit()
        assert resumed.position == whole.position
        assert_same(everything(whole), everything(resumed))
    assert again.started == [], "a resume has its weights from the checkpoint"


def test_stages_without_steps_or_evaluations_are_answered(make):
    with pytest.raises(UsageError, match="no steps are left for all of 14"):
        make("one", transfer=Plan([Stage("head", 14), Stage("all", 0)], {"head": {}, "all": {}}), run={"steps": 14})
    with pytest.raises(UsageError, match="stage head's patience needs evaluations"):
        make("two", transfer=plan(2), run={"evaluate_every": "never"})


@dataclass
class Fixed(Model):
    """A network that cannot be made without its numbers."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        """Make it."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
        float(model[1].weight.sum())
        return model


class Looking(nn.Module):
    """A network that computes by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return self.layer(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_looked_at_is_answered():
    with pytest.raises(UsageError, match="cannot be passed through without its numbers"):
        _ = Anatomy(lambda outputs: Looking(), 2, (1, 8, 8)).layers
    with pytest.raises(UsageError, match="cannot be built without its numbers"):
        _ = Anatomy(lambda outputs: Fixed().build((1, 8, 8), outputs), 2, (1, 8, 8)).layers


class Attentive(nn.Module):
    """A layer that computes with the matrix of one inside, which it never calls."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.classifier = nn.Linear(8, outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.classifier(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_a_parameter_of_a_module_that_nobody_calls_is_of_the_layer_that_computes_with_it():
    anatomy = Anatomy(Attentive, 3, (1, 8, 8))
    assert [layer.name for layer in anatomy.layers] == ["patches", "attention", "classifier"]
    names = [name for layer in anatomy.layers for name in layer.parameters]
    assert sorted(names) == sorted(name for name, _ in Attentive(3).named_parameters())
    assert "attention.out_proj.weight" in anatomy.layers[1].parameters
    assert frozen_prefix(anatomy, {"attention.out_proj.bias"}) == ["patches"]
    assert frozen_prefix(anatomy, {"classifier.bias"}) == ["patches", "attention"]


@pytest.mark.parametrize("steps", [8, 12, 40])
def test_a_resume_of_a_run_in_stages_keeps_their_lengths(make, steps):
    whole = make("whole", transfer=plan(), save={"every": "4 steps", "keep": 9}, run={"steps": 14})
    whole.fit()
    other = plan()
    other.stages = [Stage("head", steps // 2), Stage("all", steps - steps // 2)]
    with pytest.raises(UsageError, match=r"stages have \[6, 8\] steps, here they have .*: give run.steps=14"):
        make("again", resume=str(whole.out / "checkpoints" / "step-00000004"), transfer=other)


def test_the_run_stops_for_want_of_improvement_in_the_last_stage_alone(make):
    still = {"head": FROZEN | {"6.weight": Factors(1e-12), "6.bias": Factors(1e-12)}}
    still["all"] = {name: Factors(1e-12) for name in ("0.weight", "1.weight", "1.bias", "6.weight", "6.bias")}
    given = {"evaluate_every": "1 steps", "patience": 2, "log_every": 100}
    run = make(transfer=Plan([Stage("head", 6), Stage("all", 100)], still), schedule="constant", run=given)
    run.fit()
    assert run.outcome == "early stop"
    assert run.position.stage == 1


def test_the_average_that_was_evaluated_at_a_stages_end_is_what_is_saved(make):
    averages: list[dict[str, Tensor]] = []

    def look(run: Any) -> None:
        if run.position.step == 6:
            averages.append({name: value.clone() for name, value in run.average.state().items()})

    settings = {"run": {"ema": 0.9, "steps": 14}, "save": {"every": "2 steps", "keep": 9}}
    run = make(transfer=plan(), observe={"watch": Watch(then=look)}, **settings)
    run.fit()
    saved = load_file(run.out / "checkpoints" / "step-00000006" / "average.safetensors")
    model = load_file(run.out / "checkpoints" / "step-00000006" / "model.safetensors")
    for name, value in averages[0].items():
        assert torch.equal(saved[name], value)
    assert not torch.equal(saved["6.weight"], model["6.weight"])


def test_a_plan_that_goes_on_takes_up_what_it_knew_and_reads_no_weights(make):
    whole = make("whole", transfer=plan(), run={"steps": 14})
    whole.fit()
    options = plan()
    again = options.build()
    (checkpoint,) = manifest.checkpoints(whole.out)[:1]
    assert first_weights(again, whole.model, whole.anatomy, None, checkpoint) == ()
    assert options.started == []
    assert first_weights(again, whole.model, whole.anatomy, None, None) == ("first weights given",)


def test_each_stage_is_told_when_it_begins_and_compares_its_own_evaluations(make):
    told: list[tuple[str, int, int]] = []

    @dataclass
    class Told(Observer):
        def build(self) -> object:
            return self

        @hookimpl
        def on_stage_start(self, run: Any) -> None:
            told.append((run.stage.name, run.position.step, run.best.stale))

    # Nothing improves in the first stage. The second may take its time: its first evaluation is its best so far.
    still = {"head": FROZEN | {"6.weight": Factors(1e-12), "6.bias": Factors(1e-12)}}
    still["all"] = {name: Factors(1e-12) for name in ("0.weight", "1.weight", "1.bias", "6.weight", "6.bias")}
    stages = Plan([Stage("head", 20, 2), Stage("all", 20, 2)], still)
    run = make(transfer=stages, observe={"told": Told()}, schedule="constant", run={"evaluate_every": "1 steps"})
    run.fit()
    assert told == [("head", 0, 0), ("all", 3, 0)]
    assert run.position.step >= 6, "three evaluations at least: the best of the stage, and two in vain"


def test_a_best_is_of_all_stages_and_stale_is_of_one():
    best = Best("accuracy", True)
    assert best.take(0.8, 1)
    assert not best.take(0.7, 2)
    assert best.stale == 1
    best.begin_anew()
    assert not best.take(0.5, 3)
    assert best.stale == 0
    assert not best.take(0.6, 4)
    assert best.stale == 0
    assert not best.take(0.6, 5)
    assert best.stale == 1
    assert (best.score, best.step) == (0.8, 1)
    assert best.take(0.9, 6)
