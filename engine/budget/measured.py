"""What a training step really takes: one is made in a process of its own, and the process's memory looked at."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.budget.foresight import Task, enter_largest_stage
from engine.ema import WeightAverage
from engine.errors import RunFailed, UsageError
from engine.groups import parameter_groups
from engine.interfaces import LossFunction, Precision
from engine.masking import masked_step
from engine.precision import widened

# Every block of some size has pages of its own, of 4 KiB, which go back to the system when it is freed: then the pages
# in use are those of tensors that exist, and no allocator's reserves.
ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from engine.budget.measured import main
main()
"""
NO_HUGE_PAGES = 41  # prctl's PR_SET_THP_DISABLE
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 2  # in the first one, the optimiser's state may come to be, and libraries prepare


def measured(task: Task, batch: int, accumulate: int = 1) -> int:
    """Return the bytes that a step of so many micro-batches adds to a fresh process, at most.

    On a CPU they are those of its pages in memory, from before the model is made to the second step's most; what torch
    needs for itself is not in them, as a small network has computed before. On a GPU, those that torch has allocated
    for tensors. Raises RunFailed if the process does not answer, for lack of memory for instance.
    """
    if task.device.type == "cpu" and not FORGET.exists():
        raise UsageError("measure=true: this system does not tell how much memory a process takes (/proc, on Linux)")
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],
        input=pickle.dumps((task, batch, accumulate)),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    if answer.returncode:
        said = answer.stderr.decode(errors="replace").strip().splitlines()
        raise RunFailed(
            f"measure=true: the process that makes a step ended with {answer.returncode}: {said[-1] if said else ''}"
        )
    return int(answer.stdout.splitlines()[-1])


def main() -> None:
    """Measure what standard input asks for, and print the bytes."""
    task, batch, accumulate = pickle.load(sys.stdin.buffer)
    if task.device.type == "cpu":
        ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    print(_most(task, batch, accumulate))


def _most(task: Task, batch: int, accumulate: int) -> int:
    # First a small network, with which torch loads and prepares what it computes with.
    small = nn.Sequential(nn.Conv2d(task.image[0], 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    small.extend([nn.Flatten(), nn.Linear(128, task.outputs)])
    _steps(task, small.train(), 2, accumulate)
    del small
    anatomy = task.anatomy()
    with torch.device("meta"):  # the anatomy is found when it is first asked for, and is not of the step
        enter_largest_stage(task.options.model.build(task.image, task.outputs), anatomy, task.options)
    gc.collect()
    before = _now(task.device)
    model = task.options.model.build(task.image, task.outputs)
    enter_largest_stage(model, anatomy, task.options)
    _steps(task, model, batch, accumulate)
    return _peak(task.device) - before


def _steps(task: Task, model: nn.Module, batch: int, accumulate: int) -> None:
    options, precision, loss = task.options, task.options.precision.build(), task.options.loss.build()
    model = precision.convert(model.to(task.device))
    layout = torch.channels_last if options.run.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = options.optim.build(parameter_groups(model))
    average = WeightAverage(model, options.run.ema) if options.run.ema is not None else None
    applied = torch.ones((), dtype=torch.bool, device=task.device)
    shape = (batch, *task.image)
    batches = [torch.rand(shape, device=task.device, dtype=precision.dtype) for _ in range(accumulate)]
    batches = [images.contiguous(memory_format=layout) for images in batches]
    for step in range(STEPS):
        if step == STEPS - 1:
            _forget(task.device)
        for images in batches:
            _pass(model, images, _targets(task, loss, batch), precision, loss)
        masked_step(optimizer, torch.zeros((), device=task.device))
        for parameter in model.parameters():
            parameter.grad = None
        if average:
            average.update(applied, torch.full((1,), step + 1, device=task.device))


def _pass(model: nn.Module, images: Tensor, targets: Tensor, precision: Precision, loss: LossFunction) -> None:
    with precision.forward():
        made = widened(model(images))
    loss(made, targets).backward()


def _targets(task: Task, loss: LossFunction, count: int) -> Tensor:
    if loss.regression:
        return torch.zeros(count, task.outputs, device=task.device)
    return torch.zeros(count, dtype=torch.int64, device=task.device)


def _now(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        FORGET.write_text("5")  # the most so far is then what there is now


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None, "Linux tells it"
    return int(found[1]) << 10
