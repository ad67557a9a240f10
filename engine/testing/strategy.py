"""Checks a strategy: the gradients, norms and updates that plain autograd gives, wherever they are computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import interfaces
from engine.interfaces import Batch, Strategy
from engine.options import Parallel
from engine.randomness import Key
from engine.testing.promises import Promises

TOLERANCE = 1e-12  # relative, float64: only the order of additions may differ
SHARES = ((4,), (2, 5, 3))  # samples of each micro-batch in every process
CLASSES = 3

GRADIENTS = (
    "after forward_backward the gradients are those of weight x summed loss over all micro-batches and processes"
)
RETURNED = "forward_backward returns this process's summed loss, unweighted and without a graph"
CALLED = "forward_backward calls loss_of once for each micro-batch, with its index"
CLIPPED = "clip() scales the gradients to the largest global norm and returns the norm before"
MASKED = "update() leaves parameters and optimiser state bit-equal when bad is 1.0"


def check_strategy(strategy: Parallel | Strategy) -> None:
    """Check a strategy on a small float64 network, against autograd over the batches of all processes.

    Promises: rank and world; shard and wrap keep parameter names and the function; pieces of all processes make the
    whole once; within evaluating() each process computes by itself what the model does; gradients with 1 and 3
    micro-batches of different sizes and the norm are right to 1e-12, the returned loss is summed; clip scales to
    the true global norm; agree, any and sum combine all processes; a masked update changes nothing, another is the
    optimiser's own. Of a strategy with several processes, every process calls this. Raises BrokenPromise.
    """
    promises = Promises(strategy)
    strategy = strategy.build() if isinstance(strategy, Parallel) else strategy
    place = isinstance(strategy.world, int) and 0 <= strategy.rank < strategy.world
    promises.expect(place, "rank is within 0..world - 1", f"rank {strategy.rank}, world {strategy.world}")
    case = _Case(promises, strategy)
    case.check_wrapping()
    case.check_pieces()
    case.check_evaluating()
    for shares in SHARES:
        case.check_gradients(shares)
    case.check_clip()
    case.check_agreement()
    for fused in (False, True):
        case.check_update(fused)
    with promises.works("telemetry() gives scalar tensors by tag"):
        scalars = {tag: value.numel() for tag, value in strategy.telemetry().items()}
    promises.expect(set(scalars.values()) <= {1}, "telemetry() gives scalar tensors by tag", f"sizes {scalars}")


class _DoublePrecision(interfaces.Precision):
    dtype = torch.float64


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES)).double()


class _Case:
    def __init__(self, promises: Promises, strategy: Strategy) -> None:
        self.promises, self.strategy = promises, strategy
        self.plain = _network()
        # What the engine tells before it shards.
        strategy.example, strategy.precision = (max(map(max, SHARES)), 1, 6, 6), _DoublePrecision()
        with promises.works("shard() and wrap() take a model"):
            self.model = strategy.shard(copy.deepcopy(self.plain))
            self.network = strategy.wrap(self.model)
        self.parameters = list(self.model.parameters())

    def check_wrapping(self) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        expected = [name for name, _ in self.plain.named_parameters()]
        self.promises.expect(names == expected, "shard() keeps parameter names", f"{names} instead of {expected}")
        images = self.batches((6,))[0].images
        same = torch.allclose(self.network(images), self.plain(images), rtol=TOLERANCE, atol=0)
        self.promises.expect(same, "the wrapped model computes what the model does", "the outputs differ")

    def check_pieces(self) -> None:
        """Look whether what all processes write is every tensor once, and whether each holds the right part."""
        promise = "pieces() are boxes of the whole tensors, and every element is written by one process"
        with self.promises.works(promise):
            pieces = self.strategy.pieces(self.model.state_dict())
        wholes = self.plain.state_dict()
        told = {name: (list(piece.offsets), list(piece.values.shape)) for name, piece in pieces.items() if piece.writes}
        everyone = self.strategy.gather(told)
        for name, whole in wholes.items():
            if name in pieces:
                piece = pieces[name]
                box = tuple(slice(b, b + n) for b, n in zip(piece.offsets, piece.values.shape, strict=True))
                right = piece.shape == tuple(whole.shape) and torch.equal(piece.values, whole[box])
                self.promises.expect(right, promise, f"that of '{name}' at {piece.offsets} is not in the whole")
            written = torch.zeros(whole.shape, dtype=torch.int64)
            for boxes in everyone:
                if name in boxes:
                    offsets, sizes = boxes[name]
                    written[tuple(slice(b, b + n) for b, n in zip(offsets, sizes, strict=True))] += 1
            self.promises.expect(bool((written == 1).all()), promise, f"'{name}' is not written once")

    def check_evaluating(self) -> None:
        """Evaluate another number of batches in every process, which must not wait for each other then."""
        promise = "within evaluating() the model computes by itself, and afterwards holds what it held"
        state = self.model.state_dict()
        before = {name: value.clone() for name, value in state.items()}
        images = self.batches((6,))[0].images
        with self.promises.works(promise), torch.no_grad(), self.strategy.evaluating(self.model):
            outputs = [self.model(images) for _ in range(1 + self.strategy.rank)]
        same = torch.allclose(outputs[-1], self.plain(images), rtol=TOLERANCE, atol=TOLERANCE)
        self.promises.expect(same, promise, "the outputs are not the model's")
        self.promises.expect(same_bits(before, self.model.state_dict()), promise, "weights have changed")

    def batches(self, shares: Sequence[int]) -> list[Batch]:
        """Return the micro-batches of all processes together, ``shares`` samples of each in every process."""
        generator = torch.Generator().manual_seed(sum(shares))
        made, first = [], 0
        for share in shares:
            count = share * self.strategy.world
            samples = torch.arange(first, first + count)
            # Losses of different sizes, so that a mean of means is told from the mean.
            images = torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64) * (
                1 + samples.view(-1, 1, 1, 1)
            )
            made.append(Batch(images, samples % CLASSES, samples))
            first += count
        return made

    def own(self, batch: Batch) -> Batch:
        """Return this process's share of a micro-batch."""
        share = len(batch) // self.strategy.world
        rows = slice(self.strategy.rank * share, (self.strategy.rank + 1) * share)
        return Batch(batch.images[rows], batch.targets[rows], batch.samples[rows])

    def backward(self, shares: Sequence[int], weight: float) -> tuple[Tensor, list[int]]:
        """Run the strategy's forward_backward; return its loss and the indices it asked for."""
        asked = []

        def loss_of(batch: Batch, index: int, outputs: Callable[[], Tensor] | None = None) -> Tensor:
            asked.append(index)
            scores = self.network(batch.images) if outputs is None else outputs()
            return functional.cross_entropy(scores, batch.targets, reduction="sum")

        for parameter in self.parameters:
            parameter.grad = None
        batches = [self.own(batch) for batch in self.batches(shares)]
        with self.promises.works("forward_backward takes any number of micro-batches"):
            loss = self.strategy.forward_backward(loss_of, batches, torch.tensor(weight, dtype=torch.float64))
        return loss, asked

    def expected(self, shares: Sequence[int], weight: float) -> tuple[Tensor, list[Tensor]]:
        """Return this process's summed loss and the gradients over all processes, by plain autograd."""
        own = torch.zeros((), dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for batch in self.batches(shares):
            mine = self.own(batch)
            own += functional.cross_entropy(self.plain(mine.images), mine.targets, reduction="sum").detach()
            total = total + functional.cross_entropy(self.plain(batch.images), batch.targets, reduction="sum")
        return own, list(torch.autograd.grad(weight * total, list(self.plain.parameters())))

    def check_gradients(self, shares: Sequence[int]) -> None:
        words = f"with {len(shares)} micro-batch{'es' * (len(shares) > 1)}"
        for weight in (0.1, 16.0):
            loss, asked = self.backward(shares, weight)
            own, gradients = self.expected(shares, weight)
            self.promises.expect(self.right(asked, len(shares)), CALLED, f"{words} it asked for {asked}")
            error = abs(float(loss) - float(own)) / float(own)
            right = loss.ndim == 0 and not loss.requires_grad and error <= TOLERANCE
            self.promises.expect(right, RETURNED, f"{words} it is {loss} instead of {float(own)}")
            for name, parameter, gradient in zip(self.names(), self.parameters, gradients, strict=True):
                promise = f"{GRADIENTS}, to {TOLERANCE:g}"
                self.promises.expect(parameter.grad is not None, promise, f"{words} '{name}' has none")
                assert parameter.grad is not None
                error = self.distance(name, parameter.grad, gradient)
                how = f"{words} and weight {weight} that of '{name}' is off by {error:.3g}"
                self.promises.expect(error <= TOLERANCE, promise, how)

    def right(self, asked: Sequence[int], micro_batches: int) -> bool:
        """Return whether the loss was asked for every micro-batch, under numbers that no other process used."""
        shards = self.strategy.fixed_shards or 1
        every = [asked] if shards == 1 else self.strategy.gather(asked)
        used = [index for one in every for index in one]
        return len(used) == len(set(used)) and {index // shards for index in asked} == set(range(micro_batches))

    def held(self) -> dict[str, Tensor]:
        """Return what this process holds of the model."""
        return {name: piece.values for name, piece in self.strategy.pieces(self.model.state_dict()).items()}

    def distance(self, name: str, value: Tensor, whole: Tensor) -> float:
        """Return how far this process's part of a parameter, or of a tensor like it, is from the right one."""
        piece = self.strategy.pieces({name: value.detach()})[name]
        part = whole.detach()[tuple(slice(b, b + n) for b, n in zip(piece.offsets, piece.values.shape, strict=True))]
        return float((piece.values - part).norm() / whole.detach().norm())

    def names(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def check_clip(self) -> None:
        _, gradients = self.expected((3,), 1.0)
        true = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for largest in (0.25 * true, 4 * true):
            self.backward((3,), 1.0)
            with self.promises.works(CLIPPED):
                norm, clipped_from = float(self.strategy.norm(self.parameters)), self._clip(largest)
            close = abs(norm - true) <= TOLERANCE * true
            self.promises.expect(close, "norm() is the global norm of the gradients", f"{norm} instead of {true}")
            close = abs(clipped_from - true) <= TOLERANCE * true
            self.promises.expect(close, CLIPPED, f"it returns {clipped_from} instead of {true}")
            factor = min(1.0, largest / true)
            for name, parameter, gradient in zip(self.names(), self.parameters, gradients, strict=True):
                assert parameter.grad is not None
                # torch adds 1e-6 to the norm before it divides; a gradient within the bound is left alone.
                error = self.distance(name, parameter.grad, factor * gradient)
                how = f"with norm {true:.4g} and largest {largest:.4g} a gradient is off by {error:.3g}"
                self.promises.expect(error <= (1e-5 if factor < 1 else TOLERANCE), CLIPPED, how)

    def _clip(self, largest: float) -> float:
        return float(self.strategy.clip(self.parameters, largest))

    def check_agreement(self) -> None:
        strategy, rank, world = self.strategy, self.strategy.rank, self.strategy.world
        promise = "agree() is 1.0 in place if any process's flag is 1.0, else 0.0"
        for raised in (False, True):
            bad = torch.tensor(float(raised and rank == world - 1))
            with self.promises.works(promise):
                answer = strategy.agree(bad)
            seen = f"raised {raised}: it returns {answer}, the flag given is {bad}"
            self.promises.expect(float(answer) == float(bad) == float(raised), promise, seen)
            promise_any = "any() is whether any process raised the flag, at this call or at the one before"
            with self.promises.works(promise_any):
                decision = strategy.any(raised and rank == world - 1)
                decision = strategy.any(False) or decision
            self.promises.expect(decision is raised, promise_any, f"raised {raised}: it returns {decision!r}")
            with self.promises.works(promise_any):
                after = strategy.any(False)
            self.promises.expect(after is False, promise_any, f"long after it was raised it returns {after!r}")
        promise = "gather() is every process's value by rank, share() is rank 0's"
        with self.promises.works(promise):
            everyone, first = strategy.gather({"rank": rank}), strategy.share([rank])
        right = everyone == [{"rank": each} for each in range(world)] and first == [0]
        self.promises.expect(right, promise, f"it is {everyone} and {first}")
        values = torch.tensor([1.0, 2.0], dtype=torch.float64)
        with self.promises.works("sum() adds up all processes' values"):
            total = strategy.sum(values * (rank + 1))
        expected = values * (world * (world + 1) / 2)
        self.promises.expect(
            torch.equal(total, expected), "sum() adds up all processes' values", f"{total} instead of {expected}"
        )

    def check_update(self, fused: bool) -> None:
        precision = _DoublePrecision()
        mine, plain = (
            torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=fused) for m in (self.model, self.plain)
        )
        with self.promises.works("prepare() takes an optimiser"):
            self.strategy.prepare(mine, Key.of(0))
        for bad in (0.0, 1.0, 0.0):
            self.backward((3,), 0.5)
            for parameter, gradient in zip(self.plain.parameters(), self.expected((3,), 0.5)[1], strict=True):
                parameter.grad = gradient
            before = copy.deepcopy((self.held(), mine.state_dict()["state"]))
            with self.promises.works("update() applies the optimiser's step through the precision"):
                self.strategy.update(precision, mine, torch.tensor(bad))
            if bad:
                after = self.held(), mine.state_dict()["state"]
                self.promises.expect(
                    same_bits(before, after), MASKED, f"{'fused' if fused else 'plain'} SGD changed them"
                )
                continue
            plain.step()
            for name, parameter, expected in zip(self.names(), self.parameters, self.plain.parameters(), strict=True):
                error = self.distance(name, parameter, expected)
                how = f"'{name}' is off by {error:.3g} ({'fused' if fused else 'plain'} SGD)"
                self.promises.expect(error <= TOLERANCE, "update() applies the optimiser's step when bad is 0.0", how)


def same_bits(one: object, other: object) -> bool:
    """Return whether two structures of tensors and plain values are equal, tensors in every bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other
