"""Reading and matching state dicts, our own and other people's; nothing here ever unpickles code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import UsageError

WRAPPERS = ("module.", "_orig_mod.")  # left in front of names by DataParallel and torch.compile
NESTS = ("state_dict", "model_state_dict", "model")  # where training scripts commonly put the state dict


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the parameters of a .safetensors or PyTorch (.pt, .pth, .th) file under plain names.

    PyTorch files are read with weights_only=True alone. Raises UsageError naming the file if it is missing,
    damaged, holds anything but tensors and plain data, or has no state dict in it.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_state(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a checkpoint, a run folder or a file of weights") from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as weights ({_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} holds more than tensors and plain data, so it is not loaded: {_line(error)}"
        ) from error
    return {_plain(name): value for name, value in state.items()}


def _torch_state(path: Path) -> Mapping[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"{path} holds no state dict (names with tensors); save model.state_dict() alone")
    return content


def load_state(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state into the model; raises UsageError listing the names and shapes that differ, changing nothing."""
    own = model.state_dict()
    # BatchNorm's batch counter came with PyTorch 0.4.1; older weights lack it and nothing computes with it here.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    shapes = [
        f"{n} is {list(state[n].shape)} instead of {list(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or unknown or shapes:
        parts = [_some("missing", missing), _some("unknown", unknown), _some("of another shape", shapes)]
        raise UsageError(f"{origin} does not fit this model: {'; '.join(part for part in parts if part)}")
    with torch.no_grad():
        for name, value in own.items():
            if name in state:
                value.copy_(state[name])


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _some(what: str, names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}" if names else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
