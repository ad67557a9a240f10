"""What decodes JPEG is found by compiling and linking a trial; a stand-in for the compiler writes down its calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# "Compiles" everything, but for what it is given on its standard input, the trial, where that is to fail.
COMPILER = """#!/bin/sh
printf '%s\\n' "$*" >> "{calls}"
while [ $# -gt 0 ]; do
    case "$1" in
    -o) out=$2; shift ;;
    -) cat > "{trial}"; exit {status} ;;
    esac
    shift
done
[ -z "$out" ] || : > "$out"
"""

Build = Callable[..., "tuple[subprocess.CompletedProcess[str], list[str]]"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, copy_sources: Callable[[Path], Path]) -> Build:
    """Return a function that builds with or without the library there: how it ended, and the compiler's calls."""
    source = copy_sources(tmp_path_factory.mktemp("source"))
    calls = source / "calls.txt"

    def build(has_library: bool, wish: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        compiler = source / "compiler"
        compiler.write_text(COMPILER.format(calls=calls, trial=source / "trial.cpp", status=int(not has_library)))
        compiler.chmod(0o755)
        calls.write_text("")
        environment = {**os.environ, "CXX": str(compiler), "ENGINE_CUDA": "0", "ENGINE_JPEG": wish}
        command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return build


@pytest.mark.parametrize(
    ("has_library", "wish", "told"),
    [
        (True, "", "decoded by libjpeg-turbo, only the part and the size that a crop needs"),
        (True, "0", "decoded by simplejpeg, whole images only: ENGINE_JPEG=0"),
        (False, "", "decoded by simplejpeg, whole images only: libjpeg-turbo's headers were not found"),
    ],
)
def test_the_library_is_used_where_it_is_and_may_be(build: Build, has_library: bool, wish: str, told: str) -> None:
    done, calls = build(has_library, wish)
    assert done.returncode == 0, done.stderr
    assert f"JPEG: {told}\n" in done.stdout
    links = [call for call in calls if "-shared" in call]
    sources = [call for call in calls if "-c csrc/cpu/jpeg.cpp" in call]
    used = "libjpeg-turbo," in told
    # Without a change since the build before there is nothing to compile or link.
    assert all(call.endswith(" -ljpeg") == used for call in links)
    assert all(("-DENGINE_JPEG" in call) == used for call in sources)
    assert any("- -o /dev/null" in call for call in calls) == (wish != "0")


def test_a_change_of_mind_compiles_and_links_again(build: Build) -> None:
    for wish in ("0", "1", "0"):
        build(True, "0" if wish == "1" else "1")
        done, calls = build(True, wish)
        assert done.returncode == 0, done.stderr
        (link,) = [call for call in calls if "-shared" in call]
        (source,) = [call for call in calls if "-c csrc/cpu/jpeg.cpp" in call]
        assert link.endswith(" -ljpeg") == ("-DENGINE_JPEG" in source) == (wish == "1")


def test_what_cannot_be_followed_is_said_in_one_line(build: Build) -> None:
    for has_library, wish, words in (
        (False, "1", "ENGINE_JPEG=1: libjpeg-turbo's headers were not found; install libjpeg62-turbo-dev (Debian)"),
        (True, "yes", "ENGINE_JPEG=yes: 1 decodes with libjpeg-turbo, 0 does not; unset, where it is found"),
    ):
        done, _ = build(has_library, wish)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith(f"error: {words}")


def test_the_decoder_compiles_without_the_library(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or "c++"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    done = subprocess.run([*compiler.split(), *flags, "csrc/cpu/jpeg.cpp"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
