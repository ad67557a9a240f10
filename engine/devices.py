"""The device of a run."""

from __future__ import annotations

import os

import torch

from engine.distributed.place import place_of
from engine.errors import UsageError
from engine.options import Options


def prepare_device(options: Options) -> torch.device:
    """Return the device of ``run.device``, from now on the current GPU if it is one; UsageError if there is none such.

    Torch's deterministic mode is set as well.
    """
    torch.use_deterministic_algorithms(options.run.deterministic)
    if options.run.deterministic:
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it in this mode
    wanted = options.run.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and (place := place_of(os.environ)).local_world > 1:  # each process has a GPU of its own
        wanted = f"cuda:{place.local_rank}"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"run.device={wanted}: write auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and torch.version.cuda is None:
        raise UsageError(f"run.device={wanted}: this torch was built without CUDA; install one with it, or use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        shared = f"{local} processes need a GPU each, and " if (local := place_of(os.environ).local_world) > 1 else ""
        raise UsageError(
            f"run.device={wanted}: {shared}this machine has {torch.cuda.device_count()} GPUs; "
            f"{'start as many, or ' if shared else ''}use run.device=cpu"
        )
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # what is told "cuda" and not which (a ConvSpec, a generator) then means this one
    return device
