"""``engine evaluate``: the test split's means for a checkpoint or for anybody's weights."""

from __future__ import annotations

import sys
from pathlib import Path

from engine import Session, UsageError, score


def evaluate(session: Session) -> None:
    """Print the mean loss and metrics of the test split, with a checkpoint's or a state dict's weights."""
    weights = getattr(session.options.job, "checkpoint", "")
    if not weights:
        raise UsageError(
            "checkpoint must be given: a run or checkpoint folder, or a .safetensors, .pt, .pth or .th file"
        )
    means, images = score(session, Path(weights), lambda text: print(f"engine: {text}", file=sys.stderr))
    print(
        "  ".join(
            [f"{images:,} test images", *(f"{tag.removeprefix('test/')} {value:.6g}" for tag, value in means.items())]
        )
    )
