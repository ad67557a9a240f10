"""examples/mixlib as its users have it: installed with pip into an environment of its own, used, uninstalled."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engine import Parallel, UsageError
from engine.loader import Position
from engine.testing import small_run
from engine.testing.small import OneProcess, SmallData

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mixlib"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees all that this one has installed, and has room for more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder


@pytest.fixture(scope="module")
def python(environment: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the environment's Python, away from the repository, with one thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ENGINE_"))} | {"OMP_NUM_THREADS": "1"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / "python"), *arguments]
        return subprocess.run(command, cwd=environment, env=clean | more, capture_output=True, text=True, timeout=100)

    return run


def pip(environment: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(environment)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the example, because building leaves files beside the sources."""
    source = tmp_path_factory.mktemp("source") / "mixlib"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip(environment, "install", "--no-deps", "--no-build-isolation", "--no-index", str(source))
    return source


@pytest.mark.usefixtures("installed")
def test_engine_plugins_lists_it(python):
    done = python("-m", "engine", "plugins")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("mixlib"))
    assert row.split() == ["mixlib", "mixlib", "0.1.0", "augment=blend"]
    assert "data=blobs" in done.stdout
    assert "observe=gradient_norms" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("engine train data=bl", "data=blobs"),
        ("engine train augment=[normalize,bl", "augment=[normalize,blend"),
        ("engine train augment=[blend] augment.blend.al", "augment.blend.alpha="),
    ],
)
@pytest.mark.usefixtures("installed")
def test_tab_completes_it(python, line, offered):
    assert python("-m", "engine", "-sc", "query=bash", COMP_LINE=line).stdout.split() == [offered]


@pytest.mark.usefixtures("installed")
def test_engine_train_uses_all_three(python, environment):
    out = environment / "run"
    done = python(
        "-m", "engine", "train", "data=blobs", "data.images=640", "augment=[normalize,blend]",
        "augment.blend.alpha=0.4", "observe=[csv,gradient_norms]", "run.steps=60", "run.batch=32",
        "run.log_every=10", f"out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    accuracies = [float(row["test/accuracy"]) for row in rows if row["test/accuracy"]]
    assert accuracies[-1] > 0.6, "three classes: chance is a third"
    lines = [json.loads(line) for line in (out / "gradient_norms.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert all(norm > 0 for line in lines for norm in line["norms"].values())
    manifest = json.loads((out / "checkpoints" / "step-00000060" / "manifest.json").read_text())
    assert manifest["choices"]["augment"] == ["normalize", "blend"]


def test_its_own_tests_pass(python, installed):
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(installed / "tests"))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_uninstalling_leaves_nothing(python, environment, installed):
    (packages,) = environment.glob("lib/python*/site-packages")
    assert (packages / "mixlib").is_dir()
    pip(environment, "uninstall", "--yes", "mixlib")
    assert [path.name for path in packages.iterdir()] == ["parent.pth"]
    done = python("-m", "engine", "plugins")
    assert done.returncode == 0
    assert "mixlib" not in done.stdout


@pytest.fixture
def mixlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the example from the repository."""
    monkeypatch.syspath_prepend(EXAMPLE)
    import mixlib

    yield mixlib
    for name in [name for name in sys.modules if name.partition(".")[0] == "mixlib"]:
        del sys.modules[name]


def test_a_batch_that_would_cut_a_group_is_refused(mixlib, tmp_path):
    with pytest.raises(
        UsageError, match=r"^augment\.blend mixes groups of 3 images, .* run\.batch as a multiple of 3$"
    ):
        small_run(tmp_path, batch=4, augment={"blend": mixlib.Blend(group=3)})


@dataclass
class Ranked(Parallel):
    """One of several processes, which reads its share and talks to nobody."""

    rank: int = 0
    world: int = 1

    def build(self) -> OneProcess:
        strategy = OneProcess()
        strategy.rank, strategy.world = self.rank, self.world
        return strategy


@pytest.mark.parametrize("group", [2, 4])
def test_partners_are_the_same_for_any_number_of_processes_and_threads(mixlib, tmp_path, group):
    def batches(name, parallel, threads):
        blend = {"blend": mixlib.Blend(group=group)}
        run = small_run(tmp_path / name, batch=8, parallel=parallel, augment=blend, data=SmallData(threads=threads))
        steps = run.loader.steps(Position())
        return [next(steps).batches[0] for _ in range(3)]

    alone = batches("alone", Ranked(), 0)
    together = zip(
        batches("first", Ranked(rank=0, world=2), 3), batches("second", Ranked(rank=1, world=2), 0), strict=True
    )
    for whole, parts in zip(alone, together, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))
