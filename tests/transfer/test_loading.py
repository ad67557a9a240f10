"""What a model takes of somebody's weights, what is new, and which weights are another model's."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
import torch
from networks import Branched, run_of, state_of
from safetensors.torch import save_file
from torch import nn

from engine import UsageError
from engine.anatomy import Anatomy
from engine.plugins.models import MLP, ResNet20, SmallCNN
from engine.plugins.transfer import Full, Head

HEADS = {"classifier.weight", "classifier.bias", "auxiliary.scores.weight", "auxiliary.scores.bias"}


@pytest.fixture
def start(tmp_path, anatomy):
    """Return a function that starts a Branched of 3 classes from a state; it returns the model, what is new, lines."""

    def started(state, suffix=".pt", **options):
        path = tmp_path / f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        plan, model = Full(weights=str(path), **options).build(), Branched(3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            told = "\n".join(plan.start(model, anatomy)).replace(str(path), "FILE")
        except UsageError:
            assert same(model.state_dict(), before), "what does not fit changes nothing"
            raise
        return model, plan.new, told

    return started


def same(state, other, names=None):
    return all(torch.equal(state[name], other[name]) for name in names or state)


def renamed(state):
    """Return a state under names that say nothing."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return OrderedDict(
        (f"m{modules.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}", value) for name, value in state.items()
    )


class Ordered(nn.Module):
    """The layers of Branched without its auxiliary head, made in the order in which they compute."""

    def __init__(self, outputs=3):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.second, self.norm2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.third, self.classifier = nn.Linear(4, 5), nn.Linear(5, outputs)

    def forward(self, images):
        x = self.norm1(self.first(images)).relu()
        x = self.norm2(self.second(x)).relu().mean((2, 3))
        return self.classifier(self.third(x).relu())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_all_that_fits_is_taken_by_name(start, suffix):
    torch.manual_seed(1)
    theirs = Branched(3).state_dict()
    model, new, told = start(theirs, suffix)
    assert same(model.state_dict(), theirs)
    assert new == frozenset()
    assert "6 of 6 layers have the weights of FILE" in told
    assert "the head auxiliary.scores, classifier fits and is kept; transfer.reinitialize=" in told


def test_a_head_for_other_classes_is_new(start):
    theirs = Branched(7).state_dict()
    model, new, told = start(theirs)
    assert new == HEADS
    assert same(model.state_dict(), theirs, set(theirs) - HEADS)
    assert "the head classifier is new: it has 3 outputs here, 7 in the weights" in told
    assert "the head auxiliary.scores is new" in told


def test_layers_that_the_weights_lack_are_new(start):
    theirs = {n: v for n, v in Branched(3).state_dict().items() if not n.startswith(("auxiliary", "norm2"))}
    theirs["classifier_20k.weight"] = torch.zeros(20000, 5)
    theirs.pop("norm1.num_batches_tracked")
    model, new, told = start(theirs)
    assert new == {f"auxiliary.{layer}.{own}" for layer in ("hidden", "scores") for own in ("weight", "bias")}
    assert same(model.state_dict(), theirs, set(theirs) - {"classifier_20k.weight"})
    assert "new, as the weights have nothing for them: auxiliary.hidden, auxiliary.scores\n" in told
    assert "as the weights lack them: norm2.running_mean, norm2.running_var\n" in told
    assert "not used of the weights: classifier_20k.weight" in told


@pytest.mark.parametrize(
    ("learns", "line"),
    [
        (False, "not learnt, and as the model has them, as the weights lack them: mean_image"),
        (True, "new, as the weights have nothing for them: mean_image"),
    ],
)
def test_what_a_model_has_itself_is_named(tmp_path, learns, line):
    torch.save(Ordered().state_dict(), tmp_path / "theirs.pt")

    def build(outputs=3):
        model = Ordered(outputs)
        model.mean_image = nn.Parameter(torch.zeros(1, 8, 8)) if learns else nn.Buffer(torch.zeros(1, 8, 8))
        return model

    plan = Full(weights=str(tmp_path / "theirs.pt")).build()
    told = [text.removeprefix("transfer: ") for text in plan.start(build(), Anatomy(build, 3, (1, 8, 8)))]
    assert line in told
    assert sum("lack" in text or "nothing for" in text for text in told) == 1
    assert plan.new == ({"mean_image"} if learns else frozenset())


def test_reinitialize_leaves_layers_as_they_were(start):
    theirs = Branched(3).state_dict()
    model, new, told = start(theirs, reinitialize=["third", "cl*"])
    assert new == {"third.weight", "third.bias", "classifier.weight", "classifier.bias"}
    assert not any(same(model.state_dict(), theirs, [name]) for name in new)
    assert "new, as transfer.reinitialize says: classifier, third" in told
    with pytest.raises(UsageError, match=r"reinitialize: the model has no layer 'thirt'; did you mean 'third'"):
        start(theirs, reinitialize=["thirt"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second.weight": torch.zeros(4, 9, 1, 1)}, r"second.weight is \[4, 9, 1, 1\] instead of \[4, 3, 1, 1\]"),
        ({"third.bias": None}, "third.bias is missing"),
        ({"norm1.running_var": None}, "norm1.running_var is missing"),
        ({"classifier.weight": torch.zeros(3, 6)}, r"classifier.weight is \[3, 6\] instead of \[3, 5\]"),
    ],
)
def test_layers_that_do_not_fit(start, change, message):
    state = Branched(3).state_dict() | change
    with pytest.raises(UsageError, match=rf"does not fit this model: {message}; choose .* transfer.reinitialize="):
        start({name: value for name, value in state.items() if value is not None})


def test_less_than_half_of_the_layers_is_another_model(start):
    state = Branched(3).state_dict()
    few = {n: v for n, v in state.items() if n.startswith(("first", "second"))}
    with pytest.raises(UsageError, match=r"has 2 of this model's 6 layers by name"):
        start(few)
    start({n: v for n, v in state.items() if n.startswith(("first", "second", "third"))})  # a half is enough


def test_layers_of_other_names_are_taken_in_their_order(tmp_path):
    anatomy = Anatomy(Ordered, 3, (1, 8, 8))
    for outputs, fresh in ((3, set()), (9, {"classifier.weight", "classifier.bias"})):
        theirs = Ordered(outputs)
        torch.save({"state_dict": renamed(theirs.state_dict())}, tmp_path / "theirs.pth")
        plan, model = Full(weights=str(tmp_path / "theirs.pth")).build(), Ordered()
        told = "\n".join(plan.start(model, anatomy))
        assert plan.new == fresh
        names = [name for name in theirs.state_dict() if name not in fresh]
        assert same(model.state_dict(), theirs.state_dict(), names)
        assert "first takes m0, ... classifier takes m5" in told
        few = renamed(theirs.state_dict())  # one name in common is by chance
        torch.save({n.replace("m0.", "first."): v for n, v in few.items()}, tmp_path / "theirs.pth")
        assert "first takes first, ... classifier takes m5" in "\n".join(plan.start(Ordered(), anatomy))
    save_file(renamed(Ordered().state_dict()), tmp_path / "sorted.safetensors")
    with pytest.raises(UsageError, match=r"has no layer that is called as here .there m.*and 4 more; .* keeps no"):
        Full(weights=str(tmp_path / "sorted.safetensors")).build().start(Ordered(), anatomy)


def test_layers_of_other_names_in_another_order_are_another_model(tmp_path, start):
    with pytest.raises(UsageError, match=r"nor layers of the same shapes in this order"):
        start(renamed(Branched(3).state_dict()))  # which are registered in another order than they compute in
    torch.save({"a.weight": torch.zeros(2, 2)}, tmp_path / "small.pt")
    with pytest.raises(UsageError, match=r"nor layers of the same shapes"):
        Head(weights=str(tmp_path / "small.pt")).build().start(Ordered(), Anatomy(Ordered, 3, (1, 8, 8)))


def test_a_checkpoint_gives_its_averaged_weights(tmp_path, make):
    run = make("source", steps=6)
    run.fit()
    again = run_of(tmp_path / "again", transfer=Head(weights=str(tmp_path / "source")))
    taken = state_of(again)
    assert run.average is not None
    for name, average in run.average.state().items():
        assert torch.equal(taken[name], average), name
        assert not torch.equal(average, run.model.state_dict()[name]) or "running" in name
    assert again.transfer.new == frozenset()


def test_weights_that_are_not_there(make, tmp_path):
    with pytest.raises(UsageError, match=r"nothing.pt does not exist"):
        make(transfer=Head(weights=str(tmp_path / "nothing.pt")))
    for name in ("sha256", "reinitialize"):
        with pytest.raises(UsageError, match=rf"transfer.{name} is about transfer.weights: give these too"):
            make(transfer=Head(**{name: ["linear"]}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_is_told_without_weights(make, capsys):
    make(transfer=Head())
    assert "nothing is pretrained" in (told := capsys.readouterr().out)
    assert "keeps its random numbers" in told
    make("full", transfer=Full())
    assert "keeps its random numbers" not in capsys.readouterr().out


def test_real_weights_by_name_and_a_new_head(real_data, tmp_path):
    weights = real_data("weights/pytorch_resnet20_cifar10/resnet20-12fca82f.th")
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    for outputs, fresh in ((10, set()), (4, {"linear.weight", "linear.bias"})):
        plan, build = Full(weights=str(weights)).build(), partial(ResNet20().build, (3, 32, 32))
        model, anatomy = build(outputs), Anatomy(build, outputs, (3, 32, 32))
        plan.start(model, anatomy)
        assert plan.new == fresh
        assert same(model.state_dict(), {n.removeprefix("module."): v for n, v in state.items()}, {
            n for n in model.state_dict() if n not in fresh and "tracked" not in n
        })  # fmt: skip


@pytest.mark.parametrize(
    ("other", "message"),
    [(SmallCNN(width=8), "does not fit this model: conv1.weight is"), (MLP(), "has no layer that")],
)
def test_weights_of_another_network_are_answered(make, tmp_path, other, message):
    make("source", steps=1, model=other).fit()
    with pytest.raises(UsageError, match=message):
        make("next", transfer=Head(weights=str(tmp_path / "source")))
    assert not (tmp_path / "next" / "checkpoints").exists()
