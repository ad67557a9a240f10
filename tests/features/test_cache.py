"""Training on kept features: the same weights, bit for bit, as training with the frozen layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from deep import Deep, Secret, Untraceable
from small_run import Watch, assert_same, everything
from torch import Tensor

from engine import UsageError
from engine.features.drawing import that_draw
from engine.host_to_device import Layout
from engine.loader import Loader
from engine.plugins.marginalize import Flip
from engine.plugins.parallel import Single
from engine.plugins.transfer import Head, Staged
from engine.randomness import Key
from engine.testing.small import SmallData
from engine.workers import Workers


def seen_by(run: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Train; return each step's loss, and what training changes."""
    run.fit()
    return run.options.observe["watch"].losses, everything(run)


def both(make: Any, transfer: Any, cached: dict[str, Any] | None = None, **given: Any) -> tuple[Any, Any]:
    """Return a run without the cache and one with it, trained, after comparing them bit for bit."""
    given = {"augment": ["normalize"], "model": Deep(), "run": {"ema": 0.9}, **given}
    plain = make("plain", transfer=transfer(), observe={"watch": Watch()}, **given)
    quick = make("quick", transfer=transfer(cache=True, **(cached or {})), observe={"watch": Watch()}, **given)
    (losses, state), (quick_losses, quick_state) = seen_by(plain), seen_by(quick)
    assert len(losses) == len(quick_losses)
    assert all(torch.equal(one, other) for one, other in zip(losses, quick_losses, strict=True))
    assert_same(state, quick_state)
    assert plain.best == quick.best
    assert plain.metrics.sums.equal(quick.metrics.sums)
    return plain, quick


def images_of(run: Any) -> Sequence[Tensor]:
    return run.options.observe["watch"].images


@pytest.mark.parametrize("threads", [0, 2])
def test_a_head_on_kept_features_is_the_same_to_the_last_bit(make, threads):
    plain, quick = both(make, Head, threads=threads)
    assert images_of(plain)[0].shape == (128, 1, 8, 8)
    assert images_of(quick)[0].shape == (128, 12, 1, 1), "what the last layer reads"


def test_stages_take_their_own_prefix_and_the_last_has_none(make):
    shares = {"stages": ["head:0.4", "last_2:0.3", "all:0.3"]}
    plain, quick = both(make, lambda **given: Staged(**shares, **given), run={"steps": 12, "evaluate_every": "3 steps"})
    steps, shapes = [stage.steps for stage in plain.stages], [tuple(images.shape[1:]) for images in images_of(quick)]
    behind_head, behind_pair = (12, 1, 1), (32, 1, 1)
    assert shapes == [behind_head] * steps[0] + [behind_pair] * steps[1] + [(1, 8, 8)] * steps[2]


def test_what_computes_otherwise_in_training_is_left_to_the_rest(make):
    _, quick = both(make, Head, model=Deep(auxiliary=True))
    assert images_of(quick)[0].shape == (128, 6, 4, 4), "up to where the auxiliary head branches off"


def test_a_resume_takes_up_the_features_of_the_checkpoint_weights(make, tmp_path):
    given = {"augment": ["normalize"], "model": Deep(), "save": {"every": "2 steps", "keep": 20}, "run": {"steps": 9}}
    transfer = Staged(stages=["last_2:0.4", "all:0.3", "head:0.3"], cache=True)  # the prefix changes in between
    whole = make("whole", transfer=transfer, observe={"watch": Watch()}, **given)
    whole.fit()
    for step in (2, 8):
        start = str(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}")
        again = make(f"again-{step}", transfer=transfer, observe={"watch": Watch()}, resume=start, **given)
        again.fit()
        assert_same(everything(whole), everything(again))
        for one, other in zip(images_of(whole)[step:], images_of(again), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_numbers_are_kept_as_they_are(make, precision):
    both(make, Head, precision=precision, run={"steps": 4})


def test_memory_order_and_kernels_are_those_of_the_run(make):
    both(make, Head, run={"steps": 10, "channels_last": True}, kernels="im2col")


def test_worker_processes_are_those_of_the_run_alone(make, registry, monkeypatch):
    made: list[int] = []
    initialised = Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, count: made.append(count) or initialised(self, count))
    data = registry.entry("data", "digits").options(size=8, threads=1, workers="processes")
    run = make(transfer=Head(cache=True), model=Deep(), augment=["normalize"], data=data)
    features = run.transfer.shortcut(run, run.stages[0])
    assert features._reading == features._reading | {"threads": 1, "batch": 128, "workers": None}
    assert made == [1]
    run.close()


def test_evaluations_over_views_are_of_the_whole_network(make):
    both(make, Head, marginalize={"flip": Flip()})


def test_drawn_views_are_those_of_the_first_epochs_and_come_again(make):
    given = {"augment": ["pad_crop", "mixup", "normalize"], "model": Deep(), "run": {"epochs": 5}}
    plain = make("plain", transfer=Head(), observe={"watch": Watch()}, **given)
    quick = make("quick", transfer=Head(cache=True, cache_views=2), observe={"watch": Watch()}, **given)
    (losses, _), (quick_losses, _) = seen_by(plain), seen_by(quick)
    first = 2 * plain.steps_per_epoch
    assert all(torch.equal(*pair) for pair in zip(losses[:first], quick_losses[:first], strict=True))
    assert not torch.equal(losses[first], quick_losses[first]), "the third epoch sees the first one's views"
    rows: list[dict[int, Tensor]] = []
    for epoch in range(5):
        own = range(epoch * plain.steps_per_epoch, (epoch + 1) * plain.steps_per_epoch)
        seen: dict[int, Tensor] = {}
        for step in own:
            batch = quick.options.observe["watch"]
            order = quick.loader.samples_of(epoch, 0, len(quick.source)).records
            places = batch.samples[step] - epoch * len(quick.source)
            seen |= dict(zip(order[places].tolist(), batch.images[step], strict=True))
        rows.append(seen)
    for epoch in (2, 3, 4):
        common = rows[epoch].keys() & rows[epoch - 2].keys()
        assert len(common) > 1000
        assert all(torch.equal(rows[epoch][record], rows[epoch - 2][record]) for record in common)
    assert not any(torch.equal(rows[0][record], rows[1][record]) for record in rows[0].keys() & rows[1].keys())


def test_what_draws_is_refused_without_views(make):
    with pytest.raises(UsageError, match=r"^transfer.cache: pad_crop, flip of augment draws anew.*cache_views=K"):
        make(transfer=Head(cache=True), model=Deep())
    both(make, Head, {"cache_views": 3}, run={"steps": 4})  # of which there is one where nothing draws


def test_it_is_known_which_augmentations_draw(registry):
    options = {
        "resize": {"size": 7}, "center_crop": {"size": 6}, "affine": {}, "random_erasing": {"probability": 0.01},
        "normalize": {}, "alternating_flip": {}, "cutmix": {"group_size": 4},
    }  # fmt: skip
    source = SmallData().build("train")
    built = {name: registry.entry("augment", name).options(**given).build() for name, given in options.items()}
    for augmentation in built.values():
        augmentation.prepare(lambda: source)
    loader = Loader(source, built, Key.of(1), batch=4, layout=Layout(torch.device("cpu")))
    assert that_draw(loader) == ["affine", "random_erasing", "alternating_flip", "cutmix"]


def test_what_cannot_be_kept_is_refused(make, registry):
    given = {"augment": ["normalize"], "transfer": Head(cache=True), "model": Deep()}
    with pytest.raises(UsageError, match=r"^transfer.cache: precision=Fixed rounds frozen layers anew in each step"):
        make("one", precision="fixed", **given)
    with pytest.raises(UsageError, match=r"^transfer.cache: parallel=.* needs the whole network"):
        make("two", parallel="pipeline", **given)
    with pytest.raises(UsageError, match=r"^transfer.cache: parallel=.*with parallel.canonical needs the whole"):
        make("three", parallel=Single(canonical=1), **given)
    with pytest.raises(UsageError, match=r"^transfer.cache: Choosing's forward pass depends on its numbers"):
        make("four", **given | {"model": Untraceable()})
    with pytest.raises(UsageError, match=r"^transfer.cache: Noisy's forward pass draws numbers outside its layers"):
        make("five", **given | {"model": Secret(False)})
    with pytest.raises(UsageError, match=r"an augmentation, or a layer up to middle, draws from torch's generators"):
        make("six", **given | {"model": Secret(True)}).fit()
