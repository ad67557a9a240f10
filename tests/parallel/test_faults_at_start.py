"""What can be wrong before the first step: each is one line, soon, and says what to do."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from engine import UsageError, manifest
from engine.devices import prepare_device
from engine.distributed.joining import address_of, choose_interface, joined
from engine.distributed.place import Place
from engine.options import Parallel, RunOptions
from engine.plugins.parallel import Single
from engine.start import started_again
from engine.testing import small_run, together

SEVERAL_MACHINES = Place(rank=1, world=2, local_rank=0, local_world=1, address="127.0.0.1")


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Let joining set variables, as it does in a process that is one of several from then on."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which somebody else listens, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def refused(place: Place, told: str, **options) -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match=told) as raised, joined(Parallel(timeout=2, **options), place):
        pass
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begun < 30


def test_a_port_that_is_taken(taken):
    refused(Place(0, 2, 0, 2, address="127.0.0.1", port=taken), f"rank 0 cannot reach .* at 127.0.0.1:{taken} by .*lo")


def test_somebody_else_at_rank_0s_port(taken):
    refused(Place(1, 2, 1, 2, address="127.0.0.1", port=taken), f"rank 1 cannot reach .* at 127.0.0.1:{taken}")


@pytest.mark.soak
def test_a_process_that_was_not_started():
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    refused(Place(0, 2, 0, 2, address="127.0.0.1", port=free), "see that all were started")


@pytest.mark.parametrize(
    "place",
    [
        Place(1, 2, 0, 1, address="no.such.machine.invalid"),
        pytest.param(Place(1, 2, 1, 2, address="no.such.machine.invalid"), marks=pytest.mark.soak),
    ],
)
def test_a_machine_that_is_unknown(place):
    refused(place, "no.such.machine.invalid")


def test_an_interface_that_is_not_there():
    told = "parallel.interface=eth77: there is no such interface here; choose of .*lo"
    refused(SEVERAL_MACHINES, told, interface="eth77")


def test_loopback_does_not_reach_another_machine():
    refused(SEVERAL_MACHINES, "the 2 machines cannot reach each other by the loopback interface", interface="lo")


def test_loopback_is_right_on_one_machine():
    assert choose_interface("", Place(1, 2, 1, 2)) == "lo"
    assert address_of("lo") == "127.0.0.1"
    assert address_of("eth77") == ""


def start_alone(out) -> None:
    small_run(out, parallel=Single())


def test_one_process_is_not_started_several_times(tmp_path):
    with pytest.raises(AssertionError, match="UsageError: parallel=single is for one process, and 2 were started"):
        together(2, start_alone, tmp_path / "run")


def test_a_restart_goes_on_with_its_own_run_alone(tmp_path, monkeypatch):
    """A launcher starts its processes again also after they refused to go on with somebody else's folder."""
    run = small_run(tmp_path / "run", steps=2)
    run.overrides = ["model=mlp", "optim.lr=1"]
    run.fit()
    assert len(manifest.checkpoints(tmp_path / "run")) == 1
    variables = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_again(tmp_path / "run", ["optim.lr=1", "model=mlp"])
    assert not started_again(tmp_path / "run", ["model=mlp"])
    assert started_again(tmp_path / "empty", [])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not started_again(tmp_path / "run", ["optim.lr=1", "model=mlp"])


def test_a_restart_without_a_checkpoint_starts_where_the_run_did(tmp_path, monkeypatch):
    """A branch whose processes were lost before its first checkpoint begins at its starting point once more."""
    first = small_run(tmp_path / "first", steps=3)
    first.fit()
    (start,) = manifest.checkpoints(tmp_path / "first")
    small_run(tmp_path / "branch", steps=6, resume=str(start)).lock.close()
    assert not manifest.checkpoints(tmp_path / "branch")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = small_run(tmp_path / "branch", steps=6, resume=str(start))
    assert again.position.step == 3
    again.fit()
    again = small_run(tmp_path / "branch", steps=9, resume=str(start))
    assert again.position.step == 6
    again.lock.close()


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(monkeypatch, wanted):
    """Two GPUs, as torch would tell of them; the third process of a machine has none."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    os.environ.update({"RANK": "5", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"})
    options = SimpleNamespace(run=RunOptions(device=wanted, deterministic=False))
    for local_rank in range(2):
        os.environ["LOCAL_RANK"] = str(local_rank)
        assert prepare_device(options) == torch.device("cuda", local_rank) == chosen[-1]
    os.environ["LOCAL_RANK"] = "2"
    told = "run.device=cuda:2: 3 processes need a GPU each, and this machine has 2 GPUs; start as many, or use "
    with pytest.raises(UsageError, match=re.escape(told)):
        prepare_device(options)
