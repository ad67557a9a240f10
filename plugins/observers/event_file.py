"""What TensorBoard shows: one event file per process, in the run's own folder, against the run's one step count."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from engine import Batch, hookimpl

from .hyperparameters import hyperparameters
from .pictures import grid
from .writing import writing

if TYPE_CHECKING:
    from engine import Run

FLUSH_SECONDS = 10  # how far TensorBoard may lag behind; a checkpoint flushes too, so a resume leaves no gap
TOGETHER_SECONDS = 1.0  # scalars logged within that time are written together
FINISHED = ("done", "early stop", "max_time")


class TensorBoard:
    """Writes scalars as they are logged, text and images at the start, hparams and the best evaluation at the end."""

    def __init__(self, images: int) -> None:
        self._wanted = images  # images still to be taken from a batch
        self._taken: tuple[int, Tensor] | None = None
        self._writer: SummaryWriter | None = None
        self._waiting: list[tuple[Summary, int, float]] = []  # scalars, their step and the time, not yet handed over
        self._handed_over = 0.0

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Open the event file; a resumed run's charts go on where the checkpoint was, not where it was killed."""
        with writing(run.out):
            # Each process marks where it begins, the first one too: TensorBoard takes a second mark for a restart,
            # and drops what came before it with a later step.
            self._writer = SummaryWriter(str(run.out), purge_step=run.position.step + 1, flush_secs=FLUSH_SECONDS)
        overrides = "\n".join(f"* `{override}`" for override in run.overrides) or "none"
        with self._writing(run) as writer:
            writer.add_text("run/configuration", _verbatim(run.config), run.position.step)
            writer.add_text("run/overrides", overrides, run.position.step)
            if run.tables:
                writer.add_text("run/tables", _verbatim("\n\n".join(run.tables)), run.position.step)

    @hookimpl
    def on_batch(self, run: Run, batch: Batch) -> None:
        """Copy the first batch's images, on their device: they are read when the host waits for numbers anyway."""
        if self._wanted:
            self._taken = run.position.step, batch.images[: self._wanted].detach().clone()
            self._wanted = 0

    @hookimpl
    def on_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Write the numbers of the steps since the last log, and the first batch."""
        self._write_scalars(run, scalars)
        self._write_images(run)

    @hookimpl
    def on_evaluate_end(self, run: Run, scalars: dict[str, float]) -> None:
        """Write the evaluation."""
        self._write_scalars(run, scalars)

    @hookimpl
    def on_save_checkpoint(self, run: Run) -> None:
        """Bring everything up to the checkpoint to the file, since a resume writes only what comes after it."""
        self._flush(run)

    @hookimpl
    def on_exception(self, run: Run) -> None:
        """Bring everything to the file: the last numbers before a failure are the ones that are looked for."""
        self._flush(run)

    @hookimpl
    def on_fit_end(self, run: Run, outcome: str) -> None:
        """Close the file; a finished run takes its row in the HParams tab, a failed or stopped one does not."""
        if self._writer is None:
            return
        self._write_images(run)
        if outcome in FINISHED and run.best.score is not None:
            self._write_scalars(run, {f"test/best_{run.best.name}": run.best.score})
        self._hand_over(run)
        if outcome in FINISHED:
            self._write_hparams(run)
        with self._writing(run) as writer:
            writer.close()
        self._writer = None

    def _write_scalars(self, run: Run, scalars: Mapping[str, float]) -> None:
        # One event for all of them: add_scalar would make one each, ten times as slow. Logs that follow each other fast
        # share a call of the writer, whose thread takes Python's lock from the training each time that it wakes.
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        now = time.time()
        self._waiting.append((summary, run.position.step, now))
        if now - self._handed_over >= TOGETHER_SECONDS:
            self._hand_over(run)

    def _hand_over(self, run: Run) -> None:
        with self._writing(run) as writer:
            for summary, step, moment in self._waiting:
                writer.file_writer.add_summary(summary, step, moment)  # type: ignore[attr-defined]
        self._waiting.clear()
        self._handed_over = time.time()

    def _write_hparams(self, run: Run) -> None:
        # The first of the three summaries, the list of columns, is left out: TensorBoard would take that of an
        # arbitrary run for all of them and hide what other runs of a sweep have. Without any it unites what the runs
        # have, marks what differs, and takes the scalars' last values as the metrics.
        _, start, end = hparams(hyperparameters(run.options, run.choices), {})
        self._add(run, [start, end])

    def _write_images(self, run: Run) -> None:
        if self._taken:
            step, images = self._taken
            self._taken = None
            with self._writing(run) as writer:
                writer.add_image("train/first_batch", grid(images.cpu()), step)

    def _add(self, run: Run, summaries: Sequence[Summary]) -> None:
        with self._writing(run) as writer:
            for summary in summaries:
                writer.file_writer.add_summary(summary, run.position.step)  # type: ignore[attr-defined]

    def _flush(self, run: Run) -> None:
        if self._writer is not None:
            self._hand_over(run)
            with self._writing(run) as writer:
                writer.flush()

    @contextmanager
    def _writing(self, run: Run) -> Iterator[SummaryWriter]:
        writer = self._writer
        assert writer is not None, "on_fit_start comes first"
        self._writer = None  # a file that cannot be written is complained about once, not again by every later hook
        with writing(run.out):
            yield writer
        self._writer = writer


def _verbatim(text: str) -> str:
    """Return Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
