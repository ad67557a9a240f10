"""Tests on a real GPU, by `make gpu-test`: skipped with a reason where there is none.

`make gpu-test` sets ENGINE_TEST_GPU=1, and what is missing then fails: a GPU that torch does not see, an extension that
was not built. ENGINE_TEST_DEVICE=cpu runs the tests' own logic on a machine without a GPU, with the CPU's kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.ops import CudaConvolution

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))


def lacking() -> str:
    """Return why nothing can be computed on a GPU, or ""."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return CudaConvolution("implicit").missing


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device that is tested."""
    device = torch.device(os.environ.get("ENGINE_TEST_DEVICE", "cuda"))
    if device.type == "cuda" and (reason := lacking()):
        if os.environ.get("ENGINE_TEST_GPU") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return device


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The device, for what the CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("a GPU itself is what is tested")
    return device


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Let torch's own convolutions compute float32 without TF32."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    yield
    conv.fp32_precision = before


@pytest.fixture
def captured(device: torch.device) -> Callable[[Callable[[], Sequence[Tensor]]], Callable[[], Sequence[Tensor]]]:
    """Return what captures a function in a graph, and returns its replay: always the same tensors, new contents."""

    def capture(function: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = function()

        def replay() -> Sequence[Tensor]:
            graph.replay()
            return results

        return replay

    def again(function: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
        results = function()

        def replay() -> Sequence[Tensor]:
            for result, new in zip(results, function(), strict=True):
                result.copy_(new)
            return results

        return replay

    return capture if device.type == "cuda" else again
