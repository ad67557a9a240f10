"""The parts of asynchronous training, each by itself: dealing, late gradients, messages, figures, traces, options."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine import UsageError
from engine.loader import Position
from engine.plugins.parallel import Async, AsyncReplay
from engine.plugins.parallel.asynchronous.applying import Applying
from engine.plugins.parallel.asynchronous.dealing import Dealer, counted, nth
from engine.plugins.parallel.asynchronous.figures import Figures, histogram
from engine.plugins.parallel.asynchronous.links import Message, pack, unpack
from engine.plugins.parallel.asynchronous.rules import Made, Push, Rules, Taken, facts_of, push_of
from engine.plugins.parallel.asynchronous.trace import Trace, read
from engine.randomness import Key
from engine.testing import check_strategy, small_run
from engine.testing.small import SinglePrecision

PRECISION = SinglePrecision()
GOOD = torch.zeros(())


@given(st.integers(0, 12), st.lists(st.tuples(st.sampled_from(["deal", "done", "die"]), st.integers(0, 2))))
def test_every_step_is_done_once_whoever_dies(length: int, events: list[tuple[str, int]]) -> None:
    dealer, held, done = Dealer(length), {worker: set() for worker in range(3)}, Counter()
    for what, worker in events:
        if what == "die":
            dealer.take_back(dealer.held_by(worker))
            held[worker].clear()
        elif what == "done" and held[worker]:
            step = held[worker].pop()
            dealer.done(step)
            done[step] += 1
        elif what == "deal" and (step := dealer.deal(worker)) is not None:
            assert all(step not in theirs for theirs in held.values())
            held[worker].add(step)
    saved = dealer.state()
    resumed = Dealer(length, saved["low"], saved["beyond"])
    while resumed.has_steps():
        step = resumed.deal("anybody")
        assert step is not None
        resumed.done(step)
        done[step] += 1
    assert resumed.deal("anybody") is None
    assert done == Counter(range(length))


@pytest.mark.parametrize("start", [Position(), Position(3, 9), Position(4, 17), Position(4, 19)])
def test_where_a_step_is_follows_from_its_number(tmp_path: Path, start: Position) -> None:
    loader = small_run(tmp_path, batch=3).loader  # 20 images: six steps an epoch, two images left
    steps = list(islice(loader.steps(start), 16))
    for number, step in enumerate(steps):
        expected = counted(loader, start, number)
        assert (expected.end, expected.epoch, expected.epochs_done) == (step.end, step.epoch, step.epochs_done)
        assert nth(loader, start, number).sample == int(step.batches[0].samples[0])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def pushed(model: nn.Module, version: int = 0, **also: Any) -> Push:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    buffers = [torch.full_like(buffer, 3) for buffer in model.buffers()]
    return Push(0, [Taken(0, 0, version, 0)], gradients, buffers, **also)


def applied(rules: Rules, optimizer_of: Any, push: Push, version: int = 0, bad: torch.Tensor = GOOD) -> nn.Module:
    """Return a network after a push was applied, by a server that had made ``version`` updates before."""
    model = network()
    strategy = Applying(rules)
    strategy.wrap(model)
    optimizer = optimizer_of(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    strategy.prepare(optimizer, Key.of(0))
    strategy.version = version
    strategy.take(push)
    strategy.update(PRECISION, optimizer, bad)
    assert strategy.version == version + 1
    return model


def test_the_rate_of_a_stale_push_is_divided() -> None:
    """Zhang et al. 2015 (1511.05950), by one more than the staleness; Adagrad's sums get the whole gradient."""
    before, push = network(), pushed(network())
    sgd = applied(Rules(staleness_rate=True), lambda p: torch.optim.SGD(p, 0.5, fused=True), push, version=3)
    ada = applied(Rules(staleness_rate=True), lambda p: torch.optim.Adagrad(p, 0.5, fused=True), push, version=3)
    plain = applied(Rules(), lambda p: torch.optim.SGD(p, 0.5, fused=True), push, version=3)
    parts = (before, sgd, ada, plain)
    for start, one, two, whole, gradient in zip(*(m.parameters() for m in parts), push.gradients, strict=True):
        torch.testing.assert_close(one.data, start.data - 0.5 / 4 * gradient)
        torch.testing.assert_close(two.data, start.data - 0.5 / 4 * gradient.sign())
        torch.testing.assert_close(whole.data, start.data - 0.5 * gradient)


def test_delay_is_compensated_to_first_order() -> None:
    """Zheng et al. 2017 (1609.08326), formula 10."""
    before = network()
    then = [torch.full_like(parameter, 0.25) for parameter in before.parameters()]
    push = pushed(before, then=then)
    model = applied(Rules(compensation=2.0), lambda p: torch.optim.SGD(p, 0.5, fused=True), push)
    for start, end, gradient, old in zip(before.parameters(), model.parameters(), push.gradients, then, strict=True):
        torch.testing.assert_close(end.data, start.data - 0.5 * (gradient + 2 * gradient**2 * (start.data - old)))


def test_a_cancelled_push_leaves_weights_and_statistics() -> None:
    before, push = network(), pushed(network())
    for rules in (Rules(), Rules("easgd", alpha=0.5)):
        model = applied(rules, lambda p: torch.optim.SGD(p, 0.5, fused=True), push, bad=torch.ones(()))
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())


def test_a_process_without_a_role_keeps_what_a_strategy_promises() -> None:
    check_strategy(Async())


def test_a_message_arrives_as_it_was_sent() -> None:
    tensors = [
        torch.tensor(3.5), torch.zeros(0, 4), torch.arange(5), torch.ones(3, dtype=torch.bfloat16),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.tensor([True, False, True]),
    ]  # fmt: skip
    message = unpack(pack(Message("kind", {"a": [1, None, "ü"]}, tensors)))
    assert (message.kind, message.facts) == ("kind", {"a": [1, None, "ü"]})
    assert [t.dtype for t in message.tensors] == [t.dtype for t in tensors]
    assert all(torch.equal(one, other) for one, other in zip(message.tensors, tensors, strict=True))


def test_a_push_is_put_together_again() -> None:
    made = [Made([torch.ones(2, 3)], torch.ones(2), torch.arange(2)), Made([torch.ones(1)] * 2, GOOD, GOOD, False)]
    push = Push(0, [Taken(1, 2, 3, 4)], [None, torch.ones(2)], [torch.ones(1)], True, losses=[made, made[:1]])
    facts, tensors = facts_of(push)
    again = push_of(7, facts, tensors)
    assert (again.worker, again.steps, again.bad) == (7, push.steps, True)
    assert again.gradients[0] is None
    assert [[each.form() for each in step] for step in again.losses] == [[(1, True), (2, False)], [(1, True)]]


@given(st.lists(st.integers(0, 20), min_size=1))
def test_percentiles_are_numpys(staleness: list[int]) -> None:
    told = histogram(staleness)
    for percent in (50, 90, 99):
        assert told[f"async/staleness/p{percent}"] == np.percentile(staleness, percent, method="inverted_cdf")
    assert told["async/staleness/mean"] == pytest.approx(np.mean(staleness))
    assert told["async/staleness_share/2"] == pytest.approx(np.mean(np.array(staleness) == 2))
    assert told["async/staleness_share/8_or_more"] == pytest.approx(np.mean(np.array(staleness) >= 8))


def test_figures_begin_anew_once_they_are_read() -> None:
    figures = Figures()
    figures.applied(0, 3, 0.25, 1)
    figures.dropped()
    first, second = (figures.read([0], torch.device("cpu")) for _ in range(2))
    assert float(first["async/dropped_share"]) == 0.5
    assert float(first["async/rate_multiplier"]) == 0.25
    assert float(second["async/dropped_share"]) == float(second["async/steps_per_second/worker_0"]) == 0


def test_a_trace_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.csv", {"a": 1})
    trace.add(0, Push(2, [Taken(5, 10, 0, 0), Taken(6, 12, 0, 1)], [], []))
    size = trace.size()
    trace.add(1, Push(0, [Taken(7, 14, 1, 0)], [], []))
    trace.close()
    trace = Trace(tmp_path / "trace.csv", {"a": 1}, size)
    trace.add(1, Push(1, [Taken(0, 0, 1, 0)], [], []))
    trace.close()
    facts, updates = read(tmp_path)
    assert facts == {"a": 1}
    assert [(u.worker, [t.step for t in u.steps]) for u in updates] == [(2, [5, 6]), (1, [0])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("# {}\nupdate,worker\n1,2\n", "no whole trace"),
        ("nonsense", "no whole trace"),
        ('# {"a": 1}\nupdate,worker,step,sample,version,age\n4,0,0,0,0,0\n', "does not begin with its run"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "trace.csv").write_text(content)
    with pytest.raises(UsageError, match=reason):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rule": "easgd", "n_push": 2}, "no use for parallel.n_push"),
        ({"rule": "easgd", "max_staleness": 2}, "no use for parallel.max_staleness"),
        ({"compensation": 0.1, "n_push": 2}, "not parallel.n_push=2"),
        ({"server": "here"}, "give HOST:PORT"),
        ({"server": ""}, "needs parallel.server=HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Async(**{"role": "server", "server": "127.0.0.1:1"} | options).build()


def test_a_replay_needs_a_trace() -> None:
    session: Any = None
    with pytest.raises(UsageError, match=r"parallel\.trace must be given"):
        AsyncReplay().perform(session, lambda session: None)
