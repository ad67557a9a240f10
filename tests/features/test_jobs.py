"""``engine features`` and ``engine probe``: files that hold what layers give, and a curve that others confirm."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from engine import UsageError
from engine.plugins.data.digits import open_digits
from engine.plugins.features.curve import Point, advice
from engine.plugins.features.dump import require_names
from engine.plugins.features.looking import Behind, modules_named
from engine.registry import Registry

SHAPE = (1, 16, 16)
WORDS = ("model=lenet", "data.size=16", "augment=[]", "run.device=cpu", "run.batch=100")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return Registry.load().entry("model", "lenet").options().build(SHAPE, 10).eval()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> str:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return f"checkpoint={tmp_path / 'weights.safetensors'}"


def images(split: str) -> tuple[Tensor, Tensor]:
    source = open_digits(split, 16)
    records = source.records(range(len(source)))
    return records.images.float() / 255, records.targets


def behind(network: nn.Module, name: str, given: Tensor) -> Tensor:
    """Return what a module returns, looked at without the engine."""
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.append(output.clone())
    )
    with torch.no_grad():
        network(given)
    handle.remove()
    return seen[0]


def test_features_are_what_layers_give_in_the_order_of_the_records(engine, network, weights, tmp_path):
    code, told, err = engine("features", weights, *WORDS, "layers=[conv*]", "split=test", "out=kept")
    assert code == 0, err
    given, targets = images("test")
    about = json.loads((tmp_path / "kept" / "features.json").read_text())
    names = [name for name, _ in network.named_modules() if name.startswith("conv")]
    assert list(about["arrays"]) == [*names, "targets"]
    assert (about["split"], about["images"], about["classes"]) == ("test", 360, [str(n) for n in range(10)])
    for name in names:
        found = np.load(tmp_path / "kept" / about["arrays"][name]["file"], mmap_mode="r")
        assert f"{name} {list(found.shape)}" in told
        np.testing.assert_allclose(found, behind(network, name, given).numpy(), rtol=1e-4, atol=1e-5)
    assert np.load(tmp_path / "kept" / "targets.npy").tolist() == targets.tolist()


def test_one_file_of_safetensors_holds_pooled_features(engine, network, weights, tmp_path):
    words = ("layers=[conv2,fc1]", "format=safetensors", "pool=true")
    code, _, err = engine("features", weights, *WORDS, *words, "split=test", "precision=bfloat16", "out=kept")
    assert code == 0, err
    given, targets = images("test")
    with safe_open(tmp_path / "kept" / "features.safetensors", "pt") as file:
        found, classes = file.get_tensor("conv2"), file.get_tensor("targets")
    assert found.dtype == torch.bfloat16
    expected = behind(network, "conv2", given).mean((2, 3))
    assert torch.allclose(found.float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(classes, targets)


def test_what_features_cannot_write_is_told(engine, weights, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "features.json").write_text("{}")
    for words, message in (
        (("layers=[conv1]",), "out must be given"),
        (("out=full", "layers=[conv1]"), "full holds features already"),
        (("out=a",), "layers must be given: [NAME,...], as names or patterns of conv1, "),
        (("out=a", "layers=[conv1]", "precision=bfloat16"), "choose format=safetensors"),
    ):
        code, _, err = engine("features", weights, *WORDS, *words)
        assert (code, message in err) == (2, True), err
    code, _, err = engine("features", *WORDS, "layers=[conv1]", "out=a")
    assert (code, "checkpoint must be given" in err) == (2, True)


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_the_disk_keeps_room_for_all_files_before_the_pass(engine, weights, tmp_path, monkeypatch, form):
    words = ("features", weights, *WORDS, "split=test", "layers=[conv1,fc1]", f"format={form}", "out=kept")
    sizes: dict[str, int] = {}

    def take_note(file: int, begin: int, size: int) -> None:
        sizes[Path(os.readlink(f"/proc/self/fd/{file}")).name] = begin + size

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        code, _, err = engine(*words)
    assert (code, "features of 360 images need" in err, "choose another out=" in err) == (3, True, True), err
    assert not [path for path in (tmp_path / "kept").iterdir() if path.suffix in (".npy", ".safetensors")]
    monkeypatch.setattr(os, "posix_fallocate", take_note)
    assert engine(*words)[0] == 0
    files = [path for path in (tmp_path / "kept").iterdir() if path.suffix in (".npy", ".safetensors")]
    assert sizes == {path.name: path.stat().st_size for path in files}


def full(file: int, begin: int, size: int) -> None:
    """Be a disk that has no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_module_that_is_called_as_the_targets_is_refused():
    model = nn.Sequential()
    model.add_module("targets", nn.Flatten())
    with pytest.raises(UsageError, match="layers: targets is the name of the file of the images' targets"):
        require_names(modules_named(model, ["t*"]))


def test_layers_that_cannot_be_kept_are_told(network):
    with pytest.raises(UsageError, match=r"no module is called 'conv11'; did you mean 'conv1'\?"):
        modules_named(network, ["conv1", "conv11"])
    lists = nn.Module()  # within a network, a place for others: it has no pass of its own
    lists.add_module("inner", nn.ReLU())
    assert modules_named(nn.Sequential(lists), ["0*"]) == ["0.inner"]
    twice = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), twice, nn.Linear(3, 3), twice)
    with pytest.raises(UsageError, match="layers: 1 computes more than once"):
        Behind(model, ["0", "1"])(torch.rand(2, 3))


def test_the_curve_is_what_scikit_learn_finds_at_each_depth(engine, network, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    code, told, err = engine("probe", weights, *WORDS, "out=curve", "c=[0.05]")
    assert code == 0, err
    with (tmp_path / "curve" / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    (train, train_targets), (test, test_targets) = images("train"), images("test")
    assert [row["layer"] for row in rows][:2] == ["conv1", "conv2"]
    reads: list[Tensor] = []  # conv2, what is behind conv1 and all without parameters that follows it
    handle = network.get_submodule("conv2").register_forward_pre_hook(lambda module, given: reads.append(given[0]))
    with torch.no_grad():
        network(train)
        network(test)
    handle.remove()
    one, other = (maps.mean((2, 3)).double() for maps in reads)
    mean, scale = one.mean(0), one.std(0, correction=0)
    model = LogisticRegression(C=0.05, tol=1e-10, max_iter=5000)
    model.fit(((one - mean) / scale).numpy(), train_targets.numpy())
    score = model.score(((other - mean) / scale).numpy(), test_targets.numpy())
    assert float(rows[0]["test"]) == pytest.approx(score, abs=1 / 360)  # of features in float32: an image may differ
    events = EventAccumulator(str(tmp_path / "curve")).Reload()
    for tag in ("test", "train"):
        logged = [(event.step, event.value) for event in events.Scalars(f"probe/{tag}_accuracy")]
        assert logged == [(place, pytest.approx(float(row[tag]), abs=1e-5)) for place, row in enumerate(rows, 1)]
    assert "advice: " in told
    assert told.splitlines()[1].split()[1] == "conv1"
    assert not (tmp_path / "curve" / "probe.png").exists()


def test_a_probe_looks_where_it_is_told(engine, weights, tmp_path):
    code, told, err = engine("probe", weights, *WORDS, "out=curve", "layers=[conv2]", "c=[0.01,0.1]")
    assert code == 0, err
    rows = told.splitlines()
    assert rows[1].split()[:2] == ["1", "conv2"]
    for words, message in (
        (("out=curve",), "curve holds a run or a probe already"),
        (("resume=auto", "out=none"), "resume: a probe goes on with no run"),
    ):
        code, _, err = engine("probe", weights, *WORDS, *words)
        assert (code, message in err) == (2, True), err


def test_a_head_for_other_classes_is_left_out(engine, network, weights, tmp_path):
    state = dict(network.state_dict())
    last = [name.rpartition(".")[0] for name in state][-1]
    for kind in ("weight", "bias"):
        state[f"{last}.{kind}"] = torch.cat([state[f"{last}.{kind}"]] * 3)
    save_file(state, tmp_path / "other.safetensors")
    _, told, _ = engine("probe", weights, *WORDS, "out=one", "depths=layers")
    code, fewer, err = engine(
        "probe", f"checkpoint={tmp_path / 'other.safetensors'}", *WORDS, "out=two", "depths=layers"
    )
    assert code == 0, err
    layers = [[line.split()[1] for line in text.splitlines() if line[:5].strip().isdigit()] for text in (told, fewer)]
    assert layers[0][-1] == last
    assert layers[1] == layers[0][:-1]


def points(*accuracies: float) -> list[Point]:
    return [Point(f"layer{place}", 8, accuracy, accuracy, 0.01, 0.0) for place, accuracy in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("accuracies", "images", "advised"),
    [
        ((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 1000, ("similar", "scarce", "transfer=head transfer.cache=true")),
        ((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 90000, ("similar", "plentiful", "transfer=last_k")),
        ((0.3, 0.8, 0.7, 0.6, 0.5, 0.4), 1000, ("dissimilar", "scarce", "the hard case: .* behind layer2")),
        (
            (0.3, 0.8, 0.801, 0.8, 0.8, 0.802),
            90000,
            ("dissimilar", "plentiful", "fine-tune more of the layers, or all"),
        ),
    ],
)
def test_the_advice_is_the_lectures_table(accuracies, images, advised):
    likeness, amount, todo = advice(points(*accuracies), images, 1000, 10, 500)
    assert likeness.startswith(f"{advised[0]} data")
    assert amount.startswith(f"{advised[1]} data")
    assert re.search(advised[2], todo)


@pytest.mark.soak
def test_squeezenets_last_fire_module_tells_cifar_10_apart(engine, real_data, tmp_path):
    for name in ("data_batch_1.bin", "test_batch.bin"):
        with real_data(f"cifar10/{name}").open("rb") as file:
            (tmp_path / name).write_bytes(file.read(1000 * 3073))
    weights = next(real_data("weights/squeezenet_v1.0").glob("*.caffemodel"))
    mean, unit = [104 / 255, 117 / 255, 123 / 255], [1 / 255] * 3
    code, told, err = engine(
        "probe", "model=squeezenet", "transfer=head", f"transfer.weights={weights}", "data=cifar10",
        f"data.root={tmp_path}", "augment=[resize,channel_order,normalize]", "augment.resize.size=96",
        f"augment.normalize.mean={mean}", f"augment.normalize.std={unit}", "out=curve",
    )  # fmt: skip
    assert code == 0, err
    with (tmp_path / "curve" / "probe.csv").open() as file:
        curve = {row["layer"]: float(row["test"]) for row in csv.DictReader(file)}
    assert max(curve, key=lambda layer: curve[layer]) == "fire9"
    assert curve["fire9"] >= 0.74  # .756 with scikit-learn's classifier and another reader of the weights
    assert "similar data" in told
