"""Reading and matching state dicts, our own and other people's; nothing here ever unpickles code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import UsageError
from engine.pieces import Piece, wholes
from engine.registry import OWN_SUFFIXES, Registry
from engine.stored import fill, shape_of

WRAPPERS = ("module.", "_orig_mod.")  # left in front of names by DataParallel and torch.compile
NESTS = ("state_dict", "model_state_dict", "model")  # where training scripts commonly put the state dict


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the parameters of a .safetensors or PyTorch (.pt, .pth, .th) file under plain names.

    PyTorch files are read with weights_only=True alone. A wrapper's prefix that all names share is taken off. Files
    with other endings are read by the plugin that registered the ending. Raises UsageError naming the file if it is
    missing, damaged, holds anything but tensors and plain data, or has no state dict in it.
    """
    if path.suffix not in ("", *OWN_SUFFIXES) and (reader := Registry.load().readers.get(path.suffix.lower())):
        return reader.read(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_content(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a checkpoint, a run folder or a file of weights") from None
    except Exception as error:  # a damaged file makes torch's restricted unpickler raise just about anything
        raise UsageError(f"{path} cannot be read as weights ({_reason(error)})") from error
    if not _is_state(content):
        raise UsageError(f"{path} holds no state dict (names with tensors); save model.state_dict() alone")
    return _unwrapped(content)


def _torch_content(path: Path) -> Any:
    content = torch.load(path, map_location="cpu", weights_only=True)
    nested = [content[nest] for nest in NESTS if nest in content] if isinstance(content, Mapping) else []
    return next((inner for inner in nested if isinstance(inner, Mapping)), content)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def load_state(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state into the model; raises UsageError listing the names and shapes that differ, changing nothing."""
    load_pieces(wholes(model.state_dict()), state, origin)


def load_pieces(own: Mapping[str, Piece], state: Mapping[str, Tensor], origin: str) -> None:
    """Copy into this process's pieces what they hold of a state; else as ``load_state``."""
    # BatchNorm's batch counter came with PyTorch 0.4.1; older weights lack it and nothing computes with it here.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    shapes = [
        f"{n} is {list(shape_of(state, n))} instead of {list(own[n].shape)}"
        for n in own
        if n in state and shape_of(state, n) != own[n].shape
    ]
    if missing or unknown or shapes:
        parts = [_some("missing", missing), _some("unknown", unknown), _some("of another shape", shapes)]
        remedy = "" if missing or unknown else _of_other_classes(own, state)
        raise UsageError(f"{origin} does not fit this model: {'; '.join(part for part in parts if part)}{remedy}")
    for name, piece in own.items():
        if name in state:
            fill(piece, state, name)


def _of_other_classes(own: Mapping[str, Piece], state: Mapping[str, Tensor]) -> str:
    """Return what is the matter where the shapes differ as those of a head for another number of classes do."""
    pairs = [(shape_of(state, name), own[name].shape) for name in own if name in state]
    counts = {(there[0], here[0]) for there, here in pairs if there != here and there[1:] == here[1:]}
    if len(counts) != 1 or any(there != here and there[1:] != here[1:] for there, here in pairs):
        return ""
    ((there, here),) = counts
    return f": it tells {there} classes apart, not {here}; give data of the same, or train another head (transfer=head)"


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put in front of every name, in whatever order they were nested."""
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return dict(state)


def _some(what: str, names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}" if names else ""


def _reason(error: Exception) -> str:
    """Return an error as part of a line; torch's own advice for foreign pickles, to run their code, is left out."""
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
        return f"it needs {code[1]}, more than tensors and plain data; save model.state_dict() alone"
    if not isinstance(error, OSError | SafetensorError):
        return "damaged, or no file of weights"
    return " ".join(str(error).split())[:200]
