"""Errors that are answered in one line, and the exit codes the command line promises."""

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_DONE = 0
EXIT_CRASHED = 1  # a defect in the engine or a plugin: the traceback is printed
EXIT_USAGE = 2  # the user's input: one line says what to change
EXIT_FAILED = 3  # the run itself failed, for example its loss stopped being finite
EXIT_INTERRUPTED = 130  # ended at once by a second Ctrl-C
EXIT_STOPPED = 75  # stopped by a signal or run.max_time, checkpoint saved (EX_TEMPFAIL: run it again to go on)


class EngineError(Exception):
    """A problem whose message is one line that tells the reader what to do; never shown with a traceback."""

    exit_code = EXIT_FAILED


class UsageError(EngineError):
    """A mistake in what the user gave (an option, a file, a plugin); nothing was overwritten."""

    exit_code = EXIT_USAGE


class RunFailed(EngineError):
    """A run that cannot go on, through no mistake in its options; earlier checkpoints are intact."""


class Stopped(EngineError):
    """A run that was asked to stop, and did, with a checkpoint saved; the message says how to go on."""

    exit_code = EXIT_STOPPED


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint to append to an error: the nearest known name, else the list of all of them."""
    known = sorted(set(known))
    near = get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if known else "; none are known"
