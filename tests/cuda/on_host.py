"""The CUDA kernels as an extension for the host, which tests import instead of ``engine._cuda``."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from building import BUILD, ON_HOST, ROOT, Source, build

from engine.ops import instruction_sets

FOLDER = BUILD / f"cuda-on-host-{sysconfig.get_config_var('SOABI')}"
SOURCES = [
    ROOT / "csrc/cuda_bindings.cpp",  # what takes longest first
    *sorted((ROOT / "csrc/cuda").glob("*.cu")),
    ROOT / "csrc/cuda/algorithms.cpp",
    ROOT / "csrc/convolution.cpp",
]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=fast", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
if instruction_sets().get("avx2"):
    FLAGS.append("-march=x86-64-v3")  # it multiplies and adds with one rounding, as a GPU does


def library(name: str, sources: list[Source]) -> Path:
    """Return a shared library, compiled anew where something has changed."""
    return build(FOLDER / name / f"{name}.so", sources, FLAGS)


def module() -> ModuleType:
    """Return the extension ``_cuda_on_host``: that of a GPU, and ``shuffle(seed)`` for the order of threads."""
    python = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    flags = {"cuda_bindings.cpp": [*ON_HOST, *python]}
    path = library("_cuda_on_host", [Source(path, flags.get(path.name, ON_HOST)) for path in SOURCES])
    spec = importlib.util.spec_from_file_location("_cuda_on_host", path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
