"""What processes do in the tests of the hybrid: a small network, and comparisons with one process."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine import Batch, Key, RunFailed, interfaces
from engine.distributed import current
from engine.plugins.parallel import Hybrid

SHARES = (3, 5)  # rows of each process in two micro-batches; neither is a multiple of the processes
CLASSES = 10


class Net(nn.Module):
    """A trunk of convolutions and a head of linear layers, as AlexNet's, of widths that 4 processes do not divide."""

    def __init__(self, dropout: float = 0.0, widths: tuple[int, int] = (30, 26)) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2))
        self.drop5 = nn.Dropout(dropout)
        self.fc6, self.drop6 = nn.Linear(16, widths[0]), nn.Dropout(dropout)
        self.fc7 = nn.Linear(widths[0], widths[1])
        self.relu7 = nn.ReLU(inplace=True)
        self.fc8, self.drop8 = nn.Linear(widths[1], CLASSES), nn.Dropout(dropout / 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.drop5(torch.flatten(self.features(images), 1))
        x = self.drop6(torch.relu(self.fc6(x)))
        return self.drop8(self.fc8(self.relu7(self.fc7(x))))


class Numbers(interfaces.Precision):
    """All in one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def network(dtype: torch.dtype = torch.float64, **settings: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**settings).to(dtype)


def micro_batches(dtype: torch.dtype, world: int, shares: tuple[int, ...] = SHARES) -> list[Batch]:
    """Return those of all processes together."""
    generator, made, first = torch.Generator().manual_seed(1), [], 0
    for share in shares:
        samples = torch.arange(first, first + share * world)
        images = torch.randn(len(samples), 1, 6, 6, generator=generator, dtype=torch.float64)
        made.append(Batch(images.to(dtype), samples % CLASSES, samples))
        first += len(samples)
    return made


def own(batch: Batch) -> Batch:
    rank, world = current().rank, current().world
    share = len(batch) // world
    rows = slice(rank * share, (rank + 1) * share)
    return Batch(batch.images[rows], batch.targets[rows], batch.samples[rows])


def built(
    options: Hybrid, model: nn.Module, optimizer: bool = False, rows: int = SHARES[0], precision: Any = None
) -> tuple[Any, nn.Module, Any]:
    """Return the strategy, its network, and an optimiser, as the engine puts them together."""
    strategy: Any = options.build()
    strategy.precision = precision or Numbers(next(model.parameters()).dtype)
    strategy.example = (rows, 1, 6, 6)
    model = strategy.shard(model)
    stepping = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) if optimizer else None
    wrapped = strategy.wrap(model)
    strategy.prepare(stepping, Key.of(3))
    return strategy, wrapped, stepping


def loss_by(wrapped: nn.Module) -> Any:
    def loss_of(batch: Batch, index: int, outputs: Any = None) -> Tensor:
        made = wrapped(batch.images) if outputs is None else outputs()
        return functional.cross_entropy(made, batch.targets, reduction="sum")

    return loss_of


def worst(strategy: Any, model: nn.Module, true: dict[str, Tensor]) -> float:
    """Return the largest difference of a gradient from this process's box of the true one, of the largest there."""
    errors = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        piece = strategy.pieces({name: parameter.grad})[name]
        box = true[name][tuple(slice(b, b + n) for b, n in zip(piece.offsets, piece.values.shape, strict=True))]
        errors.append(float((piece.values - box).abs().max() / true[name].abs().max()))
    return max(errors)


def true_gradients(model: nn.Module, batches: list[Batch], weight: float) -> dict[str, Tensor]:
    loss = sum(functional.cross_entropy(model(b.images), b.targets, reduction="sum") for b in batches)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(weight * loss, parameters), strict=True))


def every_scheme(world: int) -> Iterator[Hybrid]:
    for scheme in "abcd":
        yield Hybrid(scheme=scheme, layers=["*"])
        if world == 4:
            yield Hybrid(scheme=scheme, layers=["*"], degree=2)
    yield Hybrid(scheme="d", layers=["fc6", "fc8"])  # one between them that all have
    yield Hybrid(scheme="c", layers=["fc6"])


def gradients(dtype: torch.dtype) -> list[tuple[str, float, float, float]]:
    """Return for each scheme the worst error of gradients, that of their norm, and that of the summed loss."""
    found = []
    for options in every_scheme(current().world):
        model = network(dtype)
        batches = micro_batches(dtype, current().world)
        true = true_gradients(network(dtype), batches, 0.1)
        strategy, wrapped, _ = built(options, model)
        mine = [own(batch) for batch in batches]
        loss = strategy.forward_backward(loss_by(wrapped), mine, torch.tensor(0.1, dtype=dtype))
        plain = network(dtype)
        expected = sum(functional.cross_entropy(plain(b.images), b.targets, reduction="sum") for b in mine)
        norm = float(torch.cat([gradient.flatten() for gradient in true.values()]).norm())
        off = abs(float(strategy.norm(list(model.parameters()))) / norm - 1)
        found.append((str(options), worst(strategy, model, true), off, abs(float(loss / expected) - 1)))
    return found


def beside_dtensor() -> dict[str, tuple[str, float]]:
    """Return, by scheme and layer, how it is split, and how far its gradient is from that of torch's own plan."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (current().world,))
    mine = own(micro_batches(torch.float64, current().world)[0])
    ends = {"fc6": (Shard(0), Shard(-1)), "fc7": (Shard(-1), Shard(-1)), "fc8": (Shard(-1), Shard(0))}
    found = {}
    for scheme, way in {"a": ColwiseParallel, "d": RowwiseParallel}.items():
        theirs = network(widths=(8, 8))
        theirs.relu7 = nn.ReLU()  # a DTensor's output cannot be changed in place
        plan = {name: way(input_layouts=before, output_layouts=after) for name, (before, after) in ends.items()}
        parallelize_module(theirs, mesh, plan)
        functional.cross_entropy(theirs(mine.images), mine.targets, reduction="sum").backward()
        ours = network(widths=(8, 8))
        strategy, wrapped, _ = built(Hybrid(scheme=scheme, layers=["*"]), ours)
        strategy.forward_backward(loss_by(wrapped), [mine], torch.tensor(1.0, dtype=torch.float64))
        kinds = {choice.name: choice.kind for chain in strategy.placed.choices for choice in chain}
        for name in ends:
            expected = theirs.get_submodule(name).weight.grad.to_local()
            value = ours.get_submodule(name).weight.grad
            found[f"{scheme} {name}"] = kinds[name], float((value - expected).abs().max() / expected.abs().max())
    return found


def updated_each_pass(schemes: str) -> list[float]:
    """Return, for each scheme and size of groups, how far weights are from those made by hand."""
    groups = [2, 4] if current().world == 4 else [current().world]
    return [updated(scheme, group) for scheme in schemes for group in groups]


def updated(scheme: str, group: int) -> float:
    """Return how far weights are from those of one process that does the same by hand, after three steps."""
    world, dtype = current().world, torch.float64
    model, plain = network(), network()
    strategy, wrapped, optimizer = built(
        Hybrid(scheme=scheme, layers=["fc6", "fc7"], updates="every", degree=group), model, True
    )
    emulated = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    share = 4
    for step in range(3):
        batch = micro_batches(dtype, world, (share,) * (step + 1))[-1]
        weight = 1 / len(batch)
        strategy.forward_backward(loss_by(wrapped), [own(batch)], torch.tensor(weight, dtype=dtype))
        strategy.update(strategy.precision, optimizer, torch.tensor(0.0))
        optimizer.zero_grad()
        by_process = torch.arange(len(batch)).view(world // group, group, group, share // group)
        sets = [by_process[:, j] if scheme == "b" else by_process[:, :, j] for j in range(group)]
        rows = plain.features(batch.images).flatten(1)
        early = [*plain.fc6.parameters(), *plain.fc7.parameters()]
        rest = {p: torch.zeros_like(p) for p in plain.parameters() if all(p is not q for q in early)}
        sent_back = torch.zeros_like(rows)
        for chosen in (s.flatten() for s in sets):
            some = rows[chosen].detach().requires_grad_()
            made = plain.fc8(plain.relu7(plain.fc7(torch.relu(plain.fc6(some)))))
            loss = functional.cross_entropy(made, batch.targets[chosen], reduction="sum")
            emulated.zero_grad()
            (weight * loss).backward()
            for parameter in rest:
                if parameter.grad is not None:
                    rest[parameter] += parameter.grad
                    parameter.grad = None
            sent_back[chosen] = some.grad
            for parameter in early:
                parameter.grad *= len(batch) / len(chosen)
            emulated.step()
        emulated.zero_grad()
        rows.backward(sent_back)
        for parameter in rest:
            parameter.grad = rest[parameter] if parameter.grad is None else rest[parameter] + parameter.grad
        emulated.step()
        emulated.zero_grad()
    with strategy.evaluating(model):
        return max(float((p - q).abs().max()) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def masked(scheme: str, layers: Sequence[str] = ("*",)) -> tuple[float, dict[str, float]]:
    """Return the global loss of 16 samples and the gradients' norms, with dropout."""
    model = network(dropout=0.5)
    strategy, wrapped, _ = built(Hybrid(scheme=scheme, layers=list(layers)), model)
    batch = micro_batches(torch.float64, 1, (16,))[0]
    loss = strategy.forward_backward(loss_by(wrapped), [own(batch)], torch.tensor(1.0, dtype=torch.float64))
    norms = {name: p.grad.square().sum() for name, p in model.named_parameters()}
    for name in strategy.placed.parts:
        strategy.placed.group.all_reduce(norms[name])
    return float(strategy.sum(loss)), {name: float(norm) for name, norm in norms.items()}


def all_masked() -> list[tuple[float, dict[str, float]]]:
    """Return what ``masked`` does for every scheme, and with layers that all have."""
    return [*(masked(scheme) for scheme in "abcd"), masked("d", ["fc7"]), masked("c", ["fc8"])]


def whole_again() -> tuple[bool, bool, float]:
    """Return whether evaluating computes what one process does, and leaves every bit as it was."""
    model, images = network(), micro_batches(torch.float64, current().world)[0].images
    strategy, _, _ = built(Hybrid(scheme="d", layers=["*"]), model)
    before = copy.deepcopy({name: value.clone() for name, value in model.state_dict().items()})
    with strategy.evaluating(model):
        plain = all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))
        error = max(
            float((model(images[: 1 + current().rank + i]) - network()(images[: 1 + current().rank + i])).abs().max())
            for i in range(1 + current().rank)
        )
    same = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return plain, same, error


def in_few_bits(numbers: str) -> dict[str, tuple[float, float]]:
    """Return for each scheme how far gradients are from those of full precision, and what share of bytes is sent."""
    from engine.plugins.precision import Bfloat16, Float16

    found = {}
    for scheme in "abcd":
        sent = []
        for precision in (None, Bfloat16().build() if numbers == "bfloat16" else Float16().build()):
            model = network(torch.float32)
            model = precision.convert(model) if precision else model
            batches = micro_batches(torch.float32, current().world)
            strategy, wrapped, _ = built(Hybrid(scheme=scheme, layers=["*"]), model, precision=precision)
            context = precision.forward if precision else contextlib.nullcontext

            def loss_of(batch: Batch, index: int, outputs: Any = None) -> Tensor:
                with context(batch.samples):  # noqa: B023 - called before the next one
                    made = wrapped(batch.images) if outputs is None else outputs()  # noqa: B023
                return functional.cross_entropy(made.float(), batch.targets, reduction="sum")

            before = strategy.group.traffic.sent.copy()
            strategy.forward_backward(loss_of, [own(batch) for batch in batches], torch.tensor(0.1))
            after = strategy.group.traffic.sent
            sent.append(sum(after[name] - before[name] for name in after if name != "all_reduce"))
        true = true_gradients(network(torch.float32), batches, 0.1)
        found[scheme] = worst(strategy, model, true), sent[1] / sent[0]
    return found


def spoilt() -> str:
    """Return what is said once a part is not what its replica is."""
    model = network()
    strategy, wrapped, optimizer = built(Hybrid(layers=["*"], degree=2, verify_every=1), model, optimizer=True)
    batch = own(micro_batches(torch.float64, current().world)[0])
    for turn in range(2):
        if turn == 1 and current().rank == 3:
            model.fc7.weight.data[0, 0] += 1e-9
        strategy.forward_backward(loss_by(wrapped), [batch], torch.tensor(0.01, dtype=torch.float64))
        try:
            strategy.update(strategy.precision, optimizer, torch.tensor(0.0))
        except RunFailed as failure:
            return f"{turn}: {failure}"
        optimizer.zero_grad()
    return "nothing"
