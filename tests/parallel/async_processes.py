"""Server and workers of asynchronous training: each a process that can be killed, in a network of their own."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import RunFailed, UsageError, hookimpl
from engine.options import Model, Observer, SaveOptions
from engine.plugins.parallel import Async, Single
from engine.plugins.parallel.asynchronous import links
from engine.testing import small_run
from engine.testing.processes import PRELOADED, _enter_network_of, enter_own_network

SECONDS = 60
QUIET = {"evaluate_every": "never", "save": SaveOptions("never")}


class Apart:
    """Processes in one network, none of which belongs to another. Use it in ``with``: they are ended with it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._begun: list[One] = []
        self.network, self.port = None, 0
        self.network, self.port = self.begin(_network).said()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._begun:
            one.process.kill()
            one.process.join()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> One:
        """Call ``function(say, *arguments)`` in a process of its own."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_carry_out, args=(theirs, self.network, function, arguments), daemon=True
        )
        process.start()
        theirs.close()
        self._begun.append(One(process, ours))
        return self._begun[-1]

    def server(self, out: Path, **settings: Any) -> One:
        """Begin a server of a small run; ``parallel``: options of Async."""
        return self.begin(serve, self.port, out, settings)

    def shard(self, **settings: Any) -> One:
        """Begin a server of a part; it serves as soon as there is one that leads."""
        return self.begin(serve_part, self.port, settings)

    def worker(self, **settings: Any) -> One:
        """Begin a worker; it works as soon as there is a server."""
        return self.begin(work, self.port, settings)


@dataclass
class One:
    """A process, and what it says."""

    process: Any
    pipe: Connection

    def said(self) -> Any:
        """Return what it says next. Raises AssertionError with its traceback if it has failed."""
        assert self.pipe.poll(SECONDS), "it says nothing"
        works, value = self.pipe.recv()
        assert works, value
        return value

    def until(self, *wanted: str) -> list[Any]:
        """Return what it says until it says something that begins with what is wanted."""
        heard = [self.said()]
        while not (isinstance(heard[-1], tuple) and heard[-1][0] in wanted):
            heard.append(self.said())
        return heard

    def tell(self) -> None:
        """Let it go on, where it waits."""
        self.pipe.send(None)


def _network(say: Callable[[Any], None], wait: Callable[[], None]) -> None:
    say((os.getpid(), enter_own_network()))
    wait()


def _carry_out(pipe: Connection, network: int | None, function: Callable[..., Any], arguments: Any) -> None:
    try:
        if network is not None:
            _enter_network_of(network)
        torch.set_num_threads(1)
        function(lambda value: pipe.send((True, value)), pipe.recv, *arguments)
    except BaseException:
        pipe.send((False, traceback.format_exc()))


@dataclass
class Telling(Observer):
    """Says each step that is made; waits to be told to go on after those of ``waits``."""

    say: Any = None
    wait: Any = None
    waits: tuple[int, ...] = ()

    def build(self) -> object:
        return self

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.say(("step", run.position.step))
        if run.position.step in self.waits:
            self.wait()

    @hookimpl
    def on_log(self, run: Any, scalars: dict[str, float]) -> None:
        self.say(("log", scalars))


def serve(say: Any, wait: Any, port: int, out: Path, settings: dict[str, Any]) -> None:
    """Be the server of a small run; say ("done", outcome, weights, step, state of the strategy) at the end."""
    given = {"server": f"127.0.0.1:{port}", "role": "server", "trace": str(out / "trace.csv"), "timeout": 20.0}
    options = Async(**given | settings.pop("parallel", {}))
    out.mkdir(exist_ok=True)
    watching = {"telling": Telling(say, wait, settings.pop("waits", ()))}
    run = small_run(out, parallel=options, observe=watching, **QUIET | settings)
    counted = Counted()
    say(("ready", run.position.step))
    try:
        outcome = run.fit()
    except RunFailed as error:
        say(("failed", str(error)))
        return
    say(("bytes", counted.bytes))
    say(("done", outcome, everything(run), run.position.step, run.strategy.state()))


class Counted:
    """Counts the bytes of all messages that this process sends and receives from now on."""

    def __init__(self) -> None:
        self.bytes = 0
        send, unpacked = links.Link.send, links.unpack

        def counted_send(link: links.Link, message: Any) -> None:
            packed = links.pack(message) if isinstance(message, links.Message) else message
            self.bytes += len(packed.content)
            send(link, packed)

        def counted_unpack(packed: links.Packed) -> links.Message:
            self.bytes += len(packed.content)
            return unpacked(packed)

        links.Link.send, links.unpack = counted_send, counted_unpack  # type: ignore[method-assign]


def serve_part(say: Any, wait: Any, port: int, settings: dict[str, Any]) -> None:
    """Be a server of a part of a small run's weights; say ("done", outcome) at the end."""
    options = Async(server=f"127.0.0.1:{port}", role="shard", timeout=20.0, patience=30.0)
    run = small_run(Path("/nowhere"), parallel=options, **QUIET | settings)
    try:
        say(("done", run.fit()))
    except UsageError as error:
        say(("refused", str(error)))


def work(say: Any, wait: Any, port: int, settings: dict[str, Any]) -> None:
    """Be a worker; say each batch's samples, then wait to be told to go on if it is the first of a step in ``waits``.

    ``waits`` None: with the first batch, whatever its step. At the end say ("done", outcome).
    """
    given = {"server": f"127.0.0.1:{port}", "role": "worker", "timeout": 20.0, "patience": 30.0}
    options, waits = Async(**given | settings.pop("parallel", {})), settings.pop("waits", ())
    run = small_run(Path("/nowhere"), parallel=options, **QUIET | settings)

    def tell(run: Any, batch: Any) -> None:
        nonlocal waits
        say(("batch", run.position.step, batch.samples.tolist()))
        if waits is None or run.position.step in waits:
            waits = [step for step in waits or () if step != run.position.step]  # it may be dealt the same again
            wait()

    original = run.begin

    def begin(batch: Any, index: int) -> None:
        tell(run, batch)
        original(batch, index)

    run.begin = begin  # type: ignore[method-assign]
    try:
        say(("done", run.fit()))
    except UsageError as error:
        say(("refused", str(error)))


def everything(run: Any) -> dict[str, np.ndarray]:
    """Return copies of a run's weights, buffers and optimiser state, and its means' sums."""
    states = {
        f"{name}/{entry}": value
        for group in run.optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for entry, value in run.optimizer.state[parameter].items()
    }
    average = run.average.state() if run.average else {}
    averages = {f"average/{name}": value for name, value in average.items()}
    every = {**run.model.state_dict(), **states, **averages, "sums": run.metrics.sums}
    return {name: value.numpy().copy() for name, value in every.items()}


def alone(out: Path, **settings: Any) -> dict[str, np.ndarray]:
    """Return everything of the same run in one process."""
    torch.set_num_threads(1)
    run = small_run(out, **QUIET | {"parallel": Single()} | settings)
    run.fit()
    run.lock.close()
    return everything(run)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return whether all arrays are equal in every bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@dataclass
class Wide(Model):
    """Four linear layers of one size, then a narrow one."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        layers = [layer for _ in range(4) for layer in (nn.Linear(144, 144), nn.Tanh())]
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 144), *layers, nn.Linear(144, outputs))


@dataclass
class Plain(Model):
    """A network without BatchNorm or dropout."""

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs[0], 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, outputs))
