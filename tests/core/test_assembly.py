"""What does not fit together is answered before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from small_run import Tiny
from torch import nn

from engine import Batch, Data, Loss, Model, Records, UsageError, manifest
from engine.groups import parameter_groups
from engine.interfaces import LossFunction, Source

pytestmark = pytest.mark.usefixtures("one_thread")


class Memory(Source):
    """Random float images with given targets."""

    fingerprint = "memory"

    def __init__(self, targets: torch.Tensor, classes: Sequence[str], shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        self.classes, self.shape, self.targets = classes, shape, targets
        self.images = torch.randn(len(targets), *shape, generator=torch.Generator().manual_seed(len(targets)))

    def __len__(self) -> int:
        return len(self.targets)

    def records(self, indices: Sequence[int]) -> Records:
        rows = torch.tensor(list(indices))
        return Records("tensor", self.images[rows], self.targets[rows])


@dataclass
class Given(Data):
    """Sources made by a test."""

    sources: dict[str, Source] = field(default_factory=dict)

    def build(self, split: str) -> Source:
        return self.sources[split]


def given(train: Source, test: Source | None = None) -> Given:
    return Given(threads=0, sources={"train": train, "test": test or train})


def numbers(classes: Sequence[str], shape: tuple[int, int, int] = (1, 8, 8), count: int = 40) -> Memory:
    return Memory(torch.arange(count) % max(1, len(classes)), classes, shape)


@dataclass
class Made(Model):
    """A network made by a test."""

    make: Callable[..., nn.Module] = nn.Identity

    def build(self, inputs: tuple[int, int, int], outputs: int) -> nn.Module:
        return self.make(inputs, outputs)


class Returns(nn.Module):
    """Gives whatever a test wants."""

    def __init__(self, give: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.give, self.weight = give, nn.Parameter(torch.ones(3, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.give(x)


def raising(error: Exception) -> Callable[[torch.Tensor], Any]:
    def give(_: torch.Tensor) -> Any:
        raise error

    return give


def refused(make: Callable[..., Any], tmp_path: Any, **settings: Any) -> str:
    """Return the one line that refuses to assemble a run; nothing of a run may have been written."""
    with pytest.raises(UsageError) as caught:
        make("run", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()
    return str(caught.value)


def test_splits_must_have_the_same_classes(make, tmp_path):
    names = [f"class {i}" for i in range(9)]
    line = refused(make, tmp_path, data=given(numbers([*names, "cat"]), numbers([*names, "dog"])))
    assert line == "data: the training set has 10 classes, the test set 10; only one of them has cat, dog"
    line = refused(make, tmp_path, data=given(numbers(names), numbers(names[:-1])))
    assert line == "data: the training set has 9 classes, the test set 8; only one of them has class 8"
    line = refused(make, tmp_path, data=given(numbers(["a", "b"]), numbers(["b", "a"])))
    assert line == "data: the training set has 2 classes, the test set 2; they are in another order"


def test_splits_must_have_images_of_one_shape(make, tmp_path):
    line = refused(make, tmp_path, data=given(numbers("ab"), numbers("ab", (1, 8, 9))))
    assert line == (
        "data: training images are (1, 8, 8) (channels, height, width), test images (1, 8, 9); they must be alike"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(make, tmp_path, split):
    sources: dict[str, Source] = {"train": numbers("ab"), "test": numbers("ab"), split: numbers("ab", count=0)}
    assert refused(make, tmp_path, data=Given(sources=sources)) == f"data: the {split} set is empty"


def test_a_batch_larger_than_the_data_is_named(make, tmp_path):
    line = refused(make, tmp_path, run={"batch": 500, "accumulate": 3})
    assert line == (
        "run.batch=500 x run.accumulate=3 needs 1500 images a step, but the training set has 1437: "
        "choose a smaller run.batch"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "meta", "mps", "xpu"])
def test_an_unknown_device_is_named(make, tmp_path, device):
    assert refused(make, tmp_path, run={"device": device}) == f"run.device={device}: write auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize(("device", "there"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_named(make, tmp_path, monkeypatch, device, there):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    line = refused(make, tmp_path, run={"device": device})
    assert line == f"run.device={device}: this machine has {there} GPUs; use run.device=cpu"


def test_a_torch_without_cuda_is_named(make, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    line = refused(make, tmp_path, run={"device": "cuda"})
    assert line == "run.device=cuda: this torch was built without CUDA; install one with it, or use cpu"


@pytest.mark.parametrize(
    ("option", "text"), [("evaluate_every", "sometimes"), ("max_time", "soon"), ("evaluate_every", "0 epochs")]
)
def test_an_unreadable_rhythm_is_named(make, tmp_path, option, text):
    assert refused(make, tmp_path, run={option: text}).startswith(f"run.{option}={text}: write ")


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda x: x, "model returns [2, 1, 8, 8] for 2 images of 10 classes; the loss needs [2, 10]"),
        (lambda x: x.flatten(1)[:, :9], "model returns [2, 9] for 2 images of 10 classes; the loss needs [2, 10]"),
        (lambda x: x.sum(), "model returns [] for 2 images of 10 classes; the loss needs [2, 10]"),
        (lambda x: [x, x], "model returns [2, 1, 8, 8] for 2 images of 10 classes; the loss needs [2, 10]"),
        (lambda x: None, "model returns NoneType; the loss needs a tensor, or several with the main one first"),
        (lambda x: {"out": x}, "model returns dict; the loss needs a tensor, or several with the main one first"),
        (lambda x: [], "model returns nothing; the loss needs a tensor, or several with the main one first"),
        (lambda x: (x, 1), "model returns Tensor, int; the loss needs a tensor, or several with the main one first"),
    ],
)
def test_a_model_with_wrong_outputs_is_answered(make, tmp_path, give, words):
    assert refused(make, tmp_path, model=Made(lambda *_: Returns(give))) == words


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda *_: nn.Conv2d(3, 4, 3), "to have 3 channels, but got 1 channels instead"),
        (lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(100, 10)), "cannot be multiplied"),
        (lambda inputs, outputs: nn.Linear(inputs[1] - 20, outputs), "negative dimension"),
        (lambda *_: Returns(raising(ValueError("at least 32x32\nplease"))), "at least 32x32"),
    ],
)
def test_a_model_that_cannot_take_the_images_is_answered(make, tmp_path, model, words):
    line = refused(make, tmp_path, model=Made(model))
    assert line.startswith("model cannot take images of shape (1, 8, 8): ")
    assert words in line


def test_a_defect_of_a_model_is_not_mistaken_for_a_mistake_of_the_user(make):
    with pytest.raises(AttributeError, match="no attribute 'fc9'"):
        make("run", model=Made(lambda *_: Returns(raising(AttributeError("no attribute 'fc9'")))))


def test_a_model_without_parameters_is_answered(make, tmp_path):
    nothing = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    line = refused(make, tmp_path, model=Made(lambda *_: nothing))
    assert line == "no parameter of the model trains: choose another transfer or model"


def test_the_model_is_tried_without_touching_its_state(make):
    run = make("run")
    norm = run.model[1]
    assert run.model.training
    assert norm.num_batches_tracked.item() == 0
    assert torch.equal(norm.running_mean, torch.zeros(8))


def test_initial_weights_follow_from_the_seed_alone(make):
    torch.manual_seed(1)
    one = make("a", run={"seed": 5})
    torch.rand(100)
    other, third = make("b", run={"seed": 5, "batch": 32}), make("c", run={"seed": 6})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
    assert not torch.equal(one.parameters[0], third.parameters[0])


def test_filters_and_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(8, 3))
    model[4].bias.requires_grad = False
    decaying, others = parameter_groups(model)
    assert (decaying["decays"], decaying["names"]) == (True, ["0.weight", "4.weight"])
    assert (others["decays"], others["names"]) == (False, ["0.bias", "1.weight", "1.bias", "2.weight"])
    parameters = dict(model.named_parameters())
    for group in (decaying, others):
        assert all(p is parameters[name] for name, p in zip(group["names"], group["params"], strict=True))


def test_a_group_without_members_is_left_out_and_tied_weights_come_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    (group,) = parameter_groups(nn.Sequential(first, second))
    assert (group["decays"], group["names"]) == (True, ["0.weight"])
    with pytest.raises(UsageError, match="no parameter of the model trains"):
        parameter_groups(nn.ReLU())


def test_regression_trains_from_images_to_numbers(make, registry):
    """Targets are a linear function of the images, so a linear model must find it."""
    sources = {}
    rule = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) / 8
    for split, count in (("train", 256), ("test", 64)):
        source = Memory(torch.zeros(count, 3), ())
        source.targets = source.images.flatten(1) @ rule + 1.0
        sources[split] = source
    run = make(
        "run",
        data=Given(threads=0, sources=sources),
        augment=[],
        model=Made(lambda inputs, outputs: nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))),
        loss=registry.entry("loss", "mse").options(targets="values"),
        optim=registry.entry("optim", "adamw").options(lr=0.05, weight_decay=0.0),
        run={"batch": 64, "epochs": 60, "log_every": 20},
    )
    assert (run.best.name, run.best.higher_is_better) == ("mean_absolute_error", False)
    start = nn.functional.l1_loss(run.model(sources["test"].images), sources["test"].targets).item()
    assert run.fit() == "done"
    outputs = run.model(sources["test"].images)
    assert outputs.shape == (64, 3)
    end = nn.functional.l1_loss(outputs, sources["test"].targets).item()
    assert end < 0.05 < start
    assert run.best.score <= end * 1.001
    torch.testing.assert_close(run.model[1].weight.T, rule, atol=0.05, rtol=0)


def test_targets_without_classes_must_be_rows_of_numbers(make, registry, tmp_path):
    numbers = given(Memory(torch.arange(40), ()))
    line = refused(make, tmp_path, data=numbers, augment=[], run={"batch": 8})
    assert line == "loss: it takes classes, but the data has none: choose loss=mse loss.targets=values"
    mse = registry.entry("loss", "mse").options(targets="values")
    line = refused(make, tmp_path, data=numbers, augment=[], run={"batch": 8}, loss=mse)
    assert line == "data: a source without classes needs targets [n, outputs] to regress, not [2]"


@dataclass
class Bare(Loss):
    """A loss without metrics."""

    def build(self) -> LossFunction:
        class Function(LossFunction):
            metrics: dict[str, bool] = {}  # noqa: RUF012
            reduction = "mean"

            def __call__(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
                return nn.functional.cross_entropy(outputs, targets, reduction="sum")

            def measure(self, outputs: Any, targets: torch.Tensor) -> list[torch.Tensor]:
                return []

        return Function()


def test_a_loss_without_metrics_is_itself_what_is_watched(make):
    run = make("run", loss=Bare(), run={"epochs": 1, "patience": 3})
    assert (run.best.name, run.best.higher_is_better) == ("loss", False)
    run.fit()
    assert 0 < run.best.score < 2.4


def test_resuming_where_no_checkpoint_was_saved_begins_anew(make):
    stopped = make("run")
    stopped.lock.close()
    run = make("run", resume="auto", run={"steps": 2})
    assert run.position.step == 0
    assert run.fit() == "done"


def test_resuming_among_damaged_checkpoints_alone_is_refused(make, tmp_path):
    run = make("run", run={"steps": 2})
    run.fit()
    run.lock.close()
    (folder,) = manifest.checkpoints(tmp_path / "run")
    (folder / manifest.NAME).write_text("{")
    with pytest.raises(UsageError) as caught:
        make("run", resume="auto", run={"steps": 2})
    assert str(caught.value) == (
        f"resume=auto: no checkpoint in out={tmp_path / 'run'} is whole; give another out= to start anew"
    )
    assert folder.is_dir()


@pytest.mark.parametrize("what", ["run", "checkpoint"])
def test_a_run_is_not_continued_into_the_folder_of_another(make, tmp_path, what):
    for name, steps in (("a", 2), ("b", 3)):
        run = make(name, run={"steps": steps})
        run.fit()
        run.lock.close()
    before = {p: p.read_bytes() for p in sorted((tmp_path / "b").rglob("*")) if p.is_file()}
    source = tmp_path / "a" if what == "run" else manifest.folder_of(tmp_path / "a", 2)
    with pytest.raises(UsageError, match="b holds a run already"):
        make("b", resume=str(source), run={"steps": 9})
    assert before == {p: p.read_bytes() for p in before}


def test_a_checkpoint_beyond_the_runs_end_is_refused(make, tmp_path):
    run = make("run", run={"steps": 4})
    run.fit()
    run.lock.close()
    with pytest.raises(UsageError, match=r"is after step 4, this run ends at step 3: raise run\.epochs"):
        make("run", resume="auto", run={"steps": 3})


def test_an_output_folder_that_is_a_file_is_told_and_kept(make, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written"):
        make("run")
    assert (tmp_path / "run").read_text() == "mine"


def test_the_example_is_two_samples_whatever_the_batch(make):
    example = make("run", model=Tiny(width=2)).loader.example()
    assert isinstance(example, Batch)
    assert len(example) == len(example.images) == len(example.targets) == 2


def test_regression_loss_on_classes_is_refused(make, registry, tmp_path):
    mse = registry.entry("loss", "mse").options(targets="values")
    assert (
        refused(make, tmp_path, loss=mse)
        == "loss: it takes rows of numbers, but the data has 10 classes: choose another"
    )
