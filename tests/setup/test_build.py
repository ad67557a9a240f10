"""Building the extension: only what changed is compiled again, and a problem is told in one line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def build(quickly: dict[str, str]) -> Build:
    """Return a function that builds the extension in a folder of sources."""

    def build(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=source, env={**quickly, **environment}, capture_output=True, text=True)

    return build


def products(source: Path) -> dict[str, int]:
    """Return when each object and library was last written, by name."""
    (folder,) = (source / "build").glob("ninja-*")
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in {".o", ".so"}}


def rebuilt(build: Build, source: Path, changed: str) -> set[str]:
    """Return which products a build writes anew after ``changed`` got one line longer."""
    before = products(source)
    with (source / changed).open("a") as file:
        file.write("// changed\n")
    done = build(source)
    assert done.returncode == 0, done.stderr
    return {name.split(".cpython")[0] for name, time in products(source).items() if time != before[name]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, copy_sources: Callable[[Path], Path], build: Build) -> Path:
    source = copy_sources(tmp_path_factory.mktemp("source"))
    done = build(source)
    assert done.returncode == 0, done.stderr
    assert "engine._cpu: " in done.stdout
    assert list((source / "engine").glob("_cpu.*.so"))
    return source


def test_a_build_without_changes_compiles_nothing(build: Build, built: Path) -> None:
    before = products(built)
    assert build(built).returncode == 0
    assert products(built) == before


def test_a_changed_kernel_is_compiled_alone(build: Build, built: Path) -> None:
    assert rebuilt(build, built, "csrc/cpu/philox.cpp") == {"philox.cpp.o", "_cpu"}


def test_a_changed_convolution_is_compiled_for_every_instruction_set(build: Build, built: Path) -> None:
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    sets = ["baseline", "avx2", "avx512"] if on_x86 else ["baseline"]
    assert rebuilt(build, built, "csrc/cpu/conv/naive.cpp") == {"_cpu", *(f"naive.cpp.{name}.o" for name in sets)}


def test_a_changed_header_recompiles_what_includes_it(build: Build, built: Path) -> None:
    assert rebuilt(build, built, "csrc/cpu/philox.h") == {"philox.cpp.o", "bindings.cpp.o", "_cpu"}


def test_a_mistake_in_a_source_fails_the_build_and_shows_the_compilers_words(
    build: Build, tmp_path: Path, copy_sources: Callable[[Path], Path]
) -> None:
    source = copy_sources(tmp_path)
    (source / "csrc/bindings.cpp").write_text("int broken(\n")
    done = build(source)
    assert done.returncode == 1
    assert "csrc/bindings.cpp:1" in done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: engine._cpu was not built")


def test_a_missing_compiler_is_named(build: Build, tmp_path: Path, copy_sources: Callable[[Path], Path]) -> None:
    done = build(copy_sources(tmp_path), CXX="no-such-compiler -x")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: no C++ compiler: 'no-such-compiler -x' was not found; install g++ or clang++, or set CXX"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set, without a flag")
def test_a_compiler_that_is_too_old_is_named(
    build: Build, tmp_path: Path, copy_sources: Callable[[Path], Path]
) -> None:
    source, old = copy_sources(tmp_path), tmp_path / "old-compiler"
    old.write_text('#!/bin/sh\ncase "$*" in *x86-64-v4*) echo "bad value for -march" >&2; exit 1;; esac\n')
    old.chmod(0o755)
    done = build(source, CXX=str(old))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: the C++ compiler '{old}' does not know -march=x86-64-v4; GCC 11 or Clang 12")
    assert "bad value" not in done.stdout + done.stderr


def test_a_missing_extension_says_how_to_build_it(tmp_path: Path, copy_sources: Callable[[Path], Path]) -> None:
    source = copy_sources(tmp_path)
    # Without the site module no .pth file is read, so an editable installation cannot lend its extension.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import engine.ops"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), sysconfig.get_path("purelib")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the compiled extension engine._cpu cannot be loaded")
    assert "`make` or `pip install -e .`" in last
