"""The checked face of the compiled extension: tensors in, tensors out; the only module that imports it.

The extension takes raw addresses and links no torch, so one build serves every torch version. Tensors are
allocated here, and kept alive by this module's own references while a kernel runs.
"""

from __future__ import annotations

import torch  # before the extension: the process then has one OpenMP runtime, torch's
from torch import Tensor

try:
    from engine import _cpu
except ImportError as error:
    raise ImportError(
        f"the compiled extension engine._cpu cannot be loaded ({error}); build it with `make` or `pip install -e .`"
    ) from error


def philox(key: int, samples: Tensor, blocks: int) -> Tensor:
    """Return int64 [n, 4 * blocks] of random 32-bit words (0..2^32-1): row i depends on (key, samples[i]) alone.

    Philox4x32-10 (Salmon et al. 2011) with the 64-bit ``key`` as (low word, high word) and the counter
    (sample's low word, its high word, block, 0). samples: int64 [n] on the CPU; blocks: 0 to 2^32.
    Raises ValueError for any other samples or blocks, TypeError for a key that is no unsigned 64-bit number.
    """
    if samples.dtype != torch.int64 or samples.dim() != 1 or samples.device.type != "cpu":
        raise ValueError(
            f"philox: samples must be int64 [n] on the CPU, not {samples.dtype} {list(samples.shape)} "
            f"on {samples.device}"
        )
    if blocks < 0:
        raise ValueError(f"philox: blocks must be at least 0, not {blocks}")
    samples = samples.contiguous()
    out = torch.empty(len(samples), 4 * blocks, dtype=torch.int64)
    _cpu.philox(key, samples.data_ptr(), len(samples), blocks, out.data_ptr())
    return out


def build_facts() -> dict[str, str]:
    """Return how the extension was compiled: ``version``, ``compiler``, ``flags`` and ``instruction_set``."""
    return _cpu.build_facts()
