"""Sweeps: every combination is a run of its own, failures are told and do not hide the others, a stop ends all."""

from __future__ import annotations

import fcntl

import pytest

from engine.errors import EXIT_CRASHED, EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE


def test_every_combination(engine, sessions, tmp_path):
    done = engine("gauge", "-m", "model=cnn,lenet", "optim.lr=0.1,0.2", "out=sweep")
    assert done.code == 0, done.err
    found = [(s.choices["model"], s.options.optim.lr, s.out.relative_to(tmp_path).as_posix()) for s in sessions]
    assert found == [
        ("cnn", 0.1, "sweep/0"), ("cnn", 0.2, "sweep/1"), ("lenet", 0.1, "sweep/2"), ("lenet", 0.2, "sweep/3"),
    ]  # fmt: skip
    assert all(session.sweep and session.out.is_dir() for session in sessions)
    assert sessions[2].overrides == ["model=lenet", "optim.lr=0.1"]
    assert "job 2: model=lenet optim.lr=0.1\n" in done.out
    assert done.out.endswith("compare the runs: tensorboard --logdir sweep\n")


def test_lists_and_foreign_plugins(engine, sessions):
    assert engine("gauge", "augment=[flip],[flip,blend],[]", "level=2", "--multirun").code == 0
    assert [list(s.options.augment) for s in sessions] == [["flip"], ["flip", "blend"], []]
    assert [s.options.job.level for s in sessions] == [2, 2, 2]
    assert len({s.out for s in sessions}) == 3


def test_ranges_and_globs(engine, sessions):
    assert engine("gauge", "-m", "run.epochs=range(1,3)", "model=glob(le*)").code == 0
    assert [(s.options.run.epochs, s.choices["model"]) for s in sessions] == [(n, "lenet") for n in (1, 2)]


def test_options_of_what_is_swept(engine, sessions):
    words = ["data=idx,needy", "data.root='/a dir,x=1/${hydra:job.num}'", "run.evaluate_every='2 epochs'"]
    done = engine("gauge", "-m", *words, "schedule=step", "schedule.milestones=[0.1,0.2]", "run.clip=null")
    assert done.code == 0, done.err
    assert [s.options.data.root for s in sessions] == ["/a dir,x=1/0", "/a dir,x=1/1"]
    assert sessions[1].overrides[:2] == ["data=needy", "data.root='/a dir,x=1/${hydra:job.num}'"]
    assert {s.options.run.evaluate_every for s in sessions} == {"2 epochs"}
    assert sessions[0].options.schedule.milestones == [0.1, 0.2]


def test_experiments(engine, sessions):
    assert engine("gauge", "-m", "experiment=mnist,cifar_resnet20", "data.root=/x").code == 0
    assert [s.choices["data"] for s in sessions] == ["idx", "cifar10"]


def test_epochs_swept_over_an_experiment_that_gives_steps(engine, sessions):
    done = engine("gauge", "-m", "experiment=mnist,cifar_resnet20", "data.root=/x", "run.epochs=1,2", "out=sweep")
    assert [(s.options.run.epochs, s.options.run.steps) for s in sessions] == [(1, None), (2, None)] * 2
    assert sessions[3].overrides == ["experiment=cifar_resnet20", "data.root=/x", "run.epochs=2"]
    assert "job 3: experiment=cifar_resnet20 data.root=/x run.epochs=2\n" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["precision=float32,fixed", "precision.il=5"],
            "job 0 (precision=float32 precision.il=5): precision.il: Float32 has no option 'il'",
        ),
        (["run.batch=8,0"], "job 1 (run.batch=0): run.batch=0: must be at least 1"),
    ],
)
def test_a_mistake_names_the_first_job_that_has_it_before_any_has_run(engine, sessions, words, expected):
    done = engine("gauge", "-m", *words)
    assert (done.code, done.err) == (EXIT_USAGE, f"engine: {expected}\n")
    assert sessions == []


def test_a_failure_does_not_hide_the_others(engine, sessions):
    done = engine("gauge", "-m", "mode=fine,failure,mistake,defect,fine")
    assert done.code == EXIT_FAILED
    assert len(sessions) == 5
    assert "engine: job 1: the loss is not finite\n" in done.err
    assert "engine: job 2: data.root=/x: no such folder\n" in done.err
    assert "ZeroDivisionError: a defect" in done.err


def test_the_first_failure_decides(engine):
    assert engine("gauge", "-m", "mode=defect,failure").code == EXIT_CRASHED
    assert engine("gauge", "-m", "mode=mistake,failure").code == EXIT_USAGE


def test_a_stop_ends_the_sweep(engine, sessions):
    done = engine("gauge", "-m", "mode=fine,stop,fine")
    assert (done.code, len(sessions)) == (EXIT_STOPPED, 2)
    assert "engine: job 1: stopped by SIGTERM\n" in done.err


def test_an_interrupt_ends_the_sweep(engine, sessions):
    done = engine("gauge", "-m", "mode=interrupt,fine")
    assert (done.code, done.err, len(sessions)) == (130, "", 1)


def test_resume_in_a_sweep(engine, sessions, checkpoint, tmp_path):
    found = checkpoint(tmp_path / "sweep" / "1", ["run.epochs=2"])
    done = engine("gauge", "-m", "run.epochs=1,2", "out=sweep", "resume=auto")
    assert done.code == 0, done.err
    assert [s.options.resume for s in sessions] == ["auto", str(found)]


def test_resume_in_a_sweep_leaves_a_folder_in_use_alone(engine, sessions, tmp_path):
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    with (tmp_path / "sweep" / "0" / "run.lock").open("w") as lock:
        lock.write("4321")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = engine("gauge", "-m", "run.epochs=1,2", "out=sweep", "resume=auto")
    assert done.code == EXIT_USAGE
    assert "engine: job 0: out=" in done.err
    assert "in use by process 4321" in done.err
    assert [s.options.run.epochs for s in sessions] == [2]


def test_resume_in_a_sweep_refuses_another_run(engine, checkpoint, tmp_path):
    checkpoint(tmp_path / "sweep" / "0", ["run.epochs=5"])
    done = engine("gauge", "-m", "run.epochs=1,2", "out=sweep", "resume=auto")
    assert done.code == EXIT_USAGE
    assert "was run with run.epochs=5" in done.err


def test_what_a_sweep_cannot_resume(engine, sessions):
    for resume, expected in (("auto", "name it with out="), ("runs/x", "drop -m"), ("a,b", "cannot be swept")):
        done = engine("gauge", "-m", "run.epochs=1,2", f"resume={resume}")
        assert done.code == EXIT_USAGE
        assert expected in done.err
    assert sessions == []
