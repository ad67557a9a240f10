"""From a layer's float arithmetic to integers: where the sign of what follows a sum changes.

What stands between a sum and its sign (a factor, a bias, BatchNorm) is monotone in the sum, for every output on its
own, and stays so in floating point: a product with a constant, a sum with one and a fused multiplication and addition
round monotonically. So the sign changes at most once, and bisection finds where, by computing those very functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.ops.binary import LEAST, MOST

Signs = Callable[[Tensor], Tensor]
"""From a sum for each output, int64 [filters], to whether its sign is +1, bool [filters]."""


def find_thresholds(signs: Signs, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each output the least sum at which the sign is that of the largest sum, and whether that is -1.

    low, high: int64 [filters], the smallest and largest sum of each output. Returns int32 and bool [filters]. Where the
    sign is always the same the threshold is one that every sum reaches, or none.
    """
    first, last = signs(low), signs(high)
    below, reached = low.clone(), high.clone()  # signs differ from the last at ``below``, and equal it at ``reached``
    while bool((reached - below > 1).any()):
        middle = (below + reached) // 2
        same = signs(middle) == last
        reached = torch.where(same, middle, reached)
        below = torch.where(same, below, middle)
    constant = first == last
    least = torch.where(constant, torch.where(last, LEAST, MOST), reached)
    return least.to(torch.int32), ~constant & ~last
