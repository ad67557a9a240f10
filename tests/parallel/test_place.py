"""Which process this is, from the variables of torchrun, Slurm and MPI."""

from __future__ import annotations

import pytest

from engine import UsageError
from engine.distributed.place import PORT, Place, first_host, place_of

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "1234",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "node1",
}  # fmt: skip
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "node1"}


def test_alone_without_a_launcher():
    assert place_of({}) == Place(0, 1, 0, 1)
    assert place_of({}).machines == 1


def test_torchrun():
    place = place_of(TORCHRUN)
    assert (place.rank, place.world, place.local_rank, place.local_world) == (5, 8, 1, 4)
    assert (place.restart, place.machines) == (2, 2)
    # torch finds rank 0 by the launcher's own variables.
    assert place.variables() == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_srun_says_where_and_the_job_number_which_port():
    place = place_of(SRUN)
    assert (place.rank, place.world, place.local_rank, place.local_world, place.machines) == (5, 8, 1, 4, 2)
    assert place.variables()["MASTER_ADDR"] == "node03"
    assert place.variables()["MASTER_PORT"] == str(PORT + 711)
    assert place_of({**SRUN, "MASTER_ADDR": "ib1", "MASTER_PORT": "99"}).variables()["MASTER_ADDR"] == "ib1"
    assert place_of({**SRUN, "MASTER_ADDR": "ib1", "MASTER_PORT": "99"}).port == 99
    assert place_of({**SRUN, "SLURM_RESTART_COUNT": "3"}).restart == 3


def test_a_batch_script_without_srun_is_one_process():
    """sbatch sets these for the script itself, whatever the job has reserved."""
    assert place_of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}).world == 1
    assert place_of({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}).world == 1


def test_torchrun_under_srun_is_torchruns():
    assert place_of({**SRUN, **TORCHRUN}).variables()["RANK"] == "5"
    assert place_of({**SRUN, **TORCHRUN}).address == ""


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-05,9],login", "node03"),
        ("node7", "node7"),
        ("a,b", "a"),
        ("gpu-[1,3-4]", "gpu-1"),
        ("rack1-node[007]", "rack1-node007"),
        ("", ""),
    ],
)
def test_first_of_slurms_machines(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(("variables", "rank", "local"), [(OPEN_MPI, 3, (1, 2)), (MPICH, 2, (0, 2))])
def test_mpirun(variables, rank, local):
    place = place_of(variables)
    assert (place.rank, place.world, place.machines) == (rank, 4, 2)
    assert (place.local_rank, place.local_world) == local
    assert place.variables()["MASTER_ADDR"] == "node1"


@pytest.mark.parametrize("variables", [OPEN_MPI, MPICH])
def test_mpirun_must_say_where_rank_0_is(variables):
    with pytest.raises(UsageError, match="export MASTER_ADDR"):
        place_of({name: value for name, value in variables.items() if name != "MASTER_ADDR"})


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_variable_that_is_no_number_is_named(name):
    with pytest.raises(UsageError, match=f"{name}=two is no number"):
        place_of({**TORCHRUN, name: "two"})


def test_uneven_machines():
    """Slurm tells of each machine's tasks; "3,2" is 3 on the first."""
    place = place_of({**SRUN, "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2"})
    assert place.machines > 1


@pytest.mark.parametrize("words", [["parallel=data", "run.batch=1400"], ["parallel=async"]])
def test_far_too_many_processes_are_refused_before_any_starts(engine, words: list[str]) -> None:
    code, _, said = engine("train", *words, "parallel.processes=1000")
    assert code == 2
    assert said.startswith("engine: parallel.processes=1000: this machine has ")
