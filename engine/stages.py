"""From one stage of a run to the next: what trains, in which numbers, by which kernels and optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine import huge_pages, kept_memory
from engine.compiling import compile_in_place
from engine.cuda_graph import GraphedStep, require_recordable_optimizer
from engine.ema import WeightAverage
from engine.errors import UsageError
from engine.freezing import freeze, still_layers
from engine.groups import parameter_groups, scaled_by_factors
from engine.guard import Guard
from engine.interfaces import (
    Stage,
    Transfer,
)
from engine.masking import maskable
from engine.metrics import Metrics
from engine.parts import Parts
from engine.rates import Rates
from engine.tables import kernel_table


def stages_of(transfer: Transfer, steps: int) -> Sequence[Stage]:
    """Return the stages of a run of so many steps. Raises UsageError if a stage would have none."""
    stages = transfer.stages(steps)
    if empty := [stage.name for stage in stages if stage.steps < 1]:
        raise UsageError(
            f"transfer: no steps are left for {', '.join(empty)} of {steps}: raise run.epochs or run.steps"
        )
    return stages


def enter_stage(run: Parts) -> None:
    """Assemble the stage that ``run.position`` is in: what trains, in which numbers, by which kernels and optimiser."""
    options, stage = run.options, run.stages[run.position.stage]
    run.graphed = None  # the memory of the stage before is free before kernels are measured
    vars(run).pop("optimizer", None)
    factors = freeze(run.model, run.transfer.factors(run.model, run.anatomy, stage))
    _, channels, height, width = run.loader.example().images.shape
    run.strategy.example, run.strategy.precision = (run.loader.share, channels, height, width), run.precision
    run.model = run.strategy.shard(run.precision.convert(run.model))
    if options.run.channels_last:
        run.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with run.precision.forward():  # kernels are planned for the types that layers really compute in
        rows = run.kernels.apply(run.model, run.strategy.example, share=run.strategy.share)
    run.still = still_layers(run.model, run.anatomy, factors)
    groups = parameter_groups(run.model, factors)
    run.parameters = [parameter for group in groups for parameter in group["params"]]
    run.optimizer = scaled_by_factors(options.optim.build(groups))
    require_training(run)
    run.precision.sum_over_processes, run.precision.leads = run.strategy.sum, run.strategy.leads
    run.precision.prepare(run.model, run.optimizer, run.key.at("precision"))
    if options.run.cuda_graph:
        require_recordable_optimizer(run.optimizer)
        run.graphed = GraphedStep(run.device)
    run.rates = Rates(run.optimizer, options.schedule.build(stage.steps), stage.steps, run.device)
    scaled = run.precision.scale() is not None
    run.guard = Guard(run.model, options.run.nonfinite, run.device, scaled)
    run.metrics = Metrics("train", list(run.loss.metrics), run.device, run.strategy, masked=run.guard.masks)
    before = run.average  # what the stage before ended with: it is evaluated, and saved as that of this stage
    run.average = WeightAverage(run.model, options.run.ema) if options.run.ema else None
    if run.average and before:
        run.average.load(before.state())
    remarks = (run.strategy.describe(), run.memory, kernel_table(rows), huge_pages.remark(), kept_memory.remark())
    run.tables = [text for text in remarks if text]
    if not maskable(run.optimizer):
        run.tables.append(
            f"optim: {type(run.optimizer).__name__} cannot be masked on the device, so every step waits for a flag"
        )
    run.shortcut = run.transfer.shortcut(run, stage)
    run.network = run.strategy.wrap(run.shortcut.network if run.shortcut else run.model)
    run.strategy.length = run.steps
    run.strategy.prepare(run.optimizer, run.key.at("parallel"))
    if options.run.compile:
        compile_in_place(run.network)


def require_training(run: Parts) -> None:
    """Raise UsageError for a run that ends before its numeric policy has found what it looks for first."""
    calibration = run.precision.calibration
    if calibration >= run.steps:
        raise UsageError(
            f"precision.calibration={calibration}: the run has {run.steps} steps, and trains in earnest only then: "
            "raise run.epochs or run.steps, or lower precision.calibration"
        )
