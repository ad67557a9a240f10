"""A stage without its frozen prefix: that runs once over the data, and training reads what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from engine.building import build_loader
from engine.chain import Samples
from engine.cutting import Cut, cut_behind_frozen
from engine.errors import UsageError
from engine.features.arrays import Growing
from engine.features.drawing import that_draw
from engine.features.kept import folder_of, kept, say
from engine.features.key import key_of, network_facts, run_facts, source_facts
from engine.features.source import FeatureSource, ViewOfEpoch
from engine.host_to_device import Layout
from engine.interfaces import Augmentation, Batch, Source
from engine.layers import modes_kept, torch_draws_kept
from engine.loader import Loader, TestLoader, prefetched
from engine.parts import Parts
from engine.precision import Precision
from engine.quantization import RoundedPrecision
from engine.transfer import Shortcut

OFF = "set transfer.cache=false"
FEATURES, TARGETS = "features", "targets"


def cached_shortcut(run: Parts, folder: str, views: int) -> Shortcut | None:
    """Return what trains the present stage from the outputs of its frozen prefix; None if it has none.

    They are computed, or found in ``folder`` ("" for the user's), when they are first asked for: a run that resumes has
    the checkpoint's weights by then. views: how many augmented views of each image, one for each of so many epochs,
    stand for the random ones of all epochs. Raises UsageError for what cannot be cached.
    """
    cut = cut_behind_frozen(run.model, run.still, "transfer.cache", f"{OFF}, or write its forward pass without that")
    if cut is None:
        return None
    require_cacheable(run)
    random = that_draw(run.loader)
    if random and not views:
        raise UsageError(
            f"transfer.cache: {', '.join(random)} of augment draws anew in each epoch: leave out what draws, or set "
            "transfer.cache_views=K to go round K drawn views of each image"
        )
    like = _first_outputs(run, cut)
    cut.rest.like = (like.shape[1:], like.dtype)
    features = Features(run, cut, like, views if random else 0, folder)
    run.strategy.example = (run.loader.share, *features.shape)
    return features


def require_cacheable(run: Parts) -> None:
    """Raise UsageError for a strategy or a numeric policy whose frozen layers do not give the same for good."""
    choice = run.choices.get("parallel", type(run.strategy).__name__)
    if not run.options.parallel.takes_shortcuts or run.strategy.fixed_shards:
        how = f"{choice} with parallel.canonical" if run.strategy.fixed_shards else choice
        raise UsageError(f"transfer.cache: parallel={how} needs the whole network: {OFF}, or choose parallel=data")
    policy = type(run.precision)
    same = policy.computing is Precision.computing and policy.evaluation_weights is Precision.evaluation_weights
    if not same or isinstance(run.precision, RoundedPrecision):
        raise UsageError(
            f"transfer.cache: precision={run.choices.get('precision', policy.__name__)} rounds frozen layers anew in "
            f"each step: {OFF}, or choose float32, float64 or bfloat16"
        )


@torch.no_grad()
def _first_outputs(run: Parts, cut: Cut) -> Tensor:
    """Return what the prefix makes of two images: its shape and type count, the weights may not be there yet."""
    with modes_kept(cut.prefix), run.precision.forward():
        made: Tensor = cut.prefix.eval()(run.loader.example().images)
    return made


class Features(Shortcut):
    """The features of a stage's prefix, and loaders that read them: made, or found, when they are first asked for.

    shape: of an image's features, as loaders give them. views: how many are drawn of a training image; 0: nothing is.
    """

    def __init__(self, run: Parts, cut: Cut, like: Tensor, views: int, folder: str) -> None:
        self.run, self.cut, self.views, self.folder = run, cut, views, folder
        self.network, self.dtype = cut.rest, like.dtype
        sizes = like.shape[1:] if like.ndim == 4 else (like[0].numel(), 1, 1)
        self.shape = (sizes[0], sizes[1], sizes[2])

    @cached_property
    def loader(self) -> Loader:
        """What the stage's steps come from: the run's samples in the run's order."""
        run, rows = self.run, max(1, self.views) * len(self.run.source)
        example = run.loader.batch_of(run.loader.samples_of(0, 0, run.loader.share))
        drawn = [self.views, run.key.value, repr(run.loader.shuffle)] if self.views else []
        facts = {"split": "train", "batch": run.loader.share, "views": drawn}
        source = self._source(run.source, rows, example.targets, facts, self._fill)
        turns: Mapping[str, Augmentation] = {"view": ViewOfEpoch(source)} if self.views else {}
        return build_loader(run.options, source, turns, run.key, self._reading, run.strategy.equal_shares)

    @cached_property
    def test(self) -> TestLoader:
        """What the stage's evaluations read."""
        given, first = self.run.test.source, self.run.test.batch_at(0)
        facts = {"split": "test", "batch": self.run.loader.batch, "views": []}
        source = self._source(given, len(given), first.targets, facts, self._fill_test)
        return TestLoader(source, {}, **self._reading)

    @property
    def _reading(self) -> dict[str, Any]:
        run, data = self.run, self.run.options.data
        return {
            "batch": run.options.run.batch, "threads": data.threads, "prefetch": data.prefetch,
            "layout": Layout(run.device, run.precision.dtype, run.options.run.channels_last),
            "rank": run.strategy.rank, "world": run.strategy.world, "workers": None,
        }  # fmt: skip

    def _source(
        self, source: Source, rows: int, targets: Tensor, facts: Mapping[str, Any], fill: Callable[[Growing], None]
    ) -> FeatureSource:
        """Return a split's features and targets, computed by ``fill`` if nobody has before."""
        run, what = self.run, f"the features of {rows:,} {facts['split']} images behind {self.cut.last}"
        shapes = {
            FEATURES: ((rows, *self.shape), self.dtype), TARGETS: ((rows, *targets.shape[1:]), targets.dtype)
        }  # fmt: skip
        whole = {
            **facts, **run_facts(run.options, run.loader.augmentations, run.device), "network": self._network,
            "data": source_facts(source, run.options.data), "learnt from": run.source.fingerprint,
            "features": [list(self.shape), str(self.dtype)],
        }  # fmt: skip
        tensors = kept(folder_of(self.folder), key_of(whole), shapes, what, whole, fill)
        return FeatureSource(source, tensors[FEATURES], tensors[TARGETS])

    @cached_property
    def _network(self) -> Mapping[str, Any]:
        return network_facts(self.cut.prefix)

    def _fill(self, growing: Growing) -> None:
        """Compute the training images' features, in batches of the size that a process's have in training.

        Drawn views are those of as many epochs, in the epochs' own batches; only the last batch, which no epoch trains
        on, is filled up with images of the one before.
        """
        run, count = self.run, len(self.run.source)
        share = run.loader.share
        in_order = torch.arange(count)
        tasks = []
        for view in range(max(1, self.views)):
            for place in range(0, count, share):
                first = min(place, count - share)
                last = first + share
                samples = Samples(in_order[first:last], in_order[first:last], 0)
                samples = run.loader.samples_of(view, first, last) if self.views else samples
                tasks.append((samples, view * count + samples.records[place - first :], place - first))
        made = prefetched(lambda task: run.loader.batch_of(task[0]), tasks, self._threads, self._ahead)
        self._compute(growing, ((rows, skip, batch) for (batch, _), (_, rows, skip) in zip(made, tasks, strict=True)))

    def _fill_test(self, growing: Growing) -> None:
        """Compute the test images' features, in the batches of an evaluation."""
        firsts = range(0, len(self.run.test.source), self.run.loader.batch)
        made = prefetched(self.run.test.batch_at, firsts, self._threads, self._ahead)
        with self.run.kernels.prepared(self.run.model):
            self._compute(growing, ((batch.samples, 0, batch) for batch, _ in made))

    @property
    def _threads(self) -> int:
        return self.run.options.data.threads

    @property
    def _ahead(self) -> int:
        return self.run.options.data.prefetch

    @torch.no_grad()
    def _compute(self, growing: Growing, batches: Iterable[tuple[Tensor, int, Batch]]) -> None:
        """Write what the prefix makes of batches into rows, but for as many first images as are to be skipped.

        Raises UsageError if anything has drawn from torch's generators, whose numbers would not come again.
        """
        features, targets = growing.tensors[FEATURES], growing.tensors[TARGETS]
        begun, drawn = time.perf_counter(), _generators(self.run.device)
        with modes_kept(self.cut.prefix), torch_draws_kept(self.run.device):
            self.cut.prefix.eval()
            for rows, skip, batch in batches:
                with self.run.precision.forward():
                    made = self.cut.prefix(batch.images)
                features[rows] = made[skip:].reshape(-1, *self.shape).cpu()
                targets[rows] = batch.targets[skip:].cpu()
            still = all(torch.equal(one, other) for one, other in zip(drawn, _generators(self.run.device), strict=True))
        if not still:
            raise UsageError(
                f"transfer.cache: an augmentation, or a layer up to {self.cut.last}, draws from torch's generators: "
                f"{OFF}"
            )
        say(f"computed in {time.perf_counter() - begun:.1f} s, {growing.bytes:,} bytes in {growing.folder.parent}")


def _generators(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
