"""nvcc compiles every source of csrc/cuda for the GPUs that the engine names, wherever nvcc is."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("80", "90")

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH: CUDA is compiled for hosts only")


def quickly() -> list[str]:
    """Return the flags that have nvcc (from CUDA 12.9 on) compile without making code fast: it runs nowhere here."""
    known = subprocess.run(["nvcc", "--help"], capture_output=True, text=True).stdout
    return ["-Ofc", "max"] if "--Ofast-compile" in known else []


def compile_one(source: Path, architecture: str, folder: Path, more: list[str]) -> subprocess.CompletedProcess:
    out = folder / f"{source.stem}.{architecture}.ptx"
    flags = ["-std=c++17", f"-I{CSRC}", f"-arch=compute_{architecture}", "--ptx", "-Werror", "all-warnings", *more]
    return subprocess.run(["nvcc", *flags, source, "-o", out], capture_output=True, text=True)


@pytest.mark.timeout(300)
def test_every_source_compiles_for_every_gpu_that_is_named(tmp_path: Path) -> None:
    sources = sorted((CSRC / "cuda").rglob("*.cu"))
    assert sources
    flags = quickly()
    jobs = [(source, architecture, tmp_path, flags) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: compile_one(*job), jobs))
    messages = [result.stdout + result.stderr for result in results]
    assert [result.returncode for result in results] == [0] * len(jobs), "\n".join(messages)
    for source, architecture, *_ in jobs:
        text = (tmp_path / f"{source.stem}.{architecture}.ptx").read_text()
        assert f".target sm_{architecture}" in text
        assert ".entry" in text, f"{source.name} has no kernel"
