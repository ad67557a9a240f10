"""The GPUs' kernels of local response normalization, compiled for the host."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "csrc"))


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """Return the module of the CUDA kernels compiled for the host: ``local_response_norm`` and ``shuffle``."""
    from building import BUILD, ON_HOST, ROOT, Source, build

    python = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    folder = ROOT / "csrc/cuda/lrn"
    sources = [Source(folder / "lrn_bindings.cpp", [*ON_HOST, *python]), Source(folder / "lrn.cu", ON_HOST)]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    name = f"lrn-on-host-{sysconfig.get_config_var('SOABI')}"
    spec = importlib.util.spec_from_file_location(
        "_lrn_on_host", build(BUILD / name / "_lrn_on_host.so", sources, flags)
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
