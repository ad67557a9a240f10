"""Two machines, each a network of its own with a cable between them: one is lost, or its disk is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from commands import ENGINE, QUICK, TORCHRUN, two
from safetensors.torch import load_file

from engine import manifest

pytestmark = pytest.mark.soak

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
WORDS = ["train", "parallel=data", *QUICK, "precision=float64", "run.steps=300", "save.every=10 steps", "optim.lr=0.02"]


def done(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Return the names of two networks that are connected with each other and with nothing else."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("networks are made by root with ip of iproute2")
    names = f"engine-a-{os.getpid()}", f"engine-b-{os.getpid()}"
    try:
        for name in names:
            done("ip", "netns", "add", name)
        ends = ["netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1]]
        done("ip", "link", "add", "cable", *ends)
        for name, address in zip(names, (FIRST, SECOND), strict=True):
            done("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            done("ip", "-n", name, "link", "set", "cable", "up")
            done("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=30)


def agent(machine: str, address: str) -> list[str]:
    """Return the command by which one machine takes part in a run of one or two."""
    return [
        "ip", "netns", "exec", machine, *TORCHRUN, "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{FIRST}:29555", "--rdzv-id", "lost", "--local-addr", address,
        "--rdzv-conf", f"last_call_timeout=2,is_host={int(address == FIRST)}", "-m", "engine",
    ]  # fmt: skip


def test_a_machine_that_is_lost_leaves_a_smaller_run(start, machines, tmp_path):
    """The batches stay the same, so that in float64 the weights differ by the order of sums alone."""
    whole = start(*WORDS, "out=whole")
    assert whole.end() == 0, whole.told
    variables = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    first = start(*WORDS, "parallel.timeout=10", "out=run", by=agent(machines[0], FIRST), **variables)
    second = start(*WORDS, "parallel.timeout=10", "out=run", by=agent(machines[1], SECOND), **variables)
    first.until_saved(tmp_path / "run", 30)
    facts = manifest.read(manifest.checkpoints(tmp_path / "run")[0])
    os.kill(second.process.pid, signal.SIGKILL)
    for number in second.processes().values():
        os.kill(number, signal.SIGKILL)
    begun, newest = time.monotonic(), int(manifest.checkpoints(tmp_path / "run")[0].name[5:])
    first.until_saved(tmp_path / "run", newest + 10)
    print(f"one machine trains on after {time.monotonic() - begun:.1f} s")
    assert first.end() == 0, first.told
    ends = [manifest.checkpoints(tmp_path / name)[0] for name in ("whole", "run")]
    positions = [manifest.verify(end)["position"] for end in ends]
    assert positions[0] == positions[1] != facts["position"]
    weights = [load_file(end / "model.safetensors") for end in ends]
    for name, value in weights[0].items():
        error = float((weights[1][name] - value).norm() / value.norm())
        assert error < 1e-12, (name, error)


FULL = """
mount -t tmpfs -o size={size}k none full || exit 77
"$@"; code=$?
ls full/run/checkpoints/.partial-* 2> /dev/null && code=66
cp -r full/run/checkpoints kept
exit $code
"""


def test_a_full_disk_ends_the_run_with_its_checkpoints(start, tmp_path):
    """A file system of its own, which the third checkpoint does not fit into; nobody tries again."""
    if os.geteuid() != 0:
        pytest.skip("a file system is mounted by root")
    (tmp_path / "full").mkdir()
    words = two("run.steps=100000", "save.every=10 steps", "save.keep=9", "save.best=false", "out=full/run")
    shell = ["unshare", "-m", "sh", "-c", FULL.format(size=2500), "sh", *ENGINE]
    command = start(*words, by=shell)
    code = command.end()
    if code == 77:
        pytest.skip("no file system may be mounted here")
    assert code == 3, command.told
    (line,) = [line for line in command.told.splitlines() if line.startswith("engine: ")]
    kept = sorted(path.name for path in (tmp_path / "kept").glob("step-*"))
    assert kept
    assert "could not be written" in line
    assert "No space left on device" in line
    assert f"the newest whole checkpoint is {kept[-1]}; make room" in line
    for name in kept:
        manifest.verify(tmp_path / "kept" / name)
