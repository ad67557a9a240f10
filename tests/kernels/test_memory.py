"""What kernels=auto remembers on disk: used again under the same conditions, and never the reason that a run fails."""

from __future__ import annotations

import json
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from installed import KERNELS
from timed import SHAPE, Named, chooser_of, network

from engine import ConvSpec, UsageError
from engine.plugins.kernels import memory

TIMES = {"native": 4.0, "quick": 2.0, "slow": 6.0}
OTHER = {"native": 1.0, "quick": 2.0, "slow": 6.0}


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """Return a function that chooses with these times and the cache in tmp_path: kernels, and how often it measured."""

    def run(times, *names, cache=str(tmp_path / "cache"), training=True):
        chooser, clock = chooser_of(monkeypatch, times, *(Named(name) for name in names or ("quick",)), cache=cache)
        return [row.kernel for row in chooser.apply(network(), SHAPE, training=training)], len(clock.asked)

    return run


@pytest.fixture
def file(choose, tmp_path):
    """Return the file that a first choice has written."""
    assert choose(TIMES) == (["quick"] * 3, 6)
    (found,) = (tmp_path / "cache").iterdir()
    return found


def test_the_next_run_measures_nothing(choose, file):
    before = file.read_bytes()
    assert choose(OTHER) == (["quick"] * 3, 0)
    assert file.read_bytes() == before


def test_the_file_says_what_it_is_of(file):
    content = json.loads(file.read_text())
    assert content["conditions"]["threads"] == torch.get_num_threads()
    assert content["conditions"]["torch"] == str(torch.__version__)
    entries = content["entries"]
    assert {key.split()[0] for key in entries} == {"forward", "backward_input", "backward_weight"}
    assert all(times == {"native": 4.0, "quick": 2.0} for times in entries.values())


def test_other_kernels_are_measured_together_anew(choose, file):
    assert choose(TIMES | {"slow": 1.0}, "quick", "slow") == (["slow"] * 3, 6)
    assert choose(OTHER, "quick", "slow") == (["slow"] * 3, 0)


def test_training_and_evaluation_are_remembered_apart(choose, file):
    assert choose(OTHER, training=False) == (["native"] * 3, 2)
    assert choose(TIMES, training=False) == (["native"] * 3, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "another"},
        {"threads": 17},
        {"torch": "9.9"},
        {"engine": "9.9"},
        {"build": "another compiler"},
        {"instruction_set": "another"},
        {"huge_pages": "1 more"},
        {"kept_memory": "sometimes"},
        {"gpu": "another"},
        {"extension": "another"},
    ],
)
def test_other_conditions_have_a_file_of_their_own(choose, file, monkeypatch, change):
    before, facts = file.read_bytes(), memory.conditions()
    assert set(change) <= set(facts)
    monkeypatch.setattr(memory, "conditions", lambda: facts | change)
    assert choose(OTHER) == (["native"] * 3, 6)
    assert len(list(file.parent.iterdir())) == 2
    assert file.read_bytes() == before


def test_another_version_of_a_plugin_has_a_file_of_its_own(choose, file, monkeypatch):
    assert json.loads(file.read_text())["conditions"]["plugins"] == {"timed": "unknown"}, "it is no distribution"
    monkeypatch.setattr(memory.metadata, "packages_distributions", lambda: {"timed": ["timed-lib"]})
    monkeypatch.setattr(memory.metadata, "version", {"timed-lib": "1.0"}.__getitem__)
    assert choose(OTHER)[1] == 6
    monkeypatch.setattr(memory.metadata, "version", {"timed-lib": "1.1"}.__getitem__)
    assert choose(OTHER)[1] == 6
    assert len(list(file.parent.iterdir())) == 3


def test_versions_are_those_of_the_distributions_that_supply_kernels():
    class Foreign(Named):
        __module__ = "torch.nn"

    assert memory.versions([]) == {}
    assert memory.versions(KERNELS.values()) == {}, "the engine's own have its version"
    assert memory.versions([Foreign("foreign")]) == {"torch": f"torch {metadata.version('torch')}"}


def test_another_build_of_the_extension_has_a_file_of_its_own(choose, file, monkeypatch, tmp_path):
    """Two builds may have one version and one compiler; only their bytes differ."""
    before = memory.conditions()["extension"]
    (tmp_path / "_cpu.so").write_bytes(b"another build")
    monkeypatch.setattr(memory, "find_spec", lambda name: ModuleSpec(name, None, origin=str(tmp_path / "_cpu.so")))
    memory._extension.cache_clear()
    try:
        assert memory.conditions()["extension"] != before
        assert choose(OTHER)[1] == 6
    finally:
        memory._extension.cache_clear()


def test_layers_with_a_bias_are_remembered_apart(tmp_path):
    spec = ConvSpec(2, 3, 8, 8, 4, (3, 3))
    kept = memory.Memory(str(tmp_path))
    kept.note(spec, "forward", True, {"native": 1.0}, bias=True)
    assert kept.recall(spec, "forward", True, ["native"], bias=True) == {"native": 1.0}
    assert kept.recall(spec, "forward", True, ["native"]) is None


def test_the_number_of_threads_is_a_condition(choose, file):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert choose(OTHER)[1] == 6
    finally:
        torch.set_num_threads(threads)


def edit(**changes):
    """Return a function from the right content to one in which some values are others."""
    return lambda content: json.dumps(content | changes)


def with_entries(times):
    return lambda content: json.dumps(content | {"entries": dict.fromkeys(content["entries"], times)})


CORRUPT = {
    "empty": lambda content: "",
    "cut off": lambda content: json.dumps(content)[:-20],
    "no JSON": lambda content: "fast",
    "a list": lambda content: "[1, 2]",
    "a number": lambda content: "3",
    "null": lambda content: "null",
    "nothing in it": lambda content: "{}",
    "bytes that are no text": lambda content: b"\xff\xfe\x00",
    "deeply nested": lambda content: "[" * 100_000,
    "another format": edit(format=99),
    "another machine's": edit(conditions={"processor": "another"}),
    "entries in a list": edit(entries=[["forward", 1.0]]),
    "entries missing": edit(entries=None),
    "times in a list": with_entries([1.0, 2.0]),
    "a time in words": with_entries({"native": "fast", "quick": 2.0}),
    "a time of null": with_entries({"native": None, "quick": 2.0}),
    "a negative time": with_entries({"native": 4.0, "quick": -2.0}),
    "no time at all": with_entries({"native": 4.0, "quick": 0}),
    "not a number": with_entries({"native": 4.0, "quick": float("nan")}),
    "endless": with_entries({"native": float("inf"), "quick": float("inf")}),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_file_is_told_of_and_written_anew(choose, file, capsys, kind):
    content = CORRUPT[kind](json.loads(file.read_text()))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert choose(OTHER) == (["native"] * 3, 6), "nothing of it is used"
    told = capsys.readouterr().err
    assert f"engine: kernels.cache: {file} is ignored and will be written anew" in told
    assert choose(TIMES) == (["native"] * 3, 0)
    assert capsys.readouterr().err == ""


UNUSABLE = {
    "taken": "it is a file",
    "taken/below": "Not a directory",
    "x" * 300: "File name too long",
    "~nosuchuser/x": "Could not determine home directory",
    "nul\0": "embedded null byte",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_folder_that_was_given_and_cannot_be_used_is_answered_in_a_line(choose, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(UsageError) as raised:
        choose(TIMES, cache=name)
    assert f"kernels.cache={name}: {UNUSABLE[name]}; give a folder that can be used, or none" == str(raised.value)
    assert (tmp_path / "taken").read_text() == "a file where the folder should be"


def test_a_folder_without_permission_is_answered_in_a_line(choose, tmp_path, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)  # a superuser may read everything
    with pytest.raises(UsageError, match=r"kernels.cache=.*: Permission denied; give"):
        choose(TIMES)


@pytest.mark.parametrize("cause", ["file", "home"])
def test_where_the_users_own_folder_cannot_be_used_nothing_is_remembered(choose, tmp_path, monkeypatch, capsys, cause):
    if cause == "file":
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(
            "os.path.expanduser", lambda path: path
        )  # no HOME, and a user whom the system does not know
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert choose(TIMES, cache="") == (["quick"] * 3, 6)
        told = capsys.readouterr().err
        assert "engine: kernels.cache: the user's cache folder cannot be used (" in told
        assert "nothing is remembered" in told
    assert {path.name for path in tmp_path.iterdir()} <= {"taken"}


def test_a_file_that_cannot_be_written_is_told_of_and_the_run_goes_on(choose, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "write_whole", full)
    assert choose(TIMES) == (["quick"] * 3, 6)
    assert "cannot be written (No space left on device): the next run measures again" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_told_of_and_the_run_goes_on(choose, file, capsys):
    file.unlink()
    file.mkdir()
    assert choose(TIMES) == (["quick"] * 3, 6)
    assert "is ignored" in capsys.readouterr().err


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path):
    spec, times = ConvSpec(2, 3, 8, 8, 4, (3, 3)), {"native": 1.0}
    one, other = memory.Memory(str(tmp_path)), memory.Memory(str(tmp_path))
    one.note(spec, "forward", True, times)
    other.note(spec, "backward_input", True, times)
    one.keep()
    other.keep()
    third = memory.Memory(str(tmp_path))
    assert third.recall(spec, "forward", True, ["native"]) == times
    assert third.recall(spec, "backward_input", True, ["native"]) == times
    assert third.recall(spec, "backward_weight", True, ["native"]) is None


def test_where_it_is_kept(choose, own_cache, monkeypatch, tmp_path):
    choose(TIMES, cache="none")
    assert not own_cache.exists() or not list(own_cache.iterdir())
    choose(TIMES, cache="")
    assert len(list((own_cache / "conv-engine").iterdir())) == 1
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    choose(TIMES, cache="~/mine")
    assert len(list((tmp_path / "home" / "mine").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    choose(TIMES, cache="")
    assert len(list((tmp_path / "home" / ".cache" / "conv-engine").iterdir())) == 1
