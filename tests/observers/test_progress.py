"""What a person sees: through a pseudo-terminal, and in plain lines."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from engine.plugins.observers import Progress

pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix facility")
termios = pytest.importorskip("termios")


@contextmanager
def terminal(columns: int = 160) -> Iterator[Callable[[], str]]:
    """Make standard error a terminal; give a function that returns what was shown since it was last asked."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):

        def shown() -> str:
            text = b""
            while select.select([ours], [], [], 0)[0]:
                text += os.read(ours, 65536)
            return text.decode()

        yield shown
    os.close(ours)


def test_plain_lines(make_run, capsys):
    run = make_run()
    run.play(Progress().build())
    out, lines = capsys.readouterr()
    assert out == ""
    lines = lines.splitlines()
    assert re.fullmatch(
        r"training net \(8 parameters\) on toy \(12 images of 1x8x8, 2 classes\), "
        r"cpu, \d+ threads?, 6 steps in 2 epochs",
        lines[0],
    )
    assert lines[1:3] == ["layer   kernel", "conv1   native"]
    speed = r"  1,23[45] images/s  0:00:0\d left"
    assert re.fullmatch(r"epoch 1/2  step 3/6  loss 0\.5  accuracy 20\.00 %  test accuracy 87\.00 %" + speed, lines[3])
    assert re.fullmatch(
        r"epoch 2/2  step 6/6  loss 0\.1667  accuracy 60\.00 %  test accuracy 84\.00 %" + speed, lines[4]
    )
    assert re.fullmatch(r"done: 6 steps, 0:00:0\d; best test accuracy 87\.00 % at step 3; run folder .*/run", lines[5])
    assert lines[6] == f"watch: tensorboard --logdir {run.out}"
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("choice", "remark", "expected"),
    [("bfloat16", "", "8 parameters) in bfloat16 on toy"), ("float16", "emulated", " in float16 (emulated) on toy")],
)
def test_numbers_other_than_float32_are_named(make_run, capsys, choice, remark, expected):
    run = make_run()
    run.choices["precision"], run.precision.remark = choice, remark
    run.play(Progress().build(), until=1, ends=None)
    assert expected in capsys.readouterr().err.splitlines()[0]


def test_lines_between_evaluations_come_after_a_while(make_run, capsys):
    run = make_run()
    run.play(Progress(every=1e-9).build(), until=2, ends=None)
    assert "epoch 1/2  step 2/6  loss 0.5  accuracy 20.00 %" in capsys.readouterr().err


def test_a_run_without_evaluations_tells_each_epoch(make_run, capsys):
    run = make_run()
    observer = Progress().build()
    run.play(observer, until=2, ends=None)
    run.position.step = 3
    observer.on_epoch_end(run=run)
    assert "epoch 1/2  step 3/6  loss 0.5" in capsys.readouterr().err


def test_a_resumed_run_says_from_where(make_run, capsys):
    run = make_run(step=3)
    run.play(Progress().build(), ends="stopped by SIGTERM")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("6 steps in 2 epochs, from step 3")
    assert lines[-2].startswith("stopped by SIGTERM: 6 steps")


def test_without_tensorboard_no_command_to_watch(make_run, capsys):
    run = make_run()
    del run.options.observe["tensorboard"]
    run.play(Progress().build())
    assert "logdir" not in capsys.readouterr().err


def test_a_loss_without_metrics_shows_its_test_value(make_run, capsys):
    run = make_run()
    run.loss.metrics = {}
    run.play(Progress().build(), until=3, ends=None)
    assert "loss 0.5  test loss 0.6667" in capsys.readouterr().err


def test_skipped_updates_are_told(make_run, capsys):
    run = make_run()
    observer = Progress(every=1e-9).build()
    run.play(observer, until=1, ends=None)
    observer.on_log(run=run, scalars={"train/loss": 1.0, "train/skipped": 0.0})
    observer.on_log(run=run, scalars={"train/loss": 1.0, "train/skipped": 2.0})
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "skipped" not in first
    assert "skipped 2" in second


def test_a_live_bar_in_a_terminal(make_run):
    run = make_run()
    observer = Progress().build()
    with terminal() as seen:
        run.play(observer, until=3, ends=None)
        shown = seen()
        run.play(observer, start=False)
        ending = seen()
    last = shown.split("\r")[-1]
    assert "training net" in shown
    assert re.search(r"epoch 1/2 +\|.*\| 3/6, [\d,]+ images/s, \d\d:\d\d left", last)
    assert "loss 0.5  accuracy 20.00 %  test accuracy 87.00 %" in last
    assert "\n" not in last  # the bar stays on its line
    assert "step 3/6" not in shown  # and replaces the plain lines
    assert re.search(r"epoch 2/2 +\|.*\| 6/6, ", ending)
    assert re.search(r"\ndone: 6 steps", ending)


def test_the_bar_of_a_resumed_run_starts_where_it_is(make_run):
    run = make_run(step=3)
    with terminal() as seen:
        run.play(Progress().build(), until=5)
        assert re.search(r"\| 3/6, ", seen())


def test_a_failure_leaves_the_terminal_on_a_new_line(make_run):
    run = make_run()
    with terminal() as seen:
        run.play(Progress().build(), until=2, ends="failed")
        assert re.search(r"\r\nfailed: 2 steps, 0:00:0\d; run folder \S+\r\n", seen())


def test_jobs_of_a_sweep_tell_plain_lines(make_run):
    run = make_run("sweep/0", sweep=True)
    with terminal() as seen:
        run.play(Progress().build())
        shown = seen()
    assert "epoch 1/2  step 3/6" in shown
    assert "|" not in shown
    assert shown.rstrip().endswith("run folder " + str(run.out))


def test_the_command_to_watch_can_be_pasted(make_run, capsys, monkeypatch):
    run = make_run("my runs/first")
    monkeypatch.chdir(run.out.parent.parent)
    run.play(Progress().build())
    assert capsys.readouterr().err.splitlines()[-1] == "watch: tensorboard --logdir 'my runs/first'"


@pytest.mark.parametrize("columns", [0, 40])
def test_the_bar_fits_a_narrow_terminal_and_one_of_unknown_width(make_run, columns):
    run = make_run()
    with terminal(columns) as seen:
        run.play(Progress().build(), until=3)
        bars = [part.rstrip() for part in re.split(r"[\r\n]", seen()) if "| 3/6" in part]
    assert bars
    assert max(len(bar) for bar in bars) <= (columns or 80)
