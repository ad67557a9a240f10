"""Which of a run's processes this is, from the variables that its launcher has set. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from engine.errors import UsageError

PORT = 29500
"""Where rank 0 listens if a launcher that gives no port has started the processes; Slurm's job number is added."""
MOST = 16  # processes for each core: more only take memory, each some 200 MB
PORTS = 1000  # so many, that two jobs on a machine seldom choose the same


@dataclass(frozen=True)
class Place:
    """One process among those of a run: its rank, their number, and the same on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restart: int = 0  # how often the launcher has started the processes again
    address: str = ""  # of the machine on which rank 0 listens; "": the launcher's variables say where
    port: int = PORT

    @property
    def machines(self) -> int:
        """How many machines the processes are on; where not as many are on each, at least that there are several."""
        return ceil(self.world / self.local_world)

    def variables(self) -> dict[str, str]:
        """Return the variables by which torch.distributed finds its place."""
        named = {"RANK": self.rank, "WORLD_SIZE": self.world, "LOCAL_RANK": self.local_rank}
        where = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)} if self.address else {}
        return {name: str(value) for name, value in named.items()} | where


def place_of(variables: Mapping[str, str]) -> Place:
    """Return the place that torchrun, srun or mpirun has given this process; one alone without them.

    Raises UsageError naming a variable that is missing or no number.
    """
    if "WORLD_SIZE" in variables and "RANK" in variables:
        return _of_torchrun(variables)
    if "SLURM_STEP_NUM_TASKS" in variables and "SLURM_PROCID" in variables:  # both: only srun sets the first
        return _of_slurm(variables)
    if "OMPI_COMM_WORLD_SIZE" in variables:
        return _of_mpi(variables, "OMPI_COMM_WORLD_", "OMPI_COMM_WORLD_LOCAL_")
    if "PMI_SIZE" in variables:
        return _of_mpi(variables, "PMI_", "MPI_LOCALN")
    return Place()


def _of_torchrun(variables: Mapping[str, str]) -> Place:
    world = _number(variables, "WORLD_SIZE")
    return Place(
        rank=_number(variables, "RANK"),
        world=world,
        local_rank=_number(variables, "LOCAL_RANK", 0),
        local_world=_number(variables, "LOCAL_WORLD_SIZE", world),
        restart=_number(variables, "TORCHELASTIC_RESTART_COUNT", 0),
    )


def _of_slurm(variables: Mapping[str, str]) -> Place:
    world = _number(variables, "SLURM_STEP_NUM_TASKS")
    if world == 1:
        return Place()
    tasks = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", str(world)))  # as "4(x2),3"
    return Place(
        rank=_number(variables, "SLURM_PROCID"),
        world=world,
        local_rank=_number(variables, "SLURM_LOCALID"),
        local_world=int(tasks[0]) if tasks else world,
        restart=_number(variables, "SLURM_RESTART_COUNT", 0),
        address=variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "")),
        port=_number(variables, "MASTER_PORT", PORT + _number(variables, "SLURM_JOB_ID", 0) % PORTS),
    )


def _of_mpi(variables: Mapping[str, str], prefix: str, local: str) -> Place:
    world = _number(variables, f"{prefix}SIZE")
    if world == 1:
        return Place()
    if "MASTER_ADDR" not in variables:
        raise UsageError(
            f"mpirun has started {world} processes, but nothing says where rank 0 is: export MASTER_ADDR, the name of "
            "the first machine, and pass it on (Open MPI: mpirun -x MASTER_ADDR ...)"
        )
    local_rank, local_size = ("RANK", "SIZE") if local.endswith("_") else ("RANKID", "RANKS")
    return Place(
        rank=_number(variables, f"{prefix}RANK"),
        world=world,
        local_rank=_number(variables, f"{local}{local_rank}", 0),
        local_world=_number(variables, f"{local}{local_size}", world),
        address=variables["MASTER_ADDR"],
        port=_number(variables, "MASTER_PORT", PORT),
    )


def require_room(processes: int) -> None:
    """Raise UsageError for many more processes than this machine can carry, before it is brought to its knees."""
    cores = len(os.sched_getaffinity(0))
    if processes > MOST * cores:
        raise UsageError(
            f"parallel.processes={processes}: this machine has {cores} cores; start at most {MOST * cores} here, "
            "and the others on other machines"
        )


def first_host(nodes: str) -> str:
    """Return the first of Slurm's list of machines: "node03" of "node[03-05,9],login"; "" of none."""
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return f"{match[1]}{match[2] or ''}" if match else ""


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UsageError(
            f"the environment's {name}={text} is no number: start the processes with one launcher"
        ) from None
