"""Whole commands as a user gives them: training, evaluating, resuming, sweeping, stopping by a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine import manifest

QUICK = ["data.size=8", "run.epochs=2", "run.batch=128"]
RESNET = ["data=cifar10", "model=resnet20", "run.batch=500"]
IMAGENET = ["augment.normalize.mean=[0.485,0.456,0.406]", "augment.normalize.std=[0.229,0.224,0.225]"]


def accuracy(text: str) -> float:
    found = re.search(r"accuracy ([\d.]+)", text)
    assert found, text
    return float(found[1])


def test_train_then_evaluate_give_the_same_accuracy(engine, tmp_path):
    code, _, told = engine("train", *QUICK, "out=first")
    assert code == 0, told
    events = EventAccumulator(str(tmp_path / "first"))
    events.Reload()
    trained = events.Scalars("test/accuracy")[-1].value
    code, out, _ = engine("evaluate", "checkpoint=first")
    assert code == 0
    assert accuracy(out) == pytest.approx(trained, abs=1e-6)
    assert "360 test images" in out


def test_another_start_in_a_used_folder_is_refused_and_leaves_it_alone(engine, tmp_path):
    assert engine("train", *QUICK, "out=first")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "first").rglob("*") if p.is_file()}
    code, _, told = engine("train", *QUICK, "out=first")
    assert code == 2
    assert "out=" in told
    assert "holds a run already" in told
    assert len(told.strip().splitlines()) == 1
    assert before == {p: p.read_bytes() for p in (tmp_path / "first").rglob("*") if p.is_file()}


def test_resume_by_folder_alone_recomposes_the_run(engine, tmp_path):
    assert engine("train", *QUICK, "run.seed=5", "optim=adamw", "optim.lr=0.002", "out=whole")[0] == 0
    assert engine("train", *QUICK, "run.seed=5", "optim=adamw", "optim.lr=0.002", "out=cut", "save.keep=9")[0] == 0
    newest = manifest.checkpoints(tmp_path / "cut")[0]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    code, _, told = engine("train", "resume=cut")
    assert code == 0, told
    assert "from step 11" in told
    whole, cut = (load_file(manifest.checkpoints(tmp_path / n)[0] / "model.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_truncated_newest_checkpoint_is_named_and_the_one_before_resumed(engine, tmp_path):
    assert engine("train", *QUICK, "out=whole")[0] == 0
    assert engine("train", *QUICK, "out=cut", "save.keep=9")[0] == 0
    newest = manifest.checkpoints(tmp_path / "cut")[0]
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    code, _, told = engine("train", *QUICK, "out=cut", "resume=auto", "save.keep=9")
    assert code == 0, told
    assert "model.safetensors has" in told
    assert "from step 11" in told
    whole, cut = (load_file(manifest.checkpoints(tmp_path / n)[0] / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_max_time_ends_with_a_checkpoint_and_exit_code_75(engine, tmp_path):
    code, _, told = engine("train", *QUICK, "run.max_time=0.001", "out=run")
    assert code == 75
    assert "stopped by run.max_time=0.001 after step" in told
    assert manifest.newest_valid(tmp_path / "run", print)


def test_sweep_trains_every_combination_into_its_own_folder(engine, tmp_path):
    code, out, told = engine("train", "-m", *QUICK, "optim.lr=0.01,0.05", "out=sweep", "observe=[tensorboard]")
    assert code == 0, told
    for number, lr in enumerate(["0.01", "0.05"]):
        assert f"lr: {lr}" in (tmp_path / "sweep" / str(number) / "config.yaml").read_text()
        assert manifest.newest_valid(tmp_path / "sweep" / str(number), print)
    assert "tensorboard --logdir" in out


def write_idx(folder: Path, *, labels: Sequence[int] = (0, 1, 2, 3), cut: int = 0) -> Path:
    """Write a tiny MNIST-like set of 8x8 images; ``cut`` bytes are missing at the end of the training images."""
    folder.mkdir()
    for stem in ("train", "t10k"):
        pixels = bytes(range(64)) * len(labels)
        images = bytes([0, 0, 8, 3, 0, 0, 0, len(labels), 0, 0, 0, 8, 0, 0, 0, 8]) + pixels
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(images[: len(images) - (cut if stem == "train" else 0)])
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, len(labels)]) + bytes(labels))
    return folder


BAD = {
    "unknown option": (["run.epoch=3"], r"run\.epochs"),
    "unknown key": (["rn.epochs=3"], r"did you mean 'run"),
    "unknown choice": (["model=resnet2"], r"did you mean 'resnet20'"),
    "unknown list member": (["augment=[flop]"], r"did you mean 'flip'"),
    "twice in a list": (["augment=[flip,flip]"], r"flip"),
    "wrong type": (["run.epochs=many"], r"run\.epochs"),
    "out of bounds": (["run.batch=0"], r"run\.batch=0: must be at least 1"),
    "no such choice of an option": (["run.nonfinite=stopp"], r"did you mean 'stop'"),
    "no data folder": (["data=idx", "data.root=nowhere"], r"nowhere"),
    "data root not given": (["data=idx"], r"data\.root must be given"),
    "truncated IDX": (["data=idx", "data.root=short"], r"train-images-idx3-ubyte"),
    "labels out of range": (["data=idx", "data.root=labels"], r"train-labels-idx1-ubyte"),
    "truncated CIFAR": (["data=cifar10", "data.root=cifar"], r"data_batch_1\.bin"),
    "empty class folder": (["data=folder", "data.root=photos"], r"dogs"),
    "batch larger than the data": (["run.batch=2000"], r"run\.batch=2000"),
    "model too small for the images": (["model=lenet", "data.size=8"], r"lenet|LeNet"),
    "checkpoint that does not exist": (["resume=nowhere"], r"nowhere"),
    "file in the way of the output": (["out=file/run"], r"out="),
    "bad rhythm": (["run.evaluate_every=often"], r"run\.evaluate_every=often: write '2 epochs'"),
    "no such device": (["run.device=cuda:99"], r"run\.device=cuda:99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(engine, tmp_path, case):
    write_idx(tmp_path / "short", cut=10)
    write_idx(tmp_path / "labels", labels=[0, 1, 2, 77])
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(b"\0" * 3073)
    (tmp_path / "photos" / "train" / "dogs").mkdir(parents=True)
    (tmp_path / "photos" / "test" / "dogs").mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    words, expected = BAD[case]
    code, _, told = engine("train", *words)
    assert code == 2, told
    assert told.startswith("engine: ")
    assert len(told.strip().splitlines()) == 1, told
    assert re.search(expected, told), told
    assert before == sorted(p for p in tmp_path.rglob("*") if p.is_file())


def test_unknown_command_is_answered_with_the_nearest(engine):
    code, _, told = engine("trian")
    assert code == 2
    assert "did you mean 'train'" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_ends_at_the_next_step_with_a_checkpoint_and_exit_code_75(tmp_path, number):
    """The progress line of the first evaluation is the event that says training goes on."""
    command = [sys.executable, "-m", "engine", "train", "data.size=8", "run.epochs=1000", "run.batch=700", "out=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if line.startswith("epoch 2/"):
            os.kill(process.pid, number)
            break
    told += process.stderr.read()
    assert process.wait(timeout=60) == 75, told
    assert f"stopped by {number.name} after step" in told
    assert "engine train resume=" in told
    newest = manifest.newest_valid(tmp_path / "run", print)
    assert newest is not None
    stopped = int(re.search(r"after step (\d+)", told)[1])
    assert newest.name == f"step-{stopped:08d}"
    assert json.loads((newest / "manifest.json").read_text())["position"]["step"] == stopped


def test_resume_auto_without_out_finds_the_run_of_the_same_options(engine, tmp_path):
    assert engine("train", *QUICK, "run.seed=3")[0] == 0
    (run,) = [path.parent for path in tmp_path.rglob("config.yaml")]
    code, _, told = engine("train", *QUICK, "run.seed=3", "resume=auto")
    assert code == 0, told
    assert [path.parent for path in tmp_path.rglob("config.yaml")] == [run]
    code, _, told = engine("train", *QUICK, "run.seed=4", "resume=auto")
    assert code == 0, told
    assert len(list(tmp_path.rglob("config.yaml"))) == 2


def test_published_resnet20_weights_reproduce_their_accuracy(engine, real_data):
    """91.73 % on the 10,000 test images, as published with the weights (in a PyTorch file, keys prefixed module.)."""
    root, weights = real_data("cifar10"), real_data("weights/pytorch_resnet20_cifar10/resnet20-12fca82f.th")
    code, out, told = engine("evaluate", *RESNET, f"data.root={root}", f"checkpoint={weights}", *IMAGENET)
    assert code == 0, told
    assert accuracy(out) == pytest.approx(0.9173, abs=1e-6)


def test_lenet_learns_real_digits(engine, real_data):
    """A tenth of an epoch of MNIST; the full figure is in docs/results."""
    root = real_data("mnist")
    code, _, told = engine("train", "data=idx", f"data.root={root}", "model=lenet", "run.steps=150", "out=run")
    assert code == 0, told
    assert float(re.search(r"test accuracy ([\d.]+) %", told)[1]) > 93


def test_resnet20_learns_real_photographs(engine, real_data):
    """From 10 % by chance to well above it in 60 steps."""
    root = real_data("cifar10")
    words = ["augment=cifar", f"data.root={root}", "run.steps=60", "run.batch=32", "run.log_every=10", "out=run"]
    code, _, told = engine("train", "data=cifar10", "model=resnet20", *words, "run.evaluate_every=never")
    assert code == 0, told
    events = EventAccumulator("run")
    events.Reload()
    losses = [scalar.value for scalar in events.Scalars("train/loss")]
    assert losses[-1] < 2.2 < losses[0]  # ln 10 = 2.303 is the loss of a guess


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_lenet_reaches_99_percent_on_mnist(engine, real_data):
    root = real_data("mnist")
    code, _, told = engine("train", "data=idx", f"data.root={root}", "model=lenet", "run.epochs=4", "out=run")
    assert code == 0
    assert float(re.findall(r"test accuracy ([\d.]+) %", told)[-1]) >= 99.0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_default_run_reaches_97_and_a_half_percent_with_every_seed(engine):
    for seed in range(5):
        code, _, told = engine("train", f"run.seed={seed}", f"out=run{seed}")
        assert code == 0
        assert float(re.findall(r"test accuracy ([\d.]+) %", told)[-1]) >= 97.5
