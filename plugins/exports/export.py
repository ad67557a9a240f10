"""``engine export``: a checkpoint into a file of one of the formats, compared with the model before it is announced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine import Session, UsageError
from engine.trained import Trained, trained

from . import graphs, packed, state_dict
from .place import require_writable

if TYPE_CHECKING:
    from . import Export

ENDINGS = {"binary": "bits", "onnx": "onnx", "state_dict": "safetensors", "torch_export": "pt2"}
FORMATS: Mapping[str, Callable[[Trained, Path], str]] = {
    "binary": packed.write, "onnx": graphs.write_onnx, "state_dict": state_dict.write,
    "torch_export": graphs.write_torch_export,
}  # fmt: skip


def export(session: Session) -> None:
    """Write the file and print its size and how it compared. UsageError, with no file written, for what cannot be."""
    job: Export = session.options.job  # type: ignore[assignment]
    if not job.checkpoint:
        raise UsageError(
            "checkpoint must be given: a run or checkpoint folder, or a .safetensors, .pt, .pth or .th file"
        )
    target = Path(session.options.out)
    if not session.options.out or target.is_dir():
        given = f"out={target} is a folder" if session.options.out else "out must be given"
        raise UsageError(f"{given}: name the file to write, as out=network.{ENDINGS[job.format]}")
    require_writable(target)
    with trained(session, Path(job.checkpoint), job.examples, say) as network:
        print(FORMATS[job.format](network, target))


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(f"engine: {text}", file=sys.stderr)
