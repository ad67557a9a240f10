"""Damage to a checkpoint is found, wherever it is, and told in one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import UsageError, manifest
from engine.checkpoint import Checkpoints

FACTS = {"overrides": ["model=lenet", "run.seed=3"], "classes": ["né", "0"], "rate": 0.1, "best": None}


def save(run: Path, step: int, keep: int = 9) -> Path:
    draw = torch.Generator().manual_seed(step)
    files = {
        "model.safetensors": {"w": torch.randn(5, 3, generator=draw), "b": torch.randn(5, generator=draw)},
        "engine.safetensors": {"updates": torch.tensor([step])},
    }
    return Checkpoints(run, keep, False, True).save(step, files, FACTS, None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sound checkpoint, which every test leaves as it is."""
    return save(tmp_path_factory.mktemp("whole"), 4)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_sound_checkpoint_verifies_without_torch(whole):
    script = (
        "import sys; from pathlib import Path; from engine import manifest\n"
        "facts = manifest.verify(Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
        "print(facts['overrides'], facts['step'], sorted(facts['files']))"
    )
    words = [sys.executable, "-c", script, str(whole)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told == "['model=lenet', 'run.seed=3'] 4 ['engine.safetensors', 'model.safetensors']\n"


def as_json(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_altered_byte_is_found_wherever_it_is(whole, data):
    before = content(whole)
    name = data.draw(st.sampled_from(sorted(before)))
    place = data.draw(st.integers(0, len(before[name]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != before[name][place]))
    altered = bytearray(before[name])
    altered[place] = byte
    sound = manifest.verify(whole)
    try:
        (whole / name).write_bytes(altered)
        if name == manifest.NAME and as_json(altered) == as_json(before[name]):
            assert manifest.verify(whole) == sound  # JSON has blanks that mean nothing
        else:
            with pytest.raises(UsageError, match=name):
                manifest.verify(whole)
    finally:
        (whole / name).write_bytes(before[name])
    assert manifest.verify(whole) == sound


@pytest.mark.parametrize("name", ["model.safetensors", "engine.safetensors", manifest.NAME])
@pytest.mark.parametrize("change", ["shorter", "empty", "longer"])
def test_another_length_is_found(tmp_path, name, change):
    folder = save(tmp_path, 1)
    held = (folder / name).read_bytes()
    (folder / name).write_bytes({"shorter": held[:-1], "empty": b"", "longer": held + b"x"}[change])
    with pytest.raises(UsageError, match=name):
        manifest.verify(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "engine.safetensors"])
def test_a_missing_file_or_one_that_is_none_is_named(tmp_path, name):
    folder = save(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(UsageError) as caught:
        manifest.verify(folder)
    assert str(caught.value) == f"{folder / name} is missing; use another checkpoint"
    (folder / name).mkdir()
    with pytest.raises(UsageError, match=rf"{name} cannot be read \(Is a directory\)"):
        manifest.verify(folder)


def test_a_disk_that_cannot_give_a_file_back_is_damage_like_any_other(tmp_path, monkeypatch):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    sound = manifest.file_checksum

    def failing(path: Path) -> str:
        if path.parent == newer:
            raise OSError(5, "Input/output error", str(path))
        return sound(path)

    monkeypatch.setattr(manifest, "file_checksum", failing)
    told: list[str] = []
    assert manifest.newest_valid(tmp_path, told.append) == older
    (line,) = told
    assert line == (
        f"skipping {newer.name}: {newer / 'model.safetensors'} cannot be read (Input/output error); "
        "use another checkpoint"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"checksum": 1}', '{"format": 1}', "\xff", "[" * 50])
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    (tmp_path / manifest.NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=rf"{manifest.NAME} (cannot be read|was altered).*; use another checkpoint"):
        manifest.read(tmp_path)


def test_another_format_is_told_by_its_number(tmp_path):
    folder = save(tmp_path, 1)
    facts = json.loads((folder / manifest.NAME).read_text())
    facts["format"] = 99
    facts["checksum"] = manifest.checksum(facts)
    (folder / manifest.NAME).write_text(json.dumps(facts))
    with pytest.raises(UsageError) as caught:
        manifest.verify(folder)
    assert str(caught.value) == (
        f"{folder / manifest.NAME} has format 99, this engine reads 1; use the engine it names"
    )


def test_the_checksum_is_sha256_of_the_sorted_content():
    facts = {"b": 1, "a": [1.5, "é"], "checksum": "anything"}
    # printf '{"a": [1.5, "\\u00e9"], "b": 1}' | sha256sum
    assert manifest.checksum(facts) == "b3f3fbd62be15d7ab7680b9cbca206406235a8489dc3c53ecf92e2eebaee3166"


def test_checkpoints_are_listed_by_step_and_a_users_copies_are_left_out(tmp_path):
    assert manifest.checkpoints(tmp_path / "nowhere") == []
    steps = [5, 99999999, 100000000, 20]
    for step in steps:
        folder = manifest.folder_of(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / manifest.NAME).write_text("{}")
    for name in ("step-00000020.bak", "step-old", "best", ".partial-step-00000021", ".removed-step-00000001"):
        (tmp_path / manifest.FOLDER / name).mkdir()
        (tmp_path / manifest.FOLDER / name / manifest.NAME).write_text("{}")
    manifest.folder_of(tmp_path, 30).mkdir()  # never finished: it has no manifest
    assert manifest.checkpoints(tmp_path) == [manifest.folder_of(tmp_path, s) for s in sorted(steps, reverse=True)]


def test_newest_valid_passes_over_damage_and_tells(tmp_path):
    folders = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    (folders[3] / manifest.NAME).write_text("{")
    (folders[2] / "model.safetensors").write_bytes(b"short")
    told: list[str] = []
    assert manifest.newest_valid(tmp_path, told.append) == folders[1]
    assert [line.partition(":")[0] for line in told] == ["skipping step-00000004", "skipping step-00000003"]
    assert "model.safetensors has 5 bytes instead of" in told[1]
    for folder in folders[:2]:
        (folder / "engine.safetensors").unlink()
    told.clear()
    assert manifest.newest_valid(tmp_path, told.append) is None
    assert len(told) == 4


def test_locate_finds_what_a_path_means(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    told: list[str] = []
    assert manifest.locate(older, told.append) == older
    assert manifest.locate(tmp_path, told.append) == newer
    assert told == []


def test_locate_says_what_is_wrong_with_a_path(tmp_path):
    with pytest.raises(UsageError) as caught:
        manifest.locate(tmp_path / "nowhere", print)
    assert str(caught.value) == f"{tmp_path / 'nowhere'} does not exist; give a run folder or a checkpoint folder"
    with pytest.raises(UsageError, match=r"holds no valid checkpoint; give a run folder or a checkpoint folder$"):
        manifest.locate(tmp_path, print)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="file holds no valid checkpoint"):
        manifest.locate(file, print)
    with pytest.raises(UsageError, match=r"cannot be read \(File name too long\)"):
        manifest.locate(tmp_path / ("x" * 300), print)
    with pytest.raises(UsageError, match=r"is not a checkpoint: it has no manifest\.json"):
        manifest.read(tmp_path)


CLOSED = """
import os, sys
from pathlib import Path
from engine import UsageError, manifest
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    manifest.locate(Path("closed/run"), print)
except UsageError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_entered_is_told(tmp_path):
    save(tmp_path / "closed" / "run", 1)
    (tmp_path / "closed").chmod(0o000 if os.geteuid() else 0o700)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", CLOSED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert ended.stdout == "closed/run cannot be read (Permission denied); give another folder\n", ended.stderr


def test_a_damaged_newer_checkpoint_does_not_displace_the_ones_written_after_going_back(tmp_path):
    save(tmp_path, 15, keep=1)
    damaged = save(tmp_path, 20, keep=2)
    (damaged / "model.safetensors").write_bytes(b"")
    written = save(tmp_path, 18, keep=1)
    assert manifest.newest_valid(tmp_path, lambda _: None) == written


def test_damage_of_many_bytes_is_found(tmp_path):
    folder = save(tmp_path, 1)
    draw = random.Random(0)
    sound = manifest.verify(folder)
    for name, held in content(folder).items():
        if name == manifest.NAME:
            continue
        for _ in range(20):
            first = draw.randrange(len(held))
            altered = held[:first] + draw.randbytes(len(held) - first)
            (folder / name).write_bytes(altered)
            if altered == held:
                assert manifest.verify(folder) == sound
                continue
            with pytest.raises(UsageError, match=f"{name} was altered"):
                manifest.verify(folder)
        (folder / name).write_bytes(held)
    assert manifest.verify(folder) == sound
