"""The strategy: each process computes its samples' convolutions, and its part of every split layer for all samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.hooks import RemovableHandle

from engine import Batch, Key, UsageError
from engine.distributed.group import Pending
from engine.distributed.together import Together, average_, require_same
from engine.interfaces import Precision
from engine.pieces import Piece

from ..communication import Buckets, Whole, distributed, settle_buckets
from .choosing import Setting
from .heads import Calls, Head
from .layers import SplitLinear, whole
from .passes import Turn
from .placing import IN_PASSES, Placed, Wanted, place
from .precisions import element_size, require_splittable, require_unscaled


class HybridParallel(Together):
    """Data parallelism but for split linear layers, after Krizhevsky 2014 ("One weird trick", arXiv:1404.5997).

    Gradients are those of the loss over all processes' samples, however layers are split. Processes make groups that
    share the layers, each its own copy of them; see ``choosing`` for which and why. BatchNorm's running statistics are
    averaged over processes after every step. With ``every``, split layers are updated after each pass of scheme b or
    c, from the mean over its samples.
    """

    equal_shares = True

    def __init__(self, wanted: Wanted, every: bool, bucket_mb: float, verify_every: int) -> None:
        super().__init__(verify_every)
        wanted.require_possible(self.world)
        self._in_passes = wanted.scheme in IN_PASSES
        if every and not self._in_passes:
            raise UsageError(
                f"parallel.updates=every needs several passes in a step, parallel.scheme={wanted.scheme} has one: "
                "choose parallel.scheme=c or b"
            )
        # Enough numbers for the passes of all processes, whatever their groups.
        self.fixed_shards = self.world**2 if self._in_passes else 0
        self._wanted, self._every, self._bucket_mb = wanted, every, bucket_mb
        self._placed: Placed | None = None
        self._network: nn.Module | None = None
        self._head: Head | None = None
        self._split: dict[str, nn.Parameter] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._beside: list[Tensor] = []  # neither split nor DistributedDataParallel's
        self._statistics: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._sent: list[Pending] = []  # gradients of parts on their way to the replicas
        self._optimizer: torch.optim.Optimizer | None = None
        self._key = Key.of(0)
        self._sending = False

    @property
    def placed(self) -> Placed:
        """What has become of the model's layers."""
        assert self._placed is not None, "shard comes first"
        return self._placed

    def shard(self, model: nn.Module) -> nn.Module:
        """Turn layers into this process's parts of them, unless they are; UsageError if there is nothing to split."""
        if not any(isinstance(module, SplitLinear) for module in model.modules()):
            self._placed = place(model, self.group, self._wanted, self._setting(model))
        self._split = {name: p for name, p in model.named_parameters() if name in self.placed.parts}
        return model

    def _setting(self, model: nn.Module) -> Setting:
        """Return what choosing depends on. Raises UsageError for numbers that do not go with split layers."""
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        element = next(iter(layers.values())).weight.element_size() if layers else 4
        if self.precision is not None and layers:
            require_splittable(self.precision, layers)
            element = element_size(self.precision, next(iter(layers.values())))
            if self._every:
                require_unscaled(self.precision)
        assert self.example[0] or self._wanted.layers, "what pays depends on the batch, which is told before"
        return Setting(self.world, 1, max(1, self.example[0]), element, self.world if self._every else 1)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap what is not split for the summing of gradients; in passes, what comes before the first split layer."""
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.replicated = {name: p for name, p in self._trained.items() if name not in self._split}
        for handle in self._handles:
            handle.remove()
        trained = [p for p in self._split.values() if p.requires_grad]
        self._handles = [p.register_post_accumulate_grad_hook(self._send) for p in trained]
        if not self._in_passes:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(self._split))
            self._network = self._summing(model, self.replicated.values())
            return self._network
        self._head = Head(model, self._wanted.scheme, self.placed)
        theirs = {id(p) for p in self._head.trunk.parameters() if p.requires_grad}
        self._beside = [p for p in self.replicated.values() if id(p) not in theirs]
        self._network = self._summing(self._head.trunk, [p for p in self.replicated.values() if id(p) in theirs])
        return model

    def _summing(self, model: nn.Module, parameters: Iterable[Tensor]) -> nn.Module:
        if self.world == 1 or not list(parameters):
            return model
        return distributed(model, Buckets(self.group, Whole()).hook, self._bucket_mb)

    def _send(self, parameter: Tensor) -> None:
        """Begin to sum a part's gradient over its replicas, once it is complete."""
        if self._sending and self.placed.replicas.world > 1:
            assert parameter.grad is not None
            self._sent.append(self.placed.replicas.begin_all_reduce(parameter.grad, "gradients"))

    def prepare(self, optimizer: torch.optim.Optimizer, key: Key) -> None:
        """Take up the optimiser, for updates after each pass, and the key of dropout's masks; settle the buckets."""
        self._optimizer, self._key = optimizer, key
        for name, dropout in self.placed.dropouts.items():
            dropout.key = key.at("dropout", name)
        if self._network is None:
            return
        with self.group.traffic.uncounted():
            self._tell(torch.arange(self.example[0]))
            _require_reached(settle_buckets(self._network, self.example, self.precision, self.group))
        self.placed.now.own = self.placed.now.everybody = None

    def forward_backward(self, loss_of: Callable[..., Tensor], batches: Sequence[Batch], weight: Tensor) -> Tensor:
        """Run each micro-batch forward and backward; gradients are sent with the last."""
        total: Tensor | None = None
        if self._head is not None:
            self._head.require_uncompiled()
        for index, batch in enumerate(batches):
            last, network = index == len(batches) - 1, self._network
            assert network is not None, "wrap comes first"
            self._tell(batch.samples)
            with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext():
                if self._head is None:
                    loss = self._at_once(loss_of, batch, index, weight, last)
                else:
                    samples = sum(map(len, batches)) * self.world
                    loss = self._in_turns(self._head, loss_of, batch, index, weight, last, samples)
            total = loss if total is None else total + loss
        assert total is not None, "a step has at least one micro-batch"
        self.placed.now.own = self.placed.now.everybody = None
        self._complete()
        return total

    def _tell(self, samples: Tensor) -> None:
        """Tell dropout which samples the rows are of."""
        if any(dropout.p for dropout in self.placed.dropouts.values()):
            device = next(iter(self._split.values())).device
            self.placed.now.own = samples
            self.placed.now.everybody = self.placed.group.all_gather(samples.to(device), "samples").cpu()

    def _at_once(self, loss_of: Callable[..., Tensor], batch: Batch, index: int, weight: Tensor, last: bool) -> Tensor:
        loss = loss_of(batch, index)
        self._sending = last
        with self.group.guarded("all_reduce gradients"):
            torch.autograd.backward(loss, weight)
        return loss.detach()

    def _in_turns(
        self, head: Head, loss_of: Callable[..., Tensor], batch: Batch, index: int, weight: Tensor, last: bool,
        samples: int,
    ) -> Tensor:  # fmt: skip
        def before(final: bool) -> None:
            self._sending = self._every or (last and final)

        def after(turn: Turn) -> None:
            if self._every:
                self._update_parts(samples / (turn.count * self.placed.replicas.world))

        number = index * self.fixed_shards + self.rank * self.world
        assert self._network is not None
        with self.group.guarded("all_reduce gradients"):
            return head.run(
                self._network, batch, number, weight, self._key, Calls(loss_of, self._computing, before, after)
            )

    def _computing(self, samples: Tensor) -> AbstractContextManager[object]:
        return nullcontext() if self.precision is None else self.precision.forward(samples)

    @torch.no_grad()
    def _update_parts(self, factor: float) -> None:
        """Update split layers alone, from gradients times ``factor``: those of a step of the samples of one pass."""
        assert self._optimizer is not None, "prepare comes first"
        assert self.precision is not None, "it is told before shard"
        self._wait()
        parts = [p for p in self._split.values() if p.grad is not None]
        if not parts:  # in every process: none of them trains in this stage
            return
        gradients = [p.grad for p in parts if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        finite = torch.stack([norm.isfinite() for norm in torch._foreach_norm(gradients)]).all()
        bad = self.agree((~finite).float())
        own = {id(p) for p in parts}
        others = [p for group in self._optimizer.param_groups for p in group["params"] if id(p) not in own]
        kept = [p.grad for p in others]
        for parameter in others:
            parameter.grad = None
        self.precision.update(self._optimizer, bad)
        for parameter in parts:
            parameter.grad = None
        for parameter, gradient in zip(others, kept, strict=True):
            parameter.grad = gradient

    def _wait(self) -> None:
        for pending in self._sent:
            pending.wait()
        self._sent.clear()

    def _complete(self) -> None:
        """Have gradients complete that nobody has summed yet, and statistics the same everywhere."""
        self._wait()
        _require_reached([name for name, p in self.replicated.items() if p.grad is None and self.world > 1])
        gradients = [p.grad for p in self._beside if p.grad is not None]
        if gradients and self.world > 1:
            flat = self.group.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), "gradients")
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        average_(self.group, self._statistics, "statistics")

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the global norm of the gradients: parts over the group, others once; the host does not wait for it."""
        own = {id(p) for p in self._split.values()}
        parts = [p.grad for p in parameters if p.grad is not None and id(p) in own]
        others = [p.grad for p in parameters if p.grad is not None and id(p) not in own]
        if not parts:
            return get_total_norm(others)
        norm = get_total_norm(parts)
        squares = self.placed.group.all_reduce(norm.double().square(), "norm")
        for gradient in [get_total_norm(others)] if others else []:
            squares = squares + gradient.double().square()
        return squares.sqrt().to(norm.dtype)

    def clip(self, parameters: Sequence[Tensor], largest: float) -> Tensor:
        """Scale gradients so that their true global norm is at most ``largest``; return the norm before."""
        if self._every:
            raise UsageError(
                "parallel.updates=every updates split layers before the norm of all gradients is known: leave out "
                "run.clip, or choose parallel.updates=once"
            )
        return super().clip(parameters, largest)

    def update(self, precision: Precision, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Apply the optimiser's step, unless ``bad`` is 1.0; compare parameters and replicas' parts when due."""
        super().update(precision, optimizer, bad)
        if self.verify_every and self._updates % self.verify_every == 0:
            require_same(self.placed.replicas, self._split, self._updates)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Within ``with``, every layer is whole, and the model computes without the other processes."""
        with whole(model):
            yield

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return a process's parts of split parameters, and of tensors like them; the others as wholes."""
        saves = self.rank < self.placed.group.world  # of all replicas the first group
        found = {}
        for name, values in state.items():
            part = self.placed.parts.get(name)
            if part is not None and tuple(values.shape) == part.sizes:
                found[name] = Piece(values, part.shape, part.offsets, saves)
            else:
                found[name] = Piece.whole(values, self.leads)
        return found

    def describe(self) -> str:
        """Return how processes are connected, and which layers are split."""
        return "\n".join(filter(None, [super().describe(), self.placed.describe()]))


def _require_reached(unused: Sequence[str]) -> None:
    if unused:
        raise UsageError(
            f"parallel=hybrid: no gradient reaches {', '.join(unused[:4])}{' and others' * (len(unused) > 4)}: "
            "take them out of the model, or freeze them"
        )
