"""Views and re-estimated statistics within evaluations of real runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_run import Tiny, Watch, assert_same, everything
from torch import nn

from engine import Model, Session, UsageError, hookimpl, manifest, score
from engine.interfaces import Batch
from engine.marginalization import Views
from engine.options import EvaluateOptions
from engine.plugins.data import Digits
from engine.plugins.marginalize import Flip, MonteCarlo, MultiScale, TenCrop
from engine.randomness import Key

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass
class Scores(Watch):
    """Keeps what evaluations give."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scores: list[dict[str, float]] = []

    @hookimpl
    def on_evaluate_end(self, scalars) -> None:
        self.scores.append(dict(scalars))


def finished(make, out: str, **given):
    """Return a run that was trained for an epoch and what its evaluations gave; its folder is free again."""
    watch = Scores()
    run = make(out, observe={"scores": watch}, run={"epochs": 1, "evaluate_every": "5 steps", "ema": 0.5}, **given)
    run.fit()
    run.lock.close()
    return run, watch.scores


def test_nothing_given_is_one_forward_pass_to_the_same_bits(make):
    run, scores = finished(make, "plain")
    passes = []
    run.model.register_forward_hook(lambda module, images, outputs: passes.append(len(images[0])))
    run.evaluate()
    assert passes == [128, 128, 104]
    loss = right = 0.0
    with torch.no_grad(), run.average.swapped():
        run.model.eval()
        sums = []
        for batch in run.test:
            outputs = run.model(batch.images)
            sums.append(nn.functional.cross_entropy(outputs, batch.targets, reduction="sum").double())
            right += float((outputs.argmax(1) == batch.targets).sum())
        for value in sums:
            loss += float(value)
    assert scores[-1] == {"test/loss": loss / 360, "test/accuracy": right / 360}


@pytest.mark.parametrize("heads", [1, 2])
def test_larger_views_are_computed_a_few_images_at_a_time(heads):
    """The model never sees more pixels than the batch has, and the scores are those of the whole view."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, int]] = []

        def forward(self, images):
            self.seen.append((len(images), images.shape[2] * images.shape[3]))
            means = torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1)
            return means if heads == 1 else [means, 2 * means]

    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch, model = Batch(images, torch.zeros(7, dtype=torch.long), torch.arange(7)), Pooled()
    views = Views({"multi_scale": MultiScale([4, 16, 40]).build()}, "outputs", Key.of(0), torch.device("cpu"))
    with views.sampling(model):
        given = views.outputs(model, batch)
    assert max(count * pixels for count, pixels in model.seen if count > 1) <= 7 * 64
    assert [count for count, pixels in model.seen if pixels == 16 * 16] == [1] * 7
    assert [count for count, pixels in model.seen if pixels == 4 * 4] == [7]
    scaled = [nn.functional.interpolate(images, (side,) * 2, mode="bilinear", antialias=True) for side in (4, 16, 40)]
    expected = sum(torch.cat([view.mean((2, 3)), view.amax((2, 3))], 1) for view in scaled) / 3
    for head, factor in zip([given] if heads == 1 else given, (1, 2), strict=False):
        torch.testing.assert_close(head, factor * expected)


def test_evaluations_leave_training_as_it_is(make):
    """Weights, statistics, averages and optimiser are bit-equal with and without any of it."""
    plain, _ = finished(make, "plain")
    expected = everything(plain)
    members = {"flip": Flip(), "mc": MonteCarlo(samples=2)}
    run, scores = finished(make, "all", marginalize=members, evaluate={"batch_norm": 2})
    assert len(scores) == 3
    assert_same(expected, everything(run))


def test_a_resume_is_bit_equal_with_evaluations_in_between(make):
    given = {"marginalize": {"mc": MonteCarlo(samples=2)}, "evaluate": {"batch_norm": 2}}
    whole = make("whole", run={"epochs": 2}, **given)
    whole.fit()
    middle = manifest.checkpoints(whole.out)[-1]
    rest = make("rest", run={"epochs": 2}, resume=str(middle), **given)
    assert 0 < rest.position.step < whole.position.step
    rest.fit()
    assert_same(everything(whole), everything(rest))
    assert (whole.best.score, whole.best.step) == (rest.best.score, rest.best.step)


def test_monte_carlo_is_the_same_for_any_loader_threads_and_every_time(make):
    members = {"mc": MonteCarlo(samples=3)}
    run, scores = finished(make, "none", marginalize=members, threads=0)
    _, threaded = finished(make, "threads", marginalize=members, threads=3)
    assert scores == threaded
    watch = run.options.observe["scores"]
    run.evaluate()
    run.evaluate()
    assert watch.scores[-1] == watch.scores[-2] == scores[-1]
    _, plain = finished(make, "plain")
    assert plain[-1]["test/loss"] != scores[-1]["test/loss"]


def test_an_evaluation_scores_a_checkpoint_as_training_did(make, registry, tmp_path):
    members = {"flip": Flip(), "mc": MonteCarlo(samples=2)}
    run, scores = finished(make, "run", marginalize=members, evaluate={"batch_norm": 3})
    means, images = score(Session(run.options, registry, tmp_path / "unused"), run.out, lambda text: None)
    assert images == 360
    assert means == pytest.approx(scores[-1], rel=1e-6)
    plain = dataclasses.replace(run.options, marginalize={}, evaluate=EvaluateOptions())
    alone, _ = score(Session(plain, registry, tmp_path / "unused"), run.out, lambda text: None)
    assert alone["test/loss"] != pytest.approx(means["test/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("average", "loss"), [("softmax", "cross_entropy"), ("logits", "cross_entropy"), ("softmax", "mse")]
)
def test_the_average_is_of_what_the_option_and_the_loss_say(make, average, loss):
    run, scores = finished(make, "run", marginalize={"flip": Flip()}, evaluate={"average": average}, loss=loss)
    total = right = 0.0
    with torch.no_grad(), run.average.swapped():
        model = run.model.double().eval()
        for batch in run.test:
            views = [model(batch.images.double()), model(batch.images.double().flip(3))]
            if (average, loss) == ("softmax", "cross_entropy"):
                mean = (views[0].softmax(1) + views[1].softmax(1)) / 2
                total -= float(mean[range(len(batch)), batch.targets].log().sum())
            else:
                mean = (views[0] + views[1]) / 2
                total += float(run.loss(mean, batch.targets))
            right += float((mean.argmax(1) == batch.targets).sum())
    assert scores[-1]["test/loss"] == pytest.approx(total / 360, rel=1e-5)
    assert scores[-1]["test/accuracy"] == right / 360


def test_statistics_are_the_plain_average_over_training_batches(make):
    run, _ = finished(make, "run", evaluate={"batch_norm": 3})
    norm = run.model[1]
    own = {name: value.clone() for name, value in norm.state_dict().items()}
    steps, position = [], type(run.position)()
    for _ in range(3):
        step = run.loader.step_at(position)
        steps += step.batches
        position = step.end
    with torch.no_grad():
        inputs = [run.model[0](batch.images).transpose(0, 1).flatten(1).double().numpy() for batch in steps]
    means = sum(values.mean(1) for values in inputs) / 3
    variances = sum(values.var(1, ddof=1) for values in inputs) / 3
    run.model.train()
    run.model[5].eval()  # a layer that somebody froze
    norm.running_var[0] = own["running_var"][0] = torch.nan  # as an overflow leaves it
    with run.statistics(run.model):
        torch.testing.assert_close(norm.running_mean.double(), torch.from_numpy(means), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(norm.running_var.double(), torch.from_numpy(variances), rtol=1e-5, atol=1e-7)
        assert (norm.momentum, norm.training, run.model[5].training) == (0.1, True, False)
    for name, value in norm.state_dict().items():
        assert torch.equal(value.nan_to_num(-1), own[name].nan_to_num(-1)), name
    norm.eval()
    with run.statistics(run.model):
        assert torch.equal(norm.running_mean, own["running_mean"]), "a frozen layer keeps its own"


def test_an_evaluation_keeps_the_mode_of_every_layer(make):
    run, _ = finished(make, "run", marginalize={"mc": MonteCarlo(samples=2)})
    run.model.train()
    run.model[1].eval()
    run.evaluate()
    assert [module.training for module in run.model] == [True, False, True, True, True, True, True]


@dataclasses.dataclass
class FixedSize(Model):
    """A network for one size of image, with or without an error of torch for another."""

    says: bool = True

    def build(self, inputs, outputs):
        if self.says:
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs[1] * inputs[2], outputs))
        return nn.Sequential(nn.Conv2d(1, outputs, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "members", "line"),
    [
        (FixedSize(), {"flip": Flip(), "ten_crop": TenCrop()}, r"ten_crop: the model cannot take its views of 7x7"),
        (FixedSize(), {"multi_scale": MultiScale(sizes=[8, 12]), "flip": Flip()}, r"multi_scale: .* of 12x12"),
        (FixedSize(says=False), {"multi_scale": MultiScale(sizes=[9])}, r"multi_scale: .* \[\[1, 40\]\] instead"),
        (Tiny(), {"ten_crop": TenCrop(crop=9)}, r"marginalize\.ten_crop\.crop=9: the images are 8x8"),
        (Tiny(dropout=0.0), {"mc": MonteCarlo()}, r"marginalize\.mc: the model has no layer that draws"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_told_before_training(make, tmp_path, model, members, line):
    with pytest.raises(UsageError, match=line) as caught:
        make("run", model=model, marginalize=members)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_of_fixed_size_takes_flips_and_its_own_size(make):
    _, scores = finished(
        make, "run", model=FixedSize(), marginalize={"multi_scale": MultiScale(sizes=[8]), "flip": Flip()}
    )
    _, flips = finished(make, "flips", model=FixedSize(), marginalize={"flip": Flip()})
    assert scores == flips


def test_statistics_need_batch_norm(make):
    with pytest.raises(UsageError, match=r"evaluate\.batch_norm=2: the model has no BatchNorm layer"):
        make("run", model=FixedSize(), evaluate={"batch_norm": 2})


def test_images_of_the_data_set_are_what_is_resized(make):
    """A view is made of the image as an evaluation prepares it, at the source's size."""
    seen = set()
    run = make("run", data=Digits(size=16, threads=0), marginalize={"multi_scale": MultiScale(sizes=[16, 6])})
    run.model.register_forward_hook(lambda module, images, outputs: seen.add(tuple(images[0].shape[2:])))
    run.evaluate()
    assert seen == {(16, 16), (6, 6)}
