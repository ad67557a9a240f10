"""From options to a run: the order in which components meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from engine import manifest
from engine.batch_norm import build_statistics
from engine.budget.fitting import fit
from engine.building import (
    anatomy_of,
    build_augmentations,
    build_chooser,
    build_loader,
    build_model,
    open_splits,
    reading_of,
    require_targets,
)
from engine.checkpoint import Checkpoints
from engine.cuda_graph import require_recordable
from engine.devices import prepare_device
from engine.distributed.agreement import require_agreement
from engine.folder import claim, record
from engine.interfaces import Transfer
from engine.loader import TestLoader
from engine.marginalization import build_views
from engine.metrics import Best
from engine.pixels import pixels_of
from engine.randomness import Key
from engine.registry import observers
from engine.run import Run
from engine.session import Session
from engine.stages import enter_stage, stages_of
from engine.start import agreed_start, first_weights, started_again, starting_point, within
from engine.state import restore


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
    begin(run, start, resuming=again or options.resume == "auto")
    return run


def begin(run: Run, start: Path | None, resuming: bool) -> None:
    """Assemble the run's first stage, or that of the checkpoint ``start``, and claim the run folder.

    resuming: whether there may be a run in it, even if ``start`` is none of its checkpoints.
    """
    if run.options.run.cuda_graph:
        require_recordable(run)  # before kernels are measured
    if start is None:
        enter_stage(run)
    if run.strategy.leads:
        run.lock = claim(run.out, resuming or (start is not None and within(start, run.out)))
    if start is not None:
        restore(run, start)
    if run.strategy.leads:
        record(run.out, run.config)
