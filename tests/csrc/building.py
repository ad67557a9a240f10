"""Builds what tests run of the C++ and CUDA sources: in parallel, and after a change only what it touches."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ninja import Writer

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
ON_HOST = ["-DENGINE_CUDA_ON_HOST", f"-I{ROOT / 'csrc'}"]
"""The flags of a .cu file for the host."""
CONVOLUTIONS = sorted(path for path in (ROOT / "csrc/cuda").glob("*.cu") if path.stem != "images")
"""The sources of the GPU's convolutions: one for each algorithm, of its name."""


@dataclass
class Source:
    """A source with its own flags; ``suffix`` tells objects of one source apart."""

    path: Path
    flags: Sequence[str] = field(default_factory=list)
    suffix: str = ""


def compiler() -> str:
    """Return the C++ compiler's command."""
    return os.environ.get("CXX") or "c++"


def build(target: Path, sources: Sequence[Source], flags: Sequence[str]) -> Path:
    """Return ``target``, built from the sources; its folder is its own. ``flags`` are for compiling and linking.

    Raises RuntimeError with the compiler's message.
    """
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session of tests may want the same
        rules = folder / "build.ninja"
        with rules.open("w") as file:
            ninja = Writer(file)
            ninja.variable("builddir", str(folder))
            command = f"{compiler()} $flags -MMD -MF $out.d -x c++ -c $in -o $out"
            ninja.rule("compile", command, description="compile $in", depfile="$out.d", deps="gcc")
            ninja.rule("link", f"{compiler()} $flags $in -o $out", description="link $out")
            objects = []
            for source in sources:
                built = str(folder / f"{source.path.name}{source.suffix}.o")
                own = {"flags": _quote([*flags, *source.flags])}
                objects += ninja.build(built, "compile", str(source.path), variables=own)
            ninja.build(str(target), "link", objects, variables={"flags": _quote(flags)})
        result = subprocess.run([sys.executable, "-m", "ninja", "-f", rules], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{target.name} was not built:\n{result.stdout}{result.stderr}")
    return target


def _quote(flags: Sequence[str]) -> str:
    return shlex.join(flags).replace("$", "$$")
