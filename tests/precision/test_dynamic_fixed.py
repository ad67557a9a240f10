"""Dynamic fixed point: ranges by hand, calibration, masked steps, processes, what evaluating needs, telemetry."""

from __future__ import annotations

import numpy
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from small_run import Tiny, Watch, build_run
from torch import nn

from engine import UsageError, hookimpl
from engine.guard import Guard
from engine.loader import Position
from engine.plugins.precision import DynamicFixed
from engine.quantization import Role
from engine.randomness import Key
from engine.registry import Registry
from engine.testing import check_precision

REGISTRY = Registry.load()


def grid(x: NDArray, bits: int, exponent: int) -> NDArray:
    """Return x rounded as the authors' code does: multiples of 2^(e - bits + 1), their range symmetric."""
    scale = 2.0 ** (bits - 1 - exponent)
    most = 2.0 ** (bits - 1) - 1
    return numpy.clip(numpy.rint(x * scale), -most, most) / scale


class Trained:
    """A layer whose inputs have a known size, a step at a time; its output's gradients are given."""

    def __init__(self, options: DynamicFixed, optim=torch.optim.SGD, **settings) -> None:
        torch.manual_seed(0)
        self.policy = options.build()
        self.model = self.policy.convert(nn.Sequential(nn.Linear(20, 10), nn.BatchNorm1d(10)))
        self.initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = optim(self.model.parameters(), lr=0.125, **settings)
        self.policy.prepare(self.model, self.optimizer, Key.of(0))
        self.done = 0

    def step(self, images: torch.Tensor, bad: float = 0.0, error: float = 0.125) -> None:
        count = len(images)
        with self.policy.computing(Position(self.done, self.done * count), False):
            with self.policy.forward(self.done * count + torch.arange(count)):
                outputs = self.model(images)
            outputs.backward(torch.full_like(outputs, error) * outputs.detach().sign())
        self.policy.unscale(self.optimizer)
        self.policy.update(self.optimizer, torch.tensor(bad))
        self.optimizer.zero_grad()
        self.done += 1

    def exponent(self, role: Role, name: str) -> int:
        (row,) = (row for row, site in enumerate(self.policy.sites) if (site.role, site.name) == (role, name))
        return int(self.policy.exponents[row])


def test_ranges_follow_overflows_as_the_authors_rule_has_it():
    """Their sum_over_samples: beyond the largest number more often than the limit, or twice as large never."""
    options = DynamicFixed(propagate=8, store=9, calibration=0, period=3, range=1, overflow=0.01)
    trained, exponent = Trained(options), 1
    rng = numpy.random.default_rng(0)
    seen: list[NDArray] = []
    exponents = []
    for step in range(30):
        images = rng.standard_normal((50, 20)) * 2.0 ** (step // 3 - 4 if step < 15 else 4 - step // 3)
        seen.append(images.ravel())
        trained.step(torch.from_numpy(images).float())
        if step % 3 == 2:
            values = numpy.abs(numpy.concatenate(seen))
            ulp = 2.0 ** (exponent - 7)
            if (values > 2.0**exponent - 0.5 * ulp).mean() > 0.01:  # beyond the largest, 2^e - ulp, once rounded
                exponent += 1
            elif (values > 2.0 ** (exponent - 1)).mean() <= 0.01:
                exponent -= 1
            seen = []
        exponents.append(exponent)
        assert trained.exponent(Role.ACTIVATION, "0.input") == exponent, step
    assert min(exponents) < 0
    assert max(exponents) > 1


def test_numbers_are_of_the_bits_and_ranges_that_are_told():
    options = DynamicFixed(propagate=6, store=8, calibration=0, range=0, period=1000)
    trained = Trained(options, momentum=0.5)
    seen = {}
    trained.model[0].register_forward_hook(
        lambda layer, args, output: seen.update(input=args[0], output=output, weight=layer.weight.detach().clone())
    )
    for _ in range(3):
        before = trained.model[0].weight.detach().double().numpy()
        images = torch.randn(40, 20) * 0.5
        trained.step(images)
        assert numpy.array_equal(seen["input"].double().numpy(), grid(images.double().numpy(), 6, 0))
        assert numpy.array_equal(seen["weight"].double().numpy(), grid(before, 6, 0))
        for bits, values in (
            (6, seen["output"]), (8, trained.model[0].weight), (8, trained.model[0].bias),
            (6, trained.optimizer.state[trained.model[0].weight]["momentum_buffer"]),
        ):  # fmt: skip
            numbers = values.detach().double().numpy()
            assert numpy.array_equal(numbers, grid(numbers, bits, 0))
            assert len(numpy.unique(numbers)) > 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_after_the_calibration_training_starts_anew_with_the_ranges_found(momentum):
    options = DynamicFixed(calibration=6, calibration_period=2, period=50)
    trained = Trained(options, torch.optim.SGD, momentum=momentum)
    for _ in range(5):
        trained.step(torch.randn(40, 20))
    assert trained.policy.calibrating
    assert not torch.equal(trained.model[0].weight, trained.initial["0.weight"])
    trained.step(torch.randn(40, 20))
    assert not trained.policy.calibrating
    assert trained.exponent(Role.ACTIVATION_GRADIENT, "0.output") == 2, "three changes from 5 on"
    for name, value in trained.model.state_dict().items():
        initial = trained.initial[name].double().numpy()
        if "running" in name or "num" in name:
            assert numpy.array_equal(value.double().numpy(), initial), name
        else:
            role = Role.WEIGHT if value.ndim > 1 else Role.BIAS
            assert numpy.array_equal(value.double().numpy(), grid(initial, 12, trained.exponent(role, name))), name
    left = [value for state in trained.optimizer.state.values() for value in state.values() if value is not None]
    assert all(not torch.as_tensor(value).any() for value in left)


def test_the_calibration_ends_with_a_step_that_is_applied():
    trained = Trained(DynamicFixed(calibration=3))
    guard = Guard(trained.model, "skip", torch.device("cpu"))
    statistics = trained.model[1].running_mean
    for bad in (0.0, 0.0, 1.0, 0.0, 1.0):
        before = statistics.clone()
        trained.step(torch.randn(40, 20) + 3, bad)
        guard.bad = torch.tensor(bad)
        guard.settle()
        assert trained.policy.calibrating == (trained.done < 4)
        if bad:  # what the guard puts back is of the same phase
            assert torch.equal(statistics, before)
    assert torch.equal(statistics, trained.initial["1.running_mean"])


def test_nothing_of_the_calibration_counts_as_the_best_or_is_averaged(tmp_path):
    class Seen(Watch):
        @hookimpl
        def on_evaluate_end(self, run, scalars):
            kept.append((run.position.step, run.best.latest_step, run.average.state()["conv1.weight"].clone()))

    kept: list[tuple[int, int, torch.Tensor]] = []
    given = {"batch": 50, "steps": 8, "evaluate_every": "2 steps", "ema": 0.5}
    run = build_run(
        REGISTRY, tmp_path, precision=DynamicFixed(calibration=5), run=given, observe={"seen": Seen()},
        model=REGISTRY.entry("model", "cnn").options(width=4),
    )  # fmt: skip
    start = run.average.state()["conv1.weight"].clone()
    run.fit()
    assert [(step, best) for step, best, _ in kept] == [(2, -1), (4, -1), (6, 6), (8, 8)]
    assert torch.equal(kept[1][2], start)
    assert not torch.equal(kept[2][2], start)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run.steps=4"], "precision.calibration=4: the run has 4 steps"),
        (["run.steps=9", "optim=adamw"], "AdamW divides by squared gradients"),
        (["run.steps=9", "precision.store=4", "precision.propagate=12"], "precision.store=4: parameters are"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(engine, words, told):
    code, _, said = engine("train", *WORDS, *words, "out=run")
    assert code == 2
    assert told in said.splitlines()[-1]


def test_calibration_has_25_bits():
    trained = Trained(DynamicFixed(calibration=5))
    weight = trained.initial["0.weight"].double().numpy()
    assert numpy.array_equal(trained.model[0].weight.detach().double().numpy(), grid(weight, 25, 5))


def test_a_step_that_is_left_out_changes_no_range_and_is_not_counted():
    def ranges(bad_steps: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
        trained = Trained(DynamicFixed(calibration=0, period=2, propagate=16, store=18))
        torch.manual_seed(1)
        good, large = torch.randn(40, 20), torch.full((40, 20), 1e9)
        before = [site.role == Role.ACTIVATION for site in trained.policy.sites]
        for step in range(4):
            trained.step(large if step in bad_steps else good, bad=float(step in bad_steps))
            if step == 1:
                after_two = trained.policy.exponents[before].clone()
        return after_two, trained.policy.exponents[before]

    undisturbed, first_bad, second_bad = map(ranges, (set(), {0}, {1}))
    assert undisturbed[0].unique().tolist() == [4]
    assert torch.equal(first_bad[0], undisturbed[0]), "the first step's enormous numbers do not count"
    assert second_bad[0].unique().tolist() == [5], "ranges change with an applied step only"
    assert torch.equal(second_bad[1], undisturbed[0]), "what the first step counted is kept"


def test_processes_change_ranges_together():
    """Two processes see different halves; with their counts summed both find what one finds of the whole."""
    torch.manual_seed(0)
    small, large = torch.randn(20, 20) * 0.1, torch.randn(20, 20) * 100
    options = DynamicFixed(calibration=0, period=1, propagate=20, store=20)
    alone = [Trained(options) for _ in range(2)]
    for trained, images in zip(alone, (small, large), strict=True):
        trained.step(images)
    assert [t.exponent(Role.ACTIVATION, "0.input") for t in alone] == [4, 6]
    counts: list[torch.Tensor] = []
    for images in (small, large):  # what each would give
        listening = Trained(options)
        listening.policy.sum_over_processes = lambda values: counts.append(values.clone()) or values
        listening.step(images)
    together = [Trained(options) for _ in range(2)]
    for trained, images in zip(together, (small, large), strict=True):
        trained.policy.sum_over_processes = lambda values: counts[0] + counts[1]
        trained.step(images)
    assert [t.exponent(Role.ACTIVATION, "0.input") for t in together] == [6, 6]
    assert torch.equal(together[0].policy.exponents, together[1].policy.exponents)


def test_one_common_range_stays():
    trained = Trained(DynamicFixed(ranges="common", range=3, period=1))
    for _ in range(4):
        trained.step(torch.randn(40, 20) * 100)
    assert trained.policy.exponents.unique().tolist() == [3]
    assert not trained.policy.calibrating


def test_stored_parameters_share_the_range_of_what_is_computed():
    trained = Trained(DynamicFixed())
    quantizers = {(site.role, site.name): site.quantizer for site in trained.policy.sites}
    assert {role for role, name in quantizers if name in ("0.weight", "0.input", "0.output")} == set(Role) - {Role.BIAS}
    trained.policy.exponents.copy_(torch.arange(len(trained.policy.exponents)))
    for role, name in (Role.WEIGHT, "0.weight"), (Role.BIAS, "0.bias"):
        assert quantizers[Role.STORED_WEIGHT, name].exponent == quantizers[role, name].exponent
    others = [int(q.exponent) for (role, _), q in quantizers.items() if role != Role.STORED_WEIGHT]
    assert len(others) == len(set(others))


def test_telemetry_tells_every_range_by_role_and_layer():
    trained = Trained(DynamicFixed(calibration=0, period=1))
    trained.step(torch.randn(40, 20))
    tells = trained.policy.telemetry()
    for role, name in (Role.ACTIVATION, "0.input"), (Role.WEIGHT, "0.weight"), (Role.UPDATE, "1.bias"):
        assert int(tells[f"precision/range/{role}/{name}"]) == trained.exponent(role, name)
    assert {value.numel() for value in tells.values()} == {1}
    assert float(tells["precision/calibrating"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        DynamicFixed(calibration=7, calibration_period=1, period=3, rounding="stochastic"),
        DynamicFixed(ranges="common", range=2, propagate=16, store=20),
    ],
    ids=["dynamic", "common"],
)
def test_it_keeps_the_promises_of_a_policy(options):
    check_precision(options)


def test_state_of_other_bits_or_another_model_is_refused():
    state = Trained(DynamicFixed()).policy.state()
    with pytest.raises(UsageError, match="has 10 bits and stores 12, here it is 8 and 12"):
        Trained(DynamicFixed(propagate=8)).policy.load(state)
    with pytest.raises(UsageError, match="this model"):
        Trained(DynamicFixed()).policy.load({**state, "exponents": state["exponents"][1:]})
    with pytest.raises(UsageError, match=r"precision.range=99: write a number"):
        DynamicFixed(range=99).build()


WORDS = ("data.size=8", "run.batch=256", "precision=dynamic_fixed", "precision.calibration=4",
         "precision.calibration_period=1", "model=cnn")  # fmt: skip


def test_evaluating_and_exporting_take_the_ranges_of_the_checkpoint(engine, tmp_path):
    code, told, error = engine("train", *WORDS, "run.steps=8", "out=run")
    assert code == 0, error
    trained = told.split("test accuracy ")[-1].split(" %")[0]
    code, told, error = engine("evaluate", "checkpoint=run", *WORDS)
    assert code == 0, error
    assert trained in told
    code, _, error = engine("export", "checkpoint=run", "format=torch_export", *WORDS, "out=exported.pt2")
    assert code == 0, error
    exported = torch.export.load(tmp_path / "exported.pt2").module()
    weights = [p.detach().double().numpy() for p in exported.parameters() if p.ndim > 1]
    assert weights
    for weight in weights:
        exponents = [e for e in range(-12, 6) if numpy.array_equal(weight, grid(weight, 10, e))]
        assert exponents, "weights of 10 bits, of some range"


def test_weights_without_ranges_are_refused_in_one_line(engine, tmp_path):
    torch.manual_seed(0)
    model = REGISTRY.entry("model", "cnn").options().build((1, 8, 8), 10)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    code, _, told = engine("evaluate", "checkpoint=weights.safetensors", *WORDS)
    assert code == 2
    assert "these weights come without the ranges" in told.splitlines()[-1]


def test_learning_survives_ten_bits_where_one_common_range_fails(tmp_path):
    def error(**options) -> float:
        given = {"batch": 50, "epochs": 6, "log_every": 1000, "evaluate_every": "never"}
        optim = REGISTRY.entry("optim", "sgd").options(lr=0.1, momentum=0.5, weight_decay=0.0)
        precision = DynamicFixed(**options) if options else "float32"
        run = build_run(
            REGISTRY, tmp_path / str(len(list(tmp_path.iterdir()))), precision=precision, optim=optim, run=given,
            model=Tiny(dropout=0.0), augment=["normalize"],
        )  # fmt: skip
        run.fit()
        run.evaluate()
        return 1 - run.best.latest

    float32 = error()
    dynamic = error(calibration=45, calibration_period=2, period=20)
    common = error(ranges="common", range=3)
    assert float32 < 0.15
    assert dynamic < float32 + 0.05
    assert common > float32 + 0.2
