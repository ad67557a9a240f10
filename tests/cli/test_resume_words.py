"""A checkpoint's overrides are put under the ones just typed, without torch."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from engine.cli.resume import merged
from engine.errors import EXIT_USAGE, UsageError

SAVED = ["model=lenet", "optim.lr=0.3", "augment=[flip,blend]", "augment.blend.alpha=0.7"]


@pytest.mark.parametrize(
    ("saved", "given", "expected"),
    [
        (["run.epochs=3", "optim.lr=1"], ["optim.lr=2"], ["run.epochs=3", "optim.lr=2"]),
        (["+optim.rates.x=1"], ["+optim.rates.x=2"], ["+optim.rates.x=2"]),
        # What decides the length replaces what decided it before.
        (["run.steps=9", "run.seed=1"], ["run.epochs=2"], ["run.seed=1", "run.epochs=2"]),
        (["run.epochs=9"], ["run.steps=2"], ["run.steps=2"]),
        (["run.epochs=3", "run.steps=9"], ["run.seed=1"], ["run.epochs=3", "run.steps=9", "run.seed=1"]),
        # The options of a component go with it,
        (["model=cnn", "model.width=8"], ["model=lenet"], ["model=lenet"]),
        (["model.width=8"], ["model=lenet"], ["model=lenet"]),
        # unless it stays.
        (["model=cnn", "model.width=8"], ["model=cnn"], ["model.width=8", "model=cnn"]),
        (["augment=[flip,blend]", "augment.blend.alpha=1"], ["augment=[flip]"], ["augment=[flip]"]),
        (
            ["augment=[flip,blend]", "augment.blend.alpha=1"],
            ["augment=[blend]"],
            ["augment.blend.alpha=1", "augment=[blend]"],
        ),
    ],
)
def test_merged(saved, given, expected):
    assert merged(saved, given) == expected


@pytest.mark.parametrize("path", ["runs/a", "runs/a/checkpoints/step-00000010"])
def test_resume_composes_the_run_again(engine, checkpoint, tmp_path, path):
    folder = checkpoint(tmp_path / "runs/a", SAVED)
    done = engine("gauge", f"resume={path}", "optim.lr=0.5", "level=3")
    assert done.code == 0, done.err
    session = done.session
    assert (session.choices["model"], session.options.optim.lr, session.options.job.level) == ("lenet", 0.5, 3)
    assert session.options.augment["blend"].alpha == 0.7
    assert session.out == tmp_path / "runs/a"
    assert (tmp_path / session.options.resume).samefile(folder)
    assert sorted(session.overrides) == sorted([*(w for w in SAVED if "lr" not in w), "optim.lr=0.5"])


def test_resume_elsewhere(engine, checkpoint, tmp_path):
    checkpoint(tmp_path / "a run, =odd 'name'", SAVED)
    session = engine("gauge", "resume=\"a run, =odd 'name'\"", "out=b").session
    assert session.out == tmp_path / "b"
    assert session.choices["model"] == "lenet"
    assert engine("gauge", "resume=\"a run, =odd 'name'\"").session.out == tmp_path / "a run, =odd 'name'"


def test_the_saved_choice_decides_which_options_there_are(engine, checkpoint, tmp_path):
    checkpoint(tmp_path / "a", ["optim=adamw"])
    assert engine("gauge", "resume=a", "optim.beta1=0.5").session.options.optim.beta1 == 0.5
    assert "an option of optim=sgd" in engine("gauge", "resume=a", "optim.momentum=0.5").err


def test_a_damaged_checkpoint_is_passed_over(engine, checkpoint, tmp_path):
    older = checkpoint(tmp_path / "a", SAVED, step=10)
    newer = checkpoint(tmp_path / "a", SAVED, step=20)
    (newer / "model.safetensors").write_bytes(b"weight")
    done = engine("gauge", "resume=a")
    assert done.session.options.resume == str(older.relative_to(tmp_path))
    assert "step-00000020" in done.err
    assert "truncated" in done.err


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_nothing_to_resume(engine, tmp_path, sessions, path):
    (tmp_path / "empty").mkdir()
    done = engine("gauge", f"resume={path}")
    assert done.code == EXIT_USAGE
    assert path in done.err
    assert sessions == []


def test_auto_with_a_folder(engine, checkpoint, tmp_path):
    done = engine("gauge", "resume=auto", "out=a", "run.epochs=3")
    assert done.session.options.resume == "auto"
    assert done.session.out == tmp_path / "a"
    assert done.err == "engine: resume=auto: no valid checkpoint in a; starting afresh\n"
    folder = checkpoint(tmp_path / "a", ["run.epochs=3"])
    done = engine("gauge", "resume=auto", "out=a")
    assert done.session.options.run.epochs == 3
    assert (tmp_path / done.session.options.resume).samefile(folder)
    assert done.err == "engine: resuming from a/checkpoints/step-00000010\n"


def test_auto_finds_the_newest_run_with_the_same_overrides(engine, checkpoint, tmp_path):
    runs = tmp_path / "runs" / "2026-01-01"
    older = checkpoint(runs / "10-00-00", ["run.epochs=3", "optim.lr=1"])
    wanted = checkpoint(runs / "11-00-00" / "4", ["run.epochs=3", "optim.lr=1"])
    other = checkpoint(runs / "12-00-00", ["run.epochs=4"])
    for age, folder in ((300, older), (200, wanted), (100, other)):
        os.utime(folder, (1e9 - age, 1e9 - age))
    done = engine("gauge", "resume=auto", "optim.lr=1", "run.epochs=3", "level=2")
    assert done.session.out == runs / "11-00-00" / "4"
    assert (tmp_path / done.session.options.resume).samefile(wanted)
    done = engine("gauge", "resume=auto", "optim.lr=2")
    assert done.session.options.resume == "auto"
    assert "no valid checkpoint in runs/ with these overrides; starting afresh" in done.err


def test_evaluation_composes_the_checkpoints_run(engine, checkpoint, tmp_path):
    checkpoint(tmp_path / "a", SAVED)
    session = engine("glance", "checkpoint=a", "run.batch=7").session
    assert (session.choices["model"], session.options.run.batch) == ("lenet", 7)
    assert (session.options.job.checkpoint, session.options.out, session.options.resume) == ("a", "", "none")


def test_evaluation_of_foreign_weights(engine, tmp_path):
    (tmp_path / "net.pt").write_bytes(b"")
    session = engine("glance", "checkpoint=net.pt").session
    assert (session.choices["model"], session.overrides) == ("cnn", [])


def test_evaluations_swept_over_checkpoints(engine, checkpoint, sessions, tmp_path):
    checkpoint(tmp_path / "a", SAVED)
    checkpoint(tmp_path / "b", SAVED)
    checkpoint(tmp_path / "c", ["model=cnn"])
    assert engine("glance", "-m", "checkpoint=a,b").code == 0
    assert [(s.options.job.checkpoint, s.choices["model"]) for s in sessions] == [("a", "lenet"), ("b", "lenet")]
    done = engine("glance", "-m", "checkpoint=a,c")
    assert done.code == EXIT_USAGE
    assert "one configuration" in done.err


def test_a_length_that_implies_no_steps_finds_its_run_again(engine, checkpoint, tmp_path):
    words = ["experiment=cifar_resnet20", "data.root=/x", "run.epochs=3"]
    first = engine("gauge", *words, "out=runs/day/one").session
    assert (first.options.run.epochs, first.options.run.steps, list(first.overrides)) == (3, None, words)
    folder = checkpoint(tmp_path / "runs/day/one", first.overrides)
    for command in ([*words, "resume=auto"], ["resume=runs/day/one"], ["resume=runs/day/one", "run.epochs=4"]):
        session = engine("gauge", *command).session
        assert (tmp_path / session.options.resume).samefile(folder)
        assert session.options.run.steps is None
    longer = engine("gauge", "resume=runs/day/one", "run.steps=70").session
    assert longer.options.run.steps == 70


@pytest.fixture
def used(tmp_path):
    """A run folder that process 4321 uses."""
    folder = tmp_path / "a"
    folder.mkdir()
    with (folder / "run.lock").open("w") as lock:
        lock.write("4321")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.mark.parametrize("words", [["resume=auto", "out=a"], ["resume=a"], ["resume=a/checkpoints/step-00000010"]])
def test_a_folder_in_use_is_not_looked_into(engine, checkpoint, used, sessions, monkeypatch, words):
    folder = checkpoint(used, ["run.epochs=3"])
    (folder / "model.safetensors").unlink()  # as if its owner were removing it
    done = engine("gauge", *words)
    assert done.code == EXIT_USAGE
    assert "in use by process 4321: wait for it" in done.err
    assert done.err.count("\n") == 1
    assert sessions == []


def test_a_folder_in_use_may_be_explained_and_branched_from(engine, checkpoint, used, tmp_path):
    checkpoint(used, ["run.epochs=3"])
    done = engine("explain", "resume=a")
    assert done.code == 0, done.err
    assert ["run.epochs", "3", "override"] in [line.split() for line in done.out.splitlines()]
    assert engine("gauge", "resume=a", "out=b").session.out == tmp_path / "b"


def test_a_lock_left_behind_is_nobodys(engine, checkpoint, tmp_path):
    checkpoint(tmp_path / "a", ["run.epochs=3"])
    (tmp_path / "a" / "run.lock").write_text("4321")
    assert engine("gauge", "resume=a").code == 0


def test_a_restored_relative_path_is_pointed_at(engine, checkpoint, registry, monkeypatch, tmp_path):
    checkpoint(tmp_path / "a", ["data=needy", "data.root=records"])

    def fails(session):
        raise UsageError("data.root=records: there is no such folder")

    monkeypatch.setattr(registry.entry("job", "gauge").options, "build", lambda self: fails)
    hint = "(data.root=records is restored, relative to the folder that run was started in: add data.root=...)"
    assert engine("gauge", "resume=a").err.endswith(f"there is no such folder {hint}\n")
    assert hint not in engine("gauge", "resume=a", "data.root=records").err
    Path("records").mkdir()
    assert hint not in engine("gauge", "resume=a").err
