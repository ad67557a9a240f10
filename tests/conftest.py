"""Shared fixtures: where the real data is, and quiet single-purpose folders."""

from __future__ import annotations

import os

# Small networks are slower on two OpenMP threads than on one, by far where cores are shared; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import kept_memory
from engine.cli import main

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what ``kernels=auto`` remembers out of the user's cache folder, in subprocesses too; return the folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    """Give freed memory back as usual after a test that ran a command in this process: other tests tell of it too."""
    yield
    kept_memory.give_back()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread: for small networks a second, on a busy machine, is only waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs one command line in this process, in tmp_path: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["engine", *words])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a sub-path to the real data's folder; it skips the test where that is absent."""
    base = Path(os.environ.get("ENGINE_TEST_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = base / name
        if not path.exists():
            pytest.skip(f"real data {name} not found; set ENGINE_TEST_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture(scope="session")
def opencv_squeezenet(real_data: Callable[[str], Path]) -> Callable[[Any], Any]:
    """OpenCV's SqueezeNet: a function from images [n, 3, h, w], blue first and less the means, to scores [n, 1000]."""
    import numpy as np

    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless<5, the oracle, is not installed")
    folder = real_data("weights/squeezenet_v1.0")
    (weights,) = folder.glob("*.caffemodel")
    network = cv2.dnn.readNetFromCaffe(str(folder / "SqueezeNet_deploy.prototxt"), str(weights))

    def scores(images: Any) -> Any:
        network.setInput(np.ascontiguousarray(images, np.float32))
        return network.forward().reshape(len(images), -1)

    return scores
