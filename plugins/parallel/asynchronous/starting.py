"""What a process of asynchronous training does: start the others, be the server, or be a worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from engine import UsageError
from engine.distributed.place import place_of, require_room
from engine.errors import Stopped
from engine.interfaces import Strategy
from engine.session import Session

from ..single import SingleProcess
from .leading import LeadingServer
from .links import interface_to
from .rules import Rules
from .server import ParameterServer
from .shard import Shard
from .trace import NAME
from .words import address_of
from .worker import Worker

if TYPE_CHECKING:
    from .. import Async


def perform(session: Session, work: Callable[[Session], None]) -> None:
    """Do ``work(session)`` as the process that ``parallel.role`` says; by default start server and workers.

    Raises UsageError for what does not go together.
    """
    parallel: Async = session.options.parallel  # type: ignore[assignment]
    if place_of(os.environ).world > 1 and not parallel.role:
        raise UsageError(
            "parallel=async: a launcher has started several processes, which do not know what they are: start one with "
            "parallel.role=server, others with parallel.role=worker, and all with parallel.server=HOST:PORT"
        )
    rules_of(parallel)
    require_possible(session)
    if parallel.server:
        interface_to(address_of(parallel.server)[0], parallel.interface)
    if parallel.role in ("worker", "shard"):
        work_for(session, work)
    elif parallel.role == "server":
        path = parallel.trace or str(session.out / NAME)
        work(replace(session, options=replace(session.options, parallel=replace(parallel, trace=path))))
    elif parallel.processes == 0 and not parallel.server:
        raise UsageError("parallel.processes=0 starts no worker: give parallel.server=HOST:PORT, where others join")
    else:
        from .supervising import supervise  # with torch's launcher, which takes time to import

        require_room(parallel.processes)
        supervise(session)


def require_possible(session: Session) -> None:
    """Raise UsageError for options that asynchronous training cannot be combined with."""
    stages = session.options.transfer.build().stages(1000)
    if len(stages) > 1:
        raise UsageError(
            f"parallel=async trains in one stage, transfer has {len(stages)}: choose another transfer, or parallel=data"
        )
    servers = session.options.parallel.servers  # type: ignore[attr-defined]
    if servers > 1:
        given = {
            f"run.ema={session.options.run.ema}": session.options.run.ema,
            "observe=histograms": "histograms" in session.options.observe,
        }
        if unfit := next((name for name, is_given in given.items() if is_given), ""):
            raise UsageError(
                f"parallel.servers={servers} does not go with {unfit}: that needs all weights in one process after "
                "every step; leave out one of them"
            )


def work_for(session: Session, work: Callable[[Session], None]) -> None:
    """Do a worker's part, and say in its own words that it was asked to stop."""
    try:
        work(session)
    except Stopped as stopped:
        _discard_empty(session)
        raise Stopped(f"this process was asked to stop ({str(stopped).split(' after ')[0]}); the run goes on") from None
    _discard_empty(session)


def _discard_empty(session: Session) -> None:
    """Remove a folder that was made for a run, if nobody named it: this process's run has the server's."""
    named = any(word.startswith("out=") for word in session.overrides)
    if not named and session.out.is_dir() and not any(session.out.iterdir()):
        session.out.rmdir()


def rules_of(options: Async) -> Rules:
    """Return the rules. Raises UsageError for options that do not go together."""
    if options.servers > 1 and (options.rule == "easgd" or options.compensation):
        unfit = "rule=easgd" if options.rule == "easgd" else f"compensation={options.compensation:g}"
        raise UsageError(f"parallel.servers={options.servers} does not go with parallel.{unfit}: leave out one of them")
    if options.rule == "easgd":
        given = {
            "n_push": options.n_push > 1, "n_fetch": options.n_fetch > 1, "compensation": options.compensation > 0,
            "max_staleness": options.max_staleness is not None, "staleness_rate": options.staleness_rate,
        }  # fmt: skip
        if unfit := next((name for name, is_given in given.items() if is_given), ""):
            raise UsageError(
                f"parallel.rule=easgd has no use for parallel.{unfit}: leave it out (tau and alpha are its)"
            )
        return Rules("easgd", options.tau, options.tau, alpha=options.alpha)
    if options.compensation and options.n_push > 1:
        raise UsageError(
            f"parallel.compensation needs gradients one by one, not parallel.n_push={options.n_push}: choose one"
        )
    return Rules(
        "downpour", options.n_push, options.n_fetch, options.max_staleness, options.beyond, options.staleness_rate,
        options.compensation,
    )  # fmt: skip


def strategy_of(options: Async) -> Strategy:
    """Return the strategy of a process's role; raises UsageError if it has no address."""
    if not options.role:
        return SingleProcess()
    if not options.server:
        raise UsageError(f"parallel.role={options.role} needs parallel.server=HOST:PORT, where the server listens")
    address = address_of(options.server)
    if options.role == "worker":
        return Worker(address, options.interface, options.timeout, options.patience)
    if options.role == "shard":
        return Shard(address, options.interface, options.timeout, options.patience)
    rules, interface, timeout, trace = rules_of(options), options.interface, options.timeout, options.trace
    if options.servers > 1:
        return LeadingServer(options.servers, rules, address, interface, timeout, trace)
    return ParameterServer(rules, address, interface, timeout, trace)
