"""A job whose name has underscores is typed as words: in commands, in help and in completion."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from engine import Job, hookimpl
from engine.cli.arguments import job_of, named_job
from engine.cli.completion import candidates
from engine.cli.presets import Presets
from engine.errors import EXIT_USAGE, UsageError
from engine.registry import Registry

JOBS = ["bench_kernels", "bench_machine", "train", "train_long_first"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("", [])),
        (["run.epochs=1"], ("", ["run.epochs=1"])),
        (["train", "run.epochs=1"], ("train", ["run.epochs=1"])),
        (["bench", "machine"], ("bench_machine", [])),
        (["bench_machine", "quick=true"], ("bench_machine", ["quick=true"])),
        (["bench", "kernels", "model=cnn", "machine"], ("bench_kernels", ["model=cnn", "machine"])),
        (["train", "long", "first", "x=1"], ("train_long_first", ["x=1"])),
        (["train", "long"], ("train", ["long"])),
        (["bench"], ("bench", [])),
        (["bench", "model=cnn", "machine"], ("bench", ["model=cnn", "machine"])),
    ],
)
def test_the_longest_name_that_fits_is_meant(words, expected):
    assert named_job(words, JOBS) == expected


def test_short_fields_of_a_two_word_job_are_written_out(registry):
    assert job_of(["bench", "machine", "quick=true", "run.batch=3"], registry, "train") == (
        "bench_machine", ["job.quick=true", "run.batch=3"],
    )  # fmt: skip
    assert job_of(["job=bench_machine", "quick=true"], registry, "train") == ("bench_machine", ["job.quick=true"])


@pytest.mark.parametrize("words", [["bench"], ["bench", "model=cnn"], ["bench", "kernel"], ["bench", "x", "y"]])
def test_part_of_a_name_is_answered_with_the_whole_names(engine, words):
    done = engine(*words)
    assert done.code == EXIT_USAGE
    assert len(done.err.splitlines()) == 1
    assert "is no job: write 'bench kernels' or 'bench machine'" in done.err


def test_a_job_given_twice_and_a_word_too_many(registry):
    with pytest.raises(UsageError, match="given twice: bench_kernels and train"):
        job_of(["bench", "kernels", "job=train"], registry, "train")
    with pytest.raises(UsageError, match="'model' is not an override"):
        job_of(["bench", "kernels", "model"], registry, "train")


def test_help_shows_jobs_as_they_are_typed(engine):
    lines = [line.split("  ")[2].strip() for line in engine("--help").out.splitlines() if line.startswith("    bench")]
    assert lines == ["bench kernels", "bench machine"]
    fields = engine("bench", "kernels", "--help").out
    assert "inputs=[]" in fields
    assert engine("bench", "--help").code == EXIT_USAGE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("engine be", ["bench"]),
        ("engine bench ", ["kernels", "machine"]),
        ("engine bench m", ["machine"]),
        ("engine bench machine q", ["quick="]),
        ("engine bench_machine q", ["quick="]),
        ("engine bench kernels model=le", ["model=lenet"]),
    ],
)
def test_completion_goes_word_by_word(registry, line, expected):
    assert candidates(line, registry, Presets(registry)) == expected


def test_a_name_that_goes_on_may_also_end():
    """With jobs "sort" and "sort_all", "engine sort " offers the second word beside the first's options."""

    @dataclass
    class Sort(Job):
        """Sort."""

        size: int = 1

    @hookimpl
    def engine_options(store) -> None:
        store.add("job", "sort", Sort)
        store.add("job", "sort_all", Sort)

    registry = Registry.load()
    registry.register("sortlib", SimpleNamespace(engine_options=engine_options))
    found = candidates("engine sort ", registry, Presets(registry))
    assert {"all", "size=", "model="} <= set(found)
    assert job_of(["sort", "size=2"], registry, "train") == ("sort", ["job.size=2"])
    assert job_of(["sort", "all"], registry, "train") == ("sort_all", [])
