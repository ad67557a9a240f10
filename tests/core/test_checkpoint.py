"""A checkpoint is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from engine import RunFailed, UsageError, checkpoint, manifest
from engine.checkpoint import Checkpoints

TENSORS = {
    "model.safetensors": {"weight": torch.arange(3000.0), "bias": torch.ones(7)},
    "engine.safetensors": {"updates": torch.tensor([3])},
}
FACTS = {"overrides": ["model=lenet"]}


def saved(folder: Path, *steps: int, scores: dict[int, float] | None = None, **settings) -> Checkpoints:
    checkpoints = Checkpoints(folder, **{"keep": 9, "best": False, "higher_is_better": True, **settings})
    for step in steps:
        checkpoints.save(step, TENSORS, FACTS, (scores or {}).get(step))
    return checkpoints


def test_saved_checkpoint_reads_back(tmp_path):
    saved(tmp_path, 12)
    facts, files = checkpoint.load(manifest.folder_of(tmp_path, 12))
    assert facts["overrides"] == ["model=lenet"]
    assert facts["step"] == 12
    for name, tensors in TENSORS.items():
        assert files[name].keys() == tensors.keys()
        assert all(torch.equal(files[name][key], value) for key, value in tensors.items())


def test_checkpoint_holds_json_and_safetensors_only(make, tmp_path):
    run = make("run", run={"steps": 2, "ema": 0.9})
    run.fit()
    (folder,) = manifest.checkpoints(tmp_path / "run")
    assert json.loads((folder / "manifest.json").read_text())["step"] == 2
    others = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    assert others == ["average.safetensors", "engine.safetensors", "model.safetensors", "optimizer.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as model:
        assert set(model.keys()) == set(run.model.state_dict())


def test_channels_last_and_tied_weights_survive(tmp_path):
    filters = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    tied = torch.randn(6)
    content = {"model.safetensors": {"filters": filters, "a": tied, "b": tied, "part": tied[2:]}}
    Checkpoints(tmp_path, 1, False, True).save(1, content, {}, None)
    _, files = checkpoint.load(manifest.folder_of(tmp_path, 1))
    for name, value in content["model.safetensors"].items():
        assert torch.equal(files["model.safetensors"][name], value), name


@pytest.mark.parametrize("name", ["model.safetensors", "engine.safetensors", "manifest.json"])
def test_any_altered_or_missing_byte_is_detected_and_named(tmp_path, name):
    saved(tmp_path, 1)
    folder = manifest.folder_of(tmp_path, 1)
    path = folder / name
    whole = path.read_bytes()
    draw = random.Random(0)
    for place in [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))]:
        altered = bytearray(whole)
        altered[place] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        if name == "manifest.json" and _same_json(bytes(altered), whole):
            continue  # a change of white space is no change of content
        with pytest.raises(UsageError, match=name):
            manifest.verify(folder)
        path.write_bytes(whole[:place])
        with pytest.raises(UsageError, match=name):
            manifest.verify(folder)
        path.write_bytes(whole)
    path.unlink()
    with pytest.raises(UsageError, match=name):
        manifest.verify(folder)


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from engine import RunFailed, manifest
from test_checkpoint import FACTS, TENSORS, saved
out = Path({out!r})
saved(out, 1)
checkpoints = saved(out)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
failures = 0
for limit in {limits}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, TENSORS, FACTS, None)
    except RunFailed as error:
        failures += 1
        assert "could not be written" in str(error) and "step-00000001" in str(error), error
    else:
        raise SystemExit(f"a file size limit of {{limit}} bytes was not noticed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [f.name for f in manifest.checkpoints(out)] == ["step-00000001"], limit
    manifest.verify(out / "checkpoints" / "step-00000001")
    assert not list((out / "checkpoints").glob(".*")), "a failed save must leave nothing behind"
checkpoints.save(2, TENSORS, FACTS, None)
print("failures", failures)
"""


def test_full_disk_at_any_byte_leaves_the_earlier_checkpoint(tmp_path):
    """The largest file is the model's, so a limit below its size makes some write of the save fail."""
    size = sum(t.numel() * t.element_size() for t in TENSORS["model.safetensors"].values())
    limits = [0, 1, 7, 8, 9, 60, 100, *range(200, size, size // 40)]
    script = FULL_DISK.format(tests=str(Path(__file__).parent), out=str(tmp_path), limits=limits)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["failures", str(len(limits))]
    manifest.verify(manifest.folder_of(tmp_path, 2))


SAVING = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_checkpoint import saved, FACTS, TENSORS
checkpoints = saved(Path({out!r}), keep=2)
first = int(sys.argv[1])
print("saving", flush=True)
for step in range(first, first + 100_000):
    checkpoints.save(step, TENSORS, FACTS, None)
"""


def kill_while_saving(out: Path, times: int) -> None:
    """Kill a process that saves without pause, at moments spread over its work; check what it leaves each time."""
    draw = random.Random(1)
    script = SAVING.format(tests=str(Path(__file__).parent), out=str(out))
    first, lowest = 1, 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", script, str(first)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        wanted = first + draw.randrange(1, 12)
        while not any(int(f.name[5:]) >= wanted for f in manifest.checkpoints(out)):
            assert process.poll() is None, "the saving process ended by itself"
        for _ in range(draw.randrange(2000)):
            pass  # so that the kill falls anywhere within a save
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
        visible = manifest.checkpoints(out)
        assert visible
        for folder in visible:
            manifest.verify(folder)
        newest = int(visible[0].name[5:])
        assert newest >= max(wanted, lowest)
        first, lowest = newest + 1, newest
    saved(out, first, keep=2)
    assert not list((out / "checkpoints").glob(".*")), "the next save clears what a killed one left"


def test_killed_while_saving_every_visible_checkpoint_is_whole(tmp_path):
    kill_while_saving(tmp_path, 4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_while_saving_many_times(tmp_path):
    kill_while_saving(tmp_path, 200)


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.9, 5: 0.1}
    saved(tmp_path / "high", 1, 2, 3, 4, 5, 6, scores=scores, keep=2, best=True)
    # of equal scores the first is the best
    assert [int(f.name[5:]) for f in manifest.checkpoints(tmp_path / "high")] == [6, 5, 2]
    saved(tmp_path / "low", 1, 2, 3, 4, 5, 6, scores=scores, keep=1, best=True, higher_is_better=False)
    assert [int(f.name[5:]) for f in manifest.checkpoints(tmp_path / "low")] == [6, 5]
    saved(tmp_path / "plain", 1, 2, 3, 4, scores=scores, keep=3)
    assert [int(f.name[5:]) for f in manifest.checkpoints(tmp_path / "plain")] == [4, 3, 2]


def test_saving_a_step_again_replaces_it(tmp_path):
    saved(tmp_path, 1, 2)
    Checkpoints(tmp_path, 9, False, True).save(2, {"model.safetensors": {"w": torch.zeros(3)}}, {"new": 1}, None)
    facts, files = checkpoint.load(manifest.folder_of(tmp_path, 2))
    assert facts["new"] == 1
    assert files["model.safetensors"]["w"].shape == (3,)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_failed_save_ends_the_run_with_a_line_and_the_earlier_checkpoint(make, tmp_path):
    """A limit on file sizes stands for a disk that fills up in the middle of a run."""
    from small_run import Watch

    def break_disk(run):
        if run.position.step == 7:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

    run = make("run", save={"every": "5 steps"}, observe={"watch": Watch(then=break_disk)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.getsignal(signal.SIGXFSZ)
    try:
        with pytest.raises(RunFailed, match="newest whole checkpoint is step-00000005"):
            run.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    manifest.verify(manifest.folder_of(tmp_path / "run", 5))
