"""``memory.budget``: what it changes, in which order, what it says, and that training stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import UsageError
from engine.budget.fitting import bytes_of
from engine.budget.search import Search
from engine.budget.segments import Selection
from engine.options import MemoryOptions
from engine.registry import Registry
from tests.core.small_run import assert_same, build_run, everything

from .tasks import foresight


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize(
    ("text", "size"), [("3GiB", 3 << 30), ("800 MiB", 800 << 20), ("1.5g", 3 << 29), ("512KB", 512 << 10), ("99B", 99)]
)
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["much", "3 GiB too", "0", "3", "-1GiB", "1XB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="write a number and its unit"):
        bytes_of(text)


def search(budget: int, model: str = "cnn", batch: int = 64, image=(3, 32, 32), **more: Any) -> Search:
    seen = foresight(model, image, run={"batch": batch}, **more)
    seen.task.options.memory.budget = f"{budget}B"
    return Search(seen, budget)


@pytest.fixture(scope="module")
def whole() -> int:
    """What a step of a small network with BatchNorm and 64 images takes."""
    return foresight("cnn", (3, 32, 32)).step(64).total


def test_nothing_changes_where_it_fits(whole):
    found = search(whole).fitted()
    assert (found.setting.inplace, found.setting.selection, found.setting.parts) == ((), Selection(), 1)
    assert found.text.count("\n") == 0


def test_layers_are_computed_twice_before_batches_shrink(whole):
    found = search(whole * 9 // 10)
    fitted = found.fitted()
    assert fitted.setting.selection.stretches
    assert fitted.setting.parts == 1
    assert found.memory(fitted.setting).total <= whole * 9 // 10
    assert "computed twice" in fitted.text


def test_then_batches_shrink_by_a_whole_number_and_batch_norm_is_told(whole):
    found = search(whole // 8)
    fitted = found.fitted()
    assert 64 % fitted.setting.parts == 0
    assert fitted.setting.parts > 1
    assert found.memory(fitted.setting).total <= whole // 8
    assert f"run.batch={64 // fitted.setting.parts} run.accumulate={fitted.setting.parts}" in fitted.text
    assert f"BatchNorm sees {64 // fitted.setting.parts} images at a time instead of 64" in fitted.text


def test_what_cannot_fit_is_refused_with_the_least(whole):
    with pytest.raises(UsageError, match=r"a step of this model takes \d+\.\d\d MiB at least, in micro-batches of 1:"):
        search(1 << 20).fitted()


def test_the_search_finds_the_same_again(whole):
    one, other = (search(whole // 4).fitted() for _ in range(2))
    assert one.text == other.text
    names = [[call.name for stretch in f.setting.selection.stretches for call in stretch.calls] for f in (one, other)]
    assert names[0] == names[1]
    assert one.setting.parts == other.setting.parts


def test_policies_that_round_at_layers_are_not_computed_twice(whole):
    fitted = search(whole // 2, precision="fixed").fitted()
    assert fitted.setting.selection.stretches == ()
    assert fitted.setting.parts > 1
    assert "nothing is computed twice" in fitted.text


def test_alexnet_of_the_lecture_takes_its_3_gigabytes_and_the_fused_normalisation_saves_half_of_it():
    steps = {
        fused: foresight("alexnet", (3, 227, 227), 1000, fused_lrn=fused).step(256).total / 2**30
        for fused in (True, False)
    }
    assert 2 < steps[True] < 3
    assert steps[False] - steps[True] > 1.5


def run_with(registry: Registry, out: Path, budget: str, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Any:
    monkeypatch.setattr(MemoryOptions, "__init__", lambda self, value=budget: setattr(self, "budget", value))
    return build_run(registry, out, threads=0, save={"every": "never"}, **given)


def budget_for(registry: Registry, part: float, **given: Any) -> str:
    batch = given["run"]["batch"]
    return f"{int(part * foresight(given['model'], (1, 8, 8)).step(batch).total)}B"


def test_a_run_with_segments_has_the_same_bits_and_says_what_it_does(registry, tmp_path, monkeypatch):
    choice: dict[str, Any] = {"run": {"steps": 3, "batch": 32, "device": "cpu"}}
    plain = build_run(registry, tmp_path / "plain", threads=0, model=registry.entry("model", "cnn").options(), **choice)
    plain.fit()
    budget = budget_for(registry, 0.95, model="cnn", **choice)
    less = run_with(
        registry, tmp_path / "less", budget, monkeypatch, model=registry.entry("model", "cnn").options(), **choice
    )
    assert any(table.startswith(f"memory.budget={budget}: a step takes") for table in less.tables)
    assert "computed twice" in less.memory
    less.fit()
    assert_same(everything(plain), everything(less))


def test_smaller_micro_batches_make_the_same_step_up_to_rounding(registry, tmp_path, monkeypatch):
    hidden = {"hidden": [16] * 6}
    model = registry.entry("model", "mlp").options(**hidden)
    choice: dict[str, Any] = {"run": {"steps": 4, "batch": 512, "device": "cpu"}, "model": model}
    plain = build_run(registry, tmp_path / "plain", threads=0, **choice)
    plain.fit()
    least = foresight("mlp", (1, 8, 8), **hidden).step(128, 4).total
    less = run_with(registry, tmp_path / "less", f"{least}B", monkeypatch, **choice)
    assert less.options.run.accumulate > 1
    assert less.loader.count == less.options.run.batch * less.options.run.accumulate == 512
    less.fit()
    ours, theirs = everything(plain), everything(less)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_budget_is_given_on_the_command_line(engine):
    code, out, err = engine(
        "train", "run.steps=2", "run.batch=32", "run.device=cpu", "memory.budget=4MiB", "observe=[progress]", "out=here"
    )
    assert code == 0, err
    assert "memory.budget=4MiB: a step takes" in out + err
    code, _, err = engine("train", "run.steps=2", "memory.budget=1KiB", "out=there")
    assert code == 2
    assert "at least, in micro-batches of 1" in err
    assert not Path("there").exists()
