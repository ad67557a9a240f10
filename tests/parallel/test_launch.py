"""One command, or torch's launcher, starts the processes of a run; a signal ends all of them in good order."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
from commands import TORCHRUN, two

from engine import manifest

LONG = two("run.steps=100000", "save.every=never", "out=run")


def said(told: str) -> list[str]:
    """Return the engine's own lines."""
    return [line for line in told.splitlines() if line.startswith("engine: ")]


def begun(command, out: Path) -> None:
    """Wait until training has begun."""
    path = out / "metrics.csv"
    command.until(lambda: path.exists() and path.read_text().count("\n") > 2, "a line of metrics")


def stopped_in_good_order(command, out: Path, name: str) -> None:
    """Check that all processes have saved one checkpoint together and said so once."""
    assert command.end() == 75, command.told
    (folder,) = manifest.checkpoints(out)
    step = manifest.verify(folder)["step"]
    assert 0 < step < 100000
    stopping, last = said(command.told)
    assert stopping.startswith(f"engine: {name}: stopping after this step, with a checkpoint")
    assert last.startswith(f"engine: stopped by {name} after step {step} of 100000; checkpoint saved; engine train")
    assert command.processes() == {}


def test_one_command_is_one_run(undisturbed):
    _, out, told = undisturbed
    assert [folder.name for folder in manifest.checkpoints(out)] == ["step-00000150", "step-00000140"]
    facts = manifest.verify(manifest.checkpoints(out)[0])
    assert facts["parallel"]["strategy"] == "DataParallel"
    assert not any("-of-" in name for name in facts["files"])  # the model is whole in every process; one wrote it
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert len(rows) == len({(row["step"], row["tag"]) for row in rows} if "tag" in rows[0] else rows) > 0
    assert told.splitlines() == [f"done after step 150 of 150; run folder {out}"]


def test_a_preempted_job_saves(start, tmp_path):
    command = start(*LONG)
    begun(command, tmp_path / "run")
    os.kill(command.process.pid, signal.SIGUSR1)
    stopped_in_good_order(command, tmp_path / "run", "SIGUSR1")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_every_request_to_stop_saves(start, tmp_path, name):
    command = start(*LONG)
    begun(command, tmp_path / "run")
    os.kill(command.process.pid, getattr(signal, name))
    stopped_in_good_order(command, tmp_path / "run", name)


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_to_one_process_stops_all(start, tmp_path, rank):
    command = start(*LONG)
    begun(command, tmp_path / "run")
    command.signal(rank, signal.SIGTERM)
    assert command.end() == 75
    step = manifest.verify(manifest.checkpoints(tmp_path / "run")[0])["step"]
    assert said(command.told)[-1].startswith(f"engine: stopped by SIGTERM after step {step} of 100000")


@pytest.mark.soak
def test_processes_whose_launcher_is_killed_save_and_end(start, tmp_path):
    command = start(*LONG)
    begun(command, tmp_path / "run")
    workers = command.processes()
    assert sorted(workers) == [0, 1]
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()
    while command.processes():
        os.sched_yield()
    (folder,) = manifest.checkpoints(tmp_path / "run")
    assert 0 < manifest.verify(folder)["step"] < 100000
    assert said(command.told)[0] == "engine: SIGTERM: stopping after this step, with a checkpoint"


@pytest.mark.soak
def test_a_second_interrupt_ends_it_at_once(start, tmp_path):
    # A step of 700 micro-batches takes some seconds.
    slow = ["model=cnn", "run.batch=2", "run.accumulate=700", "run.steps=50", "save.every=1 steps"]
    command = start("train", "parallel=data", "parallel.processes=2", "run.evaluate_every=never", *slow, "out=run")
    command.until_saved(tmp_path / "run", 1)
    os.kill(command.process.pid, signal.SIGINT)
    command.until(lambda: "SIGINT: stopping" in command.told, "an answer")
    newest = manifest.checkpoints(tmp_path / "run")[0].name
    os.kill(command.process.pid, signal.SIGINT)
    assert command.end() == 130
    assert manifest.checkpoints(tmp_path / "run")[0].name == newest
    assert len(said(command.told)) == 1, command.told
    assert "Traceback" not in command.told
    assert command.processes() == {}


@pytest.mark.soak
def test_torchs_launcher_starts_a_run_and_goes_on_with_it(start, undisturbed, tmp_path):
    words, out, _ = undisturbed
    words = [word for word in words if not word.startswith("parallel.processes")]
    launcher = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1", "-m", "engine"]
    command = start(*words, "out=run", by=launcher)
    command.until_saved(tmp_path / "run", 20)
    command.signal(1, signal.SIGKILL)
    assert command.end() == 0, command.told
    files = [manifest.verify(manifest.checkpoints(each)[0])["files"] for each in (out, tmp_path / "run")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert files[0][name]["sha256"] == files[1][name]["sha256"], name
    rows = [row["step"] for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    assert rows == sorted(rows, key=int)


@pytest.mark.soak
def test_under_torchs_launcher_a_folder_must_be_named_and_a_strategy_for_several_chosen(start):
    launcher = [*TORCHRUN, "--nproc-per-node", "2", "-m", "engine", "train"]
    nameless, alone = start("parallel=data", by=launcher), start("out=run", by=launcher)
    assert nameless.end() != 0
    assert set(said(nameless.told)) == {
        "engine: 2 processes were started for one run: name its folder, the same to all, with out="
    }
    assert alone.end() != 0
    assert "engine: parallel=single is for one process, and 2 were started: choose parallel=data" in said(alone.told)


@pytest.mark.soak
def test_a_mistake_that_one_process_meets_is_told_once(start, tmp_path):
    """Only rank 1 has a variable that is no number, as on a machine that is set up in another way."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1': os.environ['LOCAL_WORLD_SIZE'] = 'two'\n"
    )
    command = start(*two("out=run"), PYTHONPATH=str(tmp_path / "site"))
    assert command.end() == 2, command.told
    assert command.told.splitlines() == [
        "engine: the environment's LOCAL_WORLD_SIZE=two is no number: start the processes with one launcher"
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["parallel.processes=0"], "parallel.processes=0: must be at least 1"),
        (["parallel.timeout=0"], "parallel.timeout=0.0: must be above 0"),
        (["parallel.restarts=-1"], "parallel.restarts=-1: must be at least 0"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(engine, words, told):
    code, _, error = engine("train", "parallel=data", *words)
    assert code == 2
    assert error == f"engine: {told}\n"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run.batch=1"], "run.batch=1 is fewer than one for each of 2 processes: raise run.batch, or start fewer"),
        (["parallel.interface=eth77"], "parallel.interface=eth77: there is no such interface here; choose of "),
        (["augment=[mixup]", "run.batch=6"], "augment.mixup mixes groups of 2 images, which the 3 of a process's "),
        (["run.batch=2000"], "run.batch=2000 x run.accumulate=1 needs 2000 images a step, but the training set has "),
    ],
)
def test_what_only_the_processes_can_see_is_told_once(start, words, told):
    command = start(*two(*words, "out=run"))
    assert command.end() == 2, command.told
    (line,) = command.told.splitlines()
    assert line.startswith(f"engine: {told}"), line
