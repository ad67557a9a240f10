"""What ``make`` would run, in which order, and what it leaves alone: a stand-in for Python writes down its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

# Makes an "environment" whose programs do nothing but add their name and arguments to calls.txt.
PYTHON = """#!/bin/sh
case "$1" in
-c) exit {too_old} ;;
-V) echo "Python 3.9.2" ;;
-m) mkdir -p "$3/bin"
    for name in python pip pytest engine; do
        printf '#!/bin/sh\\necho "${{ENGINE_TEST_GPU:+on a GPU: }}%s $*" >> "{calls}"\\n' $name > "$3/bin/$name"
        chmod +x "$3/bin/$name"
    done ;;
esac
"""

# Nothing of an outer make (this suite may run under one) may reach the inner one.
OUTER = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV", "ENGINE_CUDA", "ENGINE_CUDA_ARCHS", "ENGINE_JPEG"}


def age(paths: Iterable[Path], seconds: int) -> None:
    """Make files older, so that what a test writes next is newer even on a file system with coarse times."""
    for path in paths:
        facts = path.stat()
        os.utime(path, (facts.st_atime, facts.st_mtime - seconds))


class Checkout:
    def __init__(self, folder: Path, too_old: bool = False) -> None:
        self.folder, self.calls, self.environment = folder, folder / "calls.txt", {}
        self.python = folder / "stand-in"
        self.python.write_text(PYTHON.format(too_old=int(too_old), calls=self.calls))
        self.python.chmod(0o755)
        age(folder.rglob("*"), 3600)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in OUTER} | self.environment
        command = ["make", f"PYTHON={self.python}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def calls_of(self, *arguments: str) -> list[str]:
        """Return what a successful ``make`` called."""
        self.calls.write_text("")
        done = self.make(*arguments)
        assert done.returncode == 0, done.stderr
        age((self.folder / ".venv").glob(".*"), 10)
        return self.calls.read_text().splitlines()

    @property
    def stamp(self) -> str:
        """What the environment's extension was asked to be."""
        return (self.folder / ".venv/.cuda").read_text().strip()


@pytest.fixture
def checkout(tmp_path: Path, copy_sources: Callable[[Path], Path]) -> Checkout:
    return Checkout(copy_sources(tmp_path))


def test_a_fresh_checkout_installs_torch_first_then_the_rest_then_builds_and_trains(checkout: Checkout) -> None:
    torch, rest, build, train = checkout.calls_of("train", "ARGS=model=lenet run.epochs=2")
    assert torch.endswith("--constraint constraints.txt torch==2.13.0")
    assert rest.endswith("--constraint constraints.txt -r requirements.txt -r requirements-dev.txt")
    assert build.endswith("--no-build-isolation --no-deps --editable .")
    assert train == "engine train model=lenet run.epochs=2"


def test_a_second_call_uses_the_environment_at_once(checkout: Checkout) -> None:
    checkout.calls_of("test")
    assert checkout.calls_of("test", "ARGS=-x") == ["pytest -n 2 --dist worksteal -m not soak -x"]
    assert checkout.calls_of("train") == ["engine train"]


@pytest.mark.parametrize("changed", ["csrc/cpu/philox.h", "csrc/new.cpp", "setup.py", "plugins/another/__init__.py"])
def test_a_change_rebuilds_the_extension_but_not_the_environment(checkout: Checkout, changed: str) -> None:
    checkout.calls_of("build")
    path = checkout.folder / changed
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (call,) = checkout.calls_of("build")
    assert call.endswith("--editable .")


def test_a_change_elsewhere_rebuilds_nothing(checkout: Checkout) -> None:
    checkout.calls_of("build")
    for path in ("engine/ops.py", "plugins/data/__init__.py"):
        (checkout.folder / path).touch()
    assert checkout.calls_of("build") == []


@pytest.mark.parametrize(
    ("asked", "installed"),
    [("2.11.0", "torch==2.11.0"), ("torch>=2.12", "torch>=2.12"), ("./torch-2.13.0.whl", "./torch-2.13.0.whl")],
)
def test_another_torch_is_installed_when_asked_for(checkout: Checkout, asked: str, installed: str) -> None:
    checkout.calls_of("build")
    calls = checkout.calls_of("build", f"TORCH={asked}")
    assert calls[0].endswith(f"constraints.txt {installed}")
    assert checkout.calls_of("build", f"TORCH={asked}") == []


@pytest.mark.parametrize("asked", ["ENGINE_CUDA=1", "ENGINE_CUDA_ARCHS=80;90", "ENGINE_JPEG=0"])
def test_other_wishes_build_again_and_what_was_built_is_shown(checkout: Checkout, asked: str) -> None:
    checkout.calls_of("build")
    (call,) = checkout.calls_of("build", asked)
    assert call.endswith("--editable .")
    assert checkout.calls_of("build", asked) == []
    (checkout.folder / "build").mkdir()
    (checkout.folder / "build/engine._cuda.txt").write_text("engine._cuda: not built: a reason\n")
    (checkout.folder / "build/JPEG.txt").write_text("JPEG: decoded by something\n")
    assert "\nJPEG: decoded by something\nengine._cuda: not built: a reason\n" in checkout.make("build").stdout


def test_an_old_python_is_refused_in_one_line(tmp_path: Path, copy_sources: Callable[[Path], Path]) -> None:
    checkout = Checkout(copy_sources(tmp_path), too_old=True)
    done = checkout.make("train")
    assert done.returncode == 2
    assert done.stdout.strip() == (
        f"Python 3.11 or newer is needed, '{checkout.python}' is Python 3.9.2; name one: make PYTHON=python3.11"
    )
    assert not (checkout.folder / ".venv").exists()


def with_programs(checkout: Checkout, **programs: str) -> Checkout:
    """Let ``make`` find what it calls on every machine, these programs, and no other."""
    folder = checkout.folder / "programs"
    folder.mkdir()
    for name in ("make", "sh", "grep", "cmp", "find", "mkdir", "chmod", "touch", "cat", "printf", "test"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, text in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    checkout.environment = {"PATH": str(folder), "CUDA_HOME": "/nowhere"}
    return checkout


H200 = "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'"


@pytest.mark.parametrize("programs", [{}, {"nvidia_smi": "echo 'No devices were found'; exit 6"}], ids=["none", "idle"])
@pytest.mark.parametrize("target", ["gpu-test", "gpu-bench"])
def test_without_a_gpu_the_targets_say_so_before_anything_is_built(
    checkout: Checkout, target: str, programs: dict[str, str]
) -> None:
    done = with_programs(checkout, **programs).make(target)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"make {target} needs an NVIDIA GPU with its driver, and nvidia-smi finds none here"
    ]
    assert not (checkout.folder / ".venv").exists()


def test_a_gpu_is_built_for_tested_and_looked_at_by_the_sanitizer(checkout: Checkout) -> None:
    sanitizer = f'echo "sanitizer, $PYTORCH_NO_CUDA_MEMORY_CACHING$ENGINE_TEST_GPU: $*" >> {checkout.calls}'
    with_programs(checkout, nvidia_smi=H200, compute_sanitizer=sanitizer)
    torch, _, build, tests, *sanitized = checkout.calls_of("gpu-test", "TORCH=2.11.0", "ARGS=-x")
    assert torch.endswith(" torch==2.11.0")
    assert build.endswith("--editable .")
    assert checkout.stamp == "1"
    assert tests == "on a GPU: pytest -m gpu -x"
    files = "tests/gpu/test_values.py tests/gpu/test_images.py tests/gpu/test_binary.py"
    pytest_of_few = f".venv/bin/python -m pytest -q --timeout 0 -m gpu {files} -k small_shapes"
    assert sanitized == [
        f"sanitizer, 11: --tool {tool} --error-exitcode 1 {pytest_of_few}" for tool in ("memcheck", "racecheck")
    ]


def test_a_sanitizer_that_finds_something_fails_the_target(checkout: Checkout) -> None:
    with_programs(checkout, nvidia_smi=H200, compute_sanitizer=f'echo "$*" >> {checkout.calls}; exit 1')
    assert checkout.make("gpu-test").returncode == 2
    assert "memcheck" in checkout.calls.read_text()
    assert "racecheck" not in checkout.calls.read_text()


def test_a_sanitizer_that_is_not_installed_is_said(checkout: Checkout) -> None:
    done = with_programs(checkout, nvidia_smi=H200).make("gpu-test")
    assert done.returncode == 0, done.stderr
    assert "compute-sanitizer is not installed" in done.stdout.splitlines()[-1]


def test_the_gpu_is_measured_into_the_results(checkout: Checkout) -> None:
    with_programs(checkout, nvidia_smi=H200)
    *_, build, convolutions, overhead, binary = checkout.calls_of("gpu-bench", "ARGS=--only fft --quick")
    assert build.endswith("--editable .")
    assert checkout.stamp == "1"
    to = "--device cuda --write docs/results"
    assert convolutions == f"python benchmarks/conv.py {to}/conv-cuda-tables.md --only fft --quick"
    assert overhead == f"python benchmarks/overhead.py {to}/overhead-cuda-tables.md --quick"
    assert binary == "python benchmarks/formats/binary_on_gpu.py --write docs/results/binary-cuda-tables.md --quick"


def test_help_lists_every_target_and_variable(checkout: Checkout) -> None:
    text = checkout.make("help").stdout
    for word in (
        "train",
        "test",
        "soak",
        "lint",
        "bench",
        "gpu-test",
        "gpu-bench",
        "clean",
        "help",
        "PYTHON",
        "VENV",
        "TORCH",
        "ARGS",
        "ENGINE_CUDA",
        "ENGINE_JPEG",
    ):
        assert f"\n{word} " in f"\n{text}"


def test_clean_keeps_environment_and_runs(checkout: Checkout) -> None:
    checkout.calls_of("build")
    products = [checkout.folder / name for name in ("build/x.o", "engine/_cpu.so", "plugins/__pycache__/a.pyc")]
    kept = [checkout.folder / "runs/a/manifest.json", checkout.folder / ".venv/bin/pip"]
    for path in [*products, kept[0]]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert checkout.make("clean").returncode == 0
    assert [path.exists() for path in products + kept] == [False, False, False, True, True]
    (call,) = checkout.calls_of("build")
    assert call.endswith("--editable .")
