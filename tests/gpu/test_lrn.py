"""Local response normalization on a GPU beside torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.ops.lrn import local_response_norm

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("size", [1, 4, 5, 300])
@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("shape", [(2, 7, 5, 9), (3, 96, 13, 13), (2, 300, 1, 1)])
def test_it_is_torchs_own(device: torch.device, shape: tuple[int, ...], size: int, beta: float, last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (2 * torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    x.requires_grad_()
    y = functional.local_response_norm(x, size, 0.3, beta, 1.5)
    expected = (y, *torch.autograd.grad(y, x, gradient))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        there = x.detach().to(device, dtype)
        there = (there.contiguous(memory_format=torch.channels_last) if last else there).requires_grad_()
        found = local_response_norm(there, size, 0.3, beta, 1.5)
        results = (found, *torch.autograd.grad(found, there, gradient.to(device, dtype)))
        for own, right in zip(results, expected, strict=True):
            assert own.device == there.device
            torch.testing.assert_close(own.double().cpu(), right, rtol=tolerance, atol=tolerance)
