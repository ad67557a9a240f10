"""The rounding kernels of GPUs, compiled for the host, and what tests of rounding share."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("rounding", "csrc")]


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """Return the module of the CUDA kernels compiled for the host, which has ``round_elements`` and ``shuffle``."""
    from building import BUILD, ON_HOST, ROOT, Source, build

    from engine.ops import instruction_sets

    python = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    folder = ROOT / "csrc/cuda/rounding"
    sources = [Source(folder / "rounding_bindings.cpp", [*ON_HOST, *python]), Source(folder / "rounding.cu", ON_HOST)]
    flags = ["-std=c++17", "-O2", "-ffp-contract=fast", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    if instruction_sets().get("avx2"):
        flags.append("-march=x86-64-v3")  # it multiplies and adds with one rounding, as a GPU does
    name = f"rounding-on-host-{sysconfig.get_config_var('SOABI')}"
    spec = importlib.util.spec_from_file_location(
        "_rounding_on_host", build(BUILD / name / "_rounding_on_host.so", sources, flags)
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
