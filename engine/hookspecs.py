"""Every hook, as one page. The run, told as hooks:

    engine_options                        once per process, when plugins are loaded
    on_fit_start                          after a checkpoint, if any, is restored (on_load_checkpoint)
        on_stage_start                    the first step of a stage is next (of a transfer; else the only one)
        on_epoch_start                    the first step of an epoch is next
            on_batch                      for each micro-batch, on the device, augmented
            on_backward_end               gradients are complete, scaled and not yet clipped
            on_step_end                   the update was applied or masked; the position counts it
            on_log                        every run.log_every steps and at the end of epochs: the numbers
            on_evaluate_end               after an evaluation
            on_save_checkpoint            before a checkpoint is written
        on_epoch_end                      the last step of an epoch is done (and its evaluation, if due)
    on_exception                          something was raised; it is raised again afterwards
    on_fit_end                            always, last

``engine_options`` belongs to a plugin's module. The ``on_*`` hooks belong to an observer, the object that
an Observer's ``build()`` returns, so installing a package changes nothing until ``observe=[...]`` names it.
Observers are called in the order of that list. An implementation may take fewer arguments than its
specification. on_batch, on_backward_end and on_step_end are called every step through functions bound once
per fit: they must not read device values, which would make the host wait; read numbers in on_log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from engine.interfaces import Batch
    from engine.registry import Store
    from engine.run import Run

hookspec = pluggy.HookspecMarker("engine")
hookimpl = pluggy.HookimplMarker("engine")

HOT = ("on_batch", "on_backward_end", "on_step_end")


@hookspec
def engine_options(store: Store) -> None:
    """Register what the plugin supplies: ``store.add(group, name, OptionsClass)`` for each component."""


@hookspec
def on_fit_start(run: Run) -> None:
    """Training is about to begin; everything is assembled and restored, ``run.position`` says where."""


@hookspec
def on_stage_start(run: Run) -> None:
    """The next steps are of ``run.stage``, which has its own optimiser and rates; a resume is told of where it is."""


@hookspec
def on_epoch_start(run: Run, epoch: int) -> None:
    """The next step is the first that this process makes in ``epoch`` (counted from 0)."""


@hookspec
def on_batch(run: Run, batch: Batch) -> None:
    """A micro-batch is on the device; its tensors may be edited in place.

    The model then holds what its layers compute with, which a numeric policy may have rounded.
    """


@hookspec
def on_backward_end(run: Run) -> None:
    """All gradients of the step are complete, before unscaling and clipping; edit ``p.grad`` in place."""


@hookspec
def on_step_end(run: Run, loss: Tensor, applied: Tensor) -> None:
    """A step ended: this process's summed loss, and False if the step was masked, scalars still on the device."""


@hookspec
def on_log(run: Run, scalars: dict[str, float]) -> None:
    """The metrics of the steps since the last log are on the host, by TensorBoard tag ("train/loss")."""


@hookspec
def on_evaluate_end(run: Run, scalars: dict[str, float]) -> None:
    """An evaluation ended with these means over the test split, by tag ("test/accuracy")."""


@hookspec
def on_epoch_end(run: Run, epoch: int) -> None:
    """The last step of ``epoch`` is done."""


@hookspec
def on_save_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """A checkpoint is about to be written: put JSON values under your name into ``state`` to have them back."""


@hookspec
def on_load_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """A checkpoint was restored; ``state`` holds what on_save_checkpoint put there."""


@hookspec
def on_exception(run: Run, error: BaseException) -> None:
    """Training raised ``error``; it goes on to the caller after all observers were told."""


@hookspec
def on_fit_end(run: Run, outcome: str) -> None:
    """Training is over; ``outcome`` is "done", "early stop", "max_time", "stopped by SIGTERM" or "failed"."""
