"""From options to a run: the order in which components meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from engine import huge_pages, kept_memory, manifest
from engine.batch_norm import build_statistics
from engine.budget.fitting import fit
from engine.checkpoint import Checkpoints
from engine.compiling import compile_in_place
from engine.cuda_graph import GraphedStep, require_recordable, require_recordable_optimizer
from engine.devices import prepare_device
from engine.distributed.agreement import require_agreement
from engine.ema import WeightAverage
from engine.errors import UsageError
from engine.folder import claim, record
from engine.freezing import freeze, still_layers
from engine.groups import parameter_groups, scaled_by_factors
from engine.guard import Guard
from engine.host_to_device import Layout
from engine.interfaces import (
    Anatomy,
    Augmentation,
    Batch,
    KernelChooser,
    LossFunction,
    Precision,
    Source,
    Stage,
    Strategy,
    Transfer,
)
from engine.loader import Loader, TestLoader
from engine.marginalization import build_views
from engine.masking import maskable
from engine.metrics import Best, Metrics
from engine.options import Options
from engine.order import Shuffle
from engine.parts import Parts
from engine.pixels import pixels_of
from engine.randomness import Key, seed_torch
from engine.rates import Rates
from engine.registry import Registry, observers
from engine.run import Run
from engine.session import Session
from engine.start import agreed_start, first_weights, started_again, starting_point, within
from engine.state import restore
from engine.tables import kernel_table
from engine.workers import Workers


def assemble(session: Session, tell: Callable[[str], None] = print) -> Run:
    """Return the run that ``session`` describes, restored if it resumes; its folder is claimed.

    ``tell`` hears what a user should know (a damaged checkpoint passed over). Raises UsageError, with nothing
    overwritten, for options, data or a checkpoint that do not fit together.
    """
    options, out = session.options, session.out
    precision, strategy, loss = options.precision.build(), options.parallel.build(), options.loss.build()
    again = started_again(out, session.overrides)
    resume = "auto" if again and manifest.checkpoints(out) else options.resume
    start = agreed_start(strategy, lambda: starting_point(resume, out, tell))
    device = prepare_device(options)
    key = Key.of(options.run.seed)
    train, test = open_splits(options)
    augmentations = build_augmentations(options, lambda: train)
    require_targets(train, loss)
    fitted = fit(options, train, augmentations, loss, device, strategy)
    options = fitted.of(options)
    reading = reading_of(options, device, precision, strategy)
    loader = build_loader(options, train, augmentations, key, reading, strategy.equal_shares)
    model = fitted.put_into(build_model(options, train, loader.example(), loss, key))
    tests = TestLoader(test, augmentations, **reading, reopen=partial(options.data.build, "test"))
    views = build_views(options, model, tests, loss, device)
    statistics = build_statistics(options, model, precision, strategy, lambda: loader)
    transfer, anatomy = options.transfer.build(), anatomy_of(options, train, loader.example(), loss)
    pixels = pixels_of(train, augmentations)
    resumed = start
    if strategy.follows and type(transfer).start is not Transfer.start:  # then it has to find out by itself
        resumed = starting_point(resume, out, lambda text: None)
    for line in first_weights(transfer, model, anatomy, pixels, resumed):
        if strategy.leads:
            tell(line)
    require_agreement(options, train, test, model)
    steps = options.run.steps or options.run.epochs * loader.steps_per_epoch
    stages = stages_of(transfer, steps)
    watched, higher_is_better = next(iter(loss.metrics.items()), ("loss", False))
    run = Run(
        options=options,
        loader=loader,
        test=tests,
        views=views,
        statistics=statistics,
        loss=loss,
        precision=precision,
        strategy=strategy,
        model=model.to(device),
        device=device,
        hooks=observers({name: choice.build() for name, choice in options.observe.items() if strategy.leads}),
        checkpoints=Checkpoints(out, options.save.keep, options.save.best, higher_is_better, options.save.background),
        best=Best(watched, higher_is_better),
        key=key,
        kernels=build_chooser(options, session.registry),
        anatomy=anatomy,
        transfer=transfer,
        pixels=pixels,
        stages=stages,
        memory=fitted.text,
        enter_stage=enter_stage,
        out=out,
        config=session.config,
        overrides=session.overrides,
        choices=session.choices,
        sweep=session.sweep,
    )
    if options.run.cuda_graph:
        require_recordable(run)  # before kernels are measured
    if start is None:
        enter_stage(run)
    if strategy.leads:
        resuming = again or options.resume == "auto" or (start is not None and within(start, out))
        run.lock = claim(out, resuming)
    if start is not None:
        restore(run, start)
    if strategy.leads:
        record(out, session.config)
    return run


def open_split(options: Options, split: str) -> Source:
    """Return the "train" or "test" source; raises UsageError if it is empty."""
    source = options.data.build(split)
    if len(source) == 0:
        raise UsageError(f"data: the {split} set is empty")
    return source


def open_splits(options: Options) -> tuple[Source, Source]:
    """Return the training and the test source; raises UsageError if their classes or image shapes differ."""
    train, test = open_split(options, "train"), open_split(options, "test")
    if list(train.classes) != list(test.classes):
        lone = sorted(set(train.classes) ^ set(test.classes))
        raise UsageError(
            f"data: the training set has {len(train.classes)} classes, the test set {len(test.classes)}; "
            + (f"only one of them has {', '.join(lone[:5])}" if lone else "they are in another order")
        )
    if tuple(train.shape) != tuple(test.shape):
        raise UsageError(
            f"data: training images are {tuple(train.shape)} (channels, height, width), test images "
            f"{tuple(test.shape)}; they must be alike"
        )
    return train, test


def require_targets(source: Source, loss: LossFunction) -> None:
    """Raise UsageError if the loss is for classes and the data has none, or the other way round."""
    if loss.regression and source.classes:
        raise UsageError(
            f"loss: it takes rows of numbers, but the data has {len(source.classes)} classes: choose another"
        )
    if not loss.regression and not source.classes:
        raise UsageError("loss: it takes classes, but the data has none: choose loss=mse loss.targets=values")


def build_augmentations(options: Options, training: Callable[[], Source]) -> dict[str, Augmentation]:
    """Return the augmentations in their order, each having learnt what it needs from the training source."""
    augmentations = {name: choice.build() for name, choice in options.augment.items()}
    for augmentation in augmentations.values():
        augmentation.prepare(training)
    return augmentations


def reading_of(options: Options, device: torch.device, precision: Precision, strategy: Strategy) -> dict[str, Any]:
    """Return how the loaders of a run read: what both take, worker processes that they share among it.

    Raises UsageError for options that do not go together.
    """
    data = options.data
    if data.augment_on != "host" and data.workers == "processes":
        raise UsageError(f"data.workers=processes augments on the host: choose threads, or not {data.augment_on}")
    if data.augment_on == "resident" and data.shuffle == "blocks":
        raise UsageError("data.augment_on=resident keeps all images in memory: choose data.shuffle=full")
    return {
        "batch": options.run.batch, "threads": data.threads, "prefetch": data.prefetch,
        "layout": Layout(device, precision.dtype, options.run.channels_last, data.augment_on),
        "rank": strategy.rank, "world": strategy.world,
        "workers": Workers(data.threads) if data.workers == "processes" else None,
    }  # fmt: skip


def build_loader(
    options: Options,
    source: Source,
    augmentations: Mapping[str, Augmentation],
    key: Key,
    reading: Mapping[str, Any],
    equal: bool = False,
) -> Loader:
    """Return what reads the training source; ``equal``: every process as many samples of a micro-batch."""
    data = options.data
    shuffle, reopen = Shuffle(data.shuffle, data.block, data.blocks_mixed), partial(data.build, "train")
    accumulate = options.run.accumulate
    return Loader(
        source, augmentations, key, accumulate=accumulate, shuffle=shuffle, reopen=reopen, equal=equal, **reading
    )


def build_model(options: Options, source: Source, example: Batch, loss: LossFunction, key: Key) -> nn.Module:
    """Return the model, initialised from the key's own draws, after trying it on two samples.

    Raises UsageError if it cannot take the images or does not return what the loss needs.
    """
    images = example.images[:2].to("cpu", torch.float32)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    outputs = count_outputs(source, example, loss)
    seed_torch(key.at("init"), torch.device("cpu"))
    try:
        model = options.model.build(shape, outputs).eval()
        with torch.no_grad():
            given = model(images)
    except (RuntimeError, ValueError) as error:  # what torch raises for sizes that do not fit
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(f"model cannot take images of shape {shape}: {reason}") from error
    heads = list(given) if isinstance(given, list | tuple) else [given]
    if not heads or not all(isinstance(head, torch.Tensor) for head in heads):
        kinds = ", ".join(type(head).__name__ for head in heads) or "nothing"
        raise UsageError(f"model returns {kinds}; the loss needs a tensor, or several with the main one first")
    if heads[0].shape != (len(images), outputs):
        raise UsageError(
            f"model returns {list(heads[0].shape)} for {len(images)} images of {len(source.classes)} classes; "
            f"the loss needs {[len(images), outputs]}"
        )
    return model.train()


def build_chooser(options: Options, registry: Registry) -> KernelChooser:
    """Return what puts kernels into the model; it knows every installed choice of ``kernels`` by name."""
    installed: dict[str, Any] = {name: registry.entry("kernels", name).options for name in registry.names("kernels")}
    return options.kernels.build(installed)


def count_outputs(source: Source, example: Batch, loss: LossFunction) -> int:
    """Return how many outputs the model needs; raises UsageError for a source with neither classes nor float rows."""
    if source.classes:
        return loss.outputs(len(source.classes))
    if example.targets.ndim != 2:
        raise UsageError(
            f"data: a source without classes needs targets [n, outputs] to regress, not {list(example.targets.shape)}"
        )
    return example.targets.shape[1]


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


def anatomy_of(options: Options, source: Source, example: Batch, loss: LossFunction) -> Anatomy:
    """Return what the composed network is made of, for a transfer that asks."""
    _, channels, height, width = example.images.shape
    shape = (channels, height, width)
    return Anatomy(lambda outputs: options.model.build(shape, outputs), count_outputs(source, example, loss), shape)


def stages_of(transfer: Transfer, steps: int) -> Sequence[Stage]:
    """Return the stages of a run of so many steps. Raises UsageError if a stage would have none."""
    stages = transfer.stages(steps)
    if empty := [stage.name for stage in stages if stage.steps < 1]:
        raise UsageError(
            f"transfer: no steps are left for {', '.join(empty)} of {steps}: raise run.epochs or run.steps"
        )
    return stages
