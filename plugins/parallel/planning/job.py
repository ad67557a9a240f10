"""``engine plan``: what each strategy would send and how long a step would take, on machines that need not exist."""

from __future__ import annotations

import json
import os
import sys
import time
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from engine import Session, UsageError
from engine.composed import composed_model, explained
from engine.folder import write_whole

from .costs import Setting, link_of
from .layers import PlannedLayer, layers_of, statistics_of
from .machine import FLOPS_PER_BYTE, Machine
from .measure import measure_machine
from .prediction import Case, chosen, predictions
from .report import as_json, report

MOST_BUSY = 0.3  # of the cores: with more, measured seconds are of no use

if TYPE_CHECKING:
    from torch import nn

    from .. import Plan


def plan(session: Session) -> None:
    """Print the table of strategies for the composed model, the best choice layer by layer, and where rules flip."""
    job: Plan = session.options.job  # type: ignore[assignment]
    _check(job)
    link = link_of(job.link, job.latency)
    began = time.perf_counter()
    model, (batch, *images), precision = composed_model(session, job.inputs, job.classes)
    share = job.share or ceil(batch / job.world)
    busy = "" if job.flops else busy_with(os.getloadavg()[0], os.cpu_count() or 1)  # with what others do: look before
    with explained(images), precision.forward():
        layers = layers_of(model, images)
        machine = _machine(job, model, layers, images, share)
    case = Case(layers, statistics_of(model), Setting(job.world, share), machine, link)
    made = predictions(case)
    pick = chosen(made)
    print(f"{job.world} processes, {share} samples each: a batch of {case.setting.batch}; link {job.link}")
    print(f"machine: {machine.flops / 1e9:.4g} GFLOP/s, {machine.bandwidth / 1e9:.4g} GB/s, {_origin(job)}")
    print(busy + "\n" if busy else "")
    print(report(case, made, pick))
    print(f"planned in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    if job.json:
        _write(job.json, json.dumps(as_json(case, made, pick), indent=1) + "\n")


def busy_with(load: float, cores: int) -> str:
    """Return a line on a machine whose cores have other work, of which so many wait for one on average; else ""."""
    if load <= MOST_BUSY * cores:
        return ""
    return (
        f"this machine is busy (load average {load:.1f}, {cores} cores), so all seconds are wrong; bytes are not: plan "
        "again when it is idle, or give flops= and bandwidth="
    )


def _check(job: Plan) -> None:
    if job.inputs and (len(job.inputs) != 3 or min(job.inputs) < 1):
        given = ",".join(map(str, job.inputs))
        raise UsageError(f"inputs=[{given}]: give channels, height and width of the images, as in inputs=[3,224,224]")
    if job.bandwidth and not job.flops:
        raise UsageError("bandwidth= is of a machine on paper: give its flops= too, or neither, to measure this one")
    if job.json and (Path(job.json).is_dir() or not os.access(Path(job.json).absolute().parent, os.W_OK)):
        raise UsageError(f"json={job.json} cannot be written: name a file in an existing folder")


def _machine(job: Plan, model: nn.Module, layers: list[PlannedLayer], images: list[int], share: int) -> Machine:
    if job.flops:
        return Machine(job.flops, 1e9 * job.bandwidth or job.flops / FLOPS_PER_BYTE)
    return measure_machine(model, layers, images, share)


def _origin(job: Plan) -> str:
    return "as given" if job.flops else "measured here, with every layer of the model"


def _write(path: str, text: str) -> None:
    try:
        write_whole(Path(path), text)
    except OSError as error:
        raise UsageError(f"json={path} cannot be written: {error.strerror}") from error
