"""Other people's files of weights: read as data alone, matched by name and shape, refused in one line."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine import UsageError
from engine.weights import load_state, read_state

LEGACY = {"_use_new_zipfile_serialization": False}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    model[1].running_mean.normal_()
    return model


def same(state: Any, expected: Any) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def refusal(path: Path) -> str:
    """Return the one line that refuses a file; it names the file."""
    with pytest.raises(UsageError) as caught:
        read_state(path)
    line = str(caught.value)
    assert line.startswith(f"{path} ")
    assert "\n" not in line
    assert len(line) < len(str(path)) + 300
    return line.removeprefix(f"{path} ")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_every_kind_of_file_gives_plain_names(tmp_path, suffix, prefix):
    state = network().state_dict()
    path = tmp_path / f"weights{suffix}"
    named = {prefix + name: value for name, value in state.items()}
    save_file(named, path) if suffix == ".safetensors" else torch.save(named, path)
    assert same(read_state(path), state)


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("options", [{}, LEGACY])
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path, nest, options):
    state = network().state_dict()
    content = {"epoch": 7, nest: {f"module.{n}": v for n, v in state.items()}, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "a.pt", **options)
    assert same(read_state(tmp_path / "a.pt"), state)


def test_a_prefix_that_only_some_names_have_belongs_to_the_model(tmp_path):
    state = {"module.weight": torch.ones(2), "weight": torch.zeros(2)}
    torch.save(state, tmp_path / "a.pt")
    assert same(read_state(tmp_path / "a.pt"), state)


class Malicious:
    """Unpickling this with Python's own unpickler makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, monkeypatch, how):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # somebody's shell must not open the door
    path, trace = tmp_path / "weights.pt", tmp_path / "it ran"
    content = {"x": Malicious(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, **({} if how == "zip" else LEGACY))
    line = refusal(path)
    assert not trace.exists()
    assert line == (
        "cannot be read as weights (it needs posix.mkdir, more than tensors and plain data; "
        "save model.state_dict() alone)"
    )
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the file is harmless: the test tests nothing"


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(network(), tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt") == (
        "cannot be read as weights (it needs torch.nn.modules.container.Sequential, more than tensors and plain data; "
        "save model.state_dict() alone)"
    )


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], "text", {"epoch": 3}, {"w": torch.ones(1), "epoch": 3}, {0: torch.ones(1)}, {"model": {"w": 1.0}}],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt") == "holds no state dict (names with tensors); save model.state_dict() alone"


def test_a_safetensors_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors").startswith("holds no state dict")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_missing_file_is_told(tmp_path, name):
    assert refusal(tmp_path / name) == "does not exist; give a checkpoint, a run folder or a file of weights"


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04", b"\x80\x02."]
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith("cannot be read as weights (")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    assert refusal(tmp_path / name).startswith("cannot be read as weights (")


def files(folder: Path) -> list[Path]:
    state = {"w": torch.arange(12.0).view(3, 4), "n": torch.tensor(3)}
    paths = [folder / "zip.pt", folder / "legacy.pt", folder / "a.safetensors"]
    torch.save(state, paths[0])
    torch.save(state, paths[1], **LEGACY)
    save_file(state, paths[2])
    return paths


def test_truncated_files_are_refused(tmp_path):
    for path in files(tmp_path):
        held = path.read_bytes()
        for size in range(0, len(held), max(1, len(held) // 40)):
            path.write_bytes(held[:size])
            assert refusal(path)


def test_damaged_files_are_read_or_refused_but_nothing_else(tmp_path):
    draw, outcomes = random.Random(0), set()
    for path in files(tmp_path):
        held = path.read_bytes()
        for _ in range(250):
            damaged = bytearray(held)
            for place in draw.sample(range(len(held)), draw.choice([1, 1, 3])):
                damaged[place] = draw.randrange(256)
            path.write_bytes(damaged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wonders about pickle protocol 251
                try:
                    read_state(path)
                    outcomes.add("read")
                except UsageError as error:
                    outcomes.add(f"refused in {len(str(error).splitlines())} line")
    assert outcomes == {"read", "refused in 1 line"}


def test_a_state_is_copied_into_the_model_in_its_own_type():
    model, state = network(), network(1).state_dict()
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    load_state(model, {name: value.double() for name, value in state.items()}, "x.pt")
    assert same(model.state_dict(), state)
    assert places == {name: value.data_ptr() for name, value in model.state_dict().items()}


def test_a_missing_batch_counter_is_no_trouble():
    model, state = network(), network(1).state_dict()
    model[1].num_batches_tracked.fill_(5)
    load_state(model, {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}, "old.pth")
    expected = {**state, "1.num_batches_tracked": torch.tensor(5)}
    assert same(model.state_dict(), expected)


def test_what_does_not_fit_is_listed_and_nothing_is_changed():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = network(1).state_dict()
    state["0.weight"] = torch.ones(3, 2, 5, 5)
    state["4.gamma"] = torch.ones(1)
    del state["3.bias"]
    with pytest.raises(UsageError) as caught:
        load_state(model, state, "theirs.pt")
    assert str(caught.value) == (
        "theirs.pt does not fit this model: missing: 3.bias; unknown: 4.gamma; "
        "of another shape: 0.weight is [3, 2, 5, 5] instead of [3, 2, 3, 3]"
    )
    assert same(model.state_dict(), before)


def test_a_long_list_is_cut():
    with pytest.raises(UsageError) as caught:
        load_state(nn.Linear(2, 2), {f"x{i}": torch.ones(1) for i in range(9)}, "a.pt")
    assert str(caught.value) == (
        "a.pt does not fit this model: missing: weight, bias; unknown: x0, x1, x2, x3 and 5 more"
    )


@pytest.mark.parametrize(("width", "told"), [(2, True), (3, False)])
def test_weights_for_other_classes_are_told_from_those_of_another_network(width, told):
    ours, theirs = (
        nn.Sequential(nn.Linear(4, hidden), nn.Linear(hidden, classes)) for hidden, classes in ((2, 3), (width, 10))
    )
    with pytest.raises(UsageError, match="of another shape") as caught:
        load_state(ours, theirs.state_dict(), "theirs.pt")
    assert ("it tells 10 classes apart, not 3; give data of the same" in str(caught.value)) == told
