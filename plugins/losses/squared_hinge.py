"""The squared hinge loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Objective


class SquaredHinge(Objective):
    """sum_k max(0, 1 - t_k y_k)^2 over the outputs y, where t is +1 for the sample's class and -1 for the others.

    One machine per class against the rest, as Tang 2013 ("Deep learning using linear support vector machines")
    and the binary networks of Courbariaux et al. 2016 are trained; theirs divide by the number of classes too.
    Soft labels [n, classes] weigh the two cases of each class: q max(0, 1 - y)^2 + (1 - q) max(0, 1 + y)^2.
    """

    def of_head(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one head's loss, summed over the samples."""
        if targets.is_floating_point():
            right, wrong = (1 - outputs).clamp(min=0).square(), (1 + outputs).clamp(min=0).square()
            return torch.lerp(wrong, right, targets).sum()
        signs = torch.ones_like(outputs).scatter_(1, targets[:, None], -1.0)
        return (1 + signs * outputs).clamp(min=0).square().sum()
