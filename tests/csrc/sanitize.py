"""Builds the convolutions with the address and undefined-behaviour sanitizers and runs them on random shapes.

`make sanitize` (ARGS: the number of shapes, a seed); exits with 1 at the first finding.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g1", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SETS = {"baseline": []}
if platform.machine() == "x86_64":
    SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}


def compile_all() -> Path:
    """Compile what has changed and return the program."""
    BUILD.mkdir(parents=True, exist_ok=True)
    jobs = [(ROOT / "csrc/cpu/dispatch.cpp", "", []), (ROOT / "tests/csrc/convolutions.cpp", "", [])]
    for source in sorted((ROOT / "csrc/cpu/conv").glob("*.cpp")):
        jobs += [(source, f".{isa}", [f"-DENGINE_ISA={isa}", *flags]) for isa, flags in SETS.items()]
    newest_header = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.h"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_one(*job, newest_header), jobs))
    program = BUILD / "convolutions"
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", program], check=True)
    return program


def compile_one(source: Path, suffix: str, flags: list[str], newest_header: float) -> Path:
    """Compile one source, unless its object is newer than it and every header."""
    out = BUILD / f"{source.name}{suffix}.o"
    if not out.exists() or out.stat().st_mtime < max(source.stat().st_mtime, newest_header):
        subprocess.run([COMPILER, *FLAGS, *flags, "-c", source, "-o", out], check=True)
    return out


if __name__ == "__main__":
    # Leaks are not looked for: that needs a right which containers often lack, and nothing here allocates but the test.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    sys.exit(subprocess.run([compile_all(), *sys.argv[1:]], env=environment).returncode)
