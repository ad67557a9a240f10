"""Builds the kernels of csrc with sanitizers and runs them on random shapes.

`make sanitize` (ARGS: the number of shapes, a seed) exits with 1 at the first finding of one of these programs; ARGS
may begin with the name of one: "cuda 500 1".
  cpu           the CPU's convolutions: memory and undefined behaviour
  cuda          the GPU's, compiled for the host: the same
  races         the GPU's: what threads of a block do to the same memory without a barrier between
  images        the GPU's pass over images: memory and undefined behaviour
  images-races  and races in it
  rounding      rounding, on the CPU and, compiled for the host, on the GPU: memory and undefined behaviour
  binary        the CPU's networks of one bit: the same
  binary-cuda   the GPU's, compiled for the host: the same
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from building import BUILD, CONVOLUTIONS, ON_HOST, ROOT, Source, build, compiler

FLAGS = ["-std=c++17", "-O1", "-g1", "-fopenmp"]
MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
RACES = ["-fsanitize=thread"]
SETS = {"baseline": []}
if platform.machine() == "x86_64":
    SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}


def program(name: str, sources: Sequence[Source], sanitizers: Sequence[str]) -> Path:
    """Return a program of these sources, built with sanitizers."""
    return build(BUILD / "sanitize" / name / "program", sources, [*FLAGS, *sanitizers])


def cpu() -> Path:
    """Return the program of the CPU's convolutions."""
    own = ["csrc/convolution.cpp", "csrc/cpu/dispatch.cpp", "tests/csrc/convolutions.cpp"]
    return program("cpu", [*(Source(ROOT / name) for name in own), *by_instruction_set("conv")], MEMORY)


def by_instruction_set(folder: str, more: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Source]:
    """Return the sources of a folder of csrc/cpu, each once per instruction set; ``more``: sets with their flags."""
    return [
        Source(path, [f"-DENGINE_ISA={isa}", *flags], f".{isa}")
        for path in sorted((ROOT / "csrc/cpu" / folder).glob("*.cpp"))
        for isa, flags in {**SETS, **more}.items()
    ]


def rounding() -> Path:
    """Return the program that rounds."""
    own = [Source(ROOT / "csrc/cpu/rounding.cpp"), Source(ROOT / "tests/csrc/roundings.cpp", ON_HOST)]
    on_gpu = Source(ROOT / "csrc/cuda/rounding/rounding.cu", ON_HOST)
    return program("rounding", [*own, on_gpu, *by_instruction_set("rounding")], MEMORY)


def responses() -> Path:
    """Return the program of local response normalisation."""
    own = [Source(ROOT / "csrc/cpu/lrn.cpp"), Source(ROOT / "tests/csrc/responses.cpp", ON_HOST)]
    on_gpu = Source(ROOT / "csrc/cuda/lrn/lrn.cu", ON_HOST)
    return program("responses", [*own, on_gpu, *by_instruction_set("lrn")], MEMORY)


def binary() -> Path:
    """Return the program of networks of one bit."""
    own = [Source(ROOT / name) for name in ("csrc/cpu/binary.cpp", "tests/csrc/binary_networks.cpp")]
    counting = {"vpopcntdq": ["-march=x86-64-v4", "-mavx512vpopcntdq", "-mavx512vnni"]} if len(SETS) > 1 else {}
    return program("binary", [*own, *by_instruction_set("binary", counting)], MEMORY)


def cuda_sources() -> list[Source]:
    """Return the sources of a program that runs the GPU's convolutions on the host, with many portions each."""
    own = ["csrc/convolution.cpp", "csrc/cuda/algorithms.cpp", "tests/csrc/cuda_convolutions.cpp"]
    paths = [*CONVOLUTIONS, *(ROOT / name for name in own)]
    return [Source(path, [*ON_HOST, "-DENGINE_SMALL_PORTIONS"]) for path in paths]


def cuda() -> Path:
    """Return the program of the GPU's convolutions."""
    return program("cuda", cuda_sources(), MEMORY)


def races() -> Path:
    """Return the program of the GPU's convolutions that looks for races."""
    return program("races", cuda_sources(), RACES)


def images(sanitizers: Sequence[str] = MEMORY, name: str = "images") -> Path:
    """Return the program of the GPU's pass over images."""
    own = ["csrc/cuda/images.cu", "tests/csrc/cuda_images.cpp"]
    return program(name, [Source(ROOT / path, ON_HOST) for path in own], sanitizers)


def image_races() -> Path:
    """Return the program of the GPU's pass over images that looks for races."""
    return images(RACES, "images-races")


def cuda_binary(sanitizers: Sequence[str] = MEMORY, name: str = "binary-cuda") -> Path:
    """Return the program of the GPU's networks of one bit."""
    own = ["csrc/cuda/binary/binary.cu", "tests/csrc/cuda_binary_networks.cpp"]
    return program(name, [Source(ROOT / path, [*ON_HOST, "-DENGINE_SMALL_PORTIONS"]) for path in own], sanitizers)


PROGRAMS = {
    "cpu": cpu, "cuda": cuda, "races": races, "images": images, "images-races": image_races, "rounding": rounding,
    "binary": binary, "binary-cuda": cuda_binary, "responses": responses,
}  # fmt: skip


def run(path: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run a program under its sanitizers."""
    # Leaks are not looked for: that needs a right which containers often lack, and nothing here allocates but the test.
    choices = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0",
    }
    return subprocess.run([path, *arguments], env=os.environ | choices, **options)


@cache
def no_races() -> str:
    """Return why races cannot be looked for on this machine, or nothing."""
    source = BUILD / "sanitize" / "nothing.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("int main() {}\n")
    try:
        result = run(program("nothing", [Source(source)], RACES), capture_output=True, text=True)
    except RuntimeError:
        return f"{compiler()} has no thread sanitizer"
    return f"the thread sanitizer does not start: {result.stderr.strip()}" if result.returncode else ""


def main() -> int:
    """Run the programs that are asked for, up to the first finding."""
    named = sys.argv[1:2] and sys.argv[1] in PROGRAMS
    for name in [sys.argv.pop(1)] if named else PROGRAMS:
        if name.endswith("races") and no_races():
            print(f"{name}: not looked for, {no_races()}", flush=True)
            continue
        print(f"{name}:", flush=True)
        if run(PROGRAMS[name](), *sys.argv[1:]).returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
