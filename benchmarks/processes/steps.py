"""One step of AlexNet under each strategy, in turns, in every process of a network: run by ``networks.carry_out``."""

# Annotations are not postponed here: torch looks at those of a communication hook.

import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Group, current
from engine.distributed.joining import joined
from engine.distributed.place import place_of
from engine.interfaces import Batch, Precision
from engine.options import Parallel
from engine.plugins.parallel import Hybrid
from engine.randomness import Key
from engine.testing.processes import bytes_sent

CLASSES = 1000
LR, MOMENTUM = 0.01, 0.9


def alexnet() -> nn.Module:
    """Return AlexNet with one tower (Krizhevsky 2014), 61.1 million parameters, for images of any size."""
    torch.manual_seed(0)
    filters = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    layers: list[nn.Module] = []
    for place, (inputs, outputs, size, stride, padding) in enumerate(filters):
        layers += [nn.Conv2d(inputs, outputs, size, stride, padding), nn.ReLU()]
        if place in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    head = [nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *head)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of every side."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)


Step = Callable[[Tensor, Tensor], float]
Shape = tuple[int, int, int, int]


def torchs(model: nn.Module, group: Group, compress: bool) -> Step:
    """Return a step of torch's DistributedDataParallel; compress: gradients travel as bfloat16."""
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if compress:
        wrapped.register_comm_hook(None, _bfloat16)
    optimizer = sgd(model)

    def step(images: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(wrapped(images), targets)
        loss.backward()
        optimizer.step()
        return float(group.all_reduce(loss.detach().clone()) / group.world)

    return step


def _bfloat16(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket as bfloat16; torch's own hook refuses gloo."""
    values = bucket.buffer().to(torch.bfloat16)
    work = dist.all_reduce(values, async_op=True)
    world = dist.get_world_size()
    return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]).div_(world))


class Plain(Precision):
    """float32."""

    dtype = torch.float32


def ours(model: nn.Module, group: Group, options: Parallel, example: Shape) -> Step:
    """Return a step of one of the engine's strategies; example: the shape of a process's images."""
    strategy, precision = options.build(), Plain()
    strategy.example, strategy.precision = example, precision
    model = strategy.shard(model)
    optimizer = sgd(model)
    network = strategy.wrap(model)
    strategy.prepare(optimizer, Key.of(0))
    bad = torch.zeros(())

    def loss_of(batch: Batch, index: int, outputs: Callable[[], Tensor] | None = None) -> Tensor:
        scores = network(batch.images) if outputs is None else outputs()
        return functional.cross_entropy(scores, batch.targets, reduction="sum")

    def step(images: Tensor, targets: Tensor) -> float:
        count = len(images) * group.world
        optimizer.zero_grad()
        samples = torch.arange(group.rank * len(images), (group.rank + 1) * len(images))
        loss = strategy.forward_backward(loss_of, [Batch(images, targets, samples)], torch.tensor(1 / count))
        strategy.update(precision, optimizer, bad)
        return float(group.all_reduce(loss.clone()) / count)

    return step


def side(name: str, model: nn.Module, group: Group, example: Shape) -> Step:
    """Return the step of a side by its name: "DDP", "DDP, bfloat16", or "hybrid a" to "hybrid d"."""
    if name.startswith("DDP"):
        return torchs(model, group, compress=name.endswith("bfloat16"))
    return ours(model, group, Hybrid(scheme=name.removeprefix("hybrid ")), example)


def measure(group: Group, work: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and bytes of a step of every side, round by round, and the last loss of each."""
    own = slice(group.rank * work["batch"], (group.rank + 1) * work["batch"])
    generator = torch.Generator().manual_seed(1)
    size = work["pixels"]
    images = torch.randn(group.world * work["batch"], 3, size, size, generator=generator)[own].clone()
    targets = torch.randint(CLASSES, (group.world * work["batch"],), generator=generator)[own]
    model = alexnet()
    sides = {name: side(name, copy.deepcopy(model), group, tuple(images.shape)) for name in work["sides"]}
    del model
    result: dict[str, Any] = {name: {"seconds": [], "bytes": [], "loss": 0.0} for name in sides}
    for turn in range(1 + work["rounds"]):
        for name in random.Random(turn).sample(list(sides), len(sides)):
            dist.barrier()
            sent, begun = bytes_sent(work["interface"]), time.perf_counter()
            loss = sides[name](images, targets)
            dist.barrier()
            took = time.perf_counter() - begun
            dist.barrier()
            counted = torch.tensor([bytes_sent(work["interface"]) - sent], dtype=torch.int64)
            # A loopback has one counter for all processes, a link one for each.
            total = int(counted if work["interface"] == "lo" else group.all_reduce(counted))
            if turn:
                result[name]["seconds"].append(took)
                result[name]["bytes"].append(total)
            result[name]["loss"] = loss
    return result


def main() -> None:
    """Measure, and print the result as JSON in rank 0."""
    work = json.loads(os.environ["WORK"])
    torch.set_num_threads(1)
    with joined(Parallel(interface=work["interface"], timeout=600), place_of(os.environ)):
        result = measure(current(), work)
        if current().rank == 0:
            print(json.dumps(result))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
