"""The run folder has one owner, and what is somebody else's stays as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import UsageError, folder
from engine.folder import claim, record, write_whole


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HOLD = """
import sys
from pathlib import Path
from engine.folder import claim
lock = claim(Path(sys.argv[1]), resuming=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_use_by_another_process_is_named_with_its_owner(tmp_path):
    out = tmp_path / "deep" / "run"
    holder = child(HOLD, out)
    try:
        assert holder.stdout.readline() == "held\n"
        before = content(out)
        for resuming in (False, True):
            with pytest.raises(UsageError) as caught:
                claim(out, resuming)
            assert str(caught.value) == (
                f"out={out} is in use by process {holder.pid}: wait for it, or choose another out="
            )
        assert content(out) == before
    finally:
        holder.communicate("")
    assert holder.returncode == 0
    with claim(out, resuming=False):
        assert (out / folder.LOCK).read_text() == str(os.getpid()), "the folder is free once its owner has ended"


def test_a_folder_is_ours_until_the_lock_is_closed(tmp_path):
    lock = claim(tmp_path, resuming=False)
    with pytest.raises(UsageError, match=f"is in use by process {os.getpid()}:"):
        claim(tmp_path, resuming=False)
    lock.close()
    claim(tmp_path, resuming=False).close()


@pytest.mark.parametrize("sign", [folder.CONFIG, "checkpoints/step-00000007/manifest.json"])
def test_a_run_that_is_there_is_only_resumed(tmp_path, sign):
    (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / sign).write_text("somebody's")
    (tmp_path / folder.LOCK).write_text("12345")
    before = content(tmp_path)
    with pytest.raises(UsageError) as caught:
        claim(tmp_path, resuming=False)
    assert str(caught.value) == (
        f"out={tmp_path} holds a run already: resume=auto goes on with it, another out= starts a new one"
    )
    assert content(tmp_path) == before
    with claim(tmp_path, resuming=True):
        assert content(tmp_path) == {**before, folder.LOCK: str(os.getpid()).encode()}


def test_a_folder_with_other_files_is_taken_and_they_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, resuming=False).close()
    record(tmp_path, "a: 1\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="holds a run already"):
        claim(tmp_path, resuming=False)


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_in_the_way_is_left_alone(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match=r"cannot be written \((File exists|Not a directory)\): choose another out=$"):
        claim(file / below if below else file, resuming=False)
    assert file.read_text() == "mine"


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from engine import UsageError
from engine.folder import claim, record
os.chdir(sys.argv[1])  # before the rights are given up, as pytest keeps its folders to one user
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for action in (lambda: claim(Path(sys.argv[2]), False), lambda: record(Path(sys.argv[2]), "new")):
    try:
        action()
    except UsageError as error:
        print(error)
"""


@pytest.mark.parametrize(("out", "answers"), [("readonly", 2), ("readonly/run", 1)])
def test_a_folder_that_may_not_be_written_is_left_as_it_was(tmp_path, out, answers):
    readonly = tmp_path / "readonly"
    readonly.mkdir()
    (readonly / folder.CONFIG).write_text("old")
    readonly.chmod(0o555)
    told, complaints = child(UNPRIVILEGED, tmp_path, out).communicate()
    expected = f"out={out} cannot be written (Permission denied): choose another out="
    assert told.splitlines()[:answers] == [expected] * answers, complaints
    assert content(readonly) == {folder.CONFIG: b"old"}


FULL = """
import resource, signal, sys
from pathlib import Path
from engine import UsageError
from engine.folder import claim, record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
out = Path(sys.argv[1])
lock = None
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    lock = claim(out, resuming=True)
    print("claimed")
    record(out, "new" * 1000)
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(("room", "claimed"), [(0, False), (100, True)])
def test_files_that_cannot_grow_are_answered_in_a_line_and_the_old_config_stays(tmp_path, room, claimed):
    (tmp_path / folder.CONFIG).write_text("old")
    ended = child(FULL, tmp_path, room)
    told, complaints = ended.communicate()
    assert complaints == ""
    assert ended.returncode == 0
    error = f"out={tmp_path} cannot be written (File too large): choose another out="
    assert told.splitlines() == (["claimed", error] if claimed else [error])
    assert (tmp_path / folder.CONFIG).read_text() == "old"


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_asks_for_space(tmp_path, monkeypatch, full):
    def refuse(*_):
        raise OSError(full, os.strerror(full))

    monkeypatch.setattr(folder.os, "write", refuse)
    with pytest.raises(UsageError) as caught:
        claim(tmp_path, resuming=False)
    assert str(caught.value) == f"out={tmp_path} cannot be written ({os.strerror(full)}): free some space"
    monkeypatch.undo()
    claim(tmp_path, resuming=False).close()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", refuse)
    with claim(tmp_path, resuming=False):
        assert "is on a file system without locks" in capsys.readouterr().err


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_whole(path, "naïve ✓\n")
    assert path.read_bytes() == "naïve ✓\n".encode()
    seen = []

    def look(descriptor):
        seen.append(path.read_text(encoding="utf-8"))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder.os, "fsync", look)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(path, "new\n")
    assert seen == ["naïve ✓\n"], "until all is on the disk a reader sees the old content"
    assert path.read_text(encoding="utf-8") == "naïve ✓\n"
    monkeypatch.undo()
    write_whole(path, "new\n")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_the_config_is_written_as_utf8_in_any_locale(tmp_path):
    script = (
        "import sys; from pathlib import Path; from engine.folder import record; record(Path(sys.argv[1]), '\\u2713')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, timeout=60)
    assert (tmp_path / folder.CONFIG).read_bytes() == "✓".encode()
