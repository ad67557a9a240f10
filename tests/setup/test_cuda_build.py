"""Whether engine._cuda is built, for which GPUs, and what is said: with compilers that only write down their calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

# Writes its arguments down and leaves the files that it was asked for, empty.
COMPILER = """#!/bin/sh
echo "${{0##*/}} $*" >> "{calls}"
while [ $# -gt 0 ]; do
    case "$1" in -o|-MF) : > "$2"; shift ;; */broken.cu) echo "broken.cu(1): error" >&2; exit 2 ;; esac
    shift
done
"""
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;;
--list-gpu-arch) for number in 75 80 90 120; do echo compute_$number; done; exit ;;
esac
"""
TOO_OLD = "the GPUs of this machine are older than sm_80"


class Machine:
    """Sources to build, on a machine whose only programs are those that a test gives it."""

    def __init__(self, folder: Path, copy_sources: Callable[[Path], Path]) -> None:
        self.source, self.programs = copy_sources(folder / "source"), folder / "programs"
        self.calls = folder / "calls.txt"
        self.programs.mkdir()
        self.compiler = self.add("cxx", COMPILER.format(calls=self.calls))
        self.library = self.source / f"engine/_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"

    def add(self, name: str, text: str, folder: Path | None = None) -> Path:
        path = (folder or self.programs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def add_nvcc(self, folder: Path | None = None) -> Path:
        return self.add("nvcc", NVCC + COMPILER.format(calls=self.calls), folder)

    def add_gpus(self, *capabilities: str) -> None:
        self.add("nvidia-smi", "#!/bin/sh\n" + "".join(f"echo {number}\n" for number in capabilities))

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        theirs = {"CUDA_HOME", "CUDA_PATH", "ENGINE_CUDA", "ENGINE_CUDA_ARCHS", "CXXFLAGS", "LDFLAGS"}
        kept = {name: value for name, value in os.environ.items() if name not in theirs}
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=self.source,
            env={**kept, "PATH": str(self.programs), "CXX": str(self.compiler), **environment},
            capture_output=True,
            text=True,
        )

    def told(self, **environment: str) -> str:
        """Return what a successful build says of engine._cuda, in its one line."""
        done = self.build(**environment)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("engine._cuda:")]
        assert (self.source / "build/engine._cuda.txt").read_text() == f"{line}\n"
        return line.removeprefix("engine._cuda: ")

    def compiled(self) -> dict[str, list[str]]:
        """Return the arguments that nvcc was called with for each source."""
        lines = [line.split() for line in self.calls.read_text().splitlines()]
        return {line[line.index("-c") + 1]: line for line in lines if line[0] == "nvcc" and "-c" in line}


@pytest.fixture
def machine(tmp_path: Path, copy_sources: Callable[[Path], Path]) -> Machine:
    return Machine(tmp_path, copy_sources)


def codes(arguments: list[str]) -> list[str]:
    return [word.removeprefix("-gencode=") for word in arguments if word.startswith("-gencode=")]


def test_it_is_built_for_the_gpus_of_the_machine(machine: Machine) -> None:
    machine.add_nvcc()
    machine.add_gpus("9.0", "8.6", "9.0", "[N/A]")
    told = machine.told()
    assert "nvcc 13.0, sm_80, sm_90 and PTX of the last (the GPUs of this machine)" in told
    assert machine.library.exists()
    compiled = machine.compiled()
    sources = [path for path in (machine.source / "csrc/cuda").rglob("*") if path.suffix in (".cu", ".cpp")]
    expected = {path.relative_to(machine.source).as_posix() for path in sources}
    assert set(compiled) == expected | {"csrc/cuda_bindings.cpp", "csrc/convolution.cpp"}
    assert told.startswith(f"{len(compiled)} sources, ")
    for source, arguments in compiled.items():
        # 8.6 runs the code of 8.0 that nvcc knows; the last entry is for GPUs to come.
        own = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"]
        assert codes(arguments) == (own if source.endswith(".cu") else [])
        assert ("pybind11" in " ".join(arguments)) == source.endswith("bindings.cpp"), "no kernel may see Python"
        assert f"-ccbin={machine.compiler}" in arguments
    (link,) = [line for line in machine.calls.read_text().splitlines() if line.startswith("nvcc") and "-shared" in line]
    assert "-cudart=static" in link


def test_only_what_changed_is_compiled_again(machine: Machine) -> None:
    machine.add_nvcc()
    machine.add("csrc/cuda/another.cu", "", machine.source)
    machine.told(ENGINE_CUDA="1")
    machine.told(ENGINE_CUDA="1")
    assert machine.compiled() == {}
    (machine.source / "csrc/cuda/another.cu").write_text("// changed\n")
    machine.told(ENGINE_CUDA="1")
    assert set(machine.compiled()) == {"csrc/cuda/another.cu"}
    machine.told(ENGINE_CUDA="1", ENGINE_CUDA_ARCHS="80")
    assert all(source.endswith(".cu") for source in machine.compiled()), "the others know nothing of GPUs"


@pytest.mark.parametrize("settings", [{}, {"ENGINE_CUDA": "0"}])
def test_without_nvcc_or_if_it_is_not_wanted_it_is_not_built(machine: Machine, settings: dict[str, str]) -> None:
    machine.add_gpus("9.0")
    if settings:
        machine.add_nvcc()
    reason = "ENGINE_CUDA=0" if settings else "there is no nvcc on PATH"
    assert machine.told(**settings).startswith(f"not built: {reason}")
    assert machine.compiled() == {}
    assert not machine.library.exists()


def test_a_machine_without_a_gpu_builds_for_those_of_others(machine: Machine) -> None:
    machine.add_nvcc()
    assert "sm_80, sm_90 and PTX of the last (by default, as nvidia-smi finds no GPU)" in machine.told()
    assert "sm_90, sm_120 and PTX of the last (ENGINE_CUDA_ARCHS)" in machine.told(ENGINE_CUDA_ARCHS="12.0; 90;")


def test_gpus_that_nvcc_does_not_know(machine: Machine) -> None:
    machine.add_nvcc()
    machine.add_gpus("13.5")
    assert "sm_120 and PTX of the last (the GPUs of this machine)" in machine.told(), "PTX serves those that are newer"
    machine.add_gpus("7.5")
    assert f"sm_80, sm_90 and PTX of the last (by default, as {TOO_OLD})" in machine.told()


def test_a_build_without_it_removes_that_of_an_earlier_one(machine: Machine) -> None:
    machine.add_nvcc()
    machine.told(ENGINE_CUDA="1")
    assert machine.library.exists()
    machine.told(ENGINE_CUDA="0")
    assert not machine.library.exists()
    assert not list((machine.source / "build").glob("lib*/engine/_cuda*"))
    machine.told(ENGINE_CUDA="1")
    assert machine.library.exists()


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_that_is_named_goes_before_the_path(machine: Machine, tmp_path: Path, variable: str) -> None:
    machine.add("nvcc", "#!/bin/sh\nexit 1\n")
    machine.add_nvcc(tmp_path / "toolkit/bin")
    assert "nvcc 13.0" in machine.told(ENGINE_CUDA="1", **{variable: str(tmp_path / "toolkit")})
    shutil.rmtree(tmp_path / "toolkit")
    told = machine.told(**{variable: str(tmp_path / "toolkit")})
    assert told.startswith(f"not built: there is no nvcc in {tmp_path}/toolkit/bin")


KNOWN = (
    'is none that the kernels can be compiled for here: 80, 90, 120; name some with semicolons between, as in "80;90"'
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ENGINE_CUDA": "yes"},
            "ENGINE_CUDA=yes: 1 builds engine._cuda, 0 does not; unset, it is built where nvcc is found",
        ),
        ({"ENGINE_CUDA_ARCHS": "80;75"}, f"ENGINE_CUDA_ARCHS=80;75: '75' {KNOWN}"),
        ({"ENGINE_CUDA_ARCHS": "9"}, f"ENGINE_CUDA_ARCHS=9: '9' {KNOWN}"),
        ({"ENGINE_CUDA_ARCHS": ";"}, f"ENGINE_CUDA_ARCHS=;: '' {KNOWN}"),
        ({"ENGINE_CUDA_ARCHS": "native"}, f"ENGINE_CUDA_ARCHS=native: 'native' {KNOWN}"),
    ],
)
def test_bad_settings_are_a_line(machine: Machine, settings: dict[str, str], message: str) -> None:
    machine.add_nvcc()
    done = machine.build(**settings)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"error: {message}"
    assert machine.calls.read_text() == "", "it ends before anything is compiled"


def test_asked_for_where_it_cannot_be_built_is_a_line(machine: Machine) -> None:
    done = machine.build(ENGINE_CUDA="1")
    last = "error: ENGINE_CUDA=1: there is no nvcc on PATH; install the CUDA toolkit, or set CUDA_HOME to where it is"
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, last)
    broken = machine.add("nvcc", "#!/bin/sh\nexit 1\n")
    done = machine.build(ENGINE_CUDA="1")
    last = f"error: ENGINE_CUDA=1: {broken} does not run, or knows no GPU from sm_80 on"
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, last)


def test_a_mistake_in_a_kernel_fails_the_build_and_names_the_way_round_it(machine: Machine) -> None:
    machine.add_nvcc()
    machine.add("csrc/cuda/broken.cu", "", machine.source)
    done = machine.build(ENGINE_CUDA="1")
    assert done.returncode == 1
    assert "broken.cu(1): error" in done.stdout + done.stderr
    last = "error: engine._cuda was not built; the compiler's message is above; ENGINE_CUDA=0 builds without it"
    assert done.stderr.strip().splitlines()[-1] == last


NO_ALGORITHMS = """#include "convolution.h"
#include "images.h"
namespace engine {
const CudaImages cuda_images = {};
const CudaAlgorithm* const* cuda_algorithms() {
    static constexpr const CudaAlgorithm* none = nullptr;
    return &none;
}
}  // namespace engine
"""
KERNEL = """#include "device.h"
#ifndef FROM_CXXFLAGS
#error the flags of the C++ compiler did not arrive whole
#endif
__global__ void fill(float* out) { out[threadIdx.x] = 1; }
cudaError_t launch_fill(float* out, cudaStream_t stream) {
    return engine::launch(fill, dim3(1), dim3(32), 0, stream, out);
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
def test_what_the_real_nvcc_builds_loads_without_a_gpu(machine: Machine) -> None:
    for path in (machine.source / "csrc/cuda").glob("*.cu"):
        path.unlink()  # what is in folders is enough
    machine.add("csrc/cuda/algorithms.cpp", NO_ALGORITHMS, machine.source)
    machine.add("csrc/cuda/fill.cu", KERNEL, machine.source)
    # A compiler of two words compiles engine._cpu alone; nvcc takes the one that it finds.
    settings = {"CXX": f"/bin/sh {machine.compiler}", "PATH": os.environ["PATH"], "ENGINE_CUDA": "1"}
    told = machine.told(**settings, ENGINE_CUDA_ARCHS="90", CXXFLAGS="-O0 -Wp,-DFROM_CXXFLAGS", LDFLAGS="-Wl,-z,now")
    assert re.search(r"^10 sources, nvcc \d+\.\d+, sm_90 and PTX of the last", told)
    program = (
        "import importlib.util as util, sys\n"
        "spec = util.spec_from_file_location('engine._cuda', sys.argv[1])\n"
        "module = util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.Convolution('implicit')"
    )
    done = subprocess.run([sys.executable, "-c", program, machine.library], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "ValueError: no algorithm is called implicit"
