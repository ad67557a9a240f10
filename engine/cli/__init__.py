"""The command line: ``engine JOB [key=value ...]``; the only package that imports Hydra, and only when needed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from engine import __version__
from engine.cli import arguments
from engine.cli.presets import Presets
from engine.errors import EXIT_INTERRUPTED, EngineError
from engine.registry import Registry


def main() -> None:
    """Carry out the command in ``sys.argv``; exits with the codes that ``engine/errors.py`` documents.

    A user's mistake or a failed run is one line on stderr; a defect shows its traceback (exit code 1).
    """
    try:
        code = carry_out(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end
        code = 128 + signal.SIGPIPE
    except EngineError as error:
        print(f"engine: {' '.join(str(error).split())}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if code:
        sys.exit(code)


def carry_out(argv: Sequence[str]) -> int:
    """Do what one command line says and return its exit code; help and completion never import Hydra."""
    command = arguments.parse(argv)
    if command.flags.version:
        print(f"engine {__version__}")
        return 0
    registry = Registry.load()
    presets = Presets(registry, command.flags.config_dir)
    if command.flags.shell_completion:
        from engine.cli import completion

        completion.answer(command.words, registry, presets)
        return 0
    if command.flags.help or not argv:
        from engine.cli import help

        print(help.text(command.words, registry, presets))
        return 0
    from engine.cli import compose

    return compose.carry_out(command, registry, presets)
