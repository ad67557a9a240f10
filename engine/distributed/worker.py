"""One process of a run that ``launching`` has started: ``python -m engine.distributed.worker PAYLOAD LAUNCHER``."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal to get when the parent dies


def main() -> int:
    """Do this process's part of a session's job; return the exit code."""
    payload_path, launcher = Path(sys.argv[1]), int(sys.argv[2])
    _end_with(launcher)
    from engine.distributed.launching import Payload, say_ended
    from engine.errors import EngineError
    from engine.memory import arrange
    from engine.registry import Registry
    from engine.session import Session

    payload: Payload = pickle.loads(payload_path.read_bytes())  # written by our own launcher, into its own folder
    try:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(payload.restart)  # each time is the first, to the launcher
        session = Session(registry=Registry.load(), **payload.session)
        arrange(session.options.run)
        session.options.job.build()(session)
    except (EngineError, KeyboardInterrupt) as error:
        return say_ended(Path(payload.ended), int(os.environ["RANK"]), error)
    except Exception as error:
        traceback.print_exc()
        return say_ended(Path(payload.ended), int(os.environ["RANK"]), error)
    return 0


def _end_with(launcher: int) -> None:
    """Have this process asked to stop if its launcher is killed: nobody else would end it then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it has died already
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of torch.distributed that waits for a lost process must not hold us up
