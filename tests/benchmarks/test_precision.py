"""The precision benchmark's trainings: recipes, records and claims are what they say; and the story in small."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import precision
from formats import accuracy, training
from formats.accuracy import FLOAT, RECIPES, Bar, Recipe
from formats.training import Training, mean_difference, seed_noise, told_by, train
from harness import Report
from inputs.ours import command, session

TINY = ("data=digits", "data.size=8", "model=mlp", "model.hidden=[8]", "run.batch=100", "run.epochs=2")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trainings(*errors: float) -> list[Training]:
    return [Training((), seed, (99.0, error), 1.0) for seed, error in enumerate(errors)]


def test_a_training_is_what_the_command_gives_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = train(TINY, 3, tmp_path / "here")
    command("train", *TINY, "run.seed=3", "observe=[csv]", f"out={tmp_path / 'there'}")
    assert done.errors == told_by(tmp_path / "there" / "metrics.csv")[0]
    assert len(done.errors) == 2
    monkeypatch.setattr(training, "assemble", None)
    assert train(TINY, 3, tmp_path / "here") == done


def test_an_interrupted_training_goes_on_and_other_words_or_seeds_begin_anew(tmp_path: Path) -> None:
    whole = train(TINY, 3, tmp_path / "whole")
    cut = tmp_path / "cut"
    train((*TINY, "save.every=1 epoch"), 3, cut)
    record = cut / training.RECORD
    facts = json.loads(record.read_text()) | {"words": [*TINY]}
    del facts["done"]
    record.write_text(json.dumps(facts))
    manifests = sorted(cut.glob("checkpoints/*/manifest.json"))
    for path in manifests[1:]:  # as after a kill in the second epoch
        path.unlink()
    assert train(TINY, 3, cut).errors == whole.errors
    assert train(TINY, 4, cut).errors != whole.errors


def test_errors_and_seconds_are_read_from_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,seconds,train/loss,test/accuracy\n50,1.5,0.3,\n60,2.0,,0.75\n100,3.0,0.2,\n120,4.25,,0.875\n")
    assert told_by(path) == ((25.0, 12.5), 4.25)


def test_differences_are_of_equal_seeds_and_noise_is_pooled() -> None:
    one, other = trainings(2.0, 4.0, 3.0), trainings(1.0, 3.5, 3.0)
    assert mean_difference(one, other) == pytest.approx(0.5)
    with pytest.raises(AssertionError):
        mean_difference(one, other[1:])
    # Variances 1 and 7/4 (deviations -3/2, 1, 1/2 from the mean of 5/2), with two degrees of freedom each.
    assert seed_noise(one, other) == pytest.approx(((1 + 1.75) / 2) ** 0.5)


def test_claims_are_the_bars_and_the_noise_of_the_seeds() -> None:
    recipe = Recipe(
        "title", "mnist", (), {FLOAT: (), "few": ()}, (Bar("few", FLOAT, 0.6), Bar("few", FLOAT, 0.6, worse=True),
        Bar("few", None, 2.0)), within_noise=True, seeds=(0, 1, 2),
    )  # fmt: skip
    report = Report()
    accuracy.tell(report, recipe, {FLOAT: trainings(1.0, 3.5, 3.0), "few": trainings(2.0, 4.0, 3.0)})
    below, above, alone, noise = report.claims
    assert (below.value, below.met) == (pytest.approx(0.5), True)
    assert (above.value, above.met) == (pytest.approx(0.5), False)
    assert (alone.value, alone.unit, alone.met) == (pytest.approx(3.0), "%", False)
    assert noise.target == pytest.approx(2 * (1.375 * 2 / 3) ** 0.5)
    assert noise.met


def test_the_rate_falls_after_every_epoch() -> None:
    words = accuracy.by_epoch(4, 0.5)
    options = session("data=digits", *words).options
    factor = options.schedule.build(400)
    assert [factor(update) for update in (0, 99, 100, 199, 200, 300, 399)] == [1, 1, 0.5, 0.5, 0.25, 0.125, 0.125]


@pytest.mark.parametrize("name", RECIPES)
def test_the_sides_of_a_recipe_differ_in_nothing_but_their_numbers(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    options = {side: session(*accuracy.words_of(recipe, side, tmp_path)).options for side in recipe.sides}
    first = next(iter(options.values()))
    for own in options.values():
        assert (own.model, own.optim, own.schedule, own.loss, own.run) == (
            first.model, first.optim, first.schedule, first.loss, first.run,
        )  # fmt: skip
        assert str(own.data.root) == str(tmp_path)
    assert all({bar.side, bar.over} - {None} <= set(recipe.sides) for bar in recipe.bars)
    precisions = [own.precision for own in options.values()]
    assert all(one != other for i, one in enumerate(precisions) for other in precisions[:i])


def test_what_is_not_at_hand_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE_TEST_DATA", str(tmp_path))
    precision.main(["--only", "mlp,half", "--json"])
    told = capsys.readouterr().out
    assert "no mnist found" in told
    assert "no cifar10 found" in told
    assert json.loads(told.splitlines()[-1])["claims"] == []


def test_long_trainings_are_asked_for_by_name_and_quick_ones_are_few() -> None:
    parsed = [precision.arguments("", given, precision.options) for given in ([], ["--quick"])]
    full, quick = (set(precision.sections(chosen)) for chosen in parsed)
    assert set(precision.SECTIONS) - full == {"one_bit_long"}
    assert quick == set(precision.TIMED)


@pytest.mark.parametrize("words", [["--only", "mpl"], ["--write", "nowhere/page.md"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        precision.main(words)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


STORY = ("experiment=low_precision",)


def test_the_experiment_is_one_network_in_many_numbers(tmp_path: Path) -> None:
    names = ("float32", "fixed_nearest", "fixed", "fixed_common", "dynamic_fixed", "xnor")
    options = {name: session(*STORY, f"precision={name}").options for name in names}
    assert len({str((own.model, own.optim, own.run, own.loss, own.data)) for own in options.values()}) == 1
    nearest, stochastic = options["fixed_nearest"].precision, options["fixed"].precision
    assert (nearest.il, nearest.fl, nearest.rounding) == (6, 10, "nearest")
    assert (stochastic.il, stochastic.fl, stochastic.rounding) == (6, 10, "stochastic")
    common, dynamic = options["fixed_common"].precision, options["dynamic_fixed"].precision
    assert (common.propagate, common.store, common.ranges, common.range) == (10, 12, "common", 3)
    assert (dynamic.propagate, dynamic.store, dynamic.ranges) == (10, 12, "dynamic")
    typed = session(*STORY, "data=idx", f"data.root={tmp_path}").options
    assert type(typed.data).__name__ == "Idx"
    assert typed.run.steps * typed.run.batch == 5 * 60_000  # five epochs of MNIST


def test_a_sweep_is_drawn_from_its_files(tmp_path: Path, engine: Callable[..., tuple[int, str, str]]) -> None:
    from plots import precision as plot

    few = ("data.size=8", "run.steps=4", "run.evaluate_every=2 steps", "observe=[csv]")
    code, _, told = engine("train", "-m", *STORY, "precision=fixed_nearest,float32", *few, "out=sweep")
    assert code == 0, told
    found = plot.curves(tmp_path / "sweep")
    assert list(found) == ["fixed_nearest", "float32"]
    assert all(steps == [2, 4] and all(0 <= error <= 100 for error in errors) for steps, errors in found.values())


def test_the_story_in_small(tmp_path: Path) -> None:
    """On the digits: what is rounded to the nearest fails, what is rounded at random does not; ranges of their own."""
    rounded = (
        "precision=fixed",
        "precision.il=8",
        "precision.fl=8",
    )  # with 10 bits of fraction it takes longer to fail
    errors = {
        name: train((*STORY, f"run.steps={steps}", f"run.evaluate_every={steps} steps", *own), 0, tmp_path / name).error
        for name, steps, own in (
            ("float", 200, ()),
            ("nearest", 400, (*rounded, "precision.rounding=nearest")),
            ("stochastic", 200, (*rounded, "precision.rounding=stochastic")),
            ("common", 50, ("precision=fixed_common",)),
            ("dynamic", 250, ("precision=dynamic_fixed", "precision.calibration=50")),
        )
    }
    assert errors["float"] < 6
    assert errors["nearest"] > errors["float"] + 20
    assert errors["common"] > errors["float"] + 20
    assert errors["stochastic"] < errors["float"] + 3
    assert errors["dynamic"] < errors["float"] + 3
